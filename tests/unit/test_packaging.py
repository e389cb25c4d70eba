"""What surrounds the package: links for a package index, container files, the citation."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import paragator

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
assert spec is not None and spec.loader is not None
hatch_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hatch_build)

RELATIVE = re.compile(r"\]\((?!https?:|#)")
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


def test_a_package_index_gets_no_relative_link() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    plain = hatch_build.portable(text, "")
    assert RELATIVE.search(text) and not RELATIVE.search(plain)
    assert "https://arxiv.org/abs/2603.18886" in plain and "docs/results/study.md" in plain
    absolute = hatch_build.portable(text, "https://host.example/owner/name/blob/v1/")
    assert not RELATIVE.search(absolute)
    assert "(https://host.example/owner/name/blob/v1/docs/paper.md)" in absolute


def test_the_readme_is_short_and_names_the_paper_and_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    assert all(word in text for word in ("arxiv.org/abs/2603.18886", "make quickstart", "make test", "independent"))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_container_file_is_sound(name: str) -> None:
    """Known instructions, sources that exist, a version for the base, and no root at the end."""
    joined = re.sub(r"\\\n", " ", (ROOT / name).read_text(encoding="utf-8"))
    lines = [line.split() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    assert {line[0] for line in lines} <= INSTRUCTIONS and lines[0][0] == "FROM"
    assert re.search(r":.*\d", lines[0][1])
    for line in lines:
        if line[0] == "COPY":
            assert all((ROOT / source).exists() for source in line[1:-1]), line
    assert [line for line in lines if line[0] == "USER"][-1] != ["USER", "root"]
    copied = {source for line in lines if line[0] == "COPY" for source in line[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {Path(f).parts[0] for f in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    assert needed | {"pyproject.toml", "README.md", "hatch_build.py", "src"} <= copied


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(paragator.__version__)}$", citation, re.MULTILINE)
    assert "2603.18886" in citation
