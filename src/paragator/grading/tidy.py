"""Normalisation of answers: delimiters, spacing, fonts, look-alike characters. And limits on their size."""

from __future__ import annotations

import re
import unicodedata
from itertools import accumulate

MAX_CHARS = 4_000
MAX_DEPTH = 40
MAX_DIGITS = 1_000


class OverLimitError(Exception):
    """The answer exceeds a size limit; the text says which."""


INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)
SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∖": r"\setminus ", "∅": r"\emptyset ", "√": r"\sqrt ", "±": r"\pm ", "∓": r"\mp ",
    "°": r"^\circ ", "⟨": r"\langle ", "⟩": r"\rangle ", "≡": r"\equiv ", "→": r"\to ", "′": "'", "’": "'", "…": r"\dots ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∨": r"\lor ", "∧": r"\land ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "€": r"\text{euro}", "£": r"\text{pound}", "∣": "|",
}  # fmt: skip
GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega "  # noqa: SIM905
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
)
GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", GREEK_NAMES, strict=True))
LOOKALIKE = str.maketrans(SYMBOLS | {letter: f"\\{name} " for letter, name in GREEK.items()})
SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
SUBSCRIPTS = re.compile("[₀-₉]+")
VULGAR = re.compile("[¼-¾⅐-⅞]")

