"""One graded trace for the page: a row of the list of problems, and its rounds with reward and credit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paragator.core.errors import ParagatorError
from paragator.core.types import Completion, Failure, Grade, Group
from paragator.records import Graded, decode

KINDS = (
    "right_to_wrong",
    "wrong_to_right",
    "recovered",
    "lost",
    "disagreement",
    "truncated",
    "unscored",
    "failed",
)
"""What a trace can be listed for. The first two are about the majority answer of the first round and of the last."""
LETTERS = {"correct": "r", "incorrect": "w", "unscored": "u"}
SNIPPET = 160
SURROGATES = re.compile("[\ud800-\udfff]")
Credit = Callable[[Graded], Mapping[tuple[int, int], Sequence[float]]]
"""(round, group) -> the credit of its outputs."""


@dataclass(frozen=True, slots=True)
class ListRow:
    """What the list shows of a trace. `marks`: a letter an output (right, wrong, unscored, failed), "/" between rounds."""

    problem: str
    repeat: int
    step: int | None
    strategy: str
    text: str
    marks: str
    first: float | None
    last: float | None
    answers: int
    tokens: int
    kinds: int
    """Bit i is set where KINDS[i] holds."""


def list_row(raw: Mapping[str, Any]) -> ListRow:
    """A record's row, straight from its JSON; a DataError, KeyError or TypeError where it is none."""
    rounds = [[output for group in groups for output in group["outputs"]] for groups in raw["rounds"]]
    extra, outputs = raw["extra"], [output for round_ in rounds for output in round_]
    letters = ["".join(map(letter, round_)) for round_ in rounds]
    kept = [output for output in outputs if "text" in output]
    counts = [len(output["token_ids"] or ()) or output["num_tokens"] or 0 for output in kept]
    answers = {(output.get("grade") or {}).get("answer") for output in (rounds[-1] if rounds else [])} - {None}
    found = kinds(rounds, letters, len(answers))
    found |= {
        "truncated": any(output["finish_reason"] == "length" for output in kept),
        "failed": bool(raw["failure"]) or "f" in "".join(letters),
    }
    return ListRow(
        clean(str(raw["problem"]["id"])),
        int(extra.get("repeat", 0)),
        step if isinstance(step := extra.get("step"), int) else None,
        clean(str(extra.get("strategy") or shape(raw["plan"]))),
        clean(" ".join(str(raw["problem"]["text"])[: 4 * SNIPPET].split())[:SNIPPET]),
        "/".join(letters),
        share(letters[0]) if letters else None,
        share(letters[-1]) if letters else None,
        len(answers),
        sum(counts),
        sum(1 << i for i, name in enumerate(KINDS) if found.get(name)),
    )


def kinds(rounds: Sequence[Sequence[Mapping[str, Any]]], letters: Sequence[str], answers: int) -> dict[str, bool]:
    """What became of the answers between the first round and the last."""
    if not letters:
        return {}
    out = {"unscored": "u" in "".join(letters), "disagreement": answers > 1}
    if len(letters) < 2:
        return out
    before, after = majority_right(rounds[0]), majority_right(rounds[-1])
    some, end = "r" in letters[0], set(letters[-1])
    return out | {
        "right_to_wrong": (before, after) == (True, False),
        "wrong_to_right": (before, after) == (False, True),
        "recovered": set(letters[0]) == {"w"} and "r" in end,
        "lost": some and end == {"w"},
    }


