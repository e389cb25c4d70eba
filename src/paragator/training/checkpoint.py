"""Checkpoints: complete or invisible. Weights and optimiser state are safetensors, the rest is JSON; nothing is pickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paragator.core.errors import RunError


def save(
    folder: Path, tensors: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, meta: dict[str, Any]
) -> None:
    """Write trainable tensors, optimiser state and `meta` to `folder`, which appears only once all is on disk.

    RunError, and nothing written, for values that are not finite: the checkpoint before is the better one.
    """
    state = optimizer_tensors(optimizer, tensors.values())
    for name, tensor in {**tensors, **state}.items():
        if not torch.isfinite(tensor).all():
            raise RunError(
                f"{folder} is not written, since {name} is not finite; the checkpoint before it stays: start again with a "
                "lower optimizer.lr"
            )
    with appearing(folder) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / "weights.safetensors")
        save_file(state, temporary / "optimizer.safetensors")
        (temporary / "meta.json").write_text(json.dumps(meta))


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` once all of it is on disk; left as it is after an error."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def read_into(folder: Path, tensors: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into `tensors` (in place) and `optimizer`; return its meta."""
    try:
        stored = load_file(folder / "weights.safetensors")
        state = load_file(folder / "optimizer.safetensors")
        meta = read_meta(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {folder} cannot be read ({error}); delete it to resume from the one before"
        ) from None
    if stored.keys() != tensors.keys():
        raise RunError(f"checkpoint {folder} is of another model: its tensors differ; use the model of that run")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])
    restore_optimizer(optimizer, tensors.values(), state)
    return meta


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta, without its tensors."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return meta


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of each parameter as "index.name" -> tensor, in the order of `parameters`, however they are grouped."""
    states = [(i, optimizer.state[p]) for i, p in enumerate(parameters) if p in optimizer.state]
    return {f"{i}.{name}": v.detach().cpu().contiguous() for i, state in states for name, v in state.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], tensors: dict[str, torch.Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; torch numbers parameters group by group."""
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    number_of = {id(p): number for number, p in enumerate(grouped)}
    numbers = {str(i): number_of[id(p)] for i, p in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(numbers[index], {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step in `folder`, named step_<n>."""
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit() and (p / "meta.json").is_file()]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the latest `count` checkpoints, and what a process that was killed left unfinished."""
    for unfinished in folder.glob("step_*.tmp"):
        shutil.rmtree(unfinished)
    found = sorted((p for p in folder.glob("step_*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))
    for old in found[:-count]:
        shutil.rmtree(old)
