"""Training one step ahead in one process: which weights sampled each step, what corrects for them, and resuming."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import paragator
from paragator import records
from paragator.config import ModelConfig
from paragator.core.errors import UsageError
from paragator.engines.local import loading
from paragator.settings import load
from paragator.training.policy import Policy
from paragator.training.rows import Tree

Cli = Callable[..., int]
AHEAD = ("--train.ahead", "1", "--train.steps", "5", "--train.checkpoint_every", "1", "--train.keep_every", "1")
AHEAD += ("--eval.around_training", "false")
pytestmark = pytest.mark.e2e


def metrics(name: str) -> list[dict[str, Any]]:
    """A run's metrics without times."""
    found = records.read_json_lines(Path("runs") / name / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("seconds") and k != "overlap"} for row in found]


@torch.no_grad()
def distance(model: Any, trees: Sequence[Tree]) -> float:
    """The largest difference between log-probabilities as sampled and the model's, in a forward pass of each row alone."""
    most = 0.0
    for tree in trees:
        for one in tree.branches:
            ids = torch.tensor([[*tree.prompt_ids, *one.token_ids]])
            logs = model(ids).logits[0, len(tree.prompt_ids) - 1 : -1].log_softmax(-1)
            own = logs.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            most = max(most, float((own - torch.tensor(one.logprobs)).abs().max()))
    return most


@pytest.mark.parametrize("words", [(), ("--model.lora_rank", "4")], ids=["whole", "adapters"])
def test_each_step_is_sampled_by_the_weights_of_one_version_before(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    versions: list[Any] = []
    sampled_by: list[int] = []
    update = Policy.update

    def noted(self: Policy, trees: Sequence[Tree], step: int, constants: Any) -> dict[str, float]:
        versions.append(copy.deepcopy(self.model))
        far = [distance(model, trees) for model in versions]
        sampled_by.append(far.index(min(far)))
        assert min(far) < 1e-5 and sum(x < 1e-3 for x in far) == 1
        frozen = {id(p) for p in self.model.parameters() if not p.requires_grad}
        assert {id(p) for p in self.raw.parameters()} & {id(p) for p in self.model.parameters()} == frozen
        return update(self, trees, step, constants)

    monkeypatch.setattr(Policy, "update", noted)
    assert cli("train", *AHEAD, *words) == 0
    assert sampled_by == [0, 0, 1, 2, 3]
    found = metrics("toy")
    assert [row["staleness"] for row in found] == [0, 1, 1, 1, 1] and all(row["updated"] == 1 for row in found)
    assert found[0]["mismatch_kl"] < 1e-9 and found[0]["weight"] == pytest.approx(1, abs=1e-5)
    for row in found[1:]:
        assert 1e-8 < row["mismatch_kl"] < 0.1 and row["weight"] != pytest.approx(1, abs=1e-5)


def test_the_newest_weights_are_exported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[Policy] = []
    monkeypatch.setattr(Policy, "close", lambda self: policies.append(self))
    assert cli("train", *AHEAD) == 0
    exported, _ = loading.load_model(ModelConfig(path="runs/toy/model"))
    newest = policies[0].tensors()
    assert all(torch.equal(p, newest[name]) for name, p in exported.named_parameters())


def test_it_is_reproducible_and_on_policy_again_in_the_first_step_after_resuming(cli: Cli) -> None:
    """As on servers: the batch under way is dropped with the run, and sampled again from the newest weights."""
    assert cli("train", *AHEAD, "--name", "a") == cli("train", *AHEAD, "--name", "b") == 0
    assert metrics("a") == metrics("b")
    assert Path("runs/a/traces.jsonl").read_bytes() == Path("runs/b/traces.jsonl").read_bytes()
    for name in ("a", "b"):
        for step in (4, 5):
            shutil.rmtree(f"runs/{name}/checkpoints/step_{step}")
        shutil.rmtree(f"runs/{name}/model")
        assert cli("train", *AHEAD, "--name", name, "--resume") == 0
    assert metrics("a") == metrics("b")
    assert [row["staleness"] for row in metrics("a")] == [0, 1, 1, 0, 1]
    assert metrics("a")[3]["mismatch_kl"] < 1e-9


def test_an_engine_from_python_must_say_when_its_weights_change(toy: Path) -> None:
    async def engine(*_: Any, **__: Any) -> Any: ...

    with pytest.raises(UsageError, match=r"train.ahead = 1 with an engine from Python needs its publish"):
        paragator.train(load(paragator.Config, toy / "toy.toml", ["--train.ahead=1"]), engine=engine)


def test_without_it_nothing_is_published_or_weighed(cli: Cli) -> None:
    assert cli("train", "--eval.around_training", "false") == 0
    for row in records.read_json_lines(Path("runs/toy/metrics.jsonl")):
        assert not {"staleness", "overlap", "seconds/publish"} & row.keys() and row["truncated_weights"] == 0
