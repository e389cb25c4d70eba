"""Signs and commands that the parser knows: relations, operators, names, keywords."""

from __future__ import annotations

RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\le": "<=", r"\ge": ">=", r"\ne": "!=",
    r"\in": "in", r"\notin": "notin", r"\approx": "~", r"\simeq": "~", r"\equiv": "equiv", r"\to": "to", "->": "to",
    r"\rightarrow": "to",
    r"\Rightarrow": "implies", "=>": "implies", r"\implies": "implies", r"\propto": "propto",
    r"\ll": "<<", r"\gg": ">>", r"\sim": "sim", r"\leftarrow": "from", r"\mapsto": "mapsto",
    **{f"\\{name}": name for name in (
        *("subset", "subseteq", "subsetneq", "supset", "supseteq", "supsetneq", "prec", "preceq", "succ", "succeq", "cong"),
        *("nmid", "parallel", "perp", "models", "vdash", "leftrightarrow", "Leftrightarrow", "unlhd", "lhd", "asymp", "ni"),
    )},
}  # fmt: skip
OPERATORS = {
    f"\\{name}"
    for name in (
        "otimes oplus ominus odot rtimes ltimes wedge vee circ ast star bullet bowtie uplus sqcup sqcap diamond wr amalg".split()  # noqa: SIM905
    )
}
"""Operators between two things of which nothing is known, so that their order counts."""
SYMBOLS = frozenset(
    "ell hbar hslash partial nabla aleph Re Im top bot dagger ddagger dots ldots cdots vdots ddots dotsc dotsb forall exists "  # noqa: SIM905
    "angle measuredangle triangle square Box varepsilon vartheta varphi varrho varsigma varkappa digamma wp imath jmath mho "
    "complement flat sharp natural degree star ast bullet circ infty emptyset prime backslash checkmark diamond heartsuit "
    "clubsuit spadesuit diamondsuit".split()
)
"""Commands that are names. An unknown command is not read: it could be anything."""
SET_OPERATORS = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus"}
SEPARATORS = (",", ";", "or", "and", r"\cup", r"\cap")
OPENING = ("(", "[", "{", r"\{")
WORDS = {
    "or": "or",
    "and": "and",
    "if": "if",
    "for": "if",
    "when": "if",
    "where": "if",
    "otherwise": "otherwise",
    "else": "otherwise",
}
CLOSING = frozenset(
    (
        r"\}",
        r"\rfloor",
        r"\rceil",
        r"\end",
        r"\|",
        r"\circ",
        "\\\\",
        r"\pm",
        r"\mp",
        r"\cdot",
        r"\times",
        r"\div",
        r"\hline",
        r"\over",
        r"\choose",
    )
)
