"""The load-balancing loss of a mixture of experts (Switch Transformer, arXiv 2101.03961, eq. 4 to 6), over packed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from paragator.core.errors import UsageError
from paragator.engines.local.branching import text_config
from paragator.engines.local.proof import device_of, random_ids
from paragator.training.packed import without_adapter_wrapper

TOLERANCE = 1e-4
"""Largest relative difference to the loss that the model itself computes."""


def balance_loss(logits: Sequence[Tensor], top_k: int) -> Tensor:
    """E * sum over experts of (share of choices f) * (mean probability P), a scalar; 1 per chosen expert at perfect balance.

    `logits` [T, E] of every layer; f and P are taken over all layers and tokens together, as transformers does.
    """
    probs = torch.cat([layer.flatten(0, -2).float() for layer in logits]).softmax(-1)
    chosen = probs.topk(top_k, dim=-1).indices.flatten()
    share = torch.bincount(chosen, minlength=probs.shape[-1]) / len(probs)
    return probs.shape[-1] * (share * probs.mean(0)).sum()


class Routers:
    """The routers of a model, whose logits can be watched in a forward pass with gradients.

    Raises UsageError for a model without them, and for one whose own load-balancing loss is another.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        inner = without_adapter_wrapper(model)
        kind = (getattr(inner, "_can_record_outputs", None) or {}).get("router_logits")
        self.top_k = int(getattr(text_config(model), "num_experts_per_tok", None) or 0)
        self.index = getattr(kind, "index", 0)
        target: Any = getattr(kind, "target_class", kind)
        target = target if isinstance(target, type) else ()  # several kinds: not one loss
        modules: list[torch.nn.Module] = list(inner.modules())
        self.modules = [module for module in modules if isinstance(module, target)]
        if not self.modules or not self.top_k:
            raise UsageError(f"{setting(coefficient)}: {type(inner).__name__} shows no router's logits: set it to 0")
        self.prove(inner, coefficient)

    def prove(self, model: Any, coefficient: float) -> None:
        """UsageError unless this is the loss that the model computes for a row of random tokens."""
        ids = torch.tensor([random_ids(model, 16, "routers")], device=device_of(model))
        try:
            with self.watched() as seen:
                own = model(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss
            differs = abs(float(own.detach() / balance_loss(seen, self.top_k).detach()) - 1)
        except (AttributeError, IndexError, RuntimeError, TypeError):  # none, or of another form
            differs = float("inf")
        if not differs <= TOLERANCE:
            name = type(model).__name__
            raise UsageError(f"{setting(coefficient)}: {name} has another loss of its routers, or none: set it to 0")

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """The logits of every router in passes with gradients: not those of a reference, nor of a recomputed layer later."""
        seen: list[Tensor] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                seen.append(output[self.index] if isinstance(output, tuple) else output)

        handles = [module.register_forward_hook(keep) for module in self.modules]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def setting(coefficient: float) -> str:
    """The key and its value, as messages begin."""
    return f"train.router_loss = {coefficient:g}"
