"""Units beside numbers, and answers in plain words: their normal forms."""

from __future__ import annotations

import re
from fractions import Fraction

FACTORS: dict[str, tuple[str, Fraction]] = {}
"""A unit's name -> its dimension, and its size in the first unit of that dimension."""
TABLE = {
    "length": (
        "m meter meters metre metres = 1; "
        "cm centimeter centimeters centimetre centimetres = 1/100; "
        "mm millimeter millimeters = 1/1000; km kilometer kilometers kilometre kilometres = 1000; "
        "nm nanometer nanometers = 1/1000000000; angstrom angstroms = 1/10000000000; "
        "in inch inches = 127/5000; ft foot feet = 381/1250; "
        "yd yard yards = 1143/1250; mi mile miles = 201168/125"
    ),
    "time": (
        "s sec secs second seconds = 1; ms = 1/1000; min mins minute minutes = 60; "
        "h hr hrs hour hours = 3600; day days = 86400; week weeks = 604800"
    ),
    "mass": (
        "kg kilogram kilograms = 1; g gram grams = 1/1000; mg milligram milligrams = 1/1000000; "
        "ton tons tonne tonnes = 1000; lb lbs pound pounds = 45359237/100000000; "
        "oz ounce ounces = 45359237/1600000000"
    ),
    "volume": (
        "L l liter liters litre litres = 1; mL ml milliliter milliliters = 1/1000; "
        "gal gallon gallons = 473176473/125000000"
    ),
    "euro": "euro euros = 1",
    "money": "dollar dollars usd = 1; cent cents = 1/100",
    "angle": "degree degrees deg = 1",
    "radian": "radian radians rad = 1",
    "energy": "J joule joules = 1; kJ = 1000; erg ergs = 1/10000000",
    "electronvolt": "eV = 1; keV = 1000; MeV = 1000000; GeV = 1000000000",
    "force": "N newton newtons = 1; kN = 1000; dyn = 1/100000",
    "frequency": "Hz hertz = 1; kHz = 1000; MHz = 1000000; GHz = 1000000000",
    "temperature": "K kelvin = 1",
    "charge": "C coulomb coulombs = 1",
    "resistance": "ohm ohms = 1; kohm = 1000; Mohm = 1000000",
    "voltage": "V volt volts = 1; kV = 1000",
    "current": "A amp amps ampere amperes = 1; mA = 1/1000",
    "power": "W watt watts = 1; kW = 1000; MW = 1000000",
    "field": "T tesla = 1; G Gs gauss = 1/10000",
    "pressure": "Pa pascal pascals = 1; kPa = 1000; atm = 101325",
    "amount": "mol mole moles = 1",
}
for dimension, entries in TABLE.items():
    for entry in entries.split(";"):
        names, _, factor = entry.partition("=")
        FACTORS |= {name: (dimension, Fraction(factor.strip())) for name in names.split()}
Scale = tuple[frozenset[tuple[str, int]], Fraction]
"""Powers of dimensions, and the factor to their first units."""
PLAIN = frozenset(name for name in FACTORS if len(name) > 2) | frozenset(
    ["cm", "mm", "km", "kg", "ft", "lb", "ml", "mL", "Hz", "kJ", "hr"]
)
COUNTED = frozenset(
    "units unit square cubic times people ways students points apples marbles balls books pages coins rectangles".split()  # noqa: SIM905
)
TRAILING = re.compile(
    r"^(?P<number>.*[\d})])\s*(?P<unit>(?:(?:square|cubic|sq|per|[A-Za-z]{2,})[ ./]*)+(?:\^\{?\d\}?|/[hs])?)$", re.S
)
PART = re.compile(r"(/?)\s*([A-Za-z]+)(?:\s*\^\s*(-?\d+))?")
ARTICLES = re.compile(r"\b(?:the|a|an)\b", re.IGNORECASE)
WORD = re.compile(r"(?<!\\)\b(?:[A-Za-z]{3,}|[A-Za-z][a-z]|NO)\b")
COMMANDS = re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf|operatorname)\s*|[{}$~]|\\[,;:! ]|\*\*")


RESERVED = re.compile(
    r"\b(?:or|and|not|no|is|more|less|than|least|most|but|if|maybe|between|to|mod|otherwise|hundred|thousand|million|billion|trillion"
    r"|dozen|wrong|false|incorrect|plus|minus|squared|cubed|factorial|half|halves|thirds?|quarters?|root|pi|i|e|x|(?-i:k)|am|pm)\b"
    r"|[ap]\.m\.|(?<![\^\d(-])\d|[+!?=<>*]",
    re.IGNORECASE,
)


def is_unit(text: str) -> bool:
    """Whether words beside a number can name what it counts; "or more" does not."""
    return not RESERVED.search(text)


def is_counting(word: str) -> bool:
    """Whether a plain word is a unit, or what is counted."""
    return word in PLAIN or word.lower() in COUNTED


def plain_unit(text: str) -> str:
    """`text` without a plain-word unit after its number ("5 cm", "12 square units")."""
    match = TRAILING.match(text)
    if not match:
        return text
    words = re.findall(r"[A-Za-z]+", match["unit"])
    if all(is_counting(word) or word in ("per", "h", "s") for word in words):
        return f"{match['number']} \\text{{{match['unit']}}}"
    return text


def canonical(unit: str) -> Scale | str:
    """What a unit measures and its factor (km/h, kg m^2, square feet); an unknown one as normalised text."""
    text = COMMANDS.sub(" ", unit).replace("neg(", "-").replace(")", "").replace(".", " ").replace("\\cdot", " ")
    text = re.sub(r"\b(?:square|sq)\s+(\w+)", r"\1^2", text)
    text = re.sub(r"\bcubic\s+(\w+)", r"\1^3", text)
    text = re.sub(r"\bper\b", "/", re.sub(r"\b(mph|kph|kmh)\b", lambda m: {"mph": "mi/h"}.get(m[1], "km/h"), text))
    powers: dict[str, int] = {}
    factor, sign = Fraction(1), 1
    for slash, word, power in PART.findall(text):
        sign = -1 if slash else sign
        found = FACTORS.get(word) or FACTORS.get(word.lower())
        if not found:
            return " ".join(text.lower().split())
        exponent = sign * max(-9, min(9, int(power or 1)))
        powers[found[0]] = powers.get(found[0], 0) + exponent
        factor *= found[1] ** exponent
    return frozenset((d, p) for d, p in powers.items() if p), factor


def plain_text(text: str) -> str:
    """Words in lower case without articles, punctuation and LaTeX's text commands; letters and commands stay as they are."""
    text = WORD.sub(lambda match: match[0].lower(), COMMANDS.sub(" ", text))
    if WORD.search(text):
        text = ARTICLES.sub(" ", re.sub(r"[.,;:?\"'`]+(?=\s|$)", " ", text))
    return " ".join(text.split())
