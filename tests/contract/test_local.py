"""`Local`: the in-process engine of scripts, on a model folder; what it samples is what the engine under it samples."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Prompt
from paragator.engines.local.loading import load_model
from paragator.engines.local.public import Local
from paragator.engines.sampling import Sampling

SAMPLING = Sampling(max_tokens=6)
CONTEXT = 64
"""Of the model in conftest.py."""


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def local(folder) -> Local:
    return Local(str(folder), sampling=SAMPLING, device="cpu", threads=1)


def test_it_samples_what_the_engine_under_it_samples(local, make_engine, ask):
    (found,), (expected,) = ask(local, ("w1 w2", 3, 5)), ask(make_engine(max_tokens=6), ("w1 w2", 3, 5))
    assert [o.token_ids for o in found.outputs] == [o.token_ids for o in expected.outputs]
    assert all(isinstance(o, Completion) for o in found.outputs)


def test_it_is_loaded_once_whoever_asks_first(local, monkeypatch, ask):
    loads = []
    monkeypatch.setattr(
        "paragator.engines.local.loading.load_model", lambda config: loads.append(config) or load_model(config)
    )

    async def all_at_once() -> None:
        await asyncio.gather(local.connect(), local.connect(), local(Prompt("w1"), 1, stage="aggregate", seed=0))

    asyncio.run(all_at_once())
    assert local.count(Prompt("w1 w2")) == 3
    ask(local, ("w1", 1, 0))  # another event loop
    assert len(loads) == 1
    local.close()
    ask(local, ("w1", 1, 0))
    assert len(loads) == 2


def test_facts_and_fit_need_no_weights(local):
    assert local.context == CONTEXT and local.facts.context == CONTEXT and len(local.facts.fingerprint) == 16
    assert local.misfit(CONTEXT - 6, 6) is None
    assert "exceeds the context" in str(local.misfit(CONTEXT - 5, 6))
    assert local._loading is None
    asyncio.run(local.connect())
    assert local.context == CONTEXT


def test_a_prompt_that_does_not_fit_is_a_failure(local, ask):
    (group,) = ask(local, (" ".join(["w1"] * CONTEXT), 2, 0))
    assert all(isinstance(o, Failure) for o in group.outputs)


def test_each_stage_has_its_own_sampling(folder, ask):
    local = Local(str(folder), sampling={"generate": SAMPLING, "aggregate": Sampling(max_tokens=2)}, device="cpu")
    (long,), (short,) = ask(local, ("w1", 8, 0)), ask(local, ("w1", 8, 0), stage="aggregate")
    assert max(len(o.token_ids) for o in short.outputs) == 2 < max(len(o.token_ids) for o in long.outputs)
    only = Local(str(folder), sampling={"generate": SAMPLING}, device="cpu")
    with pytest.raises(UsageError, match="aggregate"):
        ask(only, ("w1", 1, 0), stage="aggregate")


def test_what_cannot_be_loaded_is_a_usage_error_every_time(folder):
    with pytest.raises(UsageError, match="no such folder"):
        Local("./nowhere")
    with pytest.raises(UsageError, match="threads = 0"):
        Local(threads=0)
    (folder / "model.safetensors").write_bytes(b"no weights")
    broken = Local(str(folder), device="cpu")
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot be loaded"):
            asyncio.run(broken.connect())
    broken.close()


def test_it_is_importable_without_torch():
    code = "import sys, paragator.engines.local.public as p; p.Local(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_in_process_engine_loads_nothing_of_the_http_stack():
    code = (
        "import sys, paragator.engines.local.public, paragator.engines.local.transformers;"
        "found = [m for m in sys.modules if m.startswith(('paragator.engines.http', 'tenacity', 'aiohttp'))];"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
