"""What surrounds the package: links for a package index, container files, the citation."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

import paragator
from paragator.cli.main import VERBS

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
    assert [line for line in lines if line[0] == "USER"][-1] not in (["USER", "root"], ["USER", "0"])
    copied = {source for line in lines if line[0] == "COPY" for source in line[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {Path(f).parts[0] for f in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    assert needed | {"pyproject.toml", "README.md", "hatch_build.py", "src"} <= copied
    given = set(re.findall(r"-c (\S+)", joined)) | {"constraints.txt"}
    assert given <= copied and all((ROOT / file).is_file() for file in given)
    extras = {extra for found in re.findall(r"\.\[([\w,]+)\]", joined) for extra in found.split(",")}
    assert extras <= project["project"]["optional-dependencies"].keys()
    (entry,) = [line for line in lines if line[0] == "ENTRYPOINT"]
    assert json.loads(entry[1])[0] in project["project"]["scripts"]
    assert re.findall(r"paragator(?:-cuda)? ([a-z]+) ?(?:quickstart)?$", joined.splitlines()[0])[0] in VERBS


def test_every_make_target_that_is_named_exists() -> None:
    """In pages, in the Makefile's own help and in messages."""
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    files = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
    ]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    named = set(re.findall(r"`make ([a-z0-9]+)`|^    make ([a-z0-9]+)", text, re.MULTILINE))
    assert {first or second for first, second in named} <= targets


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(paragator.__version__)}$", citation, re.MULTILINE)
    assert "2603.18886" in citation
