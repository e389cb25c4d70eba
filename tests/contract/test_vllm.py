"""Weights on their way to vLLM: whole or not there, untied, between requests only; and, where vLLM is at hand, for real."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragator.core.errors import RunError, UsageError
from paragator.core.types import Prompt
from paragator.engines.openai import OpenAIEngine
from paragator.engines.sampling import Sampling
from paragator.engines.vllm import VllmEngine, served, written

ROOT = Path(__file__).parents[2]
PYTHON, MODEL = ROOT / ".venv-vllm" / "bin" / "python", ROOT / "models" / "smollm2-135m"
SAMPLING = {"generate": Sampling(1.0, 8), "aggregate": Sampling(1.0, 8)}


def exported(folder: Path, *, tied: bool = True, scale: float = 1.0) -> None:
    save_file({"model.embed_tokens.weight": torch.full((3, 2), scale)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied, "hidden_size": 2}))


class Told(VllmEngine):
    """Keeps what the server would be told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(OpenAIEngine("http://localhost:1/v1", "policy", sampling=SAMPLING), folder)
        self.told: list[tuple[str, Mapping[str, Any]]] = []

    async def tell(self, path: str, body: Mapping[str, object]) -> None:
        self.told.append((path, body))


def test_a_version_is_written_whole_and_untied(tmp_path: Path) -> None:
    target = written(exported, tmp_path / "weights", 3)
    assert [p.name for p in target.parent.iterdir()] == ["version_3"]
    tensors = load_file(target / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_model_of_two_matrices_is_left_alone(tmp_path: Path) -> None:
    target = written(lambda folder: exported(folder, tied=False), tmp_path, 0)
    assert list(load_file(target / "model.safetensors")) == ["model.embed_tokens.weight"]


def test_an_export_that_fails_leaves_no_version(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        written(broken, tmp_path, 1)
    assert not list(tmp_path.glob("version_*"))


def test_publishing_reloads_then_forgets_prefixes_and_keeps_one_version(tmp_path: Path) -> None:
    engine = Told(tmp_path)
    for version in (0, 1):
        asyncio.run(engine.publish(exported, version))
    assert engine.version == 1 and [p.name for p in tmp_path.iterdir()] == ["version_1"]
    assert [path for path, _ in engine.told[-2:]] == ["/collective_rpc", "/reset_prefix_cache"]
    assert engine.told[-2][1]["kwargs"] == {"weights_path": str(tmp_path / "version_1")}


def test_no_rollout_spans_two_versions(tmp_path: Path) -> None:
    engine = Told(tmp_path)
    engine.flying = 1
    with pytest.raises(RunError, match="1 rollouts are under way"):
        asyncio.run(engine.publish(exported, 1))
    engine.flying, engine.publishing = 0, True
    with pytest.raises(RunError, match="two versions"):
        asyncio.run(engine(Prompt("x"), 1, stage="generate", seed=0))


def test_a_server_that_ends_at_once_says_where_to_look(tmp_path: Path) -> None:
    async def start() -> None:
        async with served(sys.executable, tmp_path, tmp_path / "vllm.log"):
            pass

    with pytest.raises(RunError, match=r"vLLM ended with code \d+ before it was ready; see .*vllm.log"):
        asyncio.run(start())


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    async def start() -> None:
        async with served("/no/such/python", tmp_path, tmp_path / "vllm.log"):
            pass

    with pytest.raises(UsageError, match="run `make vllm`"):
        asyncio.run(start())


@pytest.mark.vllm
@pytest.mark.slow
def test_real_vllm_samples_from_the_published_weights(tmp_path: Path) -> None:
    """After a publish its log-probabilities are those of the new weights (a tied output layer would keep the old ones)."""
    if not PYTHON.is_file() or not (MODEL / "config.json").is_file():
        pytest.skip("needs `make vllm` and `make smollm2`")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    arguments = ["--enforce-eager", "--distributed-executor-backend", "uni", "--dtype", "float32"]
    arguments += ["--max-model-len", "512", "--gpu-memory-utilization", "0.2"]

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    async def trial() -> float:
        first = written(export, tmp_path / "weights", 0)
        async with served(str(PYTHON), first, tmp_path / "vllm.log", arguments) as url:
            endpoint = OpenAIEngine(url, "policy", sampling=SAMPLING, tokenizer=tokenizer)
            await endpoint.served_model()
            engine = VllmEngine(endpoint, tmp_path / "weights")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            await engine.publish(export, 1)
            group = await engine(Prompt("What is 3 + 4?", True), 4, stage="generate", seed=1)
            await engine.close()
        worst = 0.0
        for output in group.completions:
            ids = torch.tensor([[*(group.prompt_ids or ()), *(output.token_ids or ())]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(group.prompt_ids or ()) - 1 : -1]
            expected = torch.log_softmax(logits, -1)[range(len(output.token_ids or ())), list(output.token_ids or ())]
            worst = max(worst, float((expected - torch.tensor(output.logprobs)).abs().max()))
        assert len(group.completions) == 4
        return worst

    assert asyncio.run(trial()) < 1e-3
    shutil.rmtree(tmp_path / "weights")
