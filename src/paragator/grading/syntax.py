"""From a tidied answer to a tree. Nothing is computed here, so nothing can be large; what it cannot read is a SyntaxError."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from paragator.grading.tidy import GREEK


@dataclass(frozen=True, slots=True)
class Node:
    """A tree of an answer.

    num (value: Fraction)  sym (value: name)  text (value)  unit (1 child, value: text)
    add, mul, div, pow, neg, pm (+-), mp, fact, fact2, percent, deg, abs, call (name, argument), func (value: name)
    list (bare, with commas)  paren (value: its two brackets)  set  ratio
    rel (value: the signs between the children)  or  builder (item, condition)  cup, cap, setminus
    matrix (children: rows)  row  det  cases (children: case)  case (value, condition)
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None

    def walk(self) -> list[Node]:
        """This node and all below it."""
        out, stack = [], [self]
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(node.args)
        return out


FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot asin acos atan sinh cosh tanh coth arcsinh arccosh arctanh ln log lg exp "
    "max min gcd lcm det tr Re Im sgn sign floor ceil abs sqrt cbrt binom".split()
)
MANY = frozenset(("max", "min", "gcd", "lcm", "binom"))
NAMES = frozenset(GREEK.values()) | FUNCTIONS | {"pi", "oo", "inf", "infty", "infinity", "and", "or"}
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\le": "<=", r"\ge": ">=", r"\ne": "!=",
    r"\in": "in", r"\notin": "notin", r"\approx": "~", r"\simeq": "~", r"\equiv": "equiv", r"\to": "to", "->": "to", r"\rightarrow": "to",
    r"\Rightarrow": "implies", "=>": "implies", r"\implies": "implies", r"\propto": "propto",
}  # fmt: skip
SET_OPERATORS = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus"}
UNREADABLE = frozenset(r"\sum \prod \int \iint \oint \lim \partial \nabla \limsup \liminf \sup \inf \over \choose".split())
MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "vmatrix", "array", "aligned", "align", "gathered", "split")
CASES = ("cases", "dcases", "rcases")
TOKEN = re.compile(
    r"\s*(?:(?P<command>\\\\(?:\[[^\]]{0,9}\])?|\\[a-zA-Z]+|\\[{}|])|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<word>[a-zA-Z]+)|(?P<sign><=|>=|!=|==|=>|->|\*\*|.))",
    re.S,
)
WORDS = {"or": "or", "and": "and", "if": "if", "for": "if", "when": "if", "where": "if", "otherwise": "otherwise", "else": "otherwise"}
SPLIT_WORD = 3
"""An unknown word of at most so many letters is a product of letters, a longer one is a word."""


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    value: str


def tokens_of(text: str) -> list[Token]:
    """The tokens of a tidied answer; a \\text{...} is one token."""
    out: list[Token] = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            break
        at = match.end()
        kind = str(match.lastgroup)
        value = match[kind]
        if value in (r"\text", r"\operatorname", r"\mathbb"):
            at, content = braced(text, at)
            out.append(Token("set" if value == r"\mathbb" else "text", content.strip()))
        elif value in (r"\begin", r"\end"):
            at, content = braced(text, at)
            out.append(Token(value, content.strip().rstrip("*")))
            if value == r"\begin" and content.strip() in ("array", "alignedat"):
                at = skip_columns(text, at)
        elif kind == "word" and value not in NAMES and len(value) <= SPLIT_WORD:
            out += [Token("word", letter) for letter in value]
        elif kind == "command" and value[1:] in NAMES:
            out.append(Token("word", value[1:]))
        elif value.strip():
            out.append(Token(kind, "^" if value == "**" else value))
    return out


