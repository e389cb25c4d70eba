"""The grader's rules: the project's own corpora always; labelled pairs and reference answers where the data folder is at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paragator.grading import grade_many
from paragator.grading.decide import decide, quick
from paragator.records import read_json_lines

ROOT = Path(__file__).parents[2]
CORPORA = ROOT / "tests" / "corpora"
DATA = Path(os.environ.get("PARAGATOR_DATA") or ROOT.parent / "shared" / "data")


def rows(path: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(path, ours=False))


def test_no_reward_hack_is_accepted() -> None:
    found = rows(CORPORA / "reward_hacks.jsonl")
    grades = grade_many((row["text"], row["reference"], row["kind"]) for row in found)
    accepted = [row["id"] for row, grade in zip(found, grades, strict=True) if grade.verdict == "correct"]
    assert len(found) >= 150 and not accepted


def test_equivalent_forms_are_accepted() -> None:
    found = rows(CORPORA / "equivalent_forms.jsonl")
    grades = grade_many((row["text"], row["reference"], row["kind"]) for row in found)
    refused = [row["id"] for row, grade in zip(found, grades, strict=True) if grade.verdict != "correct"]
    assert len(found) >= 300 and len(refused) <= 0.01 * len(found), refused


def test_what_is_quick_agrees_with_what_is_slow() -> None:
    """`quick` is a short cut of the full comparison, not another opinion."""
    from paragator.grading.decide import compared
    from paragator.grading.extract import final_answer

    seen = 0
    for row in rows(CORPORA / "equivalent_forms.jsonl") + rows(CORPORA / "reward_hacks.jsonl"):
        fast, answer = quick(row["text"], row["reference"], row["kind"]), final_answer(row["text"])
        if fast and answer and not fast.reason:
            seen += 1
            assert compared(answer, row["reference"], row["kind"])[0] == fast.verdict, row["id"]
    assert seen > 100


def needs_data(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; set PARAGATOR_DATA to the folder that holds it")
    return path


def test_labelled_pairs_agree() -> None:
    """98% of all pairs, no wrong one accepted (0.5% allowed); what is left is listed in docs/grading.md."""
    found = [row for row in rows(needs_data("grader_pairs.jsonl")) if not row.get("config_dependent")]
    grades = grade_many((row["prediction"], row["gold"]) for row in found)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter(row["type"] for row in found)
    accepted = 0
    for row, grade in zip(found, grades, strict=True):
        right[row["type"]] += grade.verdict == ("correct" if row["equal"] else "incorrect")
        accepted += grade.verdict == "correct" and not row["equal"]
    assert sum(right.values()) >= 0.98 * len(found)
    assert accepted <= 0.005 * sum(not row["equal"] for row in found)
    low = {kind: right[kind] / total[kind] for kind in total if total[kind] >= 50 and right[kind] < 0.96 * total[kind]}
    assert set(low) <= {"equation"} and low.get("equation", 1) >= 0.95, low


def references() -> Iterator[tuple[str, str]]:
    for path in sorted(needs_data("math500.jsonl").parent.glob("*.jsonl")):
        if path.name != "grader_pairs.jsonl":
            for answer in sorted({str(r["answer"]) for r in rows(path) if str(r.get("answer") or "").strip()}):
                yield path.name, answer


def test_references_verify_against_themselves() -> None:
    found = list(references())
    grades = grade_many((f"So the answer is \\boxed{{{answer}}}", answer) for _, answer in found)
    failed = [pair for pair, grade in zip(found, grades, strict=True) if grade.verdict != "correct"]
    assert len(failed) <= 0.005 * len(found), failed[:20]


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{2^{2^{36}}}",
        r"\boxed{\gcd(2^{2^{34}},3)}",
        r"\boxed{9^{9^{9}}}",
        r"\boxed{10000!}",
        r"\boxed{((((5))))" + "(" * 99 + "}",
    ],
)
def test_an_answer_over_the_limits_is_incorrect_and_says_why(text: str) -> None:
    grade = decide(text, "1")
    assert grade.verdict == "incorrect" and (grade.reason or grade.answer is None)


def test_what_math_verify_would_compute_for_long_is_not_given_to_it() -> None:
    """Thirty functions in each other, in an answer that only it could parse: five seconds of CPU time before."""
    text = r"\cos(" * 30 + r"9\pior" + ")" * 30
    grade = decide(f"\\boxed{{{text}}}", r"1 < x \le 4")
    assert (grade.verdict, grade.reason) == ("incorrect", "unsure: the answer cannot be read")


def test_corpora_rows_are_well_formed() -> None:
    for name in ("reward_hacks", "equivalent_forms"):
        found = rows(CORPORA / f"{name}.jsonl")
        assert len({row["id"] for row in found}) == len(found)
        assert json.dumps(found)
