"""The documentation site is built without a warning: no dead link, no page left out, every docstring readable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="pip install 'paragator[docs]'")
pytest.importorskip("myst_parser")
ROOT = Path(__file__).parents[2]


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(docs / "site"), str(docs), str(out)]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False, timeout=300
    )


def test_the_site_is_built(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    home, api = ((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "site/api.html"))
    assert "arxiv.org/abs/2603.18886" in home and 'href="gallery.html"' in home
    assert "pool_size" in api and "Run rounds of aggregation on held-out problems" in api


def test_a_dead_link_fails(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "site").mkdir(parents=True)
    (docs / "site" / "conf.py").write_bytes((ROOT / "docs" / "site" / "conf.py").read_bytes())
    (docs / "site" / "contents.rst").write_text("Contents\n========\n\n.. toctree::\n\n   ../index\n")
    (docs / "index.md").write_text("# Home\n\n[gone](gone.md)\n")
    done = build(docs, tmp_path / "out")
    assert done.returncode != 0 and "gone" in done.stderr
