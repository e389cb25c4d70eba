"""Decoder layers compiled for updates: norms, rotations, gates and casts in few kernels, with fewer launches.

Of an update in bfloat16 on a card they take longer than the products do (`benchmarks/gpu.py` has the profile). Attention stays as it
is: the compiler's graph breaks around `tree_attention`, which is FlexAttention's kernel or sdpa's.
"""

from __future__ import annotations

from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from paragator.core.errors import UsageError
from paragator.training import flex
from paragator.training.packed import heads_of

LARGE = 10**8
"""Parameters from which compiling repays its half minute soon."""
SETTINGS = {"specialize_float": True, "recompile_limit": flex.RECOMPILE_LIMIT}
"""A layer's constants (an epsilon, an adapter's scale) would else be tensors on the CPU; the limit is that of all models together."""


def worth_compiling(wanted: bool | None, model: Any, precision: str) -> bool:
    """Whether to compile: as wanted, else a LARGE model without adapters on one CUDA card in bfloat16.

    UsageError where it is wanted and a compiler is missing.
    """
    if wanted is None:
        if precision != "bfloat16" or model.device.type != "cuda" or hasattr(model, "get_base_model"):
            return False
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        large = sum(p.numel() for p in model.parameters()) >= LARGE
        return large and not several and flex.usable(model.device, torch.bfloat16, heads_of(model))
    if wanted:
        try:
            torch.compile(torch.neg)(torch.zeros(2, device=model.device))
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UsageError(
                f"train.compile = true: torch.compile does not work here ({reason}): set it to false"
            ) from None
    return wanted


def compile_layers(model: Any) -> None:
    """Have the decoder layers of `model` compiled where they attend to packed trees; sampling goes on as before."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and "forward" not in vars(layer):  # or somebody else's is kept
            layer.forward = MethodType(forward, layer)  # a method, so that a copy of the model has its own


def forward(layer: Any, *states: Any, **more: Any) -> Any:
    """A layer's forward: with a layout compiled, below the checkpoint of its activations if there is one."""
    if more.get("layout") is None:
        return type(layer).forward(layer, *states, **more)
    run = partial(by_compiler, layer, **more)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(run, *states)
    return run(*states)


def by_compiler(layer: Any, *states: Any, **more: Any) -> Any:
    """A layer's forward by the compiled code of its class."""
    kind: Any = type(layer)
    with torch._dynamo.config.patch(SETTINGS):
        return compiled(kind)(layer, *states, **more)


@cache
def compiled(kind: Any) -> Any:
    """The forward of a class of layers without transformers' wrapper, for rows of any length; all layers share it."""
    return torch.compile(kind.forward.__wrapped__, dynamic=True)