DROPPED = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|middle|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|hfill"
    r"|noindent|newline|tiny|small|large|Large|huge|Huge|bf|rm|it)(?![a-zA-Z])|(?<!\\)\\[,;:!>]|\\q?quad(?![a-z]{2})|\\(?:enspace|thinspace)(?![a-zA-Z])|~|&nbsp;"
)
NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
FONTS = re.compile(
    r"\\(?:mathit|mathsf|mathnormal|mathop|displaylines|ensuremath|underline|mathbin|mathrel|pmb)(?![a-zA-Z])\s*"
    r"|\\(?:mathbf|boldsymbol|bm)(?![a-zA-Z])\s*"
    r"(?=\{?\s*[\d.(-]|\{?\s*\\(?:d?frac|sqrt|left|text|pm|infty|emptyset|displaystyle)|\{[A-Za-z]{4})"
)
CHOICE_LABEL = re.compile(r"^(?:(?:\\text\s*)?\{\s*\(?[A-J]\)\s*\}(?:\\ |\s)*|\([A-J]\)\s+)(?=[\d\\$-])")
CURRENCY = re.compile(r"^(\\text\s*\{(?:euro|pound)\})\s*(\d[\d.,]*)$")
ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{?\s*(?:\\text\s*)?\{\s*(?:st|nd|rd|th)\s*\}\s*\}?|(?<=\d)(?:st|nd|rd|th)\b")
OHM = re.compile(r"(?<=\d)(?:\\[ ,;]|\s)*(k|M)?\s*\\Omega\s*$")
ANGSTROM = re.compile(r"\\(?:overset|mathring)\s*(?:\{\s*\\circ\s*\})?\s*\{\s*A\s*\}|\\AA(?![a-zA-Z])|\u212b")
EXTREMUM = re.compile(r"^\\(?:max|min)(?:imum)?\s*(?==)")
TEXT_NUMBER = re.compile(r"^\\text\s*\{\s*(-?\d[\d,]*(?:\.\d+)?)(?:\s*([A-Za-z][A-Za-z /.]*))?\s*\}$")
LARGE = re.compile(r"(?<=\d)\s*(?:\\text\s*\{)?\s*(thousand|million|billion|trillion)\b\s*\}?")
POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
}
BASES["sixteen"] = 16
WORDED_BASE = re.compile(r"(?<=[0-9A-F}])\s*_\s*\{?\s*(?:\\text\s*\{)?\s*(" + "|".join(BASES) + r")\s*\}\s*\}?")
LETTER_DIGITS = re.compile(r"^\\text\s*\{\s*([0-9A-F]{1,12})\s*\}(?=\s*_)")
TEXTS = re.compile(
    r"\\(?:mathrm|textrm|textbf|textit|textsf|texttt|mbox|hbox|textnormal|operatorname\*?|emph|rm)\s*(?=\{)"
)
WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("`", "`"))
SAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\leq": r"\le",
    r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lt": "<", r"\gt": ">", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lparen": "(", r"\rparen": ")", r"\colon": ":", r"\mid": "|", r"\vert": "|",
    r"\lvert": "|", r"\rvert": "|", r"\wedge": r"\land", r"\vee": r"\lor", r"\degree": r"^\circ", r"\varnothing": r"\emptyset",
    r"\backslash": r"\setminus", r"\ldots": r"\dots", r"\cdots": r"\dots", r"\varepsilon": r"\epsilon", r"\varphi": r"\phi",
    r"\vartheta": r"\theta", r"\operatorname": "", r"\ast": "*", r"\infin": r"\infty", r"\Bbb": r"\mathbb", r"\exponentialE": "e",
    r"\R": r"\mathbb{R}", r"\Z": r"\mathbb{Z}", r"\N": r"\mathbb{N}", r"\Q": r"\mathbb{Q}", r"\C": r"\mathbb{C}",
    r"\nicefrac": r"\frac", r"\sfrac": r"\frac", r"\flatfrac": r"\frac",
    r"\smallsetminus": r"\setminus", r"\bigcup": r"\cup", r"\imaginaryI": "i", r"\iff": r"\text{iff}", r"\lor": r"\text{ or }",
    r"\land": r"\text{ and }", r"\euro": r"\text{euro}", r"\textdollar": "", r"\thinspace": " ", r"\prime": "'", r"\ang": "",
    r"\langle": "(", r"\rangle": ")", r"\textendash": "-", r"\textminus": "-", r"\doteq": "=", r"\coloneqq": "=",
}  # fmt: skip
GLUED = re.compile(r"(?<=[\d)}])(or|and)(?=[A-Za-z(]{1,2}[^A-Za-z])")
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d{1,30})\}|(\d))")
PERCENT = re.compile(r"\\text\s*\{\s*(?:percent|per cent)\s*\}|(?<=\d)\s*percent\b")
COMMAND = re.compile(r"\\\\|\\[a-zA-Z]+")
LEADING = re.compile(r"^\s*(?:=|\\approx|\\simeq)(?![=a-zA-Z])\s*")
LABEL = re.compile(
    r"^\\text\s*\{[^{}]*(?:answer|solution|result|thus|therefore|option)(?:\s+(?:is|are))?\s*:?\s*\}|\\text\s*\{\s*\}",
    re.IGNORECASE,
)
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,\s*\\!\s*|,\s*\\,|\\,|\\!,|\\ )\s*\d{3})+(?![\d])")
DECIMAL_COMMA = re.compile(r"(?<=\d)\{,\}(?=(?:\d{1,2}|\d{4,})(?!\d|\{,\}))")
SPACED_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d.])")
LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
ROMAN = re.compile(r"\{?\\rm\s+([A-Za-z/ ]{1,40})\}?")
ROMAN_LETTER = re.compile(r"\\(?:mathrm|operatorname)\s*\{\s*([dei])\s*\}")
DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:begin|frac|dfrac|sqrt|text|left|cdot|times|pi|infty|cup)(?![a-z]))")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+\.\d+|\d+)[eE]([+-]?\d{1,4})(?![\d.A-Za-z])")
INNER_MATH = re.compile(r"\\text\s*\{\s*\$([^$]*)\$\s*\}")
HIDDEN = re.compile(
    r"\\(?:phantom(?!\s*-)|hphantom|vphantom|color|textcolor|newcommand|def|let|renewcommand|iffalse|input|include|write|catcode|cancel"
    r"|xcancel|bcancel|sout|label|href|hspace)(?![a-zA-Z])|(?<!\\)%\s*[A-Za-z]"
)
ESCAPED = re.compile(r"(?<!\\)\\([$%# _&])")
STRUCTURE = re.compile(r"[({\[]|[)}\]]|\\[{}]")


DIRECTION = re.compile("[\u202d\u202e\u2066-\u2068]")
"""Characters that change the order in which others are shown."""