def braced(text: str, at: int) -> tuple[int, str]:
    """The group that starts at `at`, and where it ends."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at >= len(text) or text[at] != "{":
        raise SyntaxError("a command without its group")
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end + 1, text[at + 1 : end]
    raise SyntaxError("a group that never ends")


def skip_columns(text: str, at: int) -> int:
    return braced(text, at)[0] if text[at:].lstrip().startswith("{") else at


def parse(text: str) -> Node:
    """The tree of a tidied answer; SyntaxError where it is not one that this grammar knows."""
    reader = Reader(tokens_of(text))
    node = reader.alternatives()
    if reader.at != len(reader.tokens):
        raise SyntaxError(f"unexpected {reader.tokens[reader.at].value!r}")
    return node


class Reader:
    """Recursive descent; the nesting limit on the text bounds its depth."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.bars = tokens, 0, 0

    # ---- tokens

    def peek(self, ahead: int = 0) -> str:
        """The next token's sign or command, or its keyword for a word of text; "" at the end."""
        if self.at + ahead >= len(self.tokens):
            return ""
        token = self.tokens[self.at + ahead]
        if token.kind == "text" or (token.kind == "word" and token.value in ("and", "or")):
            return WORDS.get(token.value.strip(" ,:;").lower(), "text")
        return token.value if token.kind in ("sign", "command") else token.kind

    def take(self, *accepted: str) -> str:
        found = self.peek()
        if found and found in accepted:
            self.at += 1
            return found
        return ""

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise SyntaxError(f"expected {sign!r} at token {self.at}")

    # ---- lists and relations

    def alternatives(self) -> Node:
        """A, B; C  or  A or B."""
        items, separators = [self.relation()], set()
        while separator := self.take(",", ";", "or", "and"):
            while more := self.take(",", ";", "or", "and"):
                separator = more if more in ("or", "and") else separator
            separators.add(separator)
            items.append(self.relation())
        if not separators:
            return items[0]
        return Node("or" if "or" in separators and all(i.op == "rel" for i in items) else "list", tuple(items))

    def relation(self) -> Node:
        operands, signs = [self.union()], []
        while self.peek() in RELATIONS:
            signs.append(RELATIONS[self.take(self.peek())])
            operands.append(self.union())
        if not signs:
            return operands[0]
        return Node("rel", tuple(operands), tuple(signs))

    def union(self) -> Node:
        node = self.ratio()
        while operator := self.take(*SET_OPERATORS):
            node = Node(SET_OPERATORS[operator], (node, self.ratio()))
        return node

    def ratio(self) -> Node:
        parts = [self.sum()]
        while self.bars == 0 and self.peek() == ":" and self.at + 1 < len(self.tokens):
            self.at += 1
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("ratio", tuple(parts))

    # ---- arithmetic

    def sum(self) -> Node:
        node = self.product()
        while operator := self.take("+", "-", r"\pm", r"\mp"):
            right = self.product()
            if operator in (r"\pm", r"\mp"):
                node = Node("add", (node, Node(operator[1:], (right,))))
            else:
                node = Node("add", (node, right if operator == "+" else Node("neg", (right,))))
        return node

    def product(self) -> Node:
        if sign := self.take("+", "-", r"\pm", r"\mp"):
            inner = self.product()
            return {"+": inner, "-": Node("neg", (inner,))}.get(sign) or Node(sign[1:], (inner,))
        node = self.power()
        while True:
            if self.take("*", r"\cdot", r"\times"):
                node = Node("mul", (node, self.signed()))
            elif self.take("/", r"\div"):
                node = Node("div", (node, self.signed()))
            elif self.peek() == "text":
                node = Node("unit", (node,), self.unit_text())
            elif self.starts_factor(node):
                node = self.juxtaposed(node)
            else:
                return node

    def signed(self) -> Node:
        if self.take("-"):
            return Node("neg", (self.signed(),))
        self.take("+")
        return self.power()

    def starts_factor(self, left: Node) -> bool:
        found = self.peek()
        if found == "number":
            return left.op != "num" or self.peek(1) == "/"
        if found in ("word", "set", "(", "{", "[") or found == r"\begin":
            return True
        return found.startswith("\\") and found[1:2].isalpha() and found not in RELATIONS and found not in SET_OPERATORS and found not in CLOSING

    def juxtaposed(self, left: Node) -> Node:
        """left right, as a product, a mixed number (1 1/2), or a call f(x)."""
        call = self.peek() == "(" and left.op == "sym"
        whole = left.op == "num" and left.value.denominator == 1
        if whole and self.peek() == "number":
            top, _, bottom = self.power(), self.take("/"), self.power()
            if top.op == bottom.op == "num":
                return Node("add", (left, Node("div", (top, bottom))))
            raise SyntaxError("two numbers side by side")
        fraction = self.peek() == r"\frac"
        right = self.power()
        if whole and fraction and right.op == "div" and all(part.op == "num" for part in right.args):
            return Node("add", (left, right))
        return Node("call" if call else "mul", (left, right))

    def power(self) -> Node:
        node = self.atom()
        while True:
            if self.take("^"):
                node = self.raised(node)
            elif self.take("!"):
                node = Node("fact2" if self.take("!") else "fact", (node,))
            elif self.take("%"):
                node = Node("percent", (node,))
            else:
                return node

    def raised(self, base: Node) -> Node:
        start = self.at
        braces = self.take("{")
        if self.take(r"\circ"):
            if braces:
                self.need("}")
            return Node("deg", (base,))
        self.at = start
        exponent = Node("neg", (self.atom(),)) if self.take("-") else self.group() if braces else self.atom()
        return Node("pow", (base, exponent))

    def argument(self) -> Node:
        """What a command applies to: a group, or one token (one digit of a number)."""
        if self.peek() != "number":
            return self.group() if self.peek() == "{" else self.atom()
        digits = self.tokens[self.at].value
        if len(digits) > 1 and digits.isdigit():
            self.tokens[self.at] = Token("number", digits[1:])
            return Node("num", value=Fraction(digits[0]))
        return self.atom()

    def group(self) -> Node:
        self.need("{")
        bars, self.bars = self.bars, 0
        node = self.alternatives()
        self.bars = bars
        self.need("}")
        return node

    # ---- atoms

    def atom(self) -> Node:
        found = self.peek()
        if not found:
            raise SyntaxError("ends too early")
        if found in ATOMS:
            return ATOMS[found](self)
        if found in UNREADABLE or not found.startswith("\\") or not found[1:].isalpha():
            raise SyntaxError(f"{found!r} is not read here")
        self.at += 1
        return self.subscripted(Node("sym", value=found[1:]))

    def number(self) -> Node:
        value = self.tokens[self.at].value
        self.at += 1
        if self.peek() == "_":
            return self.subscripted(Node("sym", value=value))
        return Node("num", value=Fraction(value))

    def text(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1].value

    def unit_text(self) -> str:
        """A unit as written: cm, cm^2, m/s, m s^{-1}."""
        text = self.text()
        while self.peek() in ("^", "text") or (self.peek() in ("/", r"\cdot") and self.peek(1) == "text"):
            if self.take("^"):
                text += "^" + flat(Node("neg", (self.atom(),)) if self.take("-") else self.argument())
            else:
                text += (self.take("/") or (self.take(r"\cdot") and " ") or " ") + self.text()
        return text

    def word(self) -> Node:
        name = self.tokens[self.at].value
        self.at += 1
        if name in ("oo", "inf", "infty", "infinity"):
            return Node("sym", value="infty")
        if name in FUNCTIONS:
            return self.function(name)
        if len(name) > SPLIT_WORD and name not in NAMES:
            return Node("text", value=name)
        return self.subscripted(Node("sym", value=name))

    def subscripted(self, node: Node) -> Node:
        name = str(node.value)
        while sign := self.take("_", "'"):
            name += "'" if sign == "'" else "_" + flat(self.argument())
        return Node("sym", value=name)

    def function(self, name: str) -> Node:
        """sin x, sin^2 x, log_2 x, sqrt[3]{x}, max(a, b)."""
        exponent = base = None
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name == "binom":
            return Node("func", (self.argument(), self.argument()), name) if self.peek() == "{" or self.peek() == "number" else self.called(name)
        while sign := self.take("^", "_"):
            if sign == "_":
                base = self.argument()
            else:
                exponent = Node("neg", (self.atom(),)) if self.take("-") else self.argument()
        while self.take("'"):
            name += "'"
        node = self.called(name)
        if base:
            node = Node("func", (*node.args, base), name)
        if exponent is None:
            return node
        if exponent == Node("neg", (Node("num", value=Fraction(1)),)) and name not in ("ln", "log", "exp"):
            return Node("func", node.args, "arc" + name)
        return Node("pow", (node, exponent))

    def called(self, name: str) -> Node:
        if self.peek() in ("(", "{", "["):
            inner = self.atom()
            return Node("func", inner.args if name in MANY and inner.op in ("paren", "list") else (inner,), name)
        argument = self.signed()
        while self.starts_factor(argument) and not (self.peek() == "word" and self.tokens[self.at].value in FUNCTIONS) and self.peek() != "(":
            argument = self.juxtaposed(argument)
        return Node("func", (argument,), name)

    def root(self, name: str) -> Node:
        index = Node("num", value=Fraction(3 if name == "cbrt" else 2))
        if self.take("["):
            index = self.sum()
            self.need("]")
        return Node("func", (self.argument(), index), "root")

    def fraction(self) -> Node:
        self.at += 1
        return Node("div", (self.argument(), self.argument()))

    def binomial(self) -> Node:
        self.at += 1
        return Node("func", (self.argument(), self.argument()), "binom")

    def square_root(self) -> Node:
        self.at += 1
        return self.root("sqrt")

    def brackets(self) -> Node:
        """(a), (a, b), [a, b), [[a], [b]]."""
        opening = self.take("(", "[")
        bars, self.bars = self.bars, 0
        inner = self.alternatives()
        self.bars = bars
        closing = self.take(")", "]")
        if not closing:
            raise SyntaxError("a bracket that never closes")
        items = inner.args if inner.op == "list" else (inner,)
        if len(items) == 1 and (inner.op == "matrix" or (opening == "(" and closing == ")")):
            return inner
        return Node("paren", items, opening + closing)

    def braces(self) -> Node:
        r"""\{a, b\} or \{x | condition\}; a \{ before an array opens cases."""
        self.at += 1
        if self.peek() == r"\begin":
            rows = self.environment_rows()
            self.take(r"\}")
            return as_cases(rows)
        if self.take(r"\}"):
            return Node("set")
        self.bars += 1
        inner = self.alternatives()
        if self.take("|", ":", r"\|"):
            inner = Node("builder", (inner, self.alternatives()))
        self.bars -= 1
        self.need(r"\}")
        if inner.op == "builder":
            return inner
        return Node("set", inner.args if inner.op == "list" else (inner,))

    def bar(self) -> Node:
        closing = self.take("|", r"\|")
        bars, self.bars = self.bars, self.bars + 1
        inner = self.sum()
        self.bars = bars
        self.need(closing)
        return Node("abs", (inner,))

    def between(self) -> Node:
        closing = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil")}[self.take(r"\lfloor", r"\lceil")]
        inner = self.sum()
        self.need(closing[0])
        return Node("func", (inner,), closing[1])

    def named_set(self) -> Node:
        self.at += 1
        return self.subscripted(Node("sym", value=f"set {self.tokens[self.at - 1].value}"))

    def empty_set(self) -> Node:
        self.at += 1
        return Node("set")

    def modulus(self) -> Node:
        self.at += 1
        return Node("func", (self.argument(),), "pmod")

    def words(self) -> Node:
        return Node("text", value=self.text())

    # ---- environments

    def environment(self) -> Node:
        name = self.tokens[self.at].value
        rows = self.environment_rows()
        if name in CASES:
            return as_cases(rows)
        node = Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
        return Node("det", (node,)) if name == "vmatrix" else node

    def environment_rows(self) -> list[list[Node]]:
        name = self.tokens[self.at].value
        if name not in MATRICES and name not in CASES:
            raise SyntaxError(f"environment {name!r} is not read here")
        self.at += 1
        rows: list[list[Node]] = [[]]
        bars, self.bars = self.bars, 0
        while self.peek() != r"\end":
            if self.peek().startswith("\\\\"):
                self.at += 1
                rows.append([])
            elif not self.take("&", r"\hline"):
                rows[-1].append(self.cell())
        self.bars = bars
        self.at += 1
        return [row for row in rows if row]

    def cell(self) -> Node:
        if self.take("otherwise"):
            self.take(",", ".")
            return Node("text", value="otherwise")
        self.take("if")
        node = self.alternatives_until_comma()
        while self.take(",", ";", "if", "."):
            pass
        return node

    def alternatives_until_comma(self) -> Node:
        """A cell: commas before its end are a list's only where another relation follows."""
        items, separators = [self.relation()], set()
        while self.peek() in (",", ";", "or", "and") and not (self.peek(1) in ("&", "if", "otherwise", r"\end", "text") or self.peek(1).startswith("\\\\")):
            separators.add(self.take(",", ";", "or", "and"))
            items.append(self.relation())
        return items[0] if len(items) == 1 else Node("or" if "or" in separators else "list", tuple(items))


