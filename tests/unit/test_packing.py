"""From a drawn pool to a prompt that fits: nothing is reduced in silence."""

from __future__ import annotations

import pytest

from paragator.core.errors import UsageError
from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.types import Problem, Prompt

TEMPLATES = Templates(candidate="{problem}", aggregation="{problem}:{attempts}", attempt="[{attempt}]")
PROBLEM = Problem("p", "P")


def length(prompt: Prompt) -> int:
    return len(prompt.text)


def test_thinking_is_stripped_and_unfinished_thinking_dropped_and_recorded() -> None:
    attempts = [(3, "<think>SECRET</think>three"), (0, "<think>SECRET"), (1, "one"), (2, "  ")]
    packed = Packer().pack(PROBLEM, attempts, TEMPLATES)
    assert packed.prompt.text == "P:[three][one]"
    assert packed.pool == (3, 1)
    assert packed.reductions == ("empty:2",)


def test_thinking_can_be_shown() -> None:
    packed = Packer(strip_thinking=False).pack(PROBLEM, [(0, "<think>a</think>b"), (1, "<think>c")], TEMPLATES)
    assert packed.prompt.text == "P:[<think>a</think>b][<think>c]"
    assert packed.reductions == ()


def test_what_fits_is_left_alone() -> None:
    attempts = [(1, "x" * 40), (0, "y" * 40)]
    exact = length(TEMPLATES.for_aggregation(PROBLEM, [text for _, text in attempts]))
    packed = Packer(max_tokens=exact, count=length).pack(PROBLEM, attempts, TEMPLATES)
    assert (packed.pool, packed.reductions) == ((1, 0), ())
    assert Packer(max_tokens=exact - 1, count=length).pack(PROBLEM, attempts, TEMPLATES).reductions == ("tail:0.5",)


def test_a_long_pool_keeps_its_tails_where_the_answers_are() -> None:
    attempts = [(i, "z" * 393 + f"answer{i}") for i in range(3)]
    packed = Packer(max_tokens=340, count=length).pack(PROBLEM, attempts, TEMPLATES)
    assert packed.reductions == ("tail:0.25",)
    assert packed.pool == (0, 1, 2)
    assert all(f"answer{i}]" in packed.prompt.text for i in range(3))
    assert packed.prompt.text.count("z") == 3 * (100 - len("answer0"))
    assert length(packed.prompt) <= 340


def test_then_attempts_are_dropped_last_drawn_first() -> None:
    attempts = [(i, "w" * 392 + f"answer{i}") for i in (2, 0, 1)]
    packed = Packer(max_tokens=130, count=length).pack(PROBLEM, attempts, TEMPLATES)
    assert packed.pool == (2, 0)
    assert packed.reductions == ("tail:0.125", "dropped:1")
    assert "answer2" in packed.prompt.text
    assert "answer1" not in packed.prompt.text


def test_nothing_fits() -> None:
    packed = Packer(max_tokens=1, count=length).pack(PROBLEM, [(0, "a" * 99), (1, "<think>")], TEMPLATES)
    assert packed.prompt.text == "P:"
    assert packed.pool == ()
    assert packed.reductions == ("empty:1", "tail:0.125", "dropped:1")


@pytest.mark.parametrize("budget", range(2, 600, 7))
def test_the_budget_holds_and_the_record_is_complete(budget: int) -> None:
    attempts = [(i, chr(97 + i) * (50 * i + 1)) for i in (4, 1, 3, 0, 2)]
    packed = Packer(max_tokens=budget, count=length).pack(PROBLEM, attempts, TEMPLATES)
    assert length(packed.prompt) <= budget
    assert packed.pool == (4, 1, 3, 0, 2)[: len(packed.pool)]
    whole = packed.prompt == TEMPLATES.for_aggregation(PROBLEM, [text for _, text in attempts])
    assert whole == (packed.reductions == ())
    dropped = [note for note in packed.reductions if note.startswith("dropped")]
    assert dropped == ([f"dropped:{5 - len(packed.pool)}"] if len(packed.pool) < 5 else [])


def test_a_budget_needs_a_counter() -> None:
    with pytest.raises(UsageError, match="max_tokens = 9 without count"):
        Packer(max_tokens=9)


def test_a_problem_that_leaves_no_room_says_so() -> None:
    packed = Packer(max_tokens=3, count=length).pack(PROBLEM, [(0, "a" * 99)], TEMPLATES)
    assert packed.misfit == "context length: the problem leaves no room for an attempt in 3 tokens of prompt"
    assert Packer().pack(PROBLEM, [(0, "<think>")], TEMPLATES).misfit is None  # nothing to show is another matter


def test_attempts_can_be_counted_apart() -> None:
    weights = {"a": 1, "b": 7, "c": 2}
    packer = Packer(max_tokens=10, count=length, count_attempt=lambda text: weights[text[-1]])
    assert packer.pack(PROBLEM, [(0, "a"), (1, "b")], TEMPLATES).pool == (0, 1)
    packed = packer.pack(PROBLEM, [(0, "a"), (1, "b"), (2, "c")], TEMPLATES)
    assert packed.pool == (0, 1) and packed.reductions == ("tail:0.125", "dropped:1")
