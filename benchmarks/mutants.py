"""Mutants of reference answers: how many wrong ones the grader accepts, and how many right rewrites it refuses.

    PARAGATOR_DATA=FOLDER python benchmarks/mutants.py [--sample N] [--seed S] [--show K]

Every distinct `answer` of the .jsonl files is changed in one place (a sign, a digit, an index, an order, an accent, a unit) and
graded against the original. A mutant may be equal by chance, so that an accepted one is wrong only if it is not shown to be equal: the
same text once white space and commands that do nothing are gone, or, where SymPy reads both sides, a difference of zero at three
points. The rest are listed. Rewrites keep the meaning (dollars, a larger fraction command, white space, sized brackets) and have to be
accepted.
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
    "spaces": lambda text: re.sub(r"(?<=[\w)}])\s*([+=])\s*(?=[\w\\(])", r" \1 ", text),
    "larger fraction": lambda text: text.replace("\\frac", "\\dfrac"),
    "sized brackets": lambda text: re.sub(r"(?<![\\a-z])\(([^()]*)\)", r"\\left(\1\\right)", text),
    "a full stop": lambda text: text.rstrip(".") + ".",
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


def is_equal(a: str, b: str) -> bool:
    """Whether SymPy's reading of two LaTeX formulas has the same values: another parser than the grader's."""
    from sympy import N, Symbol
    from sympy.parsing.latex import parse_latex

    try:
        left, right = parse_latex(a), parse_latex(b)
        names = sorted({*left.free_symbols, *right.free_symbols}, key=str)
        for shift in (0.37, 1.61, 2.89):
            values = {Symbol(str(name)): shift + 0.3 * i for i, name in enumerate(names)}
            if abs(complex(N((left - right).subs(values)))) > 1e-9:
                return False
    except Exception:  # noqa: BLE001  (what SymPy cannot read or compute is not shown to be equal)
        return False
    return True


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
        (kind, text, new) for text in texts for kind, rewrite in REWRITES.items() if (new := rewrite(text)) != text
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
