"""Supervised demonstrations for the cold start of a small model: solving, reviewing, copying. Countdown, sums, composites.

Three skills. The choice of an attempt is taught weakly and late, so that policy optimisation has something to sharpen: a
choice that ignored the review gave it nothing to start from (experiments/LOG.md).
    solve    of Countdown seven in ten reach the target, the others are honest attempts that end in some other number. (A model
             that only ever sees success learns to claim it falsely, and then nothing in an attempt shows that it is wrong.)
             How often a sum is right depends on WarmupConfig.careless
    review   inside <think>, each attempt of the pool is called right or wrong, truthfully
    copy     after the review an attempt is written again, or ("use none") a new one; the choice is random at first, and
             from WarmupConfig.prefer_from on falls, for a share of the demonstrations, on one called right
    mend     for a share WarmupConfig.mend, where no attempt is right: one is written again, its fault repaired
A demonstration is pieces of (text, loss weight); tokens are separated by one space.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.prompts import LABELS
from paragator.core.types import Problem
from paragator.tasks import arithmetic, composite
from paragator.tasks.base import is_held_out
from paragator.tasks.countdown import COMPACT, content_key, grade_one

Piece = tuple[str, float]
LARGEST = 149
"""Largest number in the vocabulary: no demonstrated step goes above it."""
SOLVED = 0.7
"""Share of solving demonstrations that reach the target."""
RIGHT = 0.35
"""Share of pool attempts that reach the target before any are corrupted."""
SPOILT = 0.18
"""Share of pool attempts with a false step, a foreign number or a false claim of the target."""
RIGHT_SUM = 0.4
"""Share of right attempts in a pool of sums."""
FORGOTTEN = 0.5
"""Share of the others that take a term twice and forget one; the rest have one false step."""
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
EASIER = 8
"""A careless solver errs so many times more rarely in a step that keeps the tens digit than in one that changes it."""
LARGEST_SUM = 2000
"""The largest number that may be a token of its own."""
AFRESH = 0.25
"""Share of aggregations that write a new attempt instead of copying one."""
AFRESH_PART = 0.1
"""Share of a composite's parts that an aggregation writes anew."""
WEIGHTS = {"attempt in pool": 0.3, "verdict": 2.0, "choice": 0.5, "form": 0.2, "solution": 1.0}


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "<think>", "</think>", "\n", "->", ",", "=", "+", "-", "*", "/"]
WORDS += ["solve:", "review:", "right", "wrong", "use", "none", *LABELS[:8]]
"""What every small model's tokenizer knows, in order; the first four are special."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Every way to combine one set of numbers: `texts[i]` ends in `results[i]`; `ways[r]` lists the i that reach r."""

    texts: list[str]
    results: list[int]
    ways: dict[int, list[int]]


def enumerate_attempts(numbers: Sequence[int], rng: Random) -> Attempts:
    """All step-by-step combinations with results from 0 to LARGEST; commutative steps are written either way round."""
    texts: list[str] = []
    results: list[int] = []
    ways: dict[int, list[int]] = {}

    def extend(table: list[int], steps: list[str]) -> None:
        if len(table) == 1:
            ways.setdefault(table[0], []).append(len(texts))
            texts.append(" , ".join(steps))
            results.append(table[0])
            return
        for a, b in sorted({(a, b) for a, b in itertools.permutations(table, 2) if a >= b}):
            rest = list(table)
            rest.remove(a)
            rest.remove(b)
            for operator, result in combinations(a, b):
                x, y = (b, a) if operator in "+*" and rng.random() < 0.5 else (a, b)
                extend([*rest, result], [*steps, f"{x} {operator} {y} = {result}"])

    extend(list(numbers), [])
    return Attempts(texts, results, ways)


