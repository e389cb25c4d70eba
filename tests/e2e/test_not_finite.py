"""NaN and infinities at every place of a step: the optimiser does not move, and the run resumes as if nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paragator import records
from paragator.cli.main import run
from paragator.config import ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Group
from paragator.engines.local.loading import load_model
from paragator.training import loop, warmup
from paragator.training import policy as policy_module
from paragator.training.policy import Policy

Cli = Callable[..., int]
WORDS = ("--train.checkpoint_every", "100", "--eval.around_training", "false", "--train.updates", "2")
FAULT_AT = 2
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(toy))
        assert run(["train", str(toy / "toy.toml"), *WORDS]) == 0
    return folder / "runs" / "toy"


def same_end(run_dir: Path, whole: Path) -> bool:
    """Whether two runs left the same weights, optimiser state, traces and metrics (seconds left out)."""
    files = [f"checkpoints/step_3/{name}" for name in ("weights.safetensors", "optimizer.safetensors")]
    bytes_ = all((run_dir / name).read_bytes() == (whole / name).read_bytes() for name in [*files, "traces.jsonl"])

    def told(folder: Path) -> list[dict[str, Any]]:
        rows = records.read_json_lines(folder / "metrics.jsonl")
        return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]

    return bytes_ and told(run_dir) == told(whole)


Fault = Callable[[pytest.MonkeyPatch], None]


def in_step(change: Callable[[Policy, Any], Any]) -> Fault:
    """A fault that `change(policy, sample)` makes before a step; it returns the `sample` that the step is to use."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        real = loop.step

        def step(number: int, problems: Any, sample: Any, task: Any, policy: Policy, recipe: Any) -> Awaitable[Any]:
            sample = change(policy, sample) if number == FAULT_AT else sample
            return real(number, problems, sample, task, policy, recipe)

        monkeypatch.setattr(loop, "step", step)

    return patch


def sampled(value: float, stage_wanted: str) -> Fault:
    """The last rollout of each group of a stage has this log-probability for its first token."""

    def change(policy: Policy, sample: Any) -> Any:
        async def changed(prompt: Any, n: int, *, stage: Any, seed: int) -> Group:
            group = await sample(prompt, n, stage=stage, seed=seed)
            *others, last = group.outputs
            if stage == stage_wanted:
                last = replace(last, logprobs=(value, *last.logprobs[1:]))
            return replace(group, outputs=(*others, last))

        return changed

    return in_step(change)


def rewarded(value: float) -> Fault:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        import toy_reward  # type: ignore[import-not-found]

        real = toy_reward.score
        bad = {f"train{4 * (FAULT_AT - 1)}"}  # four problems a step
        monkeypatch.setattr(toy_reward, "score", lambda p, ts: [value if p.id in bad and x else x for x in real(p, ts)])

    return patch


def log_probs_times(value: float) -> Fault:
    def change(policy: Policy, sample: Any) -> Any:
        real = policy_module.log_probs
        policy_module.log_probs = lambda *args: real(*args) * value
        return sample

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(policy_module, "log_probs", policy_module.log_probs)  # put back after the test
        in_step(change)(monkeypatch)

    return patch


def weights_are(value: float) -> Fault:
    def change(policy: Policy, sample: Any) -> Any:
        with torch.no_grad():
            policy.raw.model.layers[0].mlp.down_proj.weight[0, 0] = value
        return sample

    return in_step(change)


def gradients_times(value: float) -> Fault:
    def change(policy: Policy, sample: Any) -> Any:
        policy.raw.model.norm.weight.register_hook(lambda gradient: gradient * value)
        return sample

    return in_step(change)


