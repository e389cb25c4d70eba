"""The verdict on one solution. Pure; `quick` is safe anywhere, `decide` belongs in a worker process with limits."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from paragator.core.types import UNREAD, Grade, Verdict
from paragator.grading.extract import (
    ANNOUNCED,
    announced,
    announced_choice,
    bare_text,
    final_answer,
    is_sentence,
    reference_answer,
)
from paragator.grading.forms import same_form
from paragator.grading.tidy import INVISIBLE, MAX_CHARS, OverLimitError, check_limits, deepest, tidy
from paragator.grading.tree import UnreadError
from paragator.grading.units import plain_text, plain_unit

if TYPE_CHECKING:
    from paragator.grading.tree import Node

KINDS = (
    *("number", "fraction", "expression", "equation", "inequality", "interval", "set", "list", "tuple", "matrix"),
    *("piecewise", "text", "choice"),
)
"""Kinds of reference; None infers the kind."""

Finding = tuple[Verdict, str]
"""A verdict and its reason."""
QUICK_CHARS = 60
SHOWN_CHARS = 300
MATH_VERIFY_CHARS = 600
MATH_VERIFY_DEPTH = 12
PLAIN_NUMBER = re.compile(
    r"([-+]?)(\d{1,40}|\d{1,3}(?:,\d{3})+|\d{1,3}(?:\{,\}\d{3})+)(?:\.(\d{1,40}))?(?:/(\d{1,40}))?"
)
PLAIN_FRACTION = re.compile(r"(-?)\\[dt]?frac(?:\{(\d{1,40})\}\{(\d{1,40})\}|(\d)(\d))")
COMMA_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
CHOICE = re.compile(r"\(?\[?([A-J])\s*\]?\)?")
CHOSEN = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|final\s+|best\s+)?(?:answer|option|choice)\s*(?:is\s*)?(?:for sure|definitely|clearly)?\s*:?\s*)*"
    r"\(?\[?\s*([A-Ja-j])\s*[\])]?(?![A-Za-z'])(.*)",
    re.DOTALL | re.IGNORECASE,
)
MORE_SAID = re.compile(
    r"\b(?:not|wrong|but|actually|maybe|unless|nor)\b|^\W*(?:or|and|if)\b|^\s*[;?&/]|\\ne\b|(?:^|[\s;,.(])[B-HJ][.?;,)]*(?:\s|$)"
)
RULED_OUT = re.compile(r"^\W*(?:it|this)\s+(?:can't|cannot|can not|doesn't|does not|isn't)\b")
STYLE = re.compile(
    r"\\(?:textbf|text|mathrm|mathbf|boldsymbol|bm|textit|mathit|mathsf|left|right)(?![a-z])\s*|[${}*]|\\[()]"
)
SEVERAL_CHOICES = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|;|&|and|\s)?\s*\(?[A-J]\)?)+")
OTHER_CHOICE = re.compile(r"^\s*(?:[,/&]|or\b|and\b|\+)?\s*\(?\[?[A-Ja-j]\b[\])]?", re.IGNORECASE)
HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|either|not sure|or maybe|alternatively|equivalently|approximately|about|roughly)\b",
    re.IGNORECASE,
)
BEYOND = re.compile(r"\\(?:sum|prod|int|lim|partial|nabla|sup|inf)(?![a-z])")
"""LaTeX commands that this grammar leaves to math-verify."""
SEVERAL = re.compile(r"[=<>,;\n]|\\(?:begin|le|ge|ne|in|text|quad)(?![a-z])")
SUBSCRIPT = re.compile(r"_\s*\{[^{}]*\}")
PARTS = re.compile(r"\\\\(?![a-zA-Z])|[,;\n]|\\begin\{[^{}]*\}")
WORKED_CHARS = 200
SHORT_TEXT = 6
"""A reference of at most so many words, without LaTeX, is plain wording: a different answer is wrong, not unreadable."""
WORDS = re.compile(r"[A-Za-z]{2,}")
AROUND_SIGNS = re.compile(r"\s*([-+=<>,()^_{}*/])\s*")
PLACING = re.compile(
    r"\\(?:[a-z]*box[a-z]*|[lr]lap|tag|footnote|(?:over|under|stack)[a-z]*|text|begin|end|not?|raise|kern|rule|verb|url)(?![a-z])"
)
"""Commands that place, frame or annotate: an answer that needs them is no notation."""
QUALIFIER = re.compile(
    r"(?:[\s,;~]|\\quad|\\text\s*\{)*(?<![A-Za-z])(?:(?:for|where)\s+(?:all|any|every)|where\b[^.;]{1,30}\b(?:is|are)\b[^.;]{0,20}\b(?:any|arbitrary|constants?))\b(?:(?!\bor\b|\band\b|=).){0,80}$",
    re.DOTALL,
)
"""Words at the end that say for which numbers or constants a formula holds."""
NOTHING = re.compile(
    r"\{\}|\\?emptyset|\\?varnothing|∅|none|no (?:real |such )?(?:solutions?|roots?|values?)|empty set|there (?:is|are) no solutions?"
)


def quick(text: str, reference: str, kind: str | None = None) -> Grade | None:
    """The grade if it takes microseconds, whatever the text holds; None where `decide` is needed.

    A grade's `answer` is in canonical form, so that equal answers vote together: 64.0 and 64, \\frac{1}{2} and 1/2.
    """
    answer = final_answer(text)
    if answer is None:
        return Grade("incorrect", None, "no answer outside thinking")
    if len(answer) > 2 * MAX_CHARS + 2 * len(reference):
        return Grade("incorrect", answer[:SHOWN_CHARS], f"over the limits: {len(answer)} characters")
    if not answer.strip(" ${}\\,;:!~.\n\t") and r"\{" not in answer:
        return Grade("incorrect", None, "an empty answer")
    if len(answer) > QUICK_CHARS or len(reference) > QUICK_CHARS or kind in ("choice", "text"):
        return None
    wanted, found = plain_number(reference), plain_number(answer)
    if wanted is None or found is None:
        return None
    return Grade("correct" if wanted == found else "incorrect", canonical(answer))


def canonical(answer: str) -> str:
    """The canonical form under which an answer votes: a number in its shortest form, anything else normalised."""
    number = plain_number(answer)
    return str(number) if number is not None else tidy(answer)[:SHOWN_CHARS]


def plain_number(text: str) -> Fraction | None:
    """An integer, a decimal or a fraction in its shortest form."""
    text = text.strip()
    if text.startswith("$") and text.endswith("$") and len(text) > 2:
        text = text[1:-1].strip()
    if match := PLAIN_NUMBER.fullmatch(text.removesuffix(".")):
        sign, whole, decimals, under = match.groups()
        whole = whole.replace("{,}", "").replace(",", "")
        if (decimals and under) or (under and not int(under)):
            return None
        value = Fraction(f"{whole}.{decimals}") if decimals else Fraction(int(whole), int(under or 1))
        return -value if sign == "-" else value
    if match := PLAIN_FRACTION.fullmatch(text):
        top, under = match[2] or match[4], match[3] or match[5]
        return Fraction(int(match[1] + top), int(under)) if int(under) else None
    return None


def decide(text: str, reference: str, kind: str | None = None) -> Grade:
    """The verdict on `text`: unscored if the reference cannot be read; the reason is "unsure ..." where the rules cannot decide."""
    found = quick(text, reference, kind)
    if found:
        return found
    answer = final_answer(text) or ""
    if kind == "choice" and not CHOSEN.match(STYLE.sub(" ", answer).strip()):
        answer = announced_choice(text) or answer
    reference = INVISIBLE.sub("", reference_answer(reference))
    try:
        check_limits(answer, MAX_CHARS + 2 * len(reference))
    except OverLimitError as error:
        return Grade("incorrect", answer[:SHOWN_CHARS], str(error))
    whole = bare_text(text)
    if len(whole) <= MAX_CHARS and whole and tidy(whole) == tidy(reference):
        return Grade("correct", canonical(whole))
    try:
        verdict, reason = compared(answer, reference, kind)
    except UnreadError as error:
        verdict, reason = "unscored", str(error)
    except RecursionError:
        verdict, reason = "incorrect", "over the limits: nested too deep"
    return Grade(verdict, canonical(answer), reason)


def compared(answer: str, reference: str, kind: str | None) -> Finding:
    """Choice, the same wording, text, or mathematics."""
    if kind == "choice" or (kind is None and is_choice(reference)):
        return compare_choice(answer, reference)
    if tight(tidy(answer)) == tight(tidy(reference)) or plain_text(answer) == plain_text(reference):
        return "correct", ""
    if kind == "text":
        return "incorrect", ""
    reference, answer = QUALIFIER.sub("", reference), QUALIFIER.sub("", answer)
    if is_nothing(reference) and is_nothing(answer):
        return "correct", ""
    same = same_form(answer, reference) if kind in (None, "text") else None
    if same is not None:
        return ("correct" if same else "incorrect"), ""
    return compare_objects(answer, reference, kind)


def tight(text: str) -> str:
    """Without white space around signs."""
    return AROUND_SIGNS.sub(r"\1", text)


def is_nothing(text: str) -> bool:
    """Whether it says that nothing solves the problem: an empty set, "no solution"."""
    return NOTHING.fullmatch(plain_text(text).strip("\\ ")) is not None


def is_choice(reference: str) -> bool:
    return CHOICE.fullmatch(plain_choice(reference)) is not None


def plain_choice(text: str) -> str:
    """Without fonts, dollars, braces and stars."""
    return STYLE.sub(" ", tidy(text)).strip()


def compare_choice(answer: str, reference: str) -> Finding:
    """The letter, or the letters in any order; an answer that names two letters for one names none."""
    if several := SEVERAL_CHOICES.fullmatch(plain_choice(reference)):
        found = SEVERAL_CHOICES.fullmatch(STYLE.sub(" ", answer).strip())
        letters = [re.findall("[A-J]", match[0]) if match else [] for match in (several, found)]
        return ("correct" if letters[1] and sorted(letters[0]) == sorted(letters[1]) else "incorrect"), ""
    wanted = CHOICE.fullmatch(plain_choice(reference))
    plain = STYLE.sub(" ", answer).strip()
    match = CHOSEN.match(plain)
    if not wanted or not match:
        same = plain_text(answer) == plain_text(reference)
        return ("correct" if same else "incorrect"), ""
    if (
        (MORE_SAID.search(match[2]) and not RULED_OUT.search(match[2]))
        or OTHER_CHOICE.match(match[2])
        or re.match(r"\s*[-+*/^=]", match[2])
    ):
        return "incorrect", "more than one choice"
    return ("correct" if match[1].upper() == wanted[1].upper() else "incorrect"), ""


def compare_objects(answer: str, reference: str, kind: str | None) -> Finding:
    """Parse both and compare; what this grammar cannot parse goes to math-verify, and then is compared word for word."""
    from paragator.grading.equal import equal
    from paragator.grading.values import UndefinedError

    if HEDGE.search(answer) and not HEDGE.search(reference):
        return "incorrect", "a hedge, not an answer"
    try:
        wanted = read(balanced(reference), kind, sentence=False)
    except (SyntaxError, OverLimitError):
        return compare_unread(answer, reference, None)
    try:
        found = read(answer, kind, listed=wanted.op in ("list", "set", "paren"))
    except SyntaxError as error:
        return compare_unread(answer, reference, wanted, unknown=str(error).startswith("command "))
    except OverLimitError as error:
        return "incorrect", str(error)
    try:
        return ("correct" if equal(wanted, found, kind) else "incorrect"), ""
    except OverLimitError as error:
        return "incorrect", str(error)
    except UndefinedError:
        return "incorrect", ""


def read(text: str, kind: str | None, *, listed: bool = False, sentence: bool = True) -> Node:
    """The tree of an answer; of a sentence, what it announces, though in a short reference all words count."""
    from paragator.grading.syntax import parse

    if not sentence and is_sentence(text) and len(text) < WORKED_CHARS:
        raise SyntaxError("a sentence")
    if sentence and is_sentence(text) and not ANNOUNCED.search(text):
        raise SyntaxError("a sentence that announces nothing")
    clean = tidy(announced(text))
    if not listed and kind not in ("list", "set", "tuple"):
        clean = clean if re.search(r"[(\[]|\\\{", clean) else COMMA_NUMBER.sub(lambda m: m[0].replace(",", ""), clean)
    return parse(plain_unit(clean))


def balanced(reference: str) -> str:
    """A reference that was cut off at its end, with its braces closed."""
    open_ = reference.replace("\\{", "").count("{") - reference.replace("\\}", "").count("}")
    return (
        reference + "}" * open_ + "\\right)" * (reference.count("\\left(") - reference.count("\\right)"))
        if open_ > 0
        else reference
    )


def compare_unread(answer: str, reference: str, wanted: Node | None, *, unknown: bool = False) -> Finding:
    """For answers that this grammar cannot parse: math-verify's verdict where it can be trusted, else unsure.

    An `unknown` notation is unscored: it may be right. What breaks the rules of a known one is incorrect.
    It reads only the last formula, so it is not trusted with references in several parts or answers that give one name two values.
    """
    if wanted is None:
        if "\\" not in reference and len(WORDS.findall(reference)) <= SHORT_TEXT:
            return "incorrect", ""
        if any(SEVERAL.search(SUBSCRIPT.sub("", side)) for side in (answer, reference)) or not BEYOND.search(reference):
            return "unscored", "unsure: the reference is not read"
        return math_verify(answer, reference)
    defined = [part.partition("=")[0].strip(" &\n") for part in PARTS.split(answer) if "=" in part]
    defined = [name for name in defined if name]
    notation = unknown and len(answer) <= SHOWN_CHARS and not PLACING.search(answer) and not is_sentence(answer)
    unread: Finding = ("unscored" if notation else "incorrect"), UNREAD
    if wanted.op != "rel" or "\\" not in answer or re.search(r"\d\s+\d", answer) or len(set(defined)) < len(defined):
        return unread
    return math_verify(answer, reference)


def math_verify(answer: str, reference: str) -> Finding:
    """math-verify's verdict, in this process; the caller bounds its time and memory."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    if len(answer) > MATH_VERIFY_CHARS or deepest(answer) > MATH_VERIFY_DEPTH:
        return "incorrect", "unsure: the answer cannot be read"
    settings = (LatexExtractionConfig(), ExprExtractionConfig())
    wanted = parse(f"${reference}$", settings, parsing_timeout=None)
    if not wanted:
        return "unscored", "the reference cannot be read"
    found = parse(f"${answer}$", settings, parsing_timeout=None)
    if not found:
        return "incorrect", "unsure: the answer cannot be read"
    same = verify(wanted, found, timeout_seconds=None, strict=True)
    return ("correct", "by math-verify") if same else ("incorrect", "unsure: by math-verify")
