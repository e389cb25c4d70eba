"""A few dozen traces to read: solved ones, lost ones and plain ones, with every pool that was shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from paragator.core.types import Completion, Failure, Grade, Group
from paragator.records import Graded
from paragator.report.markup import as_text, show

TRACES, TRACES_OF_A_KIND = 24, 8
MARKS = {"correct": "\N{CHECK MARK}", "incorrect": "\N{BALLOT X}", "unscored": "?", "failed": "\N{EM DASH}"}


def choose(records: Iterable[Graded]) -> list[tuple[str, Graded]]:
    """At most TRACES (kind, record): some solved, as many lost, then plain ones; the latest of each."""
    kept: dict[str, deque[Graded]] = {
        "solved": deque(maxlen=TRACES_OF_A_KIND),
        "lost": deque(maxlen=TRACES_OF_A_KIND),
        "plain": deque(maxlen=TRACES),
    }
    for record in records:
        kept[kind_of(record)].append(record)
    return [(kind, record) for kind, some in kept.items() for record in some][:TRACES]


def kind_of(record: Graded) -> str:
    """solved: all candidates were wrong and a last solution is right; lost: the reverse; else plain."""
    if record.num_rounds < 2:
        return "plain"
    before, after = some_right(record.grades[0]), some_right(record.grades[-1])
    if (before, after) == (False, True):
        return "solved"
    return "lost" if (before, after) == (True, False) else "plain"


def some_right(grades: Sequence[Sequence[Grade | None]]) -> bool | None:
    """Whether a round has a right solution; None when that is not known, as some or all have no verdict."""
    verdicts = {grade.verdict if grade else "failed" for group in grades for grade in group}
    return True if "correct" in verdicts else False if verdicts == {"incorrect"} else None


def readings(source: str, chosen: Sequence[tuple[str, Graded]]) -> str:
    """Traces to read, folded."""
    if not chosen:
        return "<h2>Traces</h2><p>No trace is recorded.</p>"
    note = (
        f"{len(chosen)} traces of {source}. Solved: all candidates were wrong, a solution of the last round is right; "
        "lost: the reverse. One group of marks a round."
    )
    head = f'<h2>Traces</h2><p class="soft">{show(note)}</p>'
    return "\n".join([head, *(reading(kind, one) for kind, one in chosen)])


def reading(kind: str, record: Graded) -> str:
    """One trace: the problem, its candidates, and every pool with its aggregations."""
    trace = record.trace
    marks = " &rarr; ".join("".join(mark(grade) for group in groups for grade in group) for groups in record.grades)
    out = [
        f'<details><summary>{show(trace.problem.id)} <span class="tag">{kind}</span> <span class="marks">{marks}</span>'
        "</summary>",
        f"<h3>Problem</h3>{as_text(trace.problem.text)}",
    ]
    if trace.failure:
        out.append(f'<p class="notice">{show(trace.failure)}</p>')
    for t, (groups, grades) in enumerate(zip(trace.rounds, record.grades, strict=True)):
        first = 0
        for group, group_grades in zip(groups, grades, strict=True):
            out.append(round_title(t, group))
            out += outputs(group, group_grades, first)
            first += len(group.completions)
    return "\n".join([*out, "</details>"])


def round_title(round_: int, group: Group) -> str:
    """What a group was shown."""
    if round_ == 0:
        return "<h3>Candidates</h3>"
    pool = ", ".join(f"#{index}" for index in group.pool) or "nothing"
    reduced = f" (reduced: {', '.join(group.reductions)})" if group.reductions else ""
    title = f"Round {round_}: aggregations of {pool} of round {round_ - 1}{reduced}"
    prompt = f"<details><summary>Its prompt</summary>{as_text(group.prompt.text)}</details>"
    return f"<h3>{show(title)}</h3>{prompt}"


def outputs(group: Group, grades: Sequence[Grade | None], first: int) -> list[str]:
    """Every output of a group with its verdict; `first` is the population index of its first solution."""
    out = []
    for output, grade in zip(group.outputs, grades, strict=True):
        if isinstance(output, Failure):
            out.append(f'<p class="failed">{MARKS["failed"]} failed: {show(output.reason)}</p>')
            continue
        out.append(f"<div>#{first} {verdict(output, grade)}</div>{as_text(output.text)}")
        first += 1
    return out


def verdict(output: Completion, grade: Grade | None) -> str:
    """A solution's verdict in words, with its answer and why."""
    word = grade.verdict if grade else "unscored"
    parts: list[str] = [word]
    if grade and grade.reward not in (None, 0, 1):
        parts.append(f"reward {grade.reward:.6g}")
    if grade and grade.answer is not None:
        parts.append(f"answer {grade.answer}")
    if grade and grade.reason:
        parts.append(grade.reason)
    if output.finish_reason != "stop":
        parts.append("truncated" if output.finish_reason == "length" else output.finish_reason)
    return f'<span class="{word}">{MARKS[word]} {show(", ".join(parts))}</span>'


def mark(grade: Grade | None) -> str:
    word = grade.verdict if grade else "failed"
    return f'<span class="{word}">{MARKS[word]}</span>'
