"""What a training meets: batches without signal, a full disk, a folder that takes nothing. One clear line, and resumable."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paragator import records
from paragator.cli.main import main, run
from paragator.core.types import Completion, Failure, Grade, Group, Prompt
from paragator.training import checkpoint, loop
from paragator.training.policy import Policy

Cli = Callable[..., int]
WORDS = (
    *("--eval.around_training", "false", "--train.checkpoint_every", "1", "--train.keep_last", "9"),
    *("--train.updates", "2", "--optimizer.weight_decay", "0.1", "--optimizer.schedule", "cosine"),
)
FAULT_AT = 2
SOURCE = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(toy))
        assert run(["train", str(toy / "toy.toml"), *WORDS]) == 0
    return left_by(folder / "runs" / "toy")


def left_by(run_dir: Path) -> dict[str, Any]:
    """Checkpoints, model and traces as bytes; metrics without seconds."""
    files = [path for name in ("checkpoints", "model") for path in (run_dir / name).rglob("*") if path.is_file()]
    rows = records.read_json_lines(run_dir / "metrics.jsonl")
    return {
        **{str(path.relative_to(run_dir)): path.read_bytes() for path in files},
        "traces": (run_dir / "traces.jsonl").read_bytes(),
        "metrics": [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows],
    }


# ---- batches without signal ------------------------------------------------------------------------------------------

Outputs = Callable[[Completion], Completion | Failure]


def cut(output: Completion) -> Completion:
    return replace(output, finish_reason="length")


def lost(output: Completion) -> Failure:
    return Failure("the server is gone")


def graded(grade: Grade) -> Callable[[Any, Any], list[Grade]]:
    return lambda problem, texts: [grade for _ in texts]


# what becomes of rollouts at one step, how they are graded there (None: as ever), what is warned of
IDLE: dict[str, tuple[Outputs | None, Any, str]] = {
    "truncated": (cut, None, "generate: every rollout was cut at max_tokens; aggregate: every rollout was cut at"),
    "all right": (
        None,
        graded(Grade("correct", "1")),
        "generate: the rewards of every group are alike; aggregate: the",
    ),
    "all wrong": (None, graded(Grade("incorrect", "1")), "generate: the rewards of every group are alike; aggregate: "),
    "unscored": (None, graded(Grade("unscored")), "generate: no rollout is scored; aggregate: no rollout is scored"),
    "failed": (lost, None, "generate: every rollout failed"),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_batch_without_signal_changes_no_bit_and_is_named(
    cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither weights nor moments, with weight decay, two updates and moments of a step before."""
    change, grade, warning = IDLE[name]
    real = loop.step

    def step(number: int, problems: Any, sample: Any, task: Any, policy: Policy, recipe: Any) -> Awaitable[Any]:
        async def changed(prompt: Prompt, n: int, *, stage: Any, seed: int) -> Group:
            group = await sample(prompt, n, stage=stage, seed=seed)
            return replace(group, outputs=tuple(change(output) for output in group.outputs)) if change else group

        if number != FAULT_AT:
            return real(number, problems, sample, task, policy, recipe)
        return real(number, problems, changed, replace(task, grade=grade or task.grade), policy, recipe)

    monkeypatch.setattr(loop, "step", step)
    with pytest.warns(UserWarning, match=rf"^step {FAULT_AT}: no weight was changed \({re.escape(warning)}"):
        assert cli("train", *WORDS) == 0
    first, second, third = (Path(f"runs/toy/checkpoints/step_{n}") for n in (1, 2, 3))
    for file in ("weights.safetensors", "optimizer.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes() != (third / file).read_bytes()
    assert [row["updated"] for row in records.read_json_lines(Path("runs/toy/metrics.jsonl"))] == [1.0, 0.0, 1.0]


# ---- a disk that takes nothing ---------------------------------------------------------------------------------------


def refuses(owner: Any, name: str, at: int, code: int, when: Callable[..., bool] = lambda *_: True) -> Any:
    """A patch: the `at`-th call of a function (of those that `when` counts) fails as a disk does."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        real, calls = getattr(owner, name), 0

        def failing(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += when(*args)
            if calls >= at and when(*args):
                raise OSError(code, os.strerror(code))
            return real(*args, **more)

        monkeypatch.setattr(owner, name, failing)

    return patch


DISKS: dict[str, tuple[Any, str]] = {
    "weights": (refuses(checkpoint, "save_file", 3, errno.ENOSPC), r"step_2 cannot be written \(No space left"),
    "moments": (refuses(checkpoint, "save_file", 4, errno.ENOSPC), r"step_2 cannot be written \(No space left"),
    "sync": (refuses(os, "fsync", 12, errno.EIO), r"step_2 cannot be written \(Input/output error\)"),
    "sync of traces": (refuses(os, "fsync", 11, errno.EIO), "runs/toy/traces.jsonl: Input/output error"),
    "rename": (refuses(Path, "rename", 2, errno.EROFS), r"step_2 cannot be written \(Read-only file system\)"),
    "folder": (
        refuses(Path, "mkdir", 3, errno.EROFS, lambda path, *_: path.name.endswith(".tmp")),
        r"step_2 cannot be written \(Read-only file system\)",
    ),
    "metrics": (
        refuses(records, "cut_torn_line", 2, errno.ENOSPC, lambda file: file.name.endswith("metrics.jsonl")),
        "metrics.jsonl: No space left on device",
    ),
    "traces": (
        refuses(records, "cut_torn_line", 2, errno.ENOSPC, lambda file: file.name.endswith("traces.jsonl")),
        "traces.jsonl: No space left on device",
    ),
    "model": (
        refuses(Policy, "export", 1, errno.ENOSPC),
        r"runs/toy/model cannot be written \(No space left on device\)",
    ),
}


@pytest.mark.parametrize("name", DISKS)
def test_a_disk_that_takes_nothing_ends_the_run_in_one_line_and_resumable(
    cli: Cli,
    toy: Path,
    whole: dict[str, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault, message = DISKS[name]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        fault(patch)
        patch.setattr(sys, "argv", ["paragator", "train", str(toy / "toy.toml"), *WORDS])
        main()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 1 and len(told) == 1 and re.search(message, told[0]), told
    assert not list(Path("runs/toy").rglob("*.tmp"))
    for path in checkpoint.steps(Path("runs/toy/checkpoints")):
        checkpoint.read(path)
    assert cli("train", *WORDS, "--resume") == 0
    assert left_by(Path("runs/toy")) == whole


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_file_that_cannot_grow_any_more(cli: Cli, toy: Path, whole: dict[str, Any]) -> None:
    """No pretence: the kernel refuses whatever would make a file longer than half of the weights."""
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{toy}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "paragator", "train", str(toy / "toy.toml"), *WORDS]
    limit = len(whole["checkpoints/step_1/weights.safetensors"]) // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: runs/toy/checkpoints/step_1 cannot be written (") and "File too large" in told
    assert cli("train", *WORDS, "--resume") == 0
    assert left_by(Path("runs/toy")) == whole
