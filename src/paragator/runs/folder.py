"""Run directories: started, resumed or overwritten by one process at a time; their config, manifest and lock."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import paragator
from paragator.config import Config
from paragator.core.errors import ParagatorError, UsageError
from paragator.engines.local.loading import Facts
from paragator.settings import to_json

LOCK = "lock"
"""The file in a run directory that is locked by the process that works there."""


def is_used(run_dir: Path) -> bool:
    """Whether a run directory holds something."""
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    return bool(names - {"manifest.json", "config.new", LOCK})


def is_finished(run_dir: Path) -> bool:
    """Whether the run in a directory did all that it was asked, as far as its files tell."""
    try:
        asked = read_note(run_dir / "config.json")["eval"]
        wanted = asked["repeats"] * read_note(run_dir / "manifest.json")["held_out"]
    except (UsageError, LookupError, TypeError):
        return False
    if (run_dir / "model").is_dir() and not asked.get("around_training", True):
        return True
    files = [path for name in ("eval", "eval_after") if (path := run_dir / f"{name}.jsonl").is_file()]
    return any(sum(1 for _ in path.open("rb")) >= wanted for path in files)


def check_state(config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Whether the run directory holds something; UsageError where that does not fit what is asked. Costs nothing."""
    run_dir = config.run_dir
    used = is_used(run_dir)
    if used and overwrite and not (run_dir / "config.json").exists():
        raise UsageError(f"{run_dir} is not a run directory; choose another name")
    if used and not (overwrite or resume):
        state, more = ("is finished", "") if is_finished(run_dir) else ("is not finished", "--resume to continue it, ")
        raise UsageError(f"{run_dir} exists and {state}; add {more}--overwrite to start again, or --name OTHER")
    if resume and not used:
        raise UsageError(f"{run_dir} does not exist, so there is nothing to resume; leave --resume out")
    if used and not overwrite:
        check_same(run_dir, to_json(config))
    return used


@contextmanager
def open_run(config: Config, *, resume: bool, overwrite: bool, manifest: dict[str, Any]) -> Iterator[Path]:
    """The run directory, new, resumed or overwritten, this process's own until the block ends.

    It counts as a run once it holds its config, and no longer when it is then refused before anything came of it.
    UsageError where it is in use, or was started with an incompatible config.
    """
    run_dir = config.run_dir
    used = check_state(config, resume=resume, overwrite=overwrite)
    with locked(run_dir):
        if used and overwrite:
            clear(run_dir)
        elif used:
            check_weights(run_dir, config, manifest["model"])
            check_files(run_dir, config, manifest["files"])
        if not (run_dir / "config.json").is_file():
            (run_dir / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        write_whole(run_dir / "config.json", to_json(config) + "\n")
        try:
            yield run_dir
        except ParagatorError as error:
            for key, name in hooks_of(config).items():
                if str(error).startswith(f"{key.partition('.')[2]} {name} "):  # what it gave stays, and it may be fixed
                    note_files(run_dir, {k: v for k, v in manifest["files"].items() if k != key})
            if isinstance(error, UsageError) and not used and is_empty(run_dir):
                shutil.rmtree(run_dir)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which a process that was started with it keeps; UsageError while somebody else has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}); choose another folder") from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this system: nothing keeps a second process away
            pass
        except OSError:
            raise UsageError(f"{folder} is in use by another process; wait for it, or choose another name") from None
        yield


def is_empty(run_dir: Path) -> bool:
    """Whether nothing was sampled, graded or trained yet."""
    own = {"config.json", "manifest.json", LOCK}
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.parent.name != "logs")
    return not any(path.stat().st_size for path in files if path.name not in own)


def check_output(path: Path) -> None:
    """Refuse a file to which records cannot be appended, or that holds anything else."""
    start = b'{"version": '
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            head = file.read(len(start))
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written ({error.strerror}); name a file") from None
    if not start.startswith(head):
        raise UsageError(f"--output {path} holds something other than records; name another file")


