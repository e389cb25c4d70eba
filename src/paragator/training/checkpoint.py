"""Checkpoints, complete or invisible: safetensors and JSON, hashed in a manifest, synced and then renamed; no pickle.

    step_<n>/weights.safetensors    trained tensors by parameter name: all weights, or the adapters
             optimizer.safetensors  the optimiser's state as "moment/parameter", e.g. "exp_avg/model.norm.weight"
             meta.json              the step, counters and whatever else its writer needs
             manifest.json          size and SHA-256 of the three; written last, checked before anything is taken

Tensors are whole ones by name, so that a checkpoint does not depend on how many processes wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paragator.core.errors import RunError

WEIGHTS, OPTIMIZER, META, MANIFEST = "weights.safetensors", "optimizer.safetensors", "meta.json", "manifest.json"
FORMAT = 2
"""Of the layout above. The first one numbered the optimiser's state and had no manifest."""

Tensors = Mapping[str, torch.Tensor]
Moments = Mapping[str, Tensors]
"""Parameter name -> {name of a moment: tensor}."""


class BrokenCheckpoint(RunError):
    """A checkpoint whose files are not those that were written."""


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(folder: Path, weights: Tensors, moments: Moments, meta: Mapping[str, Any]) -> None:
    """Write a checkpoint to `folder`, which appears only once all of it is on disk.

    RunError, and the checkpoint before it stays, for values that are not finite, as for a disk that does not take them.
    """
    state = {f"{kind}/{name}": tensor for name, kinds in moments.items() for kind, tensor in kinds.items()}
    for name, tensor in {**weights, **state}.items():
        if not torch.isfinite(tensor).all():
            raise RunError(
                f"{folder} is not written, since {name} is not finite; the checkpoint before it stays: start again with a "
                "lower optimizer.lr"
            )
    with appearing(folder) as temporary:
        save_file(on_cpu(weights), temporary / WEIGHTS)
        save_file(on_cpu(state), temporary / OPTIMIZER)
        (temporary / META).write_text(json.dumps(meta))
        files = {name: fingerprint(temporary / name) for name in (WEIGHTS, OPTIMIZER, META)}
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}))


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` once all of it is on disk.

    After an error what was written is removed and `folder` is as before; RunError where the disk does not take it.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if folder.exists():
            remove(folder)
        temporary.rename(folder)
        for path in folder.parents[:2]:  # the second may hold the first only since now
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder} cannot be written ({reason}); make room or allow it, then --resume") from None
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on disk before anything that comes later."""
    if path.is_dir() and os.name != "posix":  # other systems do not open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    leaving = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(leaving, ignore_errors=True)
    folder.rename(leaving)
    shutil.rmtree(leaving)


def on_cpu(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Weights, moments and meta, as `save` took them; BrokenCheckpoint where a file is not as it was written."""
    meta = read_meta(folder)
    for name in (WEIGHTS, OPTIMIZER):
        check(folder, name)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    try:
        weights, state = load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from None
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        moments.setdefault(name, {})[kind] = tensor
    return weights, moments, meta


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta, without its tensors."""
    check(folder, META)
    meta: dict[str, Any] = json.loads((folder / META).read_text())
    return meta


def check(folder: Path, name: str) -> None:
    """BrokenCheckpoint where a file differs from the manifest; RunError for an older layout, or where nothing can be read."""
    if (folder / META).exists() and not (folder / MANIFEST).exists():
        raise RunError(
            f"checkpoint {folder} is of an older version of paragator (it has no {MANIFEST}) and cannot be resumed; "
            "use --overwrite or another --name"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        wanted, layout, found = manifest["files"][name], manifest["format"], fingerprint(folder / name)
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"checkpoint {folder} is not whole: {Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise BrokenCheckpoint(f"checkpoint {folder} is not whole: {MANIFEST} was changed or cut") from None
    except OSError as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error.filename}: {error.strerror}") from None
    if layout != FORMAT:
        raise RunError(
            f"checkpoint {folder} has format {layout!r}, not {FORMAT}; resume with the version that wrote it"
        )
    if found != wanted:
        why = f"has {found['bytes']:,} bytes, others than were written"
        raise BrokenCheckpoint(f"checkpoint {folder} is not whole: {name} {why}")


def read_into(folder: Path, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into `parameters` (in place) and `optimizer`; return its meta."""
    weights, moments, meta = read(folder)
    check_shapes(folder, weights, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    set_moments(optimizer, parameters, moments)
    return meta


def check_shapes(folder: Path, weights: Tensors, parameters: Tensors) -> None:
    """RunError where a checkpoint's tensors are not those of the model."""
    if {n: t.shape for n, t in weights.items()} != {n: p.shape for n, p in parameters.items()}:
        raise RunError(f"checkpoint {folder} is of another model: its tensors differ; use the model of that run")


def moments_of(optimizer: torch.optim.Optimizer, parameters: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """An optimiser's state by parameter name, however its parameters are grouped."""
    return {name: dict(optimizer.state[p]) for name, p in parameters.items() if p in optimizer.state}


def set_moments(optimizer: torch.optim.Optimizer, parameters: Tensors, moments: Moments) -> None:
    """The inverse of `moments_of`; torch numbers parameters group by group."""
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {id(p): number for number, p in enumerate(grouped)}
    state = {numbers[id(parameters[name])]: dict(kinds) for name, kinds in moments.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# ---- which there are -------------------------------------------------------------------------------------------------


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, named step_<n>, the oldest first; whether each is whole shows when it is read."""
    found = (p for p in folder.glob("step_*") if p.name[5:].isdigit())
    return sorted(found, key=number_of)


def number_of(folder: Path) -> int:
    """The step of a checkpoint."""
    return int(folder.name.removeprefix("step_"))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step in `folder`."""
    return next(reversed(steps(folder)), None)


def newest_meta(folder: Path) -> dict[str, Any]:
    """The meta of the latest checkpoint that has a whole one; empty where there is none."""
    for found in reversed(steps(folder)):
        with suppress(BrokenCheckpoint):
            return read_meta(found)
    return {}


def keep_newest(folder: Path, count: int, also: Container[int] = ()) -> None:
    """Remove all but the latest `count` checkpoints and those of steps in `also`, and what a killed process left unfinished."""
    for unfinished in folder.glob("step_*.tmp"):
        shutil.rmtree(unfinished)
    for old in steps(folder)[:-count]:
        if number_of(old) not in also:
            remove(old)
