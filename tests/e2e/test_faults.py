"""What a training meets: batches without signal, a full disk, a folder that takes nothing. One clear line, and resumable."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import idle_steps
from paragator import records
from paragator.cli.main import main, run
from paragator.training import checkpoint, loop
from paragator.training.policy import Policy

Cli = Callable[..., int]
WORDS = (
    *("--eval.around_training", "false", "--train.checkpoint_every", "1", "--train.keep_last", "9"),
    *("--train.updates", "2", "--optimizer.weight_decay", "0.1", "--optimizer.schedule", "cosine"),
)
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


def test_batches_without_signal_change_no_bit_and_are_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "step", idle_steps.step)
    with pytest.warns(UserWarning, match="no weight was changed") as warned:
        assert cli("train", *idle_steps.WORDS) == 0
    idle_steps.check(Path("runs/toy"), "\n".join(str(warning.message) for warning in warned))


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
