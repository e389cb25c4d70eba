"""Answers that look like arithmetic and are none: times of day, dates, scores, ranges, sizes, cycles, codes of letters, short words.

Each is read as its parts, and only the same parts are equal. The reference decides: an answer in another form is another answer.
"""

from __future__ import annotations

import re
from math import gcd

from paragator.grading.tidy import tidy
from paragator.grading.tree import UnreadError

Form = tuple[str, tuple[str, ...]]
"""What it is, and its parts in order."""

TIME = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)(?:\s*:\s*([0-5]\d))?")
HALF_OF_DAY = re.compile(r"\s*(?:\\text\s*\{\s*)?([ap])\.?\s*m\.?\s*\}?$", re.IGNORECASE)
DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
RANGE = re.compile(r"(\d{1,12}(?:\.\d+)?)\s*(?:-+|\\text\s*\{\s*(?:-|to)\s*\})\s*(\d{1,12}(?:\.\d+)?)")
SIZE = re.compile(r"(\d{1,6}(?:\s*\\times\s*\d{1,6}){1,3})\s*(\\text\s*\{[^{}]*\})?")
CYCLES = re.compile(r"(?:\(\s*(?:\d{2,9}|\d{1,3}(?:\s+\d{1,3})+)\s*\)\s*)+")
WORDS = frozenset(
    "yes no one two six ten odd all any none red sun mon tue wed thu fri sat jan feb mar apr may jun jul aug sep oct nov dec "  # noqa: SIM905
    "up out off hot net tub win tie cat dog man boy car bus cow pig hen bat rat hat new old top low big day year".split()
)
LETTERS = re.compile(r"\{?\s*([A-Za-z]{2,3})\s*\}?")
CODE = re.compile(r"\{?\s*([A-Z]{2,9})\s*\}?")
ROMAN = re.compile(r"[IVXLCDM]{2,9}")


def same_form(answer: str, reference: str) -> bool | None:
    """Whether an answer has a reference's parts; None where the reference is arithmetic, UnreadError where it may be."""
    wanted = form_of(reference)
    if wanted is None:
        return same_word(answer, reference)
    kind, parts = wanted
    found = form_of(answer)
    if kind == "time":
        if found is None or found[0] != "time":
            if is_ratio(parts) and not parts[3]:
                raise UnreadError("unsure: a time of day or a ratio")
            return False
        return parts[:3] == found[1][:3] and (parts[3] == found[1][3] or not parts[3] or not found[1][3])
    if kind == "size" and found is None and "text" not in reference:
        raise UnreadError("unsure: a size or a product")
    return found is not None and found[1] == parts


def form_of(text: str) -> Form | None:
    """The form and parts of a text, or None."""
    text = tidy(text)
    half = HALF_OF_DAY.search(text)
    if match := TIME.fullmatch(text[: half.start()] if half else text):
        hour, minute, second = (str(int(part or 0)) for part in match.groups())
        return "time", (hour, minute, second, half[1].lower() if half else "")
    if match := DATE.fullmatch(text):
        return "date", tuple(str(int(part)) for part in (match[1], match[3], match[4]))
    if match := RANGE.fullmatch(text):
        return "range", match.groups()
    if (match := CYCLES.fullmatch(text)) and (text.count("(") > 1 or " " in text.strip("() ")):
        return "cycles", tuple(sorted(turned(part) for part in re.findall(r"\(([^()]*)\)", text)))
    if match := SIZE.fullmatch(text):
        numbers = re.findall(r"\d+", match[1])
        if numbers[0] != "10" and not (match[2] or "").strip("{} ").startswith("10"):
            return "size", tuple(numbers)
    return None


def turned(cycle: str) -> str:
    """A cycle from its smallest member on."""
    parts = cycle.split() if " " in cycle.strip() else list(cycle.strip())
    first = parts.index(min(parts, key=int))
    return " ".join(parts[first:] + parts[:first])


def is_ratio(parts: tuple[str, ...]) -> bool:
    """Whether h:mm can also be a ratio in lowest terms."""
    return gcd(int(parts[0]), int(parts[1])) == 1 and int(parts[1]) > 0


def same_word(answer: str, reference: str) -> bool | None:
    """IV, WLW, yes: two or three letters that are all of a reference, as a word; None where they can be a product."""
    ours, theirs = tidy(reference), tidy(answer)
    for pattern in (CODE, LETTERS):
        wanted, found = pattern.fullmatch(ours), pattern.fullmatch(theirs)
        if not wanted or not found:
            continue
        a, b = wanted[1], found[1]
        if sorted(a.lower()) != sorted(b.lower()) or a == b:
            return None
        if len(a) > 2 and a.isupper():
            return False
        if ROMAN.fullmatch(a) or len(set(a)) < len(a) or a in ("TF", "FT", "HT", "TH", "YN", "NY", "WL", "LW"):
            return False
        if a.lower() in WORDS or b.lower() in WORDS:
            return a.lower() == b.lower()
    return None
