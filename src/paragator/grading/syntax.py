"""Parser: from a normalised answer to a tree. It computes nothing, so nothing can grow; what it cannot parse is a SyntaxError."""

from __future__ import annotations

from fractions import Fraction

from paragator.grading import units
from paragator.grading.atoms import ATOMS
from paragator.grading.calls import is_function
from paragator.grading.signs import CLOSING, OPENING, OPERATORS, RELATIONS, SEPARATORS, SET_OPERATORS, SYMBOLS, WORDS
from paragator.grading.tokens import FUNCTIONS, NAMES, SPLIT_WORD, Token, tokens_of
from paragator.grading.tree import Node, flat

MANY = frozenset(("max", "min", "gcd", "lcm", "binom"))


def parse(text: str) -> Node:
    """The tree of a normalised answer; SyntaxError where this grammar does not cover it."""
    reader = AnswerReader(tokens_of(text))
    node = reader.alternatives()
    if reader.at != len(reader.tokens):
        raise SyntaxError(f"unexpected {reader.tokens[reader.at].value!r}")
    return node


def together(first: Node, second: Node) -> Node:
    """2 hours 30 minutes, in the first unit."""
    scales = [units.canonical(node.value) if node.op == "unit" else "" for node in (first, second)]
    if isinstance(scales[0], str) or isinstance(scales[1], str) or scales[0][0] != scales[1][0]:
        raise SyntaxError("two quantities side by side")
    rest = Node("mul", (second.args[0], Node("num", value=scales[1][1] / scales[0][1])))
    return Node("unit", (Node("add", (first.args[0], rest)),), first.value)


def even_groups(items: list[Node], starts: list[int]) -> bool:
    """Whether "and" parts equations into groups of one size: p = 5, q = 2 and p = 7, q = 3."""
    sizes = {end - start for start, end in zip(starts, [*starts[1:], len(items)], strict=True)}
    return len(starts) > 1 and len(sizes) == 1 and min(sizes) > 1 and all(item.op == "rel" for item in items)