def majority_right(outputs: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the most frequent answer is right; None where answers of both kinds are tied, or none is scored.

    Without answers (of a reward function that reads none) it is whether more than half are right.
    """
    grades = [grade for output in outputs if (grade := output.get("grade")) and grade["verdict"] != "unscored"]
    votes = Counter(grade["answer"] for grade in grades if grade["answer"] is not None)
    if not votes:
        right = sum(grade["verdict"] == "correct" for grade in grades)
        return None if 2 * right == len(grades) else 2 * right > len(grades)
    most = max(votes.values())
    found = {grade["verdict"] for grade in grades if votes.get(grade["answer"]) == most}
    return found == {"correct"} if len(found) == 1 else None


def letter(output: Mapping[str, Any]) -> str:
    if "failure" in output:
        return "f"
    return LETTERS[output["grade"]["verdict"]] if output.get("grade") else "u"


def share(letters: str) -> float | None:
    """The share of right ones among the scored."""
    scored = letters.count("r") + letters.count("w")
    return letters.count("r") / scored if scored else None


def shape(plan: Mapping[str, Any]) -> str:
    """A plan in short: "16 candidates, 3 rounds of 4 from 4"."""
    head = f"{plan['candidates']} candidates"
    return f"{head}, {plan['rounds']} x {plan['aggregations']} of {plan['pool_size']}" if plan["rounds"] else head


def detail(raw: dict[str, Any], credit: Credit | None = None, limit: int = 0) -> dict[str, Any]:
    """Everything that the page shows of a record; DataError where it is none. Texts above `limit` lose their middle."""
    record = decode(raw)
    trace, credits = record.trace, credit(record) if credit else {}
    rounds = []
    for t, (groups, grades) in enumerate(zip(trace.rounds, record.grades, strict=True)):
        shown, first = [], 0
        for g, (group, own) in enumerate(zip(groups, grades, strict=True)):
            cards = list(outputs_of(group, own, credits.get((t, g), ()), limit))
            for card in cards:
                card["index"] = None if "failure" in card else first
                first += "failure" not in card
            shown.append({
                "stage": group.stage, "pool": group.pool, "prompt": cut(group.prompt.text, limit),
                "chat": group.prompt.chat, "reductions": list(map(clean, group.reductions)),
                "prompt_tokens": group.prompt_length, "outputs": cards,
            })  # fmt: skip
        rounds.append(shown)
    problem = trace.problem
    return {
        "problem": clean(problem.id), "text": cut(problem.text, limit), "answer": cleaned(problem.answer),
        "failure": cleaned(trace.failure), "extra": cleaned(trace.extra), "plan": shape(raw["plan"]),
        "seed": trace.seed, "rounds": rounds,
    }  # fmt: skip


def outputs_of(
    group: Group, grades: Sequence[Grade | None], credit: Sequence[float], limit: int
) -> Iterator[dict[str, Any]]:
    """A group's cards, in order."""
    for i, (output, grade) in enumerate(zip(group.outputs, grades, strict=True)):
        if isinstance(output, Failure):
            yield {"failure": cut(output.reason, limit)}
            continue
        yield {**card(output, grade, limit), "credit": credit[i] if i < len(credit) else None}


def card(output: Completion, grade: Grade | None, limit: int) -> dict[str, Any]:
    return {
        "text": cut(output.text, limit),
        "thinking": None if output.thinking is None else cut(output.thinking, limit),
        "finish": output.finish_reason,
        "tokens": output.length,
        "verdict": grade.verdict if grade else "unscored",
        "answer": None if grade is None or grade.answer is None else cut(grade.answer, limit),
        "reason": clean(grade.reason) if grade else "",
        "reward": grade.reward if grade else None,
    }


def crediting(config: Mapping[str, Any]) -> Credit | None:
    """How a run's training credits its rollouts, by its resolved config; None where that says no method of this version."""
    from pydantic import ValidationError

    from paragator.config import Config
    from paragator.training.credited import credits
    from paragator.training.recipe import Crediting

    try:
        found = Crediting.from_config(Config.model_validate(config))
    except (ValidationError, ParagatorError, LookupError, ValueError):
        return None

    def of(record: Graded) -> dict[tuple[int, int], Sequence[float]]:
        places = {id(group): (t, g) for t, groups in enumerate(record.trace.rounds) for g, group in enumerate(groups)}
        try:
            return {places[id(group)]: credit for _, group, credit in credits(record, found)}
        except (ParagatorError, LookupError, ValueError, ArithmeticError):
            return {}  # of another plan than the method's

    return of


def cut(text: str, limit: int) -> str:
    """A text without its middle where it is longer than `limit` (0: never)."""
    if limit and len(text) > limit:
        text = f"{text[: limit // 2]}\n[... {len(text) - limit:,} characters left out ...]\n{text[-(limit // 2) :]}"
    return clean(text)


def clean(text: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair is spelled out."""
    return SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def cleaned(value: Any) -> Any:
    """The same for every text in a JSON value."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(name)): cleaned(one) for name, one in value.items()}
    return [cleaned(one) for one in value] if isinstance(value, list | tuple) else value
