"""Training as a service: the same weights and gradients as in this process, whatever the service divides by; what is refused."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paragator.config import Config
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Failure, Prompt
from paragator.engines.local.loading import add_lora, load_model
from paragator.engines.tinker import Service, TinkerEngine
from paragator.runs.resolve import resolve, samplings
from paragator.runs.train import train
from paragator.settings import validate
from paragator.training.policy import Policy
from paragator.training.recipe import PolicySettings
from paragator.training.rows import Tree
from paragator.training.tinker import Reduction, RemoteAdapter, TinkerLearner, merge, probe
from tinker_service import Client, Fake, archive, installed
from toys import TREES, toy

SKYRL = Fake(by_length=True, by_number=True)


def config(folder: Path, **changed: Any) -> Config:
    """Three joint steps."""
    tables: dict[str, Any] = {
        "runs": str(folder),
        "model": {"lora_rank": 4},
        "method": {"k": 2},
        "rollout": {"candidates": 4, "pool_size": 2},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "train": {"backend": "tinker", "tinker_url": "http://here", "steps": 3, "problems": 2, "precision": "float32"},
        "eval": {"around_training": False},
    }
    for key, value in changed.items():
        section, _, name = key.partition("__")
        tables[section] = {**tables.get(section, {}), name: value}
    return validate(Config, tables)


def close(a: Path, b: Path, within: float) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all((first[n] - second[n]).abs().max() <= within for n in first)


@pytest.mark.parametrize(("service", "attempts"), [(Fake(), [3]), (SKYRL, [2, 3])], ids=["sums", "as SkyRL, resumed"])
def test_three_joint_steps_are_those_of_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: Fake, attempts: list[int]
) -> None:
    installed(monkeypatch, service := replace(service, clients=[], kept={}))
    seen: list[list[Tree]] = []
    real = TinkerLearner.update

    def update(self: TinkerLearner, trees: Any, *more: Any) -> dict[str, float]:
        seen.append(list(trees))
        return real(self, trees, *more)

    monkeypatch.setattr(TinkerLearner, "update", update)
    for steps in attempts:
        settings = config(tmp_path, train__steps=steps)
        result = asyncio.run(train(settings, resume=steps > attempts[0]))
    assert result.finished and len(service.clients) == 2 * len(attempts)
    assert {tree.stage for trees in seen for tree in trees} == {"generate", "aggregate"}
    policy = Policy(
        *load_model(settings.model.model_copy(update={"device": "cpu"}), settings.seed),
        PolicySettings.from_config(settings),
    )
    for trees, row in zip(seen, result.metrics, strict=True):
        alone = policy.update(trees, int(row["step"]), {})
        assert row["updated"] == alone["updated"] == 1 and alone["grad_norm"] > 0.01
        for name in alone:
            assert row[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-5), name
    policy.export(tmp_path / "alone")
    assert close(settings.run_dir / "model", tmp_path / "alone", 1e-5)
    before = load_file(Path(service.clients[0].model.config._name_or_path) / "model.safetensors")
    after = load_file(tmp_path / "alone" / "model.safetensors")
    assert max((before[n].float() - after[n]).abs().max() for n in before.keys() & after.keys()) > 1e-4


def adapter(service: Fake) -> RemoteAdapter:
    """A random adapter of a random model."""
    types = sys.modules["tinker"].types
    model = add_lora(toy(), 4)
    return RemoteAdapter(
        SimpleNamespace(types=types, url="u", asked=lambda what, call: call().value), Client(service, model)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("by_number", [False, True])
def test_the_probe_finds_what_a_service_divides_by(
    monkeypatch: pytest.MonkeyPatch, by_length: bool, by_number: bool
) -> None:
    installed(monkeypatch, service := Fake(by_length, by_number))
    probed = adapter(service)
    weights = {name: p.detach().clone() for name, p in probed.client.weights.items()}
    assert probe(probed) == Reduction(by_length, by_number)
    assert all(torch.equal(weights[name], p) for name, p in probed.client.weights.items())


@pytest.mark.parametrize(
    ("service", "why"),
    [
        (Fake(by_tokens=True), "not known"),
        (Fake(tells_norm=False), "tells no gradient norm"),
        (Fake(bounds=False), "does not bound"),
    ],
)
def test_a_service_that_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch, service: Fake, why: str) -> None:
    installed(monkeypatch, service)
    with pytest.raises(UsageError, match=why):
        probe(adapter(service))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("model__lora_rank", 0, "adapters only"),
        ("train__kl", 0.1, "no KL"),
        ("train__updates", 2, "set it to 1"),
        ("train__ratio", "sequence", "use 'token'"),
        ("train__router_loss", 0.1, "no such loss"),
        ("train__max_refused", 1, "cannot drop"),
        ("train__processes", 2, "one is enough"),
        ("stages__measure_every", 5, "keeps gradients"),
        ("aggregate__temperature", 0.7, "at temperature 1"),
        ("train__tinker_url", None, "TINKER_API_KEY is not set"),
    ],
)
def test_what_a_service_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: Any, why: str
) -> None:
    installed(monkeypatch, Fake())
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(UsageError, match=why) as caught:
        resolve(config(tmp_path, **{key: value}), training=True)
    assert "\n" not in str(caught.value)


def learner(service: Fake, **changed: Any) -> TinkerLearner:
    settings = PolicySettings.from_config(config(Path("runs")))
    optimizer = settings.optimizer.model_copy(update=changed)
    made = adapter(service)
    return TinkerLearner(
        made.service, made.client, Reduction(False, False), replace(settings, optimizer=optimizer), None
    )  # type: ignore[arg-type]


def test_nothing_that_is_not_finite_changes_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, service := Fake())
    one = learner(service, max_grad_norm=1e6)
    weights = {name: p.detach().clone() for name, p in one.adapter.client.weights.items()}
    bad = replace(TREES[0], branches=(replace(TREES[0].branches[0], credit=float("nan")),))
    with pytest.raises(RunError, match="step 4: the credit is not finite, so no weight was changed"):
        one.update([bad], 4, {})
    far = replace(TREES[0], branches=(replace(TREES[0].branches[0], logprobs=(-1e3,) * 3),))
    with pytest.raises(RunError, match="an importance weight is not finite"):
        one.update([far], 4, {})
    assert one.updates == 0 and all(torch.equal(weights[n], p) for n, p in one.adapter.client.weights.items())
    assert one.update([], 4, {})["updated"] == 0


@pytest.mark.parametrize("scale", [1e9, float("nan")])
def test_a_gradient_that_should_have_been_clipped_ends_the_run(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    installed(monkeypatch, service := Fake(scale=scale))
    one = learner(service)
    with pytest.raises(RunError, match="does not clip"):
        one.update(TREES, 1, {})
    assert one.updates == 1  # it has moved, so that nobody saves it as the step before


class Odd:
    """A handle that answers with given sequences, after doing something."""

    def __init__(self, *sequences: Any, then: Any = lambda: None) -> None:
        self.sequences, self.then = sequences, then

    async def sample_async(self, *asked: Any) -> Any:
        self.then()
        return SimpleNamespace(sequences=self.sequences)


def test_samples_that_cannot_be_trained_on_are_failures_and_mixed_versions_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch, Fake())
    settings, handles = config(tmp_path), [Odd()]
    engine = TinkerEngine(Service(settings), lambda: handles[-1], settings.model, samplings(settings))

    def asked(handle: Odd) -> Any:
        handles.append(handle)
        return asyncio.run(engine(Prompt("1 2 3"), 1, stage="generate", seed=2**62)).outputs[0]

    def sequence(tokens: list[int], logprobs: Any, why: str) -> Odd:
        return Odd(SimpleNamespace(tokens=tokens, logprobs=logprobs, stop_reason=why))

    end = engine.ends[0]
    assert asked(sequence([5, end], [-1.0, -2.0], "stop")).finish_reason == "stop"
    assert asked(sequence([5, 6], [-1.0, -2.0], "length")).token_ids == (5, 6)
    for wrong in (sequence([5, 6], [-1.0, -2.0], "stop"), sequence([5], None, "length"), sequence([], [], "length")):
        assert isinstance(asked(wrong), Failure)

    def fails() -> None:
        raise ValueError("no room for tml-none\nmore")

    assert asked(Odd(then=fails)).reason.endswith("failed at sampling (no room for ...)")
    with pytest.raises(RunError, match="weights changed"):
        asked(Odd(then=lambda: handles.append(Odd())))
    with pytest.raises(RunError, match="gave 0 samples"):
        asked(Odd())


@pytest.mark.parametrize("name", ["base_model.model.nowhere.lora_A.weight", "base_model.model.lm_head.weight"])
def test_an_adapter_that_fits_nowhere_is_refused(name: str) -> None:
    with pytest.raises(RunError, match="does not fit"):
        merge(toy(), archive({name: torch.ones(2, 2)}, {"r": 1, "lora_alpha": 1}))
    with pytest.raises(RunError, match="cannot be read"):
        merge(toy(), b"no archive")