FAULTS = {
    "reward 1e45": (rewarded(1e45), "the credit is not finite, so no weight was changed; bound the rewards"),
    "reward -1e300": (rewarded(-1e300), "the credit is not finite"),
    "reward 1e38": (rewarded(1e38), "the gradient's norm is not finite"),
    "sampled nan": (sampled(math.nan, "generate"), "a sampled log-probability is not finite"),
    "sampled -inf": (sampled(-math.inf, "aggregate"), "a sampled log-probability is not finite"),
    "logits nan": (log_probs_times(math.nan), "a log-probability of the model is not finite"),
    "logits inf": (log_probs_times(math.inf), "a log-probability of the model is not finite"),
    "weights nan": (weights_are(math.nan), "a sampled log-probability is not finite"),
    "gradient nan": (gradients_times(math.nan), "the gradient's norm is not finite"),
    "gradient inf": (gradients_times(math.inf), "the gradient's norm is not finite"),
    "gradient 1e38": (gradients_times(1e38), "the gradient's norm is not finite"),
    "importance weight": (sampled(-200.0, "generate"), "an importance weight is not finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_value_that_is_not_finite_ends_the_run_resumable(
    cli: Cli, whole: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line; the resumed run ends in the very bytes of an undisturbed one. Broken weights are not written."""
    fault, wanted = FAULTS[name]
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(RunError, match=rf"^step {FAULT_AT}: {wanted}[^\n]*--resume") as caught:
            cli("train", *WORDS)
    assert caught.value.exit_code == 1
    kept = [] if name == "weights nan" else ["step_1"]
    assert [p.name for p in Path("runs/toy").glob("checkpoints/*")] == kept
    assert cli("train", *WORDS, "--resume") == 0
    assert same_end(Path("runs/toy"), whole)


def test_a_reward_that_is_not_a_number_keeps_the_steps_before(
    cli: Cli, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (math.nan, math.inf):
        with monkeypatch.context() as patch:
            rewarded(value)(patch)
            with pytest.raises(UsageError, match="return a finite number, or None"):
                cli("train", *WORDS, "--overwrite")
        assert [p.name for p in Path("runs/toy/checkpoints").iterdir()] == ["step_1"]
        assert cli("train", *WORDS, "--resume") == 0
        assert same_end(Path("runs/toy"), whole)


def test_as_many_updates_as_allowed_are_skipped_and_counted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The skipped step changes neither weights nor moments; the count goes on over a resume, and one more ends the run."""
    words = ("--eval.around_training", "false", "--train.checkpoint_every", "1", "--train.max_refused", "1")
    with monkeypatch.context() as patch:
        gradients_times(math.nan)(patch)  # from step 2 on
        with pytest.warns(
            UserWarning, match="step 2: the gradient's norm is not finite; update skipped, 1 of 1 that may be"
        ):
            assert cli("train", *words, "--train.steps", "2") == 0
        steps = [Path(f"runs/toy/checkpoints/step_{n}") for n in (1, 2)]
        for name in ("weights.safetensors", "optimizer.safetensors"):
            assert (steps[0] / name).read_bytes() == (steps[1] / name).read_bytes()
        rows = list(records.read_json_lines(Path("runs/toy/metrics.jsonl")))
        assert [(row["updated"], row.get("refused")) for row in rows] == [(1.0, None), (0.0, 1.0)]
        monkeypatch.setattr(f"{__name__}.FAULT_AT", 3)
        with pytest.raises(RunError, match=r"^step 3: the gradient's norm .*a higher train.max_refused"):
            cli("train", *words, "--train.steps", "3", "--resume")
    assert cli("train", *words[:-1], "0", "--train.steps", "3", "--resume") == 0  # without the fault


@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_a_checkpoint_that_is_not_finite_replaces_no_good_one(
    cli: Cli, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and moments are looked at when they are written, whatever made them so."""
    update = Policy.update

    def poisoned(self: Policy, trees: Any, number: int, constants: Any) -> dict[str, float]:
        found = update(self, trees, number, constants)
        parameter = next(self.raw.parameters())
        bad = parameter.data if where == "weights" else self.optimizer.state[parameter]["exp_avg_sq"]
        if number == 3:
            bad.view(-1)[-1] = math.inf
        return found

    words = ("--train.checkpoint_every", "1", "--eval.around_training", "false")
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "update", poisoned)
        with pytest.raises(RunError, match=r"step_3 is not written, since .* is not finite"):
            cli("train", *words)
    left = sorted(Path("runs/toy/checkpoints").iterdir())
    assert [path.name for path in left] == ["step_1", "step_2"]
    for path in left:
        assert all(torch.isfinite(t).all() for file in path.glob("*.safetensors") for t in load_file(file).values())
    assert not Path("runs/toy/model").exists()
    assert cli("train", *words, "--resume") == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_warm_up_takes_no_step_that_is_not_finite(toy: Path, value: float) -> None:
    model, _ = load_model(ModelConfig(path=str(toy / "model"), device="cpu"))
    model.model.norm.weight.register_hook(lambda gradient: gradient * value)
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: p.clone() for name, p in model.named_parameters()}
    batch = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5)
    with pytest.raises(RunError, match="the gradient is not finite, so no weight was changed"):
        warmup.update(model, optimizer, [batch])
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
