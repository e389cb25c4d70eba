"""An engine that answers from a recording: completions that real models gave earlier. No model, no torch.

A recording is a JSONL file (other layouts: tasks/recordings.py), one problem a line:

    {"id": "p1", "problem": "...", "answer": "18", "completions": ["A: 18", {"text": "First,", "finish_reason": "length"}]}

A completion is its text, or an object with `text` and optionally `finish_reason` ("stop" unless recorded),
`num_tokens`, `thinking` and `confidences` (one a token); its other fields (a model's name, a recorded verdict) are
ignored, since grades come from the text. All fields but the problem and the completions are optional, unless something needs them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from paragator.core.errors import DataError, UsageError
from paragator.core.prompts import CHAT, Templates
from paragator.core.types import Completion, FinishReason, Group, Plan, Problem, Prompt, Sample, Stage
from paragator.tasks.recordings import READ, recorded_rows
from paragator.tasks.references import problem_text, reference_of
from paragator.tasks.sources import answer_text

WHERE = f"call it {', '.join(READ['problem'])}, name it in task.fields, or give --task, which has it by id"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a recording: a problem (its answer None where the line has none) and its completions in order."""

    problem: Problem
    completions: tuple[Completion, ...]


class Replay:
    """Satisfies `Sample` with recorded completions, found by the text of the candidate prompt.

    recorded    a recording's file, read for the built-in chat templates, or prompt text -> what is recorded for it;
                `Replay.read` builds that from a file and the templates in use
    drawn       a request for fewer than are recorded takes a sample without replacement that depends on its seed, so
                that repeats are independent draws; False takes the first ones. Either way in the recorded order
    aggregator  samples the aggregation rounds, which a recording does not hold; None refuses them

    Beside a server (`--recording FILE --url URL`) it gives the candidates and the server samples what comes after them.

    A request for all that is recorded gives the same group whatever its seed: repeats of it add nothing.
    """

    def __init__(
        self, recorded: str | Path | Mapping[str, Recorded], *, drawn: bool = True, aggregator: Sample | None = None
    ) -> None:
        self.recorded = by_prompt(Path(recorded), CHAT) if isinstance(recorded, str | Path) else dict(recorded)
        self.drawn = drawn
        self.aggregator = aggregator

    @classmethod
    def read(
        cls,
        path: Path,
        templates: Templates,
        *,
        problem_field: str = "problem",
        drawn: bool = True,
        aggregator: Sample | None = None,
        known: Iterable[Problem] = (),
    ) -> Replay:
        """The recording in a file; DataError where two lines have one prompt, as it could not tell them apart.

        Of the `known` problems a line may have the id alone.
        """
        return cls(by_prompt(path, templates, problem_field, known), drawn=drawn, aggregator=aggregator)

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n recorded completions of the prompt; UsageError where so many are not there."""
        if stage == "aggregate":
            if self.aggregator is None:
                raise UsageError(beyond("an aggregation"))
            return await self.aggregator(prompt, n, stage=stage, seed=seed)
        completions = self.enough(prompt, n).completions
        chosen = list(range(n))
        if self.drawn and n < len(completions):
            chosen = sorted(random.Random(seed).sample(range(len(completions)), n))
        return Group(prompt, tuple(completions[i] for i in chosen), stage=stage)

    async def first(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """As the engine itself, but n completions are the first n of one random order: more of them include fewer."""
        if stage == "aggregate":
            return await self(prompt, n, stage=stage, seed=seed)
        completions = self.enough(prompt, n).completions
        order = random.Random(seed).sample(range(len(completions)), len(completions))
        return Group(prompt, tuple(completions[i] for i in order[:n]), stage=stage)

    @property
    def tells_confidence(self) -> bool:
        """Whether every completion has the confidences of its tokens."""
        return all(one.confidences is not None for row in self.recorded.values() for one in row.completions)

    def check(self, plan: Plan, prompts: Iterable[Prompt]) -> None:
        """Refuse, before anything is spent, a plan over these candidate prompts that the recording cannot serve."""
        if plan.rounds and self.aggregator is None:
            raise UsageError(beyond(f"rounds = {plan.rounds}"))
        for prompt in prompts:
            self.enough(prompt, plan.candidates)

    def enough(self, prompt: Prompt, n: int) -> Recorded:
        """What is recorded for a prompt, when that is n completions or more."""
        found = self.recorded.get(prompt.text)
        if found is None:
            raise UsageError(
                f"no recording for this prompt; record it, or take the problems from the recording: {prompt.text[:80]!r}"
            )
        if n > len(found.completions):
            raise UsageError(
                f"problem {found.problem.id}: {n} candidates asked, {len(found.completions)} recorded; "
                f"set eval.candidates = {len(found.completions)} or lower"
            )
        return found

    def close(self) -> None:
        """Nothing to release; part of what engines offer."""


def by_prompt(
    path: Path, templates: Templates, problem_field: str = "problem", known: Iterable[Problem] = ()
) -> dict[str, Recorded]:
    """A recording by the text of its candidate prompts."""
    recorded: dict[str, Recorded] = {}
    for row in read(path, problem_field=problem_field, known=known):
        other = recorded.setdefault(templates.for_candidate(row.problem).text, row)
        if other is not row:
            raise DataError(
                f"{path}: problems {other.problem.id!r} and {row.problem.id!r} have the same text; "
                "join their completions in one line"
            )
    return recorded


def beyond(what: str) -> str:
    return f"{what} is a round beyond what is recorded: set eval.rounds = 0, or use an engine that samples"


def problems(path: Path, *, problem_field: str = "problem") -> list[Problem]:
    """The recording's problems, so that evaluating it needs no other file; DataError where one has no answer."""
    found = [row.problem for row in read(path, problem_field=problem_field, prose=False)]
    for problem in found:
        if not problem.answer:
            raise DataError(f"{path}: problem {problem.id!r} has no answer to grade by; add the field 'answer'")
    return found


