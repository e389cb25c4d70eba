"""Files in benchmarks/results have the fields that benchmarks/common.py names, numbers that agree, and a place on the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture(scope="module")
def shared() -> Any:
    """benchmarks/common.py and benchmarks/report.py."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import common
        import report
    finally:
        sys.path.remove(str(BENCHMARKS))
    return common, report


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_case_has_the_fields_and_a_ratio_of_its_medians(file: Path, shared: Any) -> None:
    cases = json.loads(file.read_text())
    assert isinstance(cases, list) and cases
    for case in cases:
        assert not set(shared[0].REQUIRED) - set(case), case["name"]
        if case["ratio"] is None:
            assert case["peer_s"] is None
            continue
        assert case["ratio"] == pytest.approx(case["peer_s"] / case["ours_s"])
        for side in ("ours", "peer"):
            low, high = case["spread"][side]
            assert low <= case[f"{side}_s"] <= high


def test_missing_weights_are_one_line(shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = shared[0]
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "SMOLLM2", tmp_path / "models" / "it")
    with pytest.raises(SystemExit, match=r"^error: no weights in models/it; run: make weights$"):
        common.model_path("smollm2")
    assert common.model_path("embedded") == "embedded"


def test_taking_turns_and_the_case_made_of_it(shared: Any, tmp_path: Path) -> None:
    common, report = shared
    order: list[str] = []
    seconds = common.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [len(v) for v in seconds.values()] == [2, 2]
    case = common.case("x", [1.0, 3.0, 2.0], "them", [4.0, 6.0, 4.0], "everything", of_product=0.5)
    assert (case["ours_s"], case["peer_s"], case["ratio"]) == (2.0, 4.0, 2.0)
    assert case["spread"] == {"ours": [1.0, 3.0], "peer": [4.0, 6.0], "ratio": [2.0, 4.0]}
    where = {"machine": "M", "commit": "abc", "versions": {"torch": "2"}, "date": "2026-01-01"}
    common.write(tmp_path / "update.json", [case], where=where)
    assert set(common.REQUIRED) <= set(json.loads((tmp_path / "update.json").read_text())[0])
    page = report.written(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", tmp_path)
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| x | 2 s (1 to 3) | 4 s (4 to 6) | **2.00** | them | 0.5 |" in page
    assert report.written(page, tmp_path) == page


def test_heavy_tailed_lengths_are_the_same_set_in_another_order(shared: Any) -> None:
    import random

    common, _ = shared
    first, second = (common.heavy_tailed(random.Random(seed), 16, 160) for seed in (0, 1))
    assert sorted(first) == sorted(second) and first != second
    assert max(first) > 4 * sorted(first)[8] and min(first) >= 4


def test_gradients_that_differ_fail_the_benchmark(shared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    near, far = ({"name": name, "gradient_distance": apart} for name, apart in (("near", 1e-5), ("far", 1e-3)))
    assert shared[0].disagreed([near, {"name": "seconds only"}], 1e-4) == 0
    assert shared[0].disagreed([near, far], 1e-4) == 1
    assert capsys.readouterr().out == "gradients differ by more than 0.0001: far\n"


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"(-1)^{k+3}", r"(-1)^{k-5}", True),
        (r"(-1)^{k+3}", r"(-1)^{k-4}", False),
        (r"b = 0", r"-b = 0", True),
        (r"b = 3", r"-b = 3", False),
        (r"\pm 6", r"-\pm 6", True),
        (r"g(t) = 4", r"g(\bar{t}) = 4", True),
        (r"g(t) = 4t", r"g(\bar{t}) = 4t", False),
        (r"\begin{pmatrix} 0 & 0 \end{pmatrix}", r"-\begin{pmatrix} 0 & 0 \end{pmatrix}", True),
        (r"\begin{pmatrix} 0 & 1 \end{pmatrix}", r"-\begin{pmatrix} 0 & 1 \end{pmatrix}", False),
        (r"\lfloor \frac{p}{11} \rfloor", r"\lfloor \frac{q}{11} \rfloor", False),
    ],
)
def test_which_mutants_of_a_reference_are_equal_to_it(a: str, b: str, equal: bool, shared: Any) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import mutants
    finally:
        sys.path.remove(str(BENCHMARKS))
    assert mutants.is_equal(a, b) is equal
