"""What `paragator solve` shows while it runs and at its end. Text of models and problems is never markup or control."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paragator.core.text import one_line, printable
from paragator.runs.solve import Round, Solution, Watch

if TYPE_CHECKING:
    from rich.console import Group
    from rich.panel import Panel

MOST_ANSWERS = 6
ANSWER_CHARS = 60
BAR = 20
REFRESH_HZ = 4


class View:
    """Shows nothing; a context that takes what a Watch has seen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        return None

    def __call__(self, round_: Round) -> None:
        return None


class Lines(View):
    """One line for each round that ends."""

    def __call__(self, round_: Round) -> None:
        if round_.end is not None:
            print(line(round_), flush=True)


class Panels(View):
    """A panel a round, drawn anew while it lasts."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.rounds: list[Round] = []
        self.live = Live(
            console=Console(), get_renderable=self.render, refresh_per_second=REFRESH_HZ, vertical_overflow="ellipsis"
        )

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.live.vertical_overflow = "visible"
        self.live.stop()

    def __call__(self, round_: Round) -> None:
        if round_.number == len(self.rounds):
            self.rounds.append(round_)

    def render(self) -> Group | str:
        """All rounds that have begun."""
        from rich.console import Group

        return Group(*map(panel, list(self.rounds))) if self.rounds else "connecting"


def view(*, as_json: bool) -> View:
    """What suits where the output goes."""
    if as_json:
        return View()
    return Panels() if sys.stdout.isatty() else Lines()


def panel(round_: Round) -> Panel:
    """A round: answers with their votes, then its counts."""
    from rich.panel import Panel
    from rich.text import Text

    votes = round_.votes
    longest = max([*votes.values(), BAR])
    text = Text()
    for place, (answer, count) in enumerate(list(votes.items())[:MOST_ANSWERS]):
        bar = "█" * max(1, BAR * count // longest if longest > BAR else count)
        text.append(f"{count:>4} ").append(f"{bar} ", "green" if place == 0 else "dim").append(short(answer) + "\n")
    if len(votes) > MOST_ANSWERS:
        text.append(f"     … and {len(votes) - MOST_ANSWERS} other answers\n", "dim")
    if silent := sum(answer is None for answer in round_.answers):
        text.append(f"{silent:>4} without an answer\n", "dim")
    text.append(counts(round_), "dim")
    if reasons := round_.reasons:
        text.append(f"\n{short(reasons[0])}", "red")
    name = "candidates" if round_.number == 0 else f"aggregation {round_.number}"
    title = Text(f"{name} {round_.done}/{round_.asked}")
    return Panel(text, title=title, title_align="left", border_style="green" if round_.end else "yellow")


def line(round_: Round) -> str:
    """A round in one line."""
    votes = ", ".join(f"{short(answer)} x{count}" for answer, count in list(round_.votes.items())[:MOST_ANSWERS])
    more = ", …" if len(round_.votes) > MOST_ANSWERS else ""
    why = f"  ({short(round_.reasons[0])})" if round_.reasons else ""
    head = f"round {round_.number}: {round_.done}/{round_.asked}"
    return f"{head}  {votes or 'no answer'}{more}  {counts(round_)}{why}"


def counts(round_: Round) -> str:
    found = [f"{round_.truncated} truncated", f"{round_.failed} failed"]
    return "  ".join([*found, f"{round_.tokens:,} tokens", f"{round_.seconds:.1f} s"])


def short(text: str) -> str:
    """One line of printable characters, cut where it is long."""
    return one_line(" ".join(text.split()), ANSWER_CHARS)


def final(solution: Solution, watch: Watch) -> str:
    """The end of the output: the solution, its answer and votes, and what it took."""
    asked = sum(solution.votes.values())
    votes = ", ".join(f"{short(answer)} x{count}" for answer, count in list(solution.votes.items())[:MOST_ANSWERS])
    spent = [f"{solution.tokens:,} tokens", f"{solution.seconds:.1f} s"]
    if solution.cost is not None:
        spent.append(f"cost {solution.cost:.6g}")
    lines = ["", solution.text, ""]
    if solution.answer is None:
        lines.append("answer: none found")
    else:
        lines.append(f"answer: {solution.answer}  ({solution.votes[solution.answer]} of {asked} votes)")
    if len(solution.votes) > 1:
        lines.append(f"votes: {votes}")
    lines.append("  ".join(spent))
    if (cut := sum(r.truncated for r in watch.rounds)) * 2 > (came := sum(len(r.answers) for r in watch.rounds)):
        lines.append(f"{cut} of {came} solutions were cut before their end; raise generate.max_tokens")
    if failure := solution.trace.failure:
        reasons = [reason for round_ in reversed(watch.rounds) for reason in round_.reasons]
        why = f" ({short(reasons[0])})" if reasons else ""
        lines.append(f"{failure}{why}; the solution is what earlier rounds gave")
    return printable("\n".join(lines))