def as_cases(rows: list[list[Node]]) -> Node:
    """Rows of (value, condition); a row without a condition is the rest."""
    cases = []
    for row in rows:
        value, *conditions = row
        if value.op == "list" and not conditions:
            value, *conditions = value.args
        if value.op == "unit" and not conditions:
            value, conditions = value.args[0], [Node("text", value=value.value)]
        condition = Node("text", value="otherwise") if not conditions else conditions[0] if len(conditions) == 1 else Node("list", tuple(conditions))
        cases.append(Node("case", (value, condition)))
    return Node("cases", tuple(cases))


def flat(node: Node) -> str:
    """A subscript as text."""
    if node.op in ("num", "sym", "text"):
        return str(node.value)
    return node.op + "(" + ",".join(flat(child) for child in node.args) + ")"


CLOSING = frozenset((r"\}", r"\rfloor", r"\rceil", r"\end", r"\|", r"\circ", "\\\\", r"\pm", r"\mp", r"\cdot", r"\times", r"\div", r"\hline"))
ATOMS = {
    "number": Reader.number, "word": Reader.word, "set": Reader.named_set, "text": Reader.words, "(": Reader.brackets, "[": Reader.brackets,
    "{": Reader.group, r"\{": Reader.braces, "|": Reader.bar, r"\|": Reader.bar, r"\frac": Reader.fraction, r"\binom": Reader.binomial,
    r"\sqrt": Reader.square_root, r"\lfloor": Reader.between, r"\lceil": Reader.between, r"\begin": Reader.environment,
    r"\emptyset": Reader.empty_set, r"\pmod": Reader.modulus, r"\bmod": Reader.modulus, "otherwise": Reader.words,
}  # fmt: skip
