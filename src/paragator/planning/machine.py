"""This machine: its devices, how fast it multiplies, and what a training step would take on it."""

from __future__ import annotations

import os
import time
from typing import Any

from paragator.config import Config, ModelConfig
from paragator.core.errors import ParagatorError
from paragator.planning.estimate import estimate


def examine() -> dict[str, Any]:
    """Cores, threads, device, the faster precision, and whether the embedded model is whole ("ok", or what is wrong)."""
    import torch

    from paragator.engines.local.loading import facts, pick_device
    from paragator.training.policy import pick_precision

    device = pick_device("auto")
    try:
        facts(ModelConfig())
        embedded = "ok"
    except ParagatorError as error:
        embedded = str(error)
    return {
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "device": device,
        "precision": pick_precision("auto", device),
        "embedded model": embedded,
    }


def estimate_here(config: Config, rate: float | None = None, fill: float = 1.0) -> dict[str, Any]:
    """`estimate` on this machine's device; `rate` in FLOP/s, measured by a product where it is None."""
    from paragator.engines.local.loading import pick_device
    from paragator.training.policy import pick_precision

    device = pick_device(config.model.device)
    bfloat16 = pick_precision(config.train.precision, device) == "bfloat16"
    used = product_rate(device, bfloat16) if rate is None else rate
    found = estimate(config, bfloat16=bfloat16, cuda=device.startswith("cuda"), rate=used, fill=fill)
    source = f"a product timed on this machine ({device})" if rate is None else "--flops"
    return {**found, "rate_from": source}


def product_rate(device: str, bfloat16: bool) -> float:
    """FLOP/s of a square matrix product: the best of three."""
    import torch

    size = 8192 if device.startswith("cuda") else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return float(2 * size**3 / min(seconds[1:]))
