"""The folder that results go to."""

from __future__ import annotations

import os
from pathlib import Path

from paragator.core.errors import UsageError


def check_folder(folder: Path) -> None:
    """UsageError unless files can be written into a folder, which need not exist yet: asked before there is work to lose."""
    found = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not found.is_dir():
        raise UsageError(f"{folder}: cannot hold results, as {found} is no folder; name another")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot hold results, as {found} may not be written to; name another")