def read(
    path: Path, *, problem_field: str = "problem", prose: bool = True, known: Iterable[Problem] = ()
) -> list[Recorded]:
    """Every line of a recording; DataError names the line that is not one, a duplicate id, or a file without lines."""
    out: dict[str, Recorded] = {}
    texts = {problem.id: problem.text for problem in known}
    for number, row in recorded_rows(path, problem_field):
        where = f"{path}: row {number}"
        text, completions = problem_text(row.get("problem"), where), row["completions"]
        if "problem" not in row and "id" in row and texts:
            text = texts.get(str(row["id"]))
            if text is None:  # of a problem that is not asked for
                continue
        if text is None or not text.strip():
            raise DataError(f"{where}: field {problem_field!r} is missing or empty; {WHERE}")
        if not isinstance(completions, list) or not completions:
            raise DataError(
                f"{where}: field 'completions' must be a list of one or more; record some, or remove the row"
            )
        answer = row.get("answer")
        answer = (
            None
            if answer is None
            else reference_of(answer_text(answer, where), where, kind=row.get("kind"), prose=prose)
        )
        problem = Problem(str(row.get("id", number)), text.strip(), answer)  # as a task reads it
        if problem.id in out:
            raise DataError(f"{where}: id {problem.id!r} occurs twice; give every problem its own")
        out[problem.id] = Recorded(problem, tuple(completion_of(c, where) for c in completions))
    if not out:
        raise DataError(f"{path}: nothing recorded; one JSON object a line, fields problem and completions")
    return list(out.values())


def completion_of(value: Any, where: str) -> Completion:
    """A recorded completion, from its text or its object."""
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise DataError(f"{where}: a completion is a text, or an object with a field 'text'; fix the row")
    finish: Any = fields.get("finish_reason") or "stop"
    tokens, thinking, sure = fields.get("num_tokens"), fields.get("thinking"), fields.get("confidences")
    if finish not in get_args(FinishReason):
        raise DataError(f"{where}: finish_reason = {finish!r}: use one of {', '.join(get_args(FinishReason))}")
    if tokens is not None and (not isinstance(tokens, int) or tokens < 0):
        raise DataError(f"{where}: num_tokens = {tokens!r}: write a whole number, or leave it out")
    if thinking is not None and not isinstance(thinking, str):
        raise DataError(f"{where}: thinking = {thinking!r}: write a text, or leave it out")
    if sure is not None and not (isinstance(sure, list) and all(type(c) in (int, float) and c >= 0 for c in sure)):
        raise DataError(
            f"{where}: confidences = {sure!r:.60}: write a list of numbers from 0, one a token, or leave it out"
        )
    confidences = None if sure is None else tuple(map(float, sure))
    return Completion(fields["text"], finish, num_tokens=tokens, thinking=thinking, confidences=confidences)
