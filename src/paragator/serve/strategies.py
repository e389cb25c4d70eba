"""What stands behind the @ of a model's name, as in MODEL@aggregate:n=8,k=4,rounds=2, as keys of the config."""

from __future__ import annotations

from collections.abc import Mapping

from paragator.core.errors import UsageError

STRATEGIES: Mapping[str, Mapping[str, int]] = {
    "single": {},
    "majority": {"n": 8},
    "aggregate": {"n": 4, "k": 4, "rounds": 3, "pools": 1},
    "rsa": {"n": 16, "k": 4, "rounds": 10},
}
"""Strategy -> its parameters with their defaults. n candidates; k of them shown to an aggregation; `pools` distinct draws a
round, in rsa one for each of n."""
DIGITS = 6


def plan_values(text: str) -> dict[str, int]:
    """A strategy as keys of the config; UsageError for one that is not known. The only place that reads strategies."""
    name, _, rest = text.partition(":")
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    given = parameters(name, rest)
    n = given.get("n", 1)
    k = given.get("k", 1) if "k=" in rest else min(given.get("k", 1), n)
    pools = n if name == "rsa" else given.get("pools", 1)
    values = {"candidates": n, "rounds": given.get("rounds", 0), "pool_size": k, "pools": pools}
    return {f"eval.{key}": value for key, value in values.items()}


def parameters(name: str, text: str) -> dict[str, int]:
    """The parameters of a strategy, its defaults where `text` does not name one."""
    found = dict(STRATEGIES[name])
    seen: set[str] = set()
    for word in filter(None, text.split(",")):
        key, _, value = (part.strip() for part in word.partition("="))
        if key not in found or key in seen:
            known = ", ".join(found) or "none"
            raise UsageError(f"{name}: {'twice' if key in seen else 'unknown parameter'} {key!r}; known: {known}")
        if not (value.isascii() and value.isdigit() and len(value) <= DIGITS):
            raise UsageError(f"{name}: {key} = {value!r}: a whole number is needed, as {key}={STRATEGIES[name][key]}")
        found[key] = int(value)
        seen.add(key)
    return found
