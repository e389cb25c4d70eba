"""Countdown: reach a target with every given number used once. The problems of reasoning-gym's `countdown`, our own checker.

A solution is an expression, "(3 + 5) * 7 - 1", or steps, "3+5=8, 8*7=56, 56-1=55", each using two numbers still on the
table and putting its result there. The checker reads a whitelisted grammar with exact fractions; it evaluates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.types import Grade, Problem
from paragator.grading.extract import box_or_all
from paragator.tasks.base import Split, Task, take

TOKEN = re.compile(r"\s*(\d{1,9}|[-+*/()])")
MAX_ANSWER_CHARS = 400
ATTEMPTS = 100
"""Random expressions that are tried for one problem."""
WORDS = (
    "Use each of the numbers {numbers} exactly once, with +, -, * and /, to make {target}. "
    "Answer with one arithmetic expression and no equals sign."
)
COMPACT = "{numbers} -> {target}"


def build(config: TaskConfig) -> Task:
    """The task with the ranges of `config`."""

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        return generate(config, split, count, seed)

    return Task("countdown", problems, grade)


def generate(config: TaskConfig, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems; a problem is its sorted numbers and target, and belongs to one split for good."""
    return take(split, count, draws(config, seed), what="task countdown")


def draws(config: TaskConfig, seed: int) -> Callable[[int], tuple[str, Problem]]:
    """An endless stream of problems by number, each with its content key."""
    template = COMPACT if config.style == "compact" else WORDS
    separator = " " if config.style == "compact" else ", "

    def numbered(index: int) -> tuple[str, Problem]:
        numbers, target = draw(config, seed + index)
        text = template.format(numbers=separator.join(map(str, numbers)), target=target)
        problem = Problem(f"countdown-{seed}-{index}", text, {"numbers": numbers, "target": target})
        return content_key(numbers, target), problem

    return numbered


def draw(config: TaskConfig, seed: int) -> tuple[list[int], int]:
    """The numbers and the target that reasoning-gym's `countdown` has for a seed, in integers: it spends 12 ms in sympy.

    Both must take the same random numbers in the same order, or every recorded run's problems change: a test compares them.
    """
    rng = Random(seed)
    count = rng.randint(config.min_numbers, config.max_numbers)
    for _ in range(ATTEMPTS):
        numbers = [rng.randint(config.min_value, config.max_value) for _ in range(count)]
        target = numbers[0]
        for i in range(1, count):
            operator = rng.choice("+-*/")
            if operator == "/":
                divisors = numbers[i:]
                rng.shuffle(divisors)
                divisor = next((n for n in divisors if target % n == 0), None)
                if divisor is None:
                    operator = "-"
                else:
                    numbers[i] = divisor  # the number that stood here is lost, and a later one may be there twice
                    target //= divisor
            if operator == "+":
                target += numbers[i]
            elif operator == "-":
                target -= numbers[i]
            elif operator == "*":
                target *= numbers[i]
        if config.min_target <= target <= config.max_target:
            rng.shuffle(numbers)
            return numbers, target
    raise UsageError(
        f"task.min_target = {config.min_target}, task.max_target = {config.max_target}: hardly any expression of numbers "
        f"up to task.max_value = {config.max_value} makes that; widen the targets, or the numbers"
    )


def content_key(numbers: Sequence[int], target: int) -> str:
    """What makes two problems the same."""
    return f"countdown:{sorted(numbers)}:{target}"


def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
    """One grade a text."""
    return [grade_one(problem, text) for text in texts]


def grade_one(problem: Problem, text: str) -> Grade:
    answer = box_or_all(text)
    if answer is None:
        return Grade("incorrect", None, "no answer outside thinking")
    answer = " ".join(answer.split())
    if len(answer) > MAX_ANSWER_CHARS:
        return Grade("incorrect", None, f"answer longer than {MAX_ANSWER_CHARS} characters")
    reason = flaw(answer, problem.answer["numbers"], problem.answer["target"])
    return Grade("incorrect" if reason else "correct", answer.replace(" ", ""), reason)


def flaw(answer: str, numbers: Sequence[int], target: int) -> str:
    """Why an answer does not solve the problem; "" when it does."""
    try:
        if "=" in answer:
            return steps_flaw(answer, list(map(Fraction, numbers)), Fraction(target))
        value, used = parse(answer)
    except ValueError as error:
        return str(error)
    if sorted(used) != sorted(numbers):
        return f"uses {sorted(used)}"
    return "" if value == target else f"makes {value}"


def steps_flaw(answer: str, table: list[Fraction], target: Fraction) -> str:
    for step in answer.split(","):
        left, equals, right = step.partition("=")
        operands = re.fullmatch(r"\s*(\d{1,9})\s*([-+*/])\s*(\d{1,9})\s*", left)
        if not equals or not operands or not re.fullmatch(r"\s*\d{1,9}\s*", right):
            raise ValueError(f"not a step: {step.strip()[:40]!r}")
        a, b, result = Fraction(operands[1]), Fraction(operands[3]), Fraction(right.strip())
        for number in (a, b):
            if number not in table:
                return f"{number} is not on the table"
            table.remove(number)
        if apply(a, operands[2], b) != result:
            return f"{step.strip()} is false"
        table.append(result)
    if len(table) > 1:
        return f"{len(table) - 1} numbers unused"
    return "" if table == [target] else f"makes {table[0]}"


def apply(a: Fraction, operator: str, b: Fraction) -> Fraction:
    """a operator b, exactly; ValueError for a division by zero."""
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if b == 0:
        raise ValueError("division by zero")
    return a / b


def parse(expression: str) -> tuple[Fraction, list[int]]:
    """The value of an expression of integers, + - * / and parentheses, and the integers in it; else ValueError."""
    tokens: list[str] = []
    at = 0
    expression = expression.strip()
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if not match:
            raise ValueError(f"not an arithmetic expression at {expression[at : at + 20]!r}")
        tokens.append(match[1])
        at = match.end()
    if tokens.count("(") > tokens.count(")"):
        raise ValueError("unbalanced parentheses")
    reader = Reader(tokens)
    value = reader.sum()
    if reader.at != len(tokens):
        raise ValueError("not one arithmetic expression")
    return value, [int(t) for t in tokens if t.isdigit()]


class Reader:
    """Recursive descent over sum, product and atom. Every parenthesis closes, so half of MAX_ANSWER_CHARS bounds its depth."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def take(self, *accepted: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in accepted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def sum(self) -> Fraction:
        value = self.product()
        while operator := self.take("+", "-"):
            value = apply(value, operator, self.product())
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while operator := self.take("*", "/"):
            value = apply(value, operator, self.atom())
        return value

    def atom(self) -> Fraction:
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise ValueError("unbalanced parentheses")
            return value
        if self.at < len(self.tokens) and self.tokens[self.at].isdigit():
            self.at += 1
            return Fraction(self.tokens[self.at - 1])
        raise ValueError("not an arithmetic expression")
