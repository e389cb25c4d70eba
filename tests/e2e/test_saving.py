"""Checkpoints and evaluations while training: when they are written, which stay, and that nobody who watches changes a run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paragator
from paragator import records
from paragator.core.errors import UsageError
from paragator.report import page
from paragator.results import EvalResult, TrainResult
from paragator.runs import evaluate, events, trackers, train
from paragator.runs.events import Events
from paragator.settings import load
from paragator.stats.curves import best_step
from paragator.training import loop
from paragator.training.recipe import Schedule

Cli = Callable[..., int]
PLAIN = ("--eval.around_training", "false", "--train.checkpoint_every", "100")
pytestmark = pytest.mark.e2e


def rows(path: Path) -> list[dict[str, Any]]:
    return list(records.read_json_lines(path))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run, seconds left out."""
    found = rows(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in found]


def saved(run_dir: Path) -> set[int]:
    """The steps of a run's checkpoints."""
    return {int(path.name[5:]) for path in (run_dir / "checkpoints").iterdir()}


def trained(run_dir: Path) -> dict[str, bytes]:
    """The exported weights and the last checkpoint, as bytes."""
    last = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    files = [run_dir / "model" / "model.safetensors", *last.glob("*.safetensors")]
    return {path.name: path.read_bytes() for path in files}


# ---- when, and which stay --------------------------------------------------------------------------------------------


def test_a_checkpoint_follows_whichever_is_due() -> None:
    schedule = Schedule(steps=50, problems=1, checkpoint_every=20, seed=0, checkpoint_minutes=10, eval_every=8)
    assert [n for n in range(1, 51) if schedule.is_saved(n, 0.0)] == [8, 16, 20, 24, 32, 40, 48, 50]
    assert schedule.is_saved(3, 10.0) and not schedule.is_saved(3, 9.9)
    assert [n for n in range(51) if schedule.is_evaluated(n)] == [8, 16, 24, 32, 40, 48]