def combinations(a: int, b: int) -> list[tuple[str, int]]:
    """(operator, result) of a >= b with whole results up to LARGEST."""
    out = [("+", a + b), ("-", a - b), ("*", a * b)]
    if b and a % b == 0:
        out.append(("/", a // b))
    return [(operator, result) for operator, result in out if result <= LARGEST]


class Demonstrator:
    """Draws demonstrations over the training split of a task; a held-out problem never occurs. A task fills in four things."""

    words: list[str]
    """Every token of the tokenizer, in order."""

    def problem(self, rng: Random) -> tuple[Problem, Any]:
        """A training problem, and what its attempts are made from."""
        raise NotImplementedError

    def solution(self, problem: Problem, source: Any, rng: Random) -> str:
        """What a solver writes."""
        raise NotImplementedError

    def attempt(self, problem: Problem, source: Any, rng: Random) -> tuple[str, float]:
        """An attempt of a pool, and the weight with which it is learnt from."""
        raise NotImplementedError

    def right(self, problem: Problem, text: str) -> bool:
        """Whether an attempt is right."""
        raise NotImplementedError

    def repaired(self, problem: Problem, source: Any, attempt: str, rng: Random) -> str:
        """A right solution that keeps what it can of a wrong attempt."""
        raise NotImplementedError

    def solve(self, rng: Random) -> list[Piece]:
        """A candidate prompt and an attempt."""
        problem, source = self.problem(rng)
        head = f"<bos> {problem.text} \n solve:"
        return [(head, 0.0), (f"{self.solution(problem, source, rng)} <eos>", WEIGHTS["solution"])]

    def review(self, rng: Random, pool_size: int, prefer: float = 0.0, mend: float = 0.0) -> list[Piece]:
        """An aggregation prompt, a truthful review of its attempts, and one of them, or a new one, written out.

        With probability `prefer` the attempt is one of those called right, if there is any; else any attempt. With
        probability `mend` no attempt is right, and the one that is written is repaired.
        """
        problem, source = self.problem(rng)
        mending = mend > 0 and rng.random() < mend
        pieces: list[Piece] = [(f"<bos> {problem.text} \n", 0.0)]
        review: list[Piece] = [("<think>", WEIGHTS["solution"])]
        pool: list[str] = []
        for label in LABELS[:pool_size]:
            text, weight = self.attempt(problem, source, rng)
            while (right := self.right(problem, text)) and mending:
                text, weight = self.attempt(problem, source, rng)
            pieces += [(label, 0.0), (text, weight), ("\n", 0.0)]
            verdict = "right" if right else "wrong"
            review += [(label, WEIGHTS["form"]), (verdict, WEIGHTS["verdict"])]
            pool.append(text)
        choice = rng.randrange(pool_size)
        called = [i for i, (word, _) in enumerate(review[2::2]) if word == "right"]
        if prefer and called and rng.random() < prefer:
            choice = rng.choice(called)
        afresh = rng.random() < AFRESH and not mending
        solution = self.solution(problem, source, rng) if afresh else pool[choice]
        if mending:
            solution = self.repaired(problem, source, solution, rng)
        review += [("use", WEIGHTS["form"]), ("none" if afresh else LABELS[choice], WEIGHTS["choice"])]
        review += [("</think>", WEIGHTS["form"]), (f"{solution} <eos>", WEIGHTS["solution"])]
        return [*pieces, ("review:", 0.0), *review]


class Countdown(Demonstrator):
    """Countdown: every way to combine a set of numbers is enumerated first."""

    def __init__(self, config: TaskConfig, seed: int, careless: float = 0.0) -> None:
        if careless:
            raise UsageError(
                f"careless = {careless} is for sums: demonstrations of Countdown have failures of their own"
            )
        self.config = config
        self.words = [*WORDS, *map(str, range(LARGEST + 1))]
        rng = Random(f"{seed}:attempts")
        sizes = range(config.min_numbers, config.max_numbers + 1)
        values = range(config.min_value, config.max_value + 1)
        sets = [s for n in sizes for s in itertools.combinations_with_replacement(values, n)]
        self.attempts = {numbers: enumerate_attempts(numbers, rng) for numbers in sets}
        self.sets = sets

    def problem(self, rng: Random) -> tuple[Problem, Attempts]:
        """A training problem, its target being what a random combination makes."""
        while True:
            numbers = rng.choice(self.sets)
            attempts = self.attempts[numbers]
            target = rng.choice(attempts.results)
            in_range = self.config.min_target <= target <= self.config.max_target
            if in_range and not is_held_out(content_key(numbers, target)):
                break
        shown = rng.sample(numbers, len(numbers))
        text = COMPACT.format(numbers=" ".join(map(str, shown)), target=target)
        return Problem("", text, {"numbers": shown, "target": target}), attempts

    def solution(self, problem: Problem, source: Attempts, rng: Random) -> str:
        return draw(problem, source, SOLVED, rng)

    def attempt(self, problem: Problem, source: Attempts, rng: Random) -> tuple[str, float]:
        text = draw(problem, source, RIGHT, rng)
        spoilt = rng.random() < SPOILT
        return (spoil(text, problem, rng), 0.0) if spoilt else (text, WEIGHTS["attempt in pool"])

    def right(self, problem: Problem, text: str) -> bool:
        return grade_one(problem, text).verdict == "correct"

    def repaired(self, problem: Problem, source: Attempts, attempt: str, rng: Random) -> str:
        """One of the solutions with most of the attempt's steps."""
        kept, ways = set(attempt.split(" , ")), source.ways[problem.answer["target"]]
        return source.texts[
            max(ways, key=lambda i: (len(kept.intersection(source.texts[i].split(" , "))), rng.random()))
        ]


class Sums(Demonstrator):
    """Chain arithmetic a step at a time, its terms in any order: of 12 + 7 - 30 "7 - 30 = -23 , -23 + 12 = -11".

    The order is what an attempt chooses. A careless solver errs in steps that carry, and by the order it can avoid some:
    a model of such solutions knows its sums and slips, which policy optimisation can correct (docs/results/study.md tells
    what became of models that did not). A number is one token, its sign included.
    """

    def __init__(self, config: TaskConfig, seed: int, careless: float = 0.0) -> None:
        self.config = config
        self.careless = careless
        self.digits = (len(str(config.min_value)), len(str(config.max_value)))
        largest = config.max_numbers * (10 ** self.digits[1] - 1 + max(SLIPS))
        if largest > LARGEST_SUM:
            raise UsageError(
                f"task.max_numbers = {config.max_numbers}, task.max_value = {config.max_value}: sums up to {largest} need as "
                f"many tokens; stay below {LARGEST_SUM}"
            )
        self.words = [*WORDS, *map(str, range(-largest, largest + 1))]

    def problem(self, rng: Random) -> tuple[Problem, list[str]]:
        """A training problem as `tasks.arithmetic` makes it, and its terms: "12", "+ 7", "- 30"."""
        while True:
            digits = rng.randint(*self.digits)
            numbers = [
                str(rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))
                for _ in range(rng.randint(self.config.min_numbers, self.config.max_numbers))
            ]
            terms = [numbers[0], *(f"{rng.choice('+-')} {n}" for n in numbers[1:])]
            text = " ".join(terms)
            if not is_held_out(arithmetic.content_key(text)):
                return Problem("", text, sum(int(t.replace(" ", "")) for t in terms)), terms

    def solution(self, problem: Problem, source: list[str], rng: Random) -> str:
        terms, slips, total = in_any_order(source, rng), {}, 0
        for i, term in enumerate(terms):
            before, total = total, total + int(term.replace(" ", ""))
            hard = before // 10 != total // 10
            if i and self.careless and rng.random() < (self.careless if hard else self.careless / EASIER):
                slips[i] = rng.choice(SLIPS)
                total += slips[i]
        return worked(terms, slips)

    def attempt(self, problem: Problem, source: list[str], rng: Random) -> tuple[str, float]:
        terms = in_any_order(source, rng)
        if rng.random() < RIGHT_SUM:
            return worked(terms), WEIGHTS["attempt in pool"]
        at = rng.randrange(1, len(terms))
        others = [term for term in source[1:] if term != terms[at]]
        if others and rng.random() < FORGOTTEN:
            terms[at] = rng.choice(others)
            return worked(terms), 0.0
        return worked(terms, {at: rng.choice(SLIPS)}), 0.0

    def right(self, problem: Problem, text: str) -> bool:
        return arithmetic.grade_one(problem, text).verdict == "correct"

    def repaired(self, problem: Problem, source: list[str], attempt: str, rng: Random) -> str:
        """The attempt's terms in its order, a forgotten one in place of one taken twice, and every step done right."""
        steps = [step.split(" ") for step in attempt.split(" , ")]
        terms = [f"+ {steps[0][0]}", *(f"{step[1]} {step[2]}" for step in steps)]
        whole, found = Counter([f"+ {source[0]}", *source[1:]]), Counter(terms)
        for twice, forgotten in zip((found - whole).elements(), (whole - found).elements(), strict=True):
            terms[len(terms) - 1 - terms[::-1].index(twice)] = forgotten
        return worked([terms[0].removeprefix("+ "), *terms[1:]])


class Composite(Demonstrator):
    """Several problems of another task at once, solved in order.

    A review is the solution alone, each part copied from an attempt: so attempts are combined, by a choice that is random but
    for a share `prefer` of parts, which take a right one. (Naming an attempt for each part first was not learnt in 200 steps.)
    """

    def __init__(self, config: TaskConfig, seed: int, careless: float = 0.0) -> None:
        self.parts, self.kind = config.parts, composite.PARTS[config.part]
        self.part = DEMONSTRATORS[config.part](config, seed, careless)
        self.words = self.part.words

    def problem(self, rng: Random) -> tuple[Problem, list[tuple[Problem, Any]]]:
        """Training problems as one, and what the attempts at each are made from."""
        drawn = [self.part.problem(rng) for _ in range(self.parts)]
        return composite.composed([problem for problem, _ in drawn]), drawn

    def solution(self, problem: Problem, source: list[tuple[Problem, Any]], rng: Random) -> str:
        return " , ".join(self.part.solution(part, own, rng) for part, own in source)

    def attempt(self, problem: Problem, source: list[tuple[Problem, Any]], rng: Random) -> tuple[str, float]:
        return " , ".join(self.part.attempt(part, own, rng)[0] for part, own in source), 0.0

    def right(self, problem: Problem, text: str) -> bool:
        return composite.grade_one(problem, text, self.kind).verdict == "correct"

    def review(self, rng: Random, pool_size: int, prefer: float = 0.0, mend: float = 0.0) -> list[Piece]:
        """An aggregation prompt, and a solution whose parts are copied from one attempt or another.

        A part in which no attempt is right is repaired with probability `mend`.
        """
        problem, source = self.problem(rng)
        pool = [
            [self.part.solution(part, own, rng) for part, own in source] for _ in range(pool_size)
        ]  # as candidates are
        pieces: list[Piece] = [(f"<bos> {problem.text} \n", 0.0)]
        pieces += [(f"{label} {' , '.join(texts)} \n", 0.0) for label, texts in zip(LABELS, pool, strict=False)]
        solution: list[str] = []
        for i, (part, own) in enumerate(source):
            right = [texts[i] for texts in pool if self.part.right(part, texts[i])]
            choice = rng.choice(right) if right and rng.random() < prefer else rng.choice(pool)[i]
            if mend and not right and rng.random() < mend:
                choice = self.part.repaired(part, own, choice, rng)
            solution.append(self.part.solution(part, own, rng) if rng.random() < AFRESH_PART else choice)
        return [*pieces, ("review:", 0.0), (f"{' , '.join(solution)} <eos>", WEIGHTS["solution"])]


DEMONSTRATORS: dict[str, Callable[[TaskConfig, int, float], Demonstrator]] = {
    "countdown": Countdown,
    "arithmetic": Sums,
    "composite": Composite,
}
"""Demonstrators by task name."""


def in_any_order(terms: Sequence[str], rng: Random) -> list[str]:
    """The terms of a sum shuffled, one that is added first: ["12", "+ 7", "- 30"] as ["7", "- 30", "+ 12"]."""
    signed = [f"+ {terms[0]}", *terms[1:]]
    rng.shuffle(signed)
    first = next(i for i, term in enumerate(signed) if term.startswith("+"))
    return [signed.pop(first).removeprefix("+ "), *signed]


def worked(terms: Sequence[str], slips: Mapping[int, int] | None = None) -> str:
    """A sum's steps; the result of step i (from 1) is off by `slips[i]`, and later steps continue from that result."""
    total, steps = int(terms[0]), []
    for i, term in enumerate(terms[1:], 1):
        result = total + int(term.replace(" ", "")) + (slips or {}).get(i, 0)
        steps.append(f"{total} {term} = {result}")
        total = result
    return " , ".join(steps)


def draw(problem: Problem, attempts: Attempts, solved: float, rng: Random) -> str:
    """A solution with probability `solved`, else any honest attempt."""
    if rng.random() < solved:
        return attempts.texts[rng.choice(attempts.ways[problem.answer["target"]])]
    return rng.choice(attempts.texts)


def spoil(text: str, problem: Problem, rng: Random) -> str:
    """An attempt corrupted as a model errs: a false result, a number that is not there, a false claim."""
    words = text.split(" ")
    equals = [i for i, word in enumerate(words) if word == "="]
    kind = rng.random()
    if kind < 0.35:
        at = rng.choice(equals) + 1
        words[at] = str(min(LARGEST, max(0, int(words[at]) + rng.choice(SLIPS))))
    elif kind < 0.6:
        at = rng.choice([i + d for i in equals for d in (-3, -1)])
        words[at] = str(rng.randint(1, 12))
    if kind >= 0.6 or rng.random() < 0.5:
        words[-1] = str(problem.answer["target"])
    return " ".join(words)