class AnswerReader:
    """Recursive descent; the nesting limit on the text bounds its depth."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.bars = tokens, 0, 0
        self.parsed: dict[int, tuple[Node, int]] = {}

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
        items, separators, groups, and_groups = [self.relation()], set(), [0], [0]
        while separator := self.take(*SEPARATORS):
            while more := self.take(*SEPARATORS):
                separator = more if more in ("or", "and") else separator
            separator = {r"\cup": "or", r"\cap": "and"}.get(separator, separator)
            if separator == ";":
                groups.append(len(items))
            if separator == "and":
                and_groups.append(len(items))
            separators.add(separator)
            items.append(self.relation())
        if "and" in separators and ";" not in separators:
            groups = and_groups
        if ({",", ";"} <= separators) or even_groups(items, groups):  # groups of several: a, b; c, d
            parts = [items[start:end] for start, end in zip(groups, [*groups[1:], len(items)], strict=True)]
            items = [part[0] if len(part) == 1 else Node("list", tuple(part)) for part in parts]
            separators = {";"}
        if not separators:
            return items[0]
        if "or" in separators and all(i.op == "rel" for i in items):
            return Node("or", tuple(items))
        return Node(
            "list", tuple(items), "and" if separators == {"and"} and all(i.op == "rel" for i in items) else None
        )

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
        while not self.joins_relations() and (operator := self.take(*SET_OPERATORS)):
            node = Node(SET_OPERATORS[operator], (node, self.ratio()))
        return node

    def joins_relations(self) -> bool:
        """Whether a union stands between inequalities (x < 1 \\cup x > 2) rather than sets."""
        if self.peek() not in SET_OPERATORS:
            return False
        depth, ahead = 0, 1
        while sign := self.peek(ahead):
            depth += (sign in OPENING) - (sign in (")", "]", "}", r"\}"))
            if depth < 0 or (depth == 0 and (sign in SET_OPERATORS or sign in (",", ";", "or", "and"))):
                return False
            if depth == 0 and sign in RELATIONS:
                return True
            ahead += 1
        return False

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
            if sign := self.take("*", r"\cdot", r"\times"):
                node = Node("mul", (node, self.signed()), "x" if sign == r"\times" else ".")
            elif self.take("/", r"\div"):
                node = Node("div", (node, self.signed()))
            elif operator := self.take(*OPERATORS):
                node = Node("oper", (node, self.signed()), operator[1:])
            elif self.peek() == "text":
                node = Node("unit", (node,), self.unit_text())
            elif node.op == "unit" and self.peek() == "number":
                node = together(node, self.product())
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
        if found in ("word", "name", "set", "(", "{", "[", r"\begin") or (found == "|" and self.bars == 0):
            return True
        return (
            found.startswith("\\")
            and found[1:2].isalpha()
            and found not in RELATIONS
            and found not in SET_OPERATORS
            and found not in OPERATORS
            and found not in CLOSING
        )

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
        node = self.called_name(self.atom())
        while True:
            if self.take("^"):
                node = self.raised(node)
            elif self.take("!"):
                node = Node("fact2" if self.take("!") else "fact", (node,))
            elif self.take("%"):
                node = Node("percent", (node,))
            elif self.peek() in ("_", "'") and node.op == "sym":
                node = self.subscripted(node)
            else:
                return node

    def called_name(self, name: Node) -> Node:
        """f(x) where that is a function, else the name alone; the bracket is then read later, from what was parsed here."""
        if name.op != "sym" or not (self.peek() == "(" or (self.peek() == "[" and str(name.value)[0].isupper())):
            return name
        start = self.at
        call = Node("call", (name, self.atom()))
        if is_function(call):
            return call
        self.parsed[start] = call.args[1], self.at
        self.at = start
        return name

    def raised(self, base: Node) -> Node:
        start = self.at
        braces = self.take("{")
        if self.take(r"\circ"):
            if braces:
                self.need("}")
            return Node("deg", (base,))
        if braces and base.op == "sym" and self.take("'"):
            self.need("}")
            return Node("sym", value=f"{base.value}'")
        self.at = start
        if base.op == "sym" and (charge := self.charge()):
            return Node("sym", value=base.value + charge)
        exponent = Node("neg", (self.atom(),)) if self.take("-") else self.group() if braces else self.atom()
        return Node("pow", (base, exponent))

    def charge(self) -> str:
        """The signs of pi^-, Delta^{++}, psi^*: part of a name; "" where an exponent stands."""
        at, signs = self.at, ""
        braces = self.take("{")
        while sign := self.take("+", "-", "*"):
            signs += sign
        if (
            not signs
            or (braces and not self.take("}"))
            or (not braces and signs != "*" and self.peek() in ("number", "(", "{"))
        ):
            self.at = at
            return ""
        return f"^{signs}"

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
        if operator := self.take(r"\over", r"\choose"):
            under = self.alternatives()
            node = Node("div", (node, under)) if operator == r"\over" else Node("func", (node, under), "binom")
        self.bars = bars
        self.need("}")
        return node

    # ---- atoms

    def atom(self) -> Node:
        if self.at in self.parsed:
            node, self.at = self.parsed[self.at]
            return node
        found = self.peek()
        if not found:
            raise SyntaxError("ends too early")
        if found in ATOMS:
            return ATOMS[found](self)
        if not found.startswith("\\") or found[1:] not in SYMBOLS:
            known = not found[1:].isalpha() or found in RELATIONS or found in OPERATORS or found in CLOSING
            raise SyntaxError(f"{found!r} in the wrong place" if known else f"command {found} is not known")
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
            name += "'" if sign == "'" else "_" + self.subscript()
        return Node("sym", value=name)

    def subscript(self) -> str:
        """What stands below a name; of a lone command its name, whatever it is."""
        braces = self.peek() == "{" and self.peek(2) == "}"
        if (found := self.peek(braces)) in OPERATORS or found in RELATIONS:
            self.at += 3 if braces else 1
            return found[1:]
        if found == "word" and self.tokens[self.at + braces].value in FUNCTIONS:  # v_{max}
            self.at += 3 if braces else 1
            return self.tokens[self.at - (2 if braces else 1)].value
        return flat(self.argument())

    def function(self, name: str) -> Node:
        """sin x, sin^2 x, log_2 x, sqrt[3]{x}, max(a, b)."""
        exponent = base = None
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name == "binom":
            return (
                Node("func", (self.argument(), self.argument()), name)
                if self.peek() == "{" or self.peek() == "number"
                else self.called(name)
            )
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
        while (
            self.starts_factor(argument)
            and not (self.peek() == "word" and self.tokens[self.at].value in FUNCTIONS)
            and self.peek() != "("
        ):
            argument = self.juxtaposed(argument)
        return Node("func", (argument,), name)

    def root(self, name: str) -> Node:
        index = Node("num", value=Fraction(3 if name == "cbrt" else 2))
        if self.take("["):
            index = self.sum()
            self.need("]")
        return Node("func", (self.argument(), index), "root")
