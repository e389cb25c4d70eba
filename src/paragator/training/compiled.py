"""How updates run decoder layers: compiled, and with their activations recomputed in the backward pass.

Norms, rotations, gates and casts of an update in bfloat16 on a card take longer than the products do (`benchmarks/gpu.py` has the
profile); compiled they are few kernels. `tree_attention` is not compiled with them (it is FlexAttention's kernel or sdpa's), so a
layer is four graphs: its first norm, what comes before attention, the projection after it, and the rest.

Transformers recomputes activations in training mode only, in which dropout and router noise are on. Updates need the
log-probabilities that were sampled from, so they run in eval mode, and layers are recomputed from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
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
        replace(model, compiled_forward, "train.compile")


def recompute_layers(model: Any) -> None:
    """Have the decoder layers of a model keep no activations for the backward pass; UsageError where none can."""
    replace(model, recomputed_forward, "model.gradient_checkpointing")
    for layer in model.modules():
        if is_ours(layer):
            layer.gradient_checkpointing = True  # where they are compiled later


def replace(model: Any, forward: Callable[..., Any], setting: str) -> None:
    """Give decoder layers another forward; a layer whose forward somebody else replaced (Accelerate's hooks) is left alone."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers = [layer for layer in layers if "forward" not in vars(layer) or is_ours(layer)]
    if not layers:
        raise UsageError(f"{setting} = true: {type(model).__name__} has no layer that allows it: set it to false")
    for layer in layers:
        layer.forward = MethodType(forward, layer)  # a method, so that a copy of the model has its own


def is_ours(layer: Any) -> bool:
    """Whether a layer's forward was replaced here."""
    found = getattr(vars(layer).get("forward"), "__func__", None)
    return found is compiled_forward or found is recomputed_forward


def recomputed_forward(layer: Any, *states: Any, **more: Any) -> Any:
    """A layer's forward; with a layout its activations are computed again in the backward pass."""
    return recomputed(layer, partial(type(layer).forward, layer, **more), states, more)


def compiled_forward(layer: Any, *states: Any, **more: Any) -> Any:
    """A layer's forward; with a layout compiled, and recomputed in the backward pass where that was asked for."""
    if more.get("layout") is None:
        return type(layer).forward(layer, *states, **more)
    return recomputed(layer, partial(by_compiler, layer, **more), states, more)


def recomputed(layer: Any, run: Callable[..., Any], states: tuple[Any, ...], more: dict[str, Any]) -> Any:
    """run(*states), below a checkpoint where there will be a backward pass."""
    if layer.gradient_checkpointing and more.get("layout") is not None and torch.is_grad_enabled():
        return checkpoint(run, *states, use_reentrant=False, preserve_rng_state=False)  # no randomness in eval mode
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
