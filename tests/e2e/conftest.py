"""A toy that runs in seconds: a random one-layer model, a data set with a reward that gives signal, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paragator.cli.main import run
from paragator.engines.local.compute import set_threads
from paragator.tasks.demonstrations import LARGEST, WORDS
from paragator.training.warmup import WarmupConfig, build_model, build_tokenizer, export

REWARD = """\
import zlib

def score(problem, texts):
    return [float(zlib.crc32((problem.id + t).encode()) % 2) for t in texts]
"""
Cli = Callable[..., int]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices: threads only get in the way, and one thread is reproducible."""
    set_threads(1)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, train.jsonl, test.jsonl, toy_reward.py and toy.toml."""
    folder = tmp_path_factory.mktemp("toy")
    words = [*WORDS, *map(str, range(LARGEST + 1))]
    model = build_model(WarmupConfig(output="", width=32, layers=1, context=160), len(words))
    tokenizer = build_tokenizer(words)
    export(model, tokenizer, folder / "model")
    settings = json.loads((folder / "model" / "generation_config.json").read_text())
    settings["eos_token_id"] = list(range(2, 60))  # one token in three ends a completion, so that few are cut off
    (folder / "model" / "generation_config.json").write_text(json.dumps(settings))
    for name, first in (("train", 0), ("test", 100)):
        rows = [{"id": f"{name}{i}", "problem": f"{first + i} 2 -> {i}", "answer": i} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy_reward.py").write_text(REWARD)
    (folder / "toy.toml").write_text(f"""
name = "toy"
[model]
path = "{folder}/model"
[task]
name = "jsonl"
path = "{folder}/train.jsonl"
held_out_path = "{folder}/test.jsonl"
reward = "toy_reward:score"
[method]
k = 2
[rollout]
candidates = 4
pool_size = 2
[generate]
max_tokens = 8
[aggregate]
max_tokens = 8
[train]
steps = 3
problems = 4
precision = "float32"
checkpoint_every = 2
threads = 1
[optimizer]
lr = 0.01
warmup_steps = 0
[eval]
problems = 3
rounds = 1
""")
    return folder


@pytest.fixture
def cli(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a verb on the toy's config in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy))

    def call(verb: str, *words: str) -> int:
        return run([verb, str(toy / "toy.toml"), *words])

    return call
