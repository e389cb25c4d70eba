"""The examples run and do what their first lines say."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_one_file_learns_both_jobs() -> None:
    main = runpy.run_path(str(EXAMPLES / "one_file.py"))["main"]
    candidates, aggregations = asyncio.run(main())
    assert aggregations > candidates > 0.6
    assert aggregations > 0.9


def test_one_file_is_short() -> None:
    assert len((EXAMPLES / "one_file.py").read_text().splitlines()) < 250
