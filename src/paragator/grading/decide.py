"""One verdict on one solution. Pure; `quick` is safe anywhere, `decide` belongs into a worker process with limits."""

from __future__ import annotations

from paragator.core.types import Grade
from paragator.grading.extract import final_answer


def quick(text: str, reference: str, kind: str | None = None) -> Grade | None:
    """What can be decided in microseconds whatever the text holds; None where `decide` is needed."""
    answer = final_answer(text)
    if answer is None:
        return Grade("incorrect", None, "no answer outside thinking")
    return Grade("correct", answer) if answer == reference else None


def decide(text: str, reference: str, kind: str | None = None) -> Grade:
    """The verdict on `text`."""
    found = quick(text, reference, kind)
    return found or Grade("incorrect", final_answer(text))
