"""What takes credited trees and changes weights: in this process (policy.py), or in many (sharded.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from paragator.core.types import Stage
from paragator.training.rows import Tree


class Learner(Protocol):
    """A model and its optimiser, as a step and the loop over steps know them; blind to the method, the task and the engine."""

    updates: int
    """Optimiser steps so far."""

    def update(self, trees: Sequence[Tree], step: int, kl_constants: Mapping[Stage, float]) -> dict[str, float]:
        """Change the weights by the trees of step `step`; returns statistics. Without trees, nothing changes."""

    def measure(self, trees: Sequence[Tree], others: Sequence[Tree]) -> dict[str, float]:
        """Norms and cosines of the stages' gradients, see `balance.compared`; no weight changes."""

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write a checkpoint from which `restore` continues, on any number of processes."""

    def restore(self, folder: Path) -> dict[str, Any]:
        """Take weights and optimiser state from a checkpoint; returns its meta."""

    def publish(self) -> None:
        """Bring the model that an engine in this process samples from up to date."""

    def export(self, folder: Path, adapter: bool = False) -> None:
        """Write the model (adapters merged) and tokenizer as a folder that transformers and vLLM load; or the adapters alone."""

    def close(self) -> None:
        """Let go of other processes, if there are any."""