def clear(folder: Path) -> None:
    """Remove all that a folder holds, but for its lock."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, whenever this process dies, finds the old text or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


OWN_WEIGHTS = ("transformers", "vllm")
"""Values of engine.kind whose model is the folder or hub id that model.path names."""
MAY_CHANGE = {
    "train.steps",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_last",
    "train.keep_every",
    "train.keep_best",
    "train.eval_every",
    "train.max_refused",
    "train.ahead",
    "train.threads",
    "train.backend",
    "train.tinker_url",
    "train.processes",
    "train.replicas",
    "train.tensor_parallel",
    "train.process_timeout_s",
    "tracker",
    "runs",
    "judge.key_env",
    "eval.max_cost",
    "eval.max_tokens_total",
    "eval.strategies",
    *(f"aggregate.{name}" for name in ("key_env", "key_file", "price_in", "price_out", "price_cached")),
} | {
    f"engine.{name}"  # where the model is served, how fast it may be asked and what it costs, not what it answers
    for name in (
        "url",
        "launch",
        "sync",
        "vllm_python",
        "vllm_arguments",
        "key_env",
        "key_file",
        "max_in_flight",
        "request_timeout_s",
        "total_timeout_s",
        "wait_s",
        "price_in",
        "price_out",
        "price_cached",
    )
}


def check_same(run_dir: Path, text: str) -> None:
    """Refuse to resume a run under a config that gives other results, naming the keys."""
    new = flat(json.loads(text))
    old = flat(Config().model_dump(mode="json")) | flat(
        read_note(run_dir / "config.json")
    )  # perhaps without newer keys
    moved = {"aggregate.url"} if old.get("aggregate.url") and new.get("aggregate.url") else set()
    free = MAY_CHANGE | moved
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in free)
    if changed:
        what = ", ".join(f"{k} ({old.get(k)!r} -> {new.get(k)!r})" for k in changed[:5])
        raise UsageError(f"{run_dir} was run with another {what}; take it back, or use --overwrite or another --name")


def check_weights(run_dir: Path, config: Config, fingerprint: str) -> None:
    """Refuse to resume a run with other weights behind the same path."""
    before = read_note(run_dir / "manifest.json").get("model")
    if config.engine.kind == "own" and before != fingerprint:
        raise UsageError(
            f"{run_dir} was begun with another engine ({before}, now {fingerprint}); choose another folder"
        )
    if config.engine.kind in OWN_WEIGHTS and before != fingerprint:
        raise UsageError(
            f"{run_dir} was begun with other weights in {config.model.path} ({before}, now {fingerprint}); put them back, "
            "or use --overwrite or another --name"
        )


def files_of(config: Config) -> dict[str, Path]:
    """The files outside the run directory that decide what a run does, by the key that names each: those that exist."""
    task = config.task
    named = {
        "task.path": task.path or (task.name if "." in task.name else None),
        "task.held_out_path": task.held_out_path,
        "method.recorded": config.method.recorded,
        "engine.recording": config.engine.recording,
        **{key: source_of(name) for key, name in hooks_of(config).items()},
    }
    return {key: Path(path) for key, path in named.items() if path and Path(path).is_file()}


def hooks_of(config: Config) -> dict[str, str]:
    """The functions of the user's that a config names, by key."""
    found = {
        "task.reward": config.task.reward,
        "method.credit": config.method.credit,
        "optimizer.schedule": config.optimizer.schedule,
    }
    return {key: name for key, name in found.items() if name and ":" in name}


def source_of(name: str) -> Path | None:
    """The file of the module in "module:function"; None where it cannot be found, as in a notebook."""
    module = name.partition(":")[0].replace(".", "/")
    sources = (Path(root, module + end) for root in (*sys.path, os.getcwd()) for end in (".py", "/__init__.py"))
    return next(filter(Path.is_file, sources), None)


def hash_of(path: Path) -> str:
    """A hash of what a file holds, remembered while its size and its time of change stay."""
    status = path.stat()
    return _hash(str(path), status.st_size, status.st_mtime_ns)


@cache
def _hash(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_files(run_dir: Path, config: Config, hashes: dict[str, str]) -> None:
    """Refuse to resume a run of which a file holds something else now, naming it; note one that could be changed."""
    before = read_note(run_dir / "manifest.json").get("files", {})
    for key, value in before.items():
        if hashes.get(key) != value:
            path = files_of(config).get(key, getattr(config, key.split(".")[0]).model_dump()[key.split(".")[1]])
            raise UsageError(
                f"{run_dir} was begun with another {path} ({key}); put it back, or use --overwrite or another --name"
            )
    if before and before != hashes:
        note_files(run_dir, hashes)


def note_files(run_dir: Path, hashes: dict[str, str]) -> None:
    """Take these as the files that the run was begun with."""
    note = read_note(run_dir / "manifest.json")
    write_whole(run_dir / "manifest.json", json.dumps({**note, "files": hashes}, indent=2) + "\n")


def read_note(path: Path) -> dict[str, Any]:
    """What a run directory says of itself in JSON."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); use --overwrite") from None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def manifest(config: Config, known: Facts, held_out: int) -> dict[str, Any]:
    """What else a re-run needs: versions, commit, machine, model, prompts, hashes of files, how many problems are evaluated."""
    names = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "reasoning-gym")
    templates = config.model.templates()
    return {
        "paragator": paragator.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "versions": {name: installed(name) for name in names},
        "commit": commit(),
        "model": known.fingerprint,
        "files": {key: hash_of(path) for key, path in files_of(config).items()},
        "held_out": held_out,
        "prompts": {
            "candidate": templates.candidate,
            "aggregation": templates.aggregation,
            "attempt": templates.attempt,
        },
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source tree, if it is one."""
    here = Path(paragator.__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
