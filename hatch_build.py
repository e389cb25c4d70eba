"""README for a package index, where relative links are dead: absolute by $PARAGATOR_REPOSITORY, else plain text."""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def portable(text: str, base: str) -> str:
    """Markdown without relative links: below `base` (as https://host/owner/name/blob/v1), or named by their text alone."""

    def link(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        if base:
            return f"{picture}[{label}]({base.rstrip('/')}/{target}{'?raw=true' if picture else ''})"
        return "" if picture else label

    return LINK.sub(link, text)


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": portable(text, os.environ.get("PARAGATOR_REPOSITORY", "")),
        }
