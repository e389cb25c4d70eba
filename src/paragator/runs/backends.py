"""Where a run is trained: refusals of what a backend does not have installed, or cannot do. No heavy imports."""

from __future__ import annotations

import os
from importlib.util import find_spec

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.types import Sample
from paragator.runs.launch import launched, processes


def check_backend(config: Config, engine: Sample | None) -> None:
    """Refuse what `train.backend` cannot do; `engine` is one from Python."""
    check_ahead(config, engine)
    check_sync(config)
    if config.train.backend == "ray" and not launched():
        check_ray(config)
    if config.train.backend == "tinker":
        check_tinker(config, engine)


def check_ahead(config: Config, engine: Sample | None) -> None:
    """Refuse to sample from older weights where nobody says which weights sample."""
    if config.train.ahead and engine is not None and not hasattr(engine, "publish"):
        raise UsageError(
            "train.ahead = 1 with an engine from Python needs its publish(step, export); add it, or set it to 0"
        )


def check_sync(config: Config) -> None:
    """Refuse to publish adapters where there are none, or nobody to publish them to."""
    if config.engine.sync == "adapter" and not (config.model.lora_rank and config.engine.kind == "vllm"):
        raise UsageError(
            "engine.sync = 'adapter' needs model.lora_rank above 0 and engine.kind = 'vllm'; else set it to 'folder'"
        )


def check_ray(config: Config) -> None:
    """Refuse train.backend = 'ray' where Ray is not installed, or nobody said how many processes."""
    if find_spec("ray") is None:
        raise UsageError("train.backend = 'ray' is not installed: pip install 'paragator[ray]'")
    if config.train.processes is None:
        raise UsageError("train.backend = 'ray' needs train.processes: how many processes, one a card")


def check_tinker(config: Config, engine: Sample | None) -> None:
    """Refuse with train.backend = 'tinker' what a service that speaks the Tinker API cannot do, or would do otherwise."""
    if find_spec("tinker") is None:
        raise UsageError("train.backend = 'tinker' is not installed: pip install 'paragator[tinker]'")
    said, train = "train.backend = 'tinker'", config.train
    if engine is not None:
        raise UsageError(f"{said} takes no engine from Python: the service samples itself")
    if processes() > 1:
        raise UsageError(
            f"{said} in {processes()} processes: the service computes, one is enough; start it without a launcher"
        )
    if not config.model.lora_rank:
        raise UsageError(f"{said} trains adapters only: set model.lora_rank, such as 32")
    if train.ratio == "sequence":
        raise UsageError(f"{said} with train.ratio = 'sequence': the service weighs tokens; use 'token'")
    needed = {
        "engine.kind": (config.engine.kind, "transformers", "samples itself"),
        "train.processes": (train.processes, None, "computes, one is enough"),
        "train.kl": (train.kl, 0, "computes no KL to the initial model"),
        "train.ahead": (train.ahead, 0, "samples and trains in turns here"),
        "train.updates": (train.updates, 1, "keeps no ratio to the policy before them"),
        "train.router_loss": (train.router_loss, 0, "has no such loss"),
        "train.max_refused": (train.max_refused, 0, "cannot drop a gradient"),
        "stages.measure_every": (config.stages.measure_every, 0, "keeps gradients to itself"),
        "generate.temperature": (config.generate.temperature, 1, "trains at temperature 1"),
        "aggregate.temperature": (config.aggregate.temperature, 1, "trains at temperature 1"),
    }
    for key, (value, only, why) in needed.items():
        if value != only:
            raise UsageError(f"{said} with {key} = {value!r}: the service {why}; set it to {only!r}")
    if train.tinker_url is None and not os.environ.get("TINKER_API_KEY"):
        raise UsageError("TINKER_API_KEY is not set: export the key of the hosted service, or set train.tinker_url")
