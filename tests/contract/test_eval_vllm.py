"""An evaluation over servers of its own: it asks all of them, and called again it asks nothing twice."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from servers import Server, running

SCRIPT = Path(__file__).parents[2] / "scripts" / "eval_vllm.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("eval_vllm", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def completions(server: Server) -> int:
    return sum(call.path.endswith("/chat/completions") for call in server.calls)


def test_both_servers_are_asked_and_a_second_call_resumes(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = [Server(model="policy") for _ in range(3)]
    free = iter(fakes)
    asked_for: list[tuple[Path, Sequence[str]]] = []

    @asynccontextmanager
    async def served(python: str, model: Path, log: Path, arguments: Sequence[str]) -> AsyncIterator[str]:
        asked_for.append((model, arguments))
        yield next(free).url

    monkeypatch.setattr(script, "served", served)
    config = tmp_path / "config.toml"
    config.write_text(
        f'name = "two"\nruns = "{tmp_path}"\n[model]\npath = "{tmp_path}/model"\n[task]\nname = "arithmetic"\n[engine]\n'
        'kind = "openai"\nvllm_arguments = ["--block-size", "32"]\n[eval]\nproblems = 4\nstrategies = ["majority:n=2"]\n'
    )
    with ExitStack() as stack:
        for fake in fakes:
            stack.enter_context(running(fake))
        assert asyncio.run(script.main(str(config), 2, [])) == 0
        assert sum(map(completions, fakes)) == 8 and all(map(completions, fakes[:2]))
        assert asked_for == [(tmp_path / "model", ["--block-size", "32", "--dtype", "float32"])] * 2
        found = json.loads((tmp_path / "two" / "strategies.json").read_text())
        assert found["strategies"]["majority:n=2"]["requests"]["mean"] == 2

        more = ["--strategy", "majority:n=2", "--strategy", "majority:n=3"]
        assert asyncio.run(script.main(str(config), 1, more)) == 0
        assert completions(fakes[2]) == 4
