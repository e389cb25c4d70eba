"""Decoder layers compiled for updates: norms, rotations, gates and casts in few kernels, with fewer launches.

Of an update in bfloat16 on a card they take longer than the products do (`benchmarks/gpu.py` has the profile). `tree_attention` is not
compiled with them (it is FlexAttention's kernel or sdpa's), so a layer is four graphs: its first norm, what comes before attention,
the projection after it, and the rest.
"""

from __future__ import annotations

from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from paragator.core.errors import UsageError
from paragator.training import flex

SETTINGS = {"specialize_float": True, "recompile_limit": flex.RECOMPILE_LIMIT}
"""A layer's constants (an epsilon, an adapter's scale) would else be tensors on the CPU; the limit is that of all models together."""


def compile_layers(*models: Any) -> None:
    """Have the decoder layers of models compiled where they attend to packed trees; sampling is as before.

    Raises UsageError where there is no compiler, or nothing to compile.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=models[0].device))
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UsageError(
            f"train.compile = true: {flex.reason(error)}: install a C++ compiler, or set it to false"
        ) from None
    for model in models:
        # a layer whose forward somebody replaced (Accelerate's hooks) is left as it is
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        layers = [layer for layer in layers if "forward" not in vars(layer) or is_ours(layer)]
        if not layers:
            raise UsageError(
                f"train.compile = true: no layer of {type(model).__name__} can be compiled: set it to false"
            )
        for layer in layers:
            layer.forward = MethodType(forward, layer)  # a method, so that a copy of the model has its own


def is_ours(layer: Any) -> bool:
    """Whether a layer is compiled already."""
    return getattr(layer.forward, "__func__", None) is forward


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