def test_slow_steps_are_saved_by_the_minute(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes four minutes of a pretended clock; every third is followed by a checkpoint."""
    now = 0.0
    real = loop.step

    async def slow(*args: Any) -> Any:
        nonlocal now
        now += 240
        return await real(*args)

    monkeypatch.setattr(loop, "step", slow)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    assert cli("train", *PLAIN, "--train.steps", "7", "--train.keep_last", "9") == 0
    assert saved(Path("runs/toy")) == {3, 6, 7}


@pytest.mark.parametrize(("better", "stay"), [(4, {3, 6, 8, 4}), (8, {3, 6, 8})])
def test_the_last_the_regular_and_the_best_checkpoint_stay(
    cli: Cli, better: int, stay: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second or the last of four evaluations is made the best; without keep_best its checkpoint goes too."""
    table = EvalResult.table

    def shown(self: EvalResult) -> Any:
        found = table(self)
        share = 1.0 if self.traces[0].trace.extra.get("better") else 0.0
        cells = {key: cell.__class__(share, share, share) for key, cell in found.found.items()}
        return found.__class__(found.k, found.problems, found.traces, found.num_rounds, cells)

    measured = train.measured

    async def marked(asked: Any, sample: Any, output: Path, tally: Any) -> Any:
        found = await measured(asked, sample, output, tally)
        found[0].trace.extra["better"] = output.name == f"step_{better}.jsonl"
        return found

    monkeypatch.setattr(EvalResult, "table", shown)
    monkeypatch.setattr(train, "measured", marked)
    words = (
        *PLAIN,
        "--train.steps",
        "8",
        "--train.eval_every",
        "2",
        "--train.keep_last",
        "1",
        "--train.keep_every",
        "3",
    )
    assert cli("train", *words) == 0
    assert saved(Path("runs/toy")) == stay
    result = TrainResult.read("runs/toy")
    assert result.best == Path(f"runs/toy/checkpoints/step_{better}") and [row["step"] for row in result.evals] == [
        2,
        4,
        6,
        8,
    ]
    assert cli("train", *words, "--train.keep_best", "false", "--train.keep_every", "0", "--resume") == 0
    assert saved(Path("runs/toy")) == {8}


def test_the_best_step() -> None:
    def row(step: int, *means: float | None) -> dict[str, Any]:
        return {"step": step, "rounds": [{"pass_at_1": None if m is None else {"mean": m}} for m in means]}

    assert best_step([]) is None and best_step([row(1, 0.5, None)]) is None
    assert best_step([row(1, 0.9, 0.1), row(2, 0.1, 0.3), row(3, 0.0, 0.3), row(4, 1.0, None)]) == 2


# ---- evaluation while training ---------------------------------------------------------------------------------------


def test_evaluations_while_training(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is that of the weights of its step; the last one is not made twice."""
    words = ("--train.steps", "4", "--train.eval_every", "2")
    assert cli("train", *words) == 0
    run_dir = Path("runs/toy")
    said = capsys.readouterr().out
    assert "evaluation after step 2: pass@1  round 0 " in said and "evaluation after step 4: " in said
    assert {path.name for path in (run_dir / "evals").iterdir()} == {"step_2.jsonl", "step_4.jsonl"}
    assert (run_dir / "evals" / "step_4.jsonl").read_bytes() == (run_dir / "eval_after.jsonl").read_bytes()
    assert '"evals":[{"step":' in (run_dir / "report.html").read_text()
    two, four = rows(run_dir / "evals.jsonl")
    assert two == {"step": 2, **EvalResult.read(run_dir / "evals" / "step_2.jsonl", 4).table().to_dict()}
    assert four["step"] == 4 and len(four["rounds"]) == 2
    assert cli("train", "--name", "two", "--train.steps", "2") == 0
    assert (run_dir / "evals" / "step_2.jsonl").read_bytes() == Path("runs/two/eval_after.jsonl").read_bytes()
    assert cli("train", *words[:2], "--train.eval_every", "3", "--resume", "--train.steps", "6") == 0
    assert [row["step"] for row in rows(run_dir / "evals.jsonl")] == [2, 4, 6]


def test_an_evaluation_while_training_is_completed_where_it_was_stopped(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in an evaluation after its first trace: the step is saved, and only what is missing is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy))

    class Stopping(Events):
        stopped = False

        def on_trace(self, record: Any, progress: Any) -> None:
            self.stopped = progress.what == "evals/step_2"

        def should_stop(self) -> bool:
            return self.stopped

    monkeypatch.setattr(evaluate, "AT_ONCE", 1)
    words = ["--train.steps=3", "--train.eval_every=2", "--eval.around_training=false"]
    config = load(paragator.Config, toy / "toy.toml", words)
    assert not paragator.train(config, events=Stopping()).finished
    part = Path("runs/toy/evals/step_2.jsonl")
    begun = part.read_bytes()
    assert 1 <= begun.count(b"\n") < 3 and not Path("runs/toy/evals.jsonl").exists() and saved(Path("runs/toy")) == {2}
    assert paragator.train(config, resume=True).finished
    whole = paragator.train(config.model_copy(update={"name": "whole"}))
    assert whole.finished and part.read_bytes() == Path("runs/whole/evals/step_2.jsonl").read_bytes()
    assert all(line in part.read_bytes().splitlines() for line in begun.splitlines())
    assert rows(Path("runs/toy/evals.jsonl")) == rows(Path("runs/whole/evals.jsonl"))
    assert metrics(Path("runs/toy")) == metrics(Path("runs/whole"))
    assert trained(Path("runs/toy")) == trained(Path("runs/whole"))


# ---- neutral observers -----------------------------------------------------------------------------------------------


def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "write_report", lambda run_dir: run_dir)


def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "append", lambda path, found: None)


def no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.Logged, "write", lambda self, line: None)


def global_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other code in this process draws from the global generators between steps."""
    real = loop.step

    async def step(*args: Any) -> Any:
        random.seed(time.time_ns())
        torch.manual_seed(time.time_ns())
        return await real(*args)

    monkeypatch.setattr(loop, "step", step)


def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is set back and forth by a year."""
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 31_536_000 * (-1) ** next(calls))


def tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that draws from the global generators, keeps what it is handed to change it, and fails at step 2."""

    class Watching:
        def __init__(self, config: Any, settings: Any) -> None:
            random.seed(torch.randint(1000, ()).item())

        def numbers(self, values: dict[str, float], step: int) -> None:
            torch.manual_seed(random.randrange(1000) + step)
            values.clear()
            if step == 2:
                raise OSError("the disk is full")

        def table(self, rows: Any, step: int) -> None:
            assert len(rows[0]) == len(trackers.COLUMNS)

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Watching)
    monkeypatch.setattr("paragator.runs.resolve.find_spec", lambda name: object())


OBSERVERS: dict[str, tuple[tuple[str, ...], Callable[[pytest.MonkeyPatch], None]]] = {
    "evaluation around": (("--eval.around_training", "true"), lambda patch: None),
    "evaluation while training": (("--train.eval_every", "1"), lambda patch: None),
    "checkpoints": (("--train.checkpoint_every", "1", "--train.keep_every", "2"), lambda patch: None),
    "no report": ((), no_report),
    "no traces": ((), no_traces),
    "no logs": ((), no_logs),
    "global generators": ((), global_generators),
    "clock": ((), jumping_clock),
    "tracker": (("--tracker", "tensorboard"), tracker),
}


@pytest.fixture(scope="module")
def alone(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody watches."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(toy))
        config = load(
            paragator.Config, toy / "toy.toml", [f"{k}={v}" for k, v in zip(PLAIN[::2], PLAIN[1::2], strict=True)]
        )
        paragator.train(config)
    return folder / "runs" / "toy"


@pytest.mark.parametrize("name", OBSERVERS)
def test_who_watches_changes_no_weight(cli: Cli, alone: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, patch = OBSERVERS[name]
    patch(monkeypatch)
    assert cli("train", *PLAIN, *words) == 0
    assert trained(Path("runs/toy")) == trained(alone)
    assert metrics(Path("runs/toy")) == metrics(alone)


def test_a_changed_meaning_is_refused_and_what_only_watches_is_not(cli: Cli) -> None:
    assert cli("train", *PLAIN, "--train.steps", "1") == 0
    free = (
        "--train.keep_last",
        "3",
        "--train.keep_every",
        "2",
        "--train.keep_best",
        "false",
        "--train.eval_every",
        "2",
    )
    assert cli("train", *PLAIN, *free, "--train.checkpoint_minutes", "1", "--train.steps", "2", "--resume") == 0
    with pytest.raises(UsageError, match=r"another optimizer\.lr \(0\.01 -> 0\.02\), train\.updates \(1 -> 2\)"):
        cli("train", *PLAIN, "--optimizer.lr", "0.02", "--train.updates", "2", "--resume")