def check_limits(answer: str, longest: int = MAX_CHARS) -> None:
    """OverLimitError for an answer that is too long, too deep, holds an overlong number, or hides what it says."""
    if len(answer) > longest:
        raise OverLimitError(f"over the limits: {len(answer)} characters, at most {longest} are read")
    if LONG_NUMBER.search(answer):
        raise OverLimitError(f"over the limits: a number of more than {MAX_DIGITS} digits")
    if deepest(answer) > MAX_DEPTH:
        raise OverLimitError(f"over the limits: nested deeper than {MAX_DEPTH}")
    if found := HIDDEN.search(answer) or DIRECTION.search(answer):
        raise OverLimitError(f"holds {found[0]!r}, which hides or redefines what is shown")


def deepest(text: str) -> int:
    """The most brackets of any kind that are open at once."""
    return max(accumulate(1 if match[0][-1] in "({[" else -1 for match in STRUCTURE.finditer(text)), default=0)


def unwrap(text: str) -> str:
    """Without the delimiters, boxes and final punctuation around all of it."""
    before = None
    while before != text:
        before = text
        text = text.strip().strip("\u3002").strip().rstrip("\\").strip()
        if text.endswith((".", ",", ";", ":")) and not text.endswith("..") and not text.endswith(("\\,", "\\;", "\\:")):
            text = text[:-1]
        for opening, closing in WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                if opening.strip("*_`") and opening in inner.replace("\\$", ""):
                    continue
                text = inner
                break
    return text


def tidy(answer: str) -> str:
    """An answer in normal form: ASCII and plain LaTeX, no fonts, no spacing commands, numbers without separators."""
    text = INVISIBLE.sub("", answer)
    text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
    text = SUPERSCRIPTS.sub(lambda m: "^{" + m[0].translate(SUPERSCRIPT) + "}", text)
    text = SUBSCRIPTS.sub(lambda m: "_{" + m[0].translate(SUBSCRIPT) + "}", text)
    text = unwrap(text.translate(LOOKALIKE))
    text = REPEATING.sub(repeating, text)
    if DOUBLED.search(text):
        text = text.replace("\\\\", "\\")
    text = INNER_MATH.sub(r"\1", ROMAN.sub(r"\\text{\1}", text))
    text = SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = DECIMAL_COMMA.sub(".", text)
    text = THOUSANDS.sub(lambda m: re.sub(r"[{},\\!\s]", "", m[0]), text)
    text = NULL_DELIMITER.sub(" ", text)
    text = DROPPED.sub(" ", FONTS.sub("", text))
    text = TEXTS.sub(r"\\text", ROMAN_LETTER.sub(r"\1", text))
    text = COMMAND.sub(lambda m: spelled(m[0]), text)
    text = EXTREMUM.sub("", CURRENCY.sub(r"\2 \1", CHOICE_LABEL.sub("", text)))
    text = ANGSTROM.sub(r" \\text{angstrom}", text)
    text = OHM.sub(r" \\text{\1ohm}", ORDINAL.sub("", text))
    text = LETTER_DIGITS.sub(r"\1", TEXT_NUMBER.sub(text_number, text))
    text = WORDED_BASE.sub(lambda m: f"_{{{BASES[m[1]]}}}", text)
    text = LARGE.sub(lambda m: f"\\times 10^{{{POWERS[m[1]]}}} ", text)
    text = PERCENT.sub("%", text).replace("\\not =", "\\ne ").replace("\\not=", "\\ne ")
    text = GLUED.sub(r" \1 ", text)
    text = SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = ESCAPED.sub(lambda m: {"$": "", " ": " "}.get(m[1], m[1]), text).replace("$", "")
    return " ".join(unwrap(LEADING.sub("", LABEL.sub("", text))).split())


def text_number(match: re.Match[str]) -> str:
    """A number in words' clothes: \\text{9,500 dollars}."""
    number = match[1].replace(",", "")
    return f"{number} \\text{{{match[2]}}}" if match[2] else number


def repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as the fraction that it is."""
    whole, fixed, again = match[1] or "0", match[2], match[3] or match[4]
    if len(whole + fixed) > 60:
        return match[0]
    top = int(whole + fixed + again) - int(whole + fixed)
    return f"\\frac{{{top}}}{{{(10 ** len(again) - 1) * 10 ** len(fixed)}}}"


def spelled(command: str) -> str:
    """A command's main spelling, followed by a space where a letter could come next."""
    name = SAME.get(command, command)
    if command == "\\\\":
        return command
    return name if not name or name[-1] in "{}()[]=<>|:-+*'" else name + " "
