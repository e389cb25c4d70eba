"""The pictures of a comparison, written into a folder."""

from __future__ import annotations

import os
from pathlib import Path

from paragator.core.errors import UsageError
from paragator.report import plots
from paragator.report.figures import FigureData
from paragator.stats.compare import Comparison

WHY = {
    "accuracy_by_round": "no accuracy was measured",
    "accuracy_by_tokens": "no run knows its numbers of tokens",
    "bars": "no accuracy was measured",
    "temperature": "the runs do not differ in generate.temperature",
}
"""The pictures of every comparison, and why one has nothing to show."""


def draw(found: Comparison, out_dir: Path) -> tuple[list[Path], dict[str, str]]:
    """Write the pictures that have something to show; returns their paths, and why each other one was not drawn.

    UsageError where `out_dir` cannot be written.
    """
    check_folder(out_dir)
    pictures = {f"{name}.png": (one, WHY[name]) for name, one in FigureData.of(found).pictures(WHY).items()}
    pictures["reward_curves.png"] = (plots.reward_curves(found.metrics()), "no run has a metrics.jsonl with rewards")
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in pictures.items():
        (out_dir / name).unlink(missing_ok=True)  # of an earlier comparison
        if data is not None:
            (out_dir / name).write_bytes(data.png())
    drawn = [out_dir / name for name, (data, _) in pictures.items() if data is not None]
    return drawn, {name: why for name, (data, why) in pictures.items() if data is None}


def check_folder(folder: Path) -> None:
    """UsageError unless files can be written into a folder, which need not exist yet: checked before there is work to lose."""
    found = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not found.is_dir():
        raise UsageError(f"{folder}: cannot hold results, as {found} is not a folder; name another")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot hold results, as {found} is not writable; name another")
