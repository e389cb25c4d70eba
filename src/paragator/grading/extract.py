"""Extraction of the final answer from a solution's text. Pure; equality is decided elsewhere."""

from __future__ import annotations

import re

from paragator.core.thinking import strip_thinking
from paragator.grading.tokens import NAMES
from paragator.grading.units import is_counting

MAX_CHARS = 20_000
"""The answer is looked for in so many last characters outside thinking."""
BRACE = re.compile(r"\\boxed\s*\{|\\fbox\s*\{|\\[\\{}]|[{}]")
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
JOINED = 40
"""Boxes with at most so many characters between them, and no blank line, are one answer in several boxes."""
JOINT = re.compile(r"[\s,;$&.]*(?:and|or)?[\s,;$&.]*")
HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
LISTED = re.compile(r"^\[\s*(['\"])((?:(?!\1).)+)\1\s*\]$", re.DOTALL)
"""A list of one text, as Python prints it."""
LAST_LINE = re.compile(
    r"(?:\*\*|#+ )?\s*(?:A|(?:[Ff]inal )?(?:[Aa]ns|[Aa]nswer|ANSWER)\s*=?)\s*(?:\*\*)?\s*:\s*(?:\*\*)?\s*(\S.{0,300})"
)
NEGATED = re.compile(
    r"(?:\w+\s+){0,2}(?:not|never|less than|more than|greater than|at least|at most|between|unknown)\b", re.I
)
DENIED = re.compile(r"\b(?:not|cannot|can't|isn't|never|less than|more than|greater than|at least|at most)\b", re.I)
SENTENCE_CHARS = 2_000
"""Without a box, the answer is looked for in so many last characters."""
ANNOUNCED = re.compile(
    r"(?:answers?|solutions?|results?|resposta|respuesta|réponse|antwort|答案|答)(?:\s*(?:\*\*)?\s*(?:is|are|be|es|est|ist|为|是|:|=)+\s*(?:\*\*)?\s*:?\s*|\s+(?=\$))",
    re.IGNORECASE,
)
CHOICE_SAID = re.compile(
    r"(?:answer|choice|option|choose|select)\b(?:\s|[*:$]|is\b|\\text(?:bf)?\{)*(\(?[A-J]\b(?![a-z'])[^\n]{0,200})",
    re.IGNORECASE,
)
INLINE = re.compile(r"(?<!\\)\$\$?((?:\\.|[^$\\]){1,2000})\$\$?|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[^\d\s])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|\n|。")
NUMBER = re.compile(r"(?<![\w^{}\\.,/(\[|-])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?![\w^{}\\/(\[|]|\.\d)", re.ASCII)
QUOTED = re.compile(r"\\(?:text|mathrm|mbox|textbf|operatorname|mathbf|textnormal|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
WORD = re.compile(r"[^\W\d_]{3,}|[\u3040-\u9fff]{2,}")
FORMULA_WORDS = frozenset(
    "sin cos tan sec csc cot log exp sqrt arcsin arccos arctan sinh cosh tanh max min gcd lcm "  # noqa: SIM905
    "infty infinity inf and otherwise for".split()
)


MARKED = re.compile(r"(\*{1,3}|_{1,2}|`)(?=\S)((?:(?!\1).){1,300}?)\1(?!\w)")
"""Emphasis or code in Markdown."""


def is_sentence(text: str) -> bool:
    """Words around the answer: two of them, or one and a formula in dollars."""
    words = [
        w
        for w in WORD.findall(QUOTED.sub(" ", text))
        if w not in NAMES and w.lower() not in FORMULA_WORDS and not is_counting(w)
    ]
    return len(words) > 1 or (bool(words) and bool(INLINE.search(text)))


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every balanced, outermost \\boxed{...} or \\fbox{...}, in order. One pass."""
    open_braces: list[tuple[int, int]] = []
    found: list[tuple[int, int, str]] = []
    for match in BRACE.finditer(text):
        if match[0] == "}":
            if open_braces:
                start, opened = open_braces.pop()
                if start >= 0:
                    while found and found[-1][0] > start:
                        found.pop()
                    found.append((start, match.end(), text[opened : match.start()].strip()))
        elif len(match[0]) != 2:  # an escaped brace is text
            boxed = len(match[0]) > 1
            open_braces.append((match.start() if boxed else -1, match.end()))
    return found


def cut_box(text: str, after: int) -> bool:
    """Whether a box opens after this place: it is cut off, and no earlier one is the answer."""
    return BOX.search(text, after) is not None


def shown_end(text: str) -> str:
    """The end of the text outside thinking."""
    return strip_thinking(text)[-MAX_CHARS:]


def final_box(text: str, *, strict: bool = True) -> str | None:
    """The content of the last box; of several with little between them, all contents as a list; None without a box.

    Not strict: only "and", "or" and commas between two boxes make them one answer.
    """
    found = boxes(text)
    if not found or (strict and cut_box(text, found[-1][1])):
        return None
    last = [found[-1]]
    for box in reversed(found[:-1]):
        gap = text[box[1] : last[0][0]]
        if len(gap) > JOINED or "\n\n" in gap or not (strict or JOINT.fullmatch(gap)):
            break
        last.insert(0, box)
    contents = list(dict.fromkeys(content for _, _, content in last))
    return contents[0] if len(contents) == 1 else ", ".join(contents)


def final_answer(text: str) -> str | None:
    """The last box outside thinking, else what follows ####, else what the last sentences announce; None when nothing is there."""
    shown = shown_end(text)
    if not shown:
        return None
    boxed = final_box(shown)
    if boxed is not None:
        return inner_box(boxed) or None
    if r"\boxed" in shown:
        return None
    if hashes := HASHES.findall(shown):
        return str(hashes[-1]).strip()
    if line := LAST_LINE.fullmatch(shown[shown.rfind("\n") + 1 :].strip().lstrip("> ")):
        return undecorated(line[1])
    return announced(shown[-SENTENCE_CHARS:])


def undecorated(said: str) -> str:
    """Without Markdown's stars around its beginning, or all of it, and without a question mark at its end."""
    said = MARKED.sub(lambda m: str(m[2]), said.strip())
    said = said.removesuffix("**") if said.count("**") == 1 else said
    return said.rstrip("?").strip() or said


def bare_text(text: str) -> str:
    """The whole text if it has no box; "" if it has one."""
    shown = shown_end(text)
    return "" if r"\boxed" in shown else shown


def box_or_all(text: str) -> str | None:
    """The last box outside thinking, else all text there, for tasks that ask for it; None when there is none."""
    shown = shown_end(text)
    found = boxes(shown)
    return (found[-1][2] if found else shown) or None


def announced_choice(text: str) -> str | None:
    """What the last "answer: D" or "the choice is D" outside thinking says, from the letter to the end of its line."""
    found = CHOICE_SAID.findall(shown_end(text)[-SENTENCE_CHARS:])
    return str(found[-1]) if found else None


def reference_answer(reference: str) -> str:
    """A reference as it is, or the content of the box in it, closed or not."""
    boxed = final_box(reference, strict=False)
    if boxed is None:
        plain = LISTED.sub(r"\2", reference.strip())
        return str((HASHES.findall(plain) or [plain])[-1]).strip().rpartition("\\boxed{")[2]
    return inner_box(boxed)


def inner_box(content: str) -> str:
    """Without a nested box that, apart from delimiters, is all of the content."""
    for _ in range(3):
        found = boxes(content)
        if not found:
            break
        start, end, inner = found[0]
        if (content[:start] + content[end:]).strip(" \n\t$.\\()[]"):
            return content
        content = inner
    return content


def announced(text: str) -> str:
    """What a sentence without a box announces: after "the answer is", else its last formula or number; else all of it."""
    shown = text.strip()
    if not is_sentence(shown):
        return shown
    marks = [match.end() for match in ANNOUNCED.finditer(shown) if match.end() < len(shown)]
    if marks:
        rest = undecorated(shown[marks[-1] :])
        if NEGATED.match(rest):
            return shown
        formula = INLINE.match(rest)
        shown = formula[0] if formula else SENTENCE_END.split(rest, maxsplit=1)[0].strip()
        if not is_sentence(shown):
            return shown
    return shown if DENIED.search(shown) else last_value(shown)


def last_value(text: str) -> str:
    """The last formula in dollars, or a number after it."""
    formulas = [match for match in INLINE.finditer(text) if not WORD.search(QUOTED.sub(" ", match[0]))]
    numbers = list(NUMBER.finditer(text))
    if numbers and (not formulas or numbers[-1].start() > formulas[-1].end()):
        return numbers[-1][0].rstrip(",")
    if formulas:
        return next(group for group in formulas[-1].groups() if group)
    return text
