"""What `train`, `eval` and `study` show on a terminal, drawn by rich's recording console at 80 columns; hostile text in it."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fakes import fake_evaluation, fake_metrics
from paragator.cli import show
from paragator.cli.panel import PanelTerminal, clock, sparkline, terminal, turned
from paragator.cli.study import board
from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append_json_lines
from paragator.runs.events import Progress
from paragator.stats.table import table

EVIL = "\x1b[2J\x1b]0;title\x07[bold]no[/bold] \u202egnp"


def console() -> Console:
    return Console(
        file=io.StringIO(), width=80, height=24, force_terminal=True, record=True, _environ={"TERM": "xterm"}
    )


def drawn(shown: PanelTerminal) -> list[str]:
    shown.console.print(shown.render())
    return shown.console.export_text().splitlines()


def a_trace(text: str, *rounds: tuple[tuple[str, str], ...]) -> Graded:
    """One solution a group; each has an answer and a verdict."""
    groups = tuple(
        tuple(Group(Prompt(text), (Completion(a),), stage="generate" if t == 0 else "aggregate") for a, _ in some)
        for t, some in enumerate(rounds)
    )
    grades = tuple(tuple((Grade(verdict, answer),) for answer, verdict in some) for some in rounds)  # type: ignore[arg-type]
    return Graded(Trace(Problem("p", text), Plan.method(1, 1), 0, groups), grades)


WRONG, RIGHT = ("7", "incorrect"), ("8", "correct")


def test_the_panel_of_training_at_80_columns() -> None:
    shown = PanelTerminal(console())
    assert drawn(shown) == ["preparing"]
    for row in fake_metrics(30):
        shown.on_step({**row, "tokens": 5000.0, "seconds": 2.0, "steps": 40, "seconds_after": 100.0})
    shown.on_rollouts(
        [a_trace("What is 5 + 3? " * 9, (WRONG, WRONG, RIGHT), (RIGHT,)), a_trace("no", (RIGHT,), (RIGHT,))]
    )
    lines = drawn(shown)
    assert all(len(line) == 80 for line in lines) and len(lines) == 7, lines
    text = "\n".join(lines)
    assert "step 30/40" in text and "2,500 tokens/s" in text and "2:00 min left" in text  # 10 steps of 2 s, and 100 s
    assert text.count("reward 0.") == 2 and "▁" in text and "█" in text
    assert "What is 5 + 3?" in text and "✗ 7  →  ✓ 8" in text
    shown.on_progress(Progress("eval_after", 3, 60, 3, 10.0, 30, 4000, sampled=0.25))
    assert "eval after" in (text := "\n".join(drawn(shown))) and "3/60 traces  400 tokens/s  30 s left" in text


def test_hostile_text_is_neither_control_nor_markup() -> None:
    shown = PanelTerminal(console())
    shown.say(EVIL)
    shown.on_trace(
        a_trace(EVIL, ((EVIL, "incorrect"),), ((EVIL, "correct"),)), Progress(EVIL, 1, 2, 1, 1.0, trouble=EVIL)
    )
    shown.console.print(shown.render())
    sent = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in sent and "\x1b]" not in sent and "\x07" not in sent and "\u202e" not in sent
    assert "[bold]no[/bold]" in sent and all(len(line) <= 80 for line in drawn(shown))


def test_what_turned_right() -> None:
    """By the commonest answer of the first round and of the last."""
    assert turned(a_trace("a", (WRONG, WRONG, RIGHT), (RIGHT, RIGHT, WRONG))) == ("a", "7", "8")
    for rounds in (((RIGHT,), (WRONG,)), ((RIGHT, RIGHT, WRONG), (RIGHT,)), ((WRONG,), (WRONG,)), ((WRONG,),)):
        assert turned(a_trace("a", *rounds)) is None
    assert turned(a_trace("a", (("7", "unscored"),), (RIGHT,))) is None


def test_sparklines_and_clocks() -> None:
    assert sparkline([0.0, 0.5, 1.0], 40) == "▁▅█" and sparkline([0.3, 0.3], 40) == "▁▁" and sparkline([], 9) == ""
    assert len(sparkline([float(i) for i in range(1000)], 40)) == 40
    assert [clock(x) for x in (0.2, 59, 61, 3599, 3661)] == ["0 s", "59 s", "1:01 min", "59:59 min", "1:01 h"]


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal() as plain:
        assert type(plain) is show.Terminal
        plain.on_step({"step": 1.0, "steps": 2.0, "seconds": 1.0, "tokens": 8.0, "generate/reward": 0.5})
    assert capsys.readouterr().out == "step 1/2  generate 0.500  8 tokens/s  1.0 s  1 s left\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert type(terminal()) is show.Terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    found = terminal()
    assert isinstance(found, PanelTerminal) and found.width == 60


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_are_no_wider_than_the_terminal(width: int) -> None:
    from paragator.results import EvalResult

    text = EvalResult(fake_evaluation(0.1, problems=4)).text(width=width)
    assert max(map(len, text.splitlines())) <= width and "pass@1" in text
    assert ("oracle" in text) == (width == 200) and "oracle" in table(fake_evaluation(0.1, 4)).sheets()[0].text()


def test_the_panel_of_a_study(tmp_path: Path) -> None:
    def job(name: str, status: str, **more: Any) -> Any:
        values = {
            "doing": "train",
            "started": time.monotonic() - 60,
            "seconds": 0.0,
            "last_line": lambda: EVIL + "x" * 90,
        }
        return SimpleNamespace(unit=SimpleNamespace(name=name, folder=tmp_path / name), status=status, **values | more)

    append_json_lines(tmp_path / "paragator-seed0" / "train" / "metrics.jsonl", fake_metrics(30))
    jobs = [job(f"base-seed{i}", "waiting") for i in range(28)]
    jobs += [job("paragator-seed0", "running"), job("done", "finished", seconds=120.0)]
    screen = console()
    screen.print(board(jobs, 2, 24))
    lines = screen.export_text().splitlines()
    assert all(len(line) == 80 for line in lines) and len(lines) <= 24
    assert "1 running, 28 waiting, 1 finished  28:30 min left" in lines[1]  # (60 + 28 * 120) / 2 s
    assert "paragator-seed0" in lines[2] and "█" in lines[2] and "1:00 min" in lines[2] and "\x1b" not in lines[2]
    assert "and 11 more" in lines[-2]
