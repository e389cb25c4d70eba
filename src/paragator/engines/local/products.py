"""Linear layers on a CPU while decoding: the transposed product, which is faster for a few rows."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEWEST, MOST = 2, 32
"""Rows for which the transposed product is used."""


@contextmanager
def narrow_products(model: Any) -> Iterator[None]:
    """Linear layers of `model` compute W x' for x W' where x has few rows.

    The library that torch uses on CPUs splits x W' between threads by the rows of x, of which decoding has a handful, and
    W x' by the rows of W. With two threads and 8 rows that is 2 to 3 times as fast for a large W. Nothing changes with
    one thread, in other arithmetic than float32, or off the CPU.
    """
    parts = list(model.modules()) if torch.get_num_threads() > 1 else []
    if any(views_complex(type(part).__module__) for part in parts):
        parts = []
    layers = [part for part in parts if is_plain(part)]
    for layer in layers:
        layer.forward = partial(narrow, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@cache
def views_complex(module: str) -> bool:
    """Whether code of transformers views pairs of numbers as complex ones, which the transposed product's result cannot be."""
    return module.startswith("transformers.models.") and "view_as_complex" in inspect.getsource(sys.modules[module])


def is_plain(module: Any) -> bool:
    """Whether this is torch's own linear layer with float32 weights on the CPU, and nobody else replaced its forward."""
    return (
        type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)
    )


def narrow(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x), for x [..., in], by whichever product is faster."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()  # the product is slow on the transpose of a result of its own
    few = FEWEST <= len(rows) <= MOST and layer.out_features >= layer.in_features
    if not few or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, layer.weight, layer.bias)
    out = layer.weight @ rows.t() if layer.bias is None else torch.addmm(layer.bias[:, None], layer.weight, rows.t())
    return out.t().reshape(*x.shape[:-1], -1)
