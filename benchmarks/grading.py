"""Speed of grading, against math-verify's own parse and verify on the same pairs.

    python benchmarks/grading.py [--repeats 5] [--output benchmarks/results/grading.json]

Every repeat has fresh pairs from its own seed, half of them wrong, the same for both sides; the sides take turns. Workers
are started before the clock is. Ours is isolated in processes with limits; math-verify runs in this process with its own timeouts.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import common
from math_verify import parse, verify

from paragator import grading
from paragator.grading.workers import Workers

Pairs = list[tuple[str, str, bool]]
"""Text, reference, whether they are equal."""
RESULTS = common.RESULTS / "grading.json"
HELD = "pairs (fresh each repeat, seeded, half wrong), machine, turns; peer: one process, no isolation"


def integers(count: int, rng: Random) -> Pairs:
    """Solutions that end in a boxed integer."""
    out: Pairs = []
    for i in range(count):
        value = rng.randrange(-(10 ** rng.randint(1, 6)), 10 ** rng.randint(1, 6))
        said = value if i % 2 else value + rng.choice((-10, -1, 1, 2))
        out.append((f"Adding the cases gives the total, which is \\boxed{{{said}}}.", str(value), bool(i % 2)))
    return out


def expressions(count: int, rng: Random) -> Pairs:
    """Fractions, surds, multiples of pi, polynomials, powers, logarithms: each in two forms."""
    makers = (fraction, surd, angle, product, power, root_fraction)
    out: Pairs = []
    for i in range(count):
        reference, same, other = makers[i % len(makers)](rng)
        right = bool(i // len(makers) % 2)
        out.append((f"Therefore the answer is $\\boxed{{{same if right else other}}}$.", reference, right))
    return out


Spellings = tuple[str, str, str]
"""A reference, another form of it, and something else."""


def fraction(rng: Random) -> Spellings:
    a, b, c = rng.randint(1, 99), rng.randint(2, 99), rng.randint(2, 5)
    return f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{a * c}}}{{{b * c}}}", f"\\dfrac{{{a * c + 1}}}{{{b * c}}}"


def surd(rng: Random) -> Spellings:
    a, b, c = rng.randint(2, 30), rng.choice((2, 3, 5, 6, 7, 10, 11)), rng.randint(1, 50)
    return f"{c}+{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}} + {c}", f"\\sqrt{{{a * a * b + 1}}} + {c}"


def angle(rng: Random) -> Spellings:
    a, b = rng.randint(1, 40), rng.randint(2, 40)
    return f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}\\pi", f"\\frac{{{a + 1}}}{{{b}}}\\pi"


def product(rng: Random) -> Spellings:
    a, b = rng.randint(1, 20), rng.randint(21, 40)
    return f"(x+{a})(x-{b})", f"x^2 - {b - a}x - {a * b}", f"x^2 - {b - a}x + {a * b}"


def power(rng: Random) -> Spellings:
    a, n, m = rng.choice((2, 3, 5, 7)), rng.randint(3, 12), rng.randint(2, 9)
    return f"{a}^{{{n}}} \\cdot y^{{{m}}}", f"{a**n}y^{m}", f"{a**n}y^{m + 1}"


def root_fraction(rng: Random) -> Spellings:
    a, b = rng.randint(2, 60), rng.choice((2, 3, 5, 7, 11, 13))
    return (
        f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}",
        f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}",
        f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b + 1}}}",
    )


def with_pool(pool: Workers) -> Callable[[Pairs], list[bool]]:
    def ours(pairs: Pairs) -> list[bool]:
        return [g.verdict == "correct" for g in grading.grade_many([(t, r) for t, r, _ in pairs], workers=pool)]

    return ours


def peer(pairs: Pairs) -> list[bool]:
    """math-verify as its documentation shows it, the reference between dollar signs."""
    return [verify(parse(f"${reference}$"), parse(text)) for text, reference, _ in pairs]


def measure(name: str, make: Callable[[int, Random], Pairs], count: int, repeats: int, pool: Workers) -> common.Case:
    """One case: medians over the repeats, with the smallest and the largest."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    right: dict[str, int] = {"ours": 0, "peer": 0}
    sides: dict[str, Callable[[Pairs], list[bool]]] = {"ours": with_pool(pool), "peer": peer}
    for call in sides.values():
        call(make(60, Random("warm")))
    for repeat in range(repeats):
        pairs = make(count, Random(f"{name}:{repeat}"))
        for side in sorted(sides, reverse=bool(repeat % 2)):
            start = time.perf_counter()
            said = sides[side](pairs)
            seconds[side].append(time.perf_counter() - start)
            right[side] += sum(s == truth for s, (_, _, truth) in zip(said, pairs, strict=True))
    peer_name = f"math-verify {common.installed('math-verify')}"
    found = common.case(name, seconds["ours"], peer_name, seconds["peer"], HELD, pairs=count, workers=pool.workers)
    return {
        **found,
        "ours_per_s": count / found["ours_s"],
        "peer_per_s": count / found["peer_s"],
        "ours_right": right["ours"] / (count * repeats),
        "peer_right": right["peer"] / (count * repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    cases = []
    with Workers(1) as one, Workers(2) as two:
        for name, make, count, pool in (
            ("integers", integers, 4000, two),
            ("ordinary expressions, one worker", expressions, 600, one),
            ("ordinary expressions, two workers", expressions, 600, two),
        ):
            cases.append(measure(name, make, count, flags.repeats, pool))
            print_case(cases[-1], heading=len(cases) == 1)
    common.write(flags.output, cases)
    print(f"\n{flags.output}")


def print_case(case: common.Case, heading: bool) -> None:
    if heading:
        print(f"{'case':<36} {'ours/s':>10} {'peer/s':>10} {'ratio':>8} {'ours right':>11} {'peer right':>11}")
    print(
        f"{case['name']:<36} {case['ours_per_s']:>10,.0f} {case['peer_per_s']:>10,.0f} {case['ratio']:>7.1f}x"
        f" {case['ours_right']:>11.1%} {case['peer_right']:>11.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
