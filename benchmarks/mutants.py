"""Mutants of reference answers: how many wrong ones the grader accepts, and how many right rewrites it refuses.

    PARAGATOR_DATA=FOLDER python benchmarks/mutants.py [--sample N] [--seed S] [--show K]

Every distinct `answer` of the .jsonl files is changed in one place (a sign, a digit, an index, an order, an accent, a unit) and
graded against the original. A mutant may be equal by chance, so that an accepted one is wrong only if it is not shown to be equal: the
same text once white space, commands that do nothing and signs that change nothing (of a plus-minus, of a matrix of zeros) are
gone; the same constant function, its variable called otherwise; or, where latex2sympy reads both sides, a difference of zero at
three points (whole numbers under a power of -1; of equations the difference of their sides, up to sign). The rest are listed.
Rewrites keep the meaning (dollars, a larger fraction command, white space, sized brackets) and have to be accepted.
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from paragator.grading import grade_many
from paragator.records import read_json_lines

LONGEST = 300
"""Longer references are worked texts."""
Mutation = Callable[[str, random.Random], str | None]


def at_random(pattern: str, change: Callable[[re.Match[str], random.Random], str]) -> Mutation:
    """Changes one match of a pattern, drawn at random; None without a match."""
    compiled = re.compile(pattern)

    def mutate(text: str, rng: random.Random) -> str | None:
        found = list(compiled.finditer(text))
        if not found:
            return None
        match = rng.choice(found)
        return text[: match.start()] + change(match, rng) + text[match.end() :]

    return mutate


def other_digit(match: re.Match[str], rng: random.Random) -> str:
    return rng.choice([digit for digit in "123456789" if digit != match[0]])


BOLD = r"(\\(?:mathbf|vec|hat|boldsymbol)\{\w\})"
MUTATIONS: dict[str, Mutation] = {
    "sign": at_random(r"(?<=[\w)}\s])[+-](?=\s*[\w\\(])", lambda m, rng: "-" if m[0] == "+" else "+"),
    "negated": at_random(r"^(?=[1-9(a-z]|\\(?!boxed|\[|\())", lambda m, rng: "-"),
    "digit": at_random(r"(?<!\\)\d(?![^{}]*\})|\d", other_digit),
    "index": at_random(r"(?<=_)\{?\w\}?", lambda m, rng: "{9}"),
    "exponent": at_random(r"(?<=\^)\{?\d\}?", lambda m, rng: "{7}"),
    "order": at_random(rf"{BOLD}\s*(\\(?:times|otimes|circ))?\s*{BOLD}", lambda m, rng: f"{m[3]}{m[2] or ''}{m[1]}"),
    "swapped": at_random(r"\(([^(),]+),([^(),]+)\)", lambda m, rng: f"({m[2]},{m[1]})"),
    "fraction": at_random(r"\\frac\{(\w+)\}\{(\w+)\}", lambda m, rng: rf"\frac{{{m[2]}}}{{{m[1]}}}"),
    "accent": at_random(r"\\(?:bar|hat|tilde|vec|dot|overline)\s*\{(\w)\}", lambda m, rng: m[1]),
    "accented": at_random(r"(?<![\\A-Za-z{])[a-z](?![A-Za-z])", lambda m, rng: rf"\bar{{{m[0]}}}"),
    "letter": at_random(r"(?<![\\A-Za-z])[a-df-hj-z](?![A-Za-z])", lambda m, rng: "w" if m[0] != "w" else "q"),
    "function": at_random(r"\\(sin|cos|tan|ln|exp)(?![a-z])", lambda m, rng: {"sin": r"\cos", "cos": r"\sin"}.get(m[1], r"\sin")),
    "relation": at_random(r"<|>|\\leq?(?![a-z])|\\geq?(?![a-z])|\\subseteq|\\to(?![a-z])", lambda m, rng: "="),
    "unit": at_random(r"(?<=\\text\{)\s*(cm|km|m|kg|g|hours?|minutes|seconds?)\s*(?=\})", lambda m, rng: " tons"),
    "called": at_random(r"(?<![A-Za-z\\])([fgPF])\((\w)\)", lambda m, rng: f"{m[1]}{m[2]}"),
    "anagram": at_random(r"^([A-Z])([A-Z])([A-Z]?)$", lambda m, rng: f"{m[2]}{m[1]}{m[3]}"),
    "dropped": at_random(r",\s*[^,()\[\]{}]+$", lambda m, rng: ""),
}  # fmt: skip
REWRITES: dict[str, Callable[[str], str]] = {
    "dollars": lambda text: f"${text}$",
    "spaces": lambda text: re.sub(r"(?<=[\w)}])(?<!\de)\s*([+=])\s*(?=[\w\\(])", r" \1 ", text),
    "larger fraction": lambda text: text.replace("\\frac", "\\dfrac"),
    "sized brackets": lambda text: re.sub(r"(?<![\\a-z{])\(([^()]*)\)", r"\\left(\1\\right)", text),
    "a full stop": lambda text: text if text.endswith(".") else text + ".",
}


def references(folder: Path) -> list[str]:
    """The distinct answers that are one line and hold something that can be changed."""
    found = {
        str(row.get("answer") or "").strip()
        for path in sorted(folder.glob("*.jsonl"))
        for row in read_json_lines(path, ours=False)
    }
    return sorted(
        text for text in found if 0 < len(text) <= LONGEST and "\n" not in text and text.count("{") == text.count("}")
    )


def mutants(texts: list[str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind, reference, mutant), one of each kind that applies."""
    for text in texts:
        rng = random.Random(f"{seed}:{text}")
        for kind, mutate in MUTATIONS.items():
            changed = mutate(text, rng)
            if changed is not None and plain(changed) != plain(text):
                yield kind, text, changed


