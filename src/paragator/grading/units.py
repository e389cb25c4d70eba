"""Units and short texts: what may stand beside a number, and when two wordings say the same."""

from __future__ import annotations

import re
from fractions import Fraction

FACTORS: dict[str, tuple[str, Fraction]] = {}


def define(dimension: str, **units: str) -> None:
    for names, factor in units.items():
        for name in names.split("__"):
            FACTORS[name] = (dimension, Fraction(factor))


define("length", m__meter__meters__metre__metres="1", cm__centimeter__centimeters__centimetre__centimetres="1/100", mm__millimeter__millimeters__millimetre__millimetres="1/1000", km__kilometer__kilometers__kilometre__kilometres="1000", nm__nanometer__nanometers="1/1000000000", inch__inches="127/5000", foot__feet__ft="381/1250", yard__yards__yd="1143/1250", mile__miles__mi="201168/125")  # fmt: skip
define("time", s__sec__secs__second__seconds="1", ms__millisecond__milliseconds="1/1000", min__mins__minute__minutes="60", h__hr__hrs__hour__hours="3600", day__days="86400", week__weeks="604800")
define("mass", kg__kilogram__kilograms="1", g__gram__grams="1/1000", mg__milligram__milligrams="1/1000000", ton__tons__tonne__tonnes="1000", lb__lbs__pound__pounds="45359237/100000000", oz__ounce__ounces="45359237/1600000000")
define("volume", l__L__liter__liters__litre__litres="1", ml__mL__milliliter__milliliters="1/1000", gallon__gallons__gal="473176473/125000000")
define("money", dollar__dollars__usd="1", cent__cents="1/100")
define("angle", degree__degrees__deg="1", radian__radians__rad="0")
define("energy", J__joule__joules="1", kJ="1000", eV="0")
define("force", N__newton__newtons="1")
define("frequency", Hz__hertz="1", kHz="1000", MHz="1000000")
define("temperature", K__kelvin="1")
define("electric", V__volt__volts="1")
define("current", A__amp__amps__ampere__amperes="1")
define("power", W__watt__watts="1", kW="1000")
PLAIN = frozenset(name for name in FACTORS if len(name) > 2) | frozenset(("cm", "mm", "km", "kg", "ft", "mph", "lb", "lbs", "ml", "mL", "sq", "Hz", "kJ", "min", "hr"))
COUNTED = frozenset("units unit square cubic times people ways students points apples marbles balls books pages coins rectangles".split())
TRAILING = re.compile(r"^(?P<number>.*[\d})])\s*(?P<unit>(?:(?:square|cubic|sq|per|[A-Za-z]{2,})[ ./]*)+(?:\^\{?\d\}?)?)$", re.S)
ARTICLES = re.compile(r"\b(?:the|a|an)\b")
COMMANDS = re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf|operatorname)\s*|[{}$~]|\\[,;:! ]|\*\*")


def plain_unit(text: str) -> str:
    """`text` without a plain-word unit after its number ("5 cm", "12 square units")."""
    match = TRAILING.match(text)
    if not match:
        return text
    words = re.findall(r"[A-Za-z]+", match["unit"])
    if all(word in PLAIN or word.lower() in COUNTED or word == "per" for word in words):
        return f"{match['number']} \\text{{{match['unit']}}}"
    return text


def canonical(unit: str) -> tuple[str, Fraction] | str:
    """(dimension, factor) of a simple unit, with its power; other units as normalised text."""
    text = COMMANDS.sub(" ", unit).replace(".", " ").strip()
    text = re.sub(r"\b(?:square|sq)\s+(\w+)", r"\1^2", text)
    text = re.sub(r"\bcubic\s+(\w+)", r"\1^3", text)
    text = re.sub(r"\s*(?:/|\bper\b)\s*", "/", text)
    match = re.fullmatch(r"([A-Za-z]+)(?:\s*\^\s*(\d))?", text)
    if match and (found := FACTORS.get(match[1]) or FACTORS.get(match[1].lower())):
        power = int(match[2] or 1)
        return f"{found[0]}^{power}", found[1] ** power
    parts = [FACTORS.get(word, (word,))[0] + ("" if word not in FACTORS else f"*{FACTORS[word][1]}") for word in re.findall(r"[A-Za-z]+", text)]
    return "/".join(parts) + "|" + "".join(re.findall(r"[\^\d-]", text)) if parts else ""


def is_counted(unit: str) -> bool:
    """A word that names what is counted rather than a unit: it carries no scale."""
    found = canonical(unit)
    return isinstance(found, str)


def plain_text(text: str) -> str:
    """Words in lower case without articles, punctuation and LaTeX's text commands."""
    text = COMMANDS.sub(" ", text).lower()
    text = re.sub(r"[.,;:!?\"'`]+(?=\s|$)", " ", text)
    return " ".join(ARTICLES.sub(" ", text).split())
