"""Pools chosen by what they hold: a curriculum for the aggregator, which learns little where all pools are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

Kind = Literal["none", "mixed", "all"]
"""A pool without a right member, with right and wrong ones, and with right ones only."""


def mixed_pool(right: Sequence[float | None], size: int, shares: Mapping[Kind, float], rng: Random) -> list[int] | None:
    """A pool of a kind that is drawn by `shares`, as indices into `right` (1, 0 or None: unscored) in random order.

    None where the draw falls on none of the kinds, or no pool of that kind can be made: then it is as drawn. Of the pools
    of its kind each is as likely as another; unscored solutions are in none of them.
    """
    left, kind = rng.random(), None
    for name, share in shares.items():
        if kind is None and left < share:
            kind = name
        left -= share
    if kind is None:
        return None
    good, bad = ([i for i, value in enumerate(right) if value == wanted] for wanted in (1, 0))
    counts = {"none": range(1), "mixed": range(1, size), "all": range(size, size + 1)}[kind]
    ways = [math.comb(len(good), count) * math.comb(len(bad), size - count) for count in counts]
    if not any(ways):
        return None
    count = rng.choices(counts, ways)[0]
    pool = rng.sample(good, count) + rng.sample(bad, size - count)
    rng.shuffle(pool)
    return pool