def plain(text: str) -> str:
    return re.sub(r"\s|\\(?:left|right|,|;|!|displaystyle)(?![a-z])|[{}$]", "", text)


ZEROS = re.compile(r"-?(\\beginpmatrix[0&\\]+endpmatrix)")
FUNCTION = re.compile(r"([A-Za-z])\((\\bar\w|\w)\)=(.*)")


def signless(text: str) -> str:
    """Without signs that change nothing."""
    return ZEROS.sub(r"\1", re.sub(r"-(\\pm)", r"\1", plain(text)))


def is_same_function(a: str, b: str) -> bool:
    """f(x) = 1 and f(w) = 1: constants, whatever their variable is called."""
    parts = [",".join(sorted(FUNCTION.sub(named, part) for part in plain(side).split(","))) for side in (a, b)]
    return parts[0] == parts[1]


def named(match: re.Match[str]) -> str:
    """A definition with its variable called v, if its formula is a number."""
    return f"{match[1]}(v)={match[3]}" if match[3].isdigit() else match[0]


def is_equal(a: str, b: str) -> bool:
    """Whether two formulas are shown to be the same, by text or by their values."""
    return signless(a) == signless(b) or is_same_function(a, b) or has_same_values(a, b)


def has_same_values(a: str, b: str) -> bool:
    """By another parser than the grader's."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Eq, Expr, N

    def at_points(value: Expr) -> list[complex]:
        names = sorted(value.free_symbols, key=str)
        spots, step = ((2, 25, 108), 13) if r"(-1)^" in a else ((0.37, 17.61, -52.89), 21.3)
        return [complex(N(value.subs({n: spot + step * i for i, n in enumerate(names)}))) for spot in spots]

    try:
        sides = [
            latex2sympy(readable(text), conversion_config=ConversionConfig(lowercase_symbols=False)) for text in (a, b)
        ]
        kinds = {isinstance(side, Eq) for side in sides}
        if len(kinds) > 1:
            return False
        left, right = (side.lhs - side.rhs if True in kinds else side for side in sides)
        differences = [left - right, left + right] if True in kinds else [left - right]
        return any(all(abs(found) < 1e-9 for found in at_points(value)) for value in differences)
    except Exception:  # noqa: BLE001  (what SymPy cannot read or compute is not shown to be equal)
        return False


def readable(text: str) -> str:
    """What that parser knows: vectors as plain letters, no dollars."""
    return re.sub(r"\\(?:mathbf|vec)\{(\w)\}", r"\1", text).strip("$. ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="so many references, drawn at random; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=60, help="accepted mutants and refused rewrites to list")
    arguments = parser.parse_args()
    texts = references(Path(os.environ["PARAGATOR_DATA"]))
    if arguments.sample:
        texts = random.Random(arguments.seed).sample(texts, min(arguments.sample, len(texts)))
    made = list(mutants(texts, arguments.seed))
    grades = grade_many((f"\\boxed{{{changed}}}", text) for _, text, changed in made)
    verdicts: dict[str, Counter[str]] = {kind: Counter() for kind in MUTATIONS}
    accepted = []
    for (kind, text, changed), grade in zip(made, grades, strict=True):
        verdict = "equal" if grade.verdict == "correct" and is_equal(text, changed) else grade.verdict
        verdicts[kind][verdict] += 1
        if verdict == "correct":
            accepted.append((kind, text, changed))
    print(f"{len(texts):,} references, {len(made):,} mutants: {len(accepted)} accepted and not shown to be equal")
    for kind, counts in verdicts.items():
        print(f"  {kind:12} {dict(counts)}")
    for kind, text, changed in accepted[: arguments.show]:
        print(f"accepted  {kind:10} {text}   <-   {changed}")
    rewritten = [
        (kind, text, new)
        for text in texts
        for kind, rewrite in REWRITES.items()
        if r"\boxed" not in text and (new := rewrite(text)) != text  # no box in a box
    ]
    grades = grade_many((f"\\boxed{{{new}}}", text) for _, text, new in rewritten)
    refused = [(*row, g.verdict) for row, g in zip(rewritten, grades, strict=True) if g.verdict != "correct"]
    print(
        f"{len(rewritten):,} rewrites, {len(refused)} not accepted {dict(Counter(row[0] + ' ' + row[3] for row in refused))}"
    )
    for kind, text, new, verdict in refused[: arguments.show]:
        print(f"refused   {kind:10} {text}   <-   {new}   {verdict}")


if __name__ == "__main__":
    main()
