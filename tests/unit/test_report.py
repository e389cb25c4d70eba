"""Pictures, the page and the comparison, from records made up here."""

from __future__ import annotations

import base64
import csv
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from paragator.core.errors import DataError, UsageError
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, append_json_lines
from paragator.report.compare import compare, latex_text, read_metrics
from paragator.report.page import choose, show, write_report
from paragator.report.plots import accuracy_by_round, reward_curves, smooth
from paragator.report.table import table

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = '<script>alert("x")</script>\x1b[31m\x00 \u202eevil'
VOID = {"meta", "img", "br", "link", "input"}


def fake_evaluation(gain: float, problems: int = 12, seed: int = 0, text: str = "problem") -> list[Graded]:
    """Traces of 4 candidates and 2 aggregation rounds, better by `gain` a round."""
    rng = random.Random(seed)
    out = []
    for i in range(problems):
        ease = rng.random()
        rounds, grades = [], []
        for t in range(3):
            some = [rng.random() < 0.6 * ease + gain * t for _ in range(4)]
            pool = () if t == 0 else (2, 0, 3, 1)
            outputs = tuple(Completion(f"{i}+{j}={right}", token_ids=(1,) * (5 + j)) for j, right in enumerate(some))
            rounds.append((Group(Prompt(f"{text} {i}"), outputs, pool=pool),))
            grades.append((tuple(Grade("correct" if r else "incorrect", str(int(r))) for r in some),))
        trace = Trace(Problem(f"p{i}", f"{text} {i}"), Plan.method(4, 2), 0, tuple(rounds))
        out.append(Graded(trace, tuple(grades)))
    return out


def fake_metrics(steps: int = 30) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "step": step,
            "generate/reward": 0.2 + 0.004 * step + rng.uniform(-0.05, 0.05),
            "aggregate/reward": 0.2 + 0.009 * step + rng.uniform(-0.05, 0.05),
            "generate/zero_credit": 0.4,
            "aggregate/zero_credit": 0.25,
            "grad_norm": 0.5,
            "seconds": 4.0,
            "seconds/generate": 2.5,
            "seconds/update": 1.5,
            "tokens": 12345,
        }
        for step in range(1, steps + 1)
    ]


def make_run(path: Path, method: str = "paragator", gain: float = 0.1, text: str = "problem") -> Path:
    path.mkdir(parents=True)
    config = {"name": path.name, "method": {"name": method}, "eval": {"k": 4}, "train": {"steps": 30}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps({"versions": {"torch": "2"}}))
    append_json_lines(path / "metrics.jsonl", fake_metrics())
    append(path / "eval_before.jsonl", fake_evaluation(0.0, text=text))
    append(path / "eval_after.jsonl", fake_evaluation(gain, seed=1, text=text))
    append(path / "traces.jsonl", fake_evaluation(0.05, problems=2, text=text))
    return path


class Checker(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(path: Path) -> str:
    """The text of a page that is well-formed, self-contained and without script."""
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags
    assert all(load.startswith("data:image/png;base64,") for load in checker.loads)
    assert "@import" not in text and "url(" not in text
    return text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_run(tmp_path_factory.mktemp("runs") / "quick")


def test_a_whole_run(run: Path) -> None:
    text = check_page(write_report(run))
    assert "method paragator" in text and "30 of 30 steps" in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(picture)[:8] for picture in pictures] == [PNG, PNG]
    expected = table(fake_evaluation(0.1, seed=1)).rows()
    assert all(f"<td>{cell}</td>" in text for row in expected[1:] for cell in row[:4])
    assert "Seconds: update" in text and "12,345" in text
    assert "12 traces of eval_after.jsonl" in text
    assert 'class="notice"' not in text
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []
    assert check_page(write_report(run)) == text


def test_an_empty_run_gives_a_page(tmp_path: Path) -> None:
    text = check_page(write_report(tmp_path))
    assert "No evaluation is recorded." in text and "No training step is recorded." in text
    assert "No config.json, manifest.json, metrics.jsonl" in text


def test_an_interrupted_run_gives_a_page(tmp_path: Path) -> None:
    path = make_run(tmp_path / "cut")
    (path / "eval_after.jsonl").unlink()
    (path / "manifest.json").unlink()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "generate/rew')
    text = check_page(write_report(path))
    assert "No manifest.json, eval_after.jsonl (yet)" in text
    assert "evaluated before training" in text and "traces of traces.jsonl" in text


def test_broken_files_become_notices(tmp_path: Path) -> None:
    path = make_run(tmp_path / "broken")
    (path / "config.json").write_text("{")
    (path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    (path / "eval_before.jsonl").write_text('{"version": 1}\n')
    (path / "eval_after.jsonl").write_text('{"version": 99}\n')
    text = check_page(write_report(path))
    assert "config.json: not JSON" in text and "metrics.jsonl:2: not a JSON object" in text
    assert "eval_after.jsonl: record version 99" in text and "eval_before.jsonl: " in text
    assert text.count("record version 99") == 1 and "2 traces of traces.jsonl" in text


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    group = Group(Prompt(HOSTILE), (Completion(HOSTILE), Failure(HOSTILE)), pool=(), reductions=(HOSTILE,))
    later = Group(Prompt(HOSTILE), (Completion(HOSTILE, "length"),), pool=(0,), reductions=(HOSTILE,))
    plan = Plan.method(1, 1)
    trace = Trace(Problem(HOSTILE, HOSTILE), plan, 0, ((group,), (later,)), failure=HOSTILE)
    grade = Grade("incorrect", HOSTILE, HOSTILE)
    append(tmp_path / "eval_after.jsonl", [Graded(trace, (((grade, None),), ((grade,),)))])
    (tmp_path / "config.json").write_text(json.dumps({"name": HOSTILE, "method": {"name": HOSTILE}}))
    (tmp_path / "manifest.json").write_text(json.dumps({"status": HOSTILE, "</pre>": HOSTILE}))
    text = check_page(write_report(tmp_path))
    assert "<script" not in text and not set("\x1b\x00\u202e") & set(text)
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;\\x1b[31m\\x00 \\u202eevil" in text


def test_show_spells_out_what_cannot_be_seen() -> None:
    assert show("a\n\tb\r\x7f\ud800\u2028é\u200b") == "a\n\tb\\r\\x7f\\ud800\\u2028é\\u200b"


def test_long_texts_lose_their_middle(tmp_path: Path) -> None:
    group = Group(Prompt("p"), (Completion("head" + "x" * 9000 + "tail"),))
    trace = Trace(Problem("p", "p"), Plan.sampling(1), 0, ((group,),))
    append(tmp_path / "traces.jsonl", [Graded(trace, (((Grade("incorrect"),),),))])
    text = check_page(write_report(tmp_path))
    assert "6,008 characters left out" in text and "x" * 4000 not in text


def test_choice_of_traces_mixes_kinds() -> None:
    def one(name: int, *rounds: str) -> Graded:
        groups = tuple((Group(Prompt("p"), tuple(Completion(c) for c in spec)),) for spec in rounds)
        grades = tuple((tuple(Grade("correct" if c == "r" else "incorrect") for c in spec),) for spec in rounds)
        return Graded(Trace(Problem(str(name), "p"), Plan.method(2, 1), 0, groups), grades)

    records = [one(i, *(("ww", "rw"), ("rw", "ww"), ("rw", "rw"))[i % 3]) for i in range(90)]
    chosen = choose(records)
    kinds = [kind for kind, _ in chosen]
    assert [kinds.count(kind) for kind in ("recovery", "destruction", "plain")] == [8, 8, 8]
    assert chosen == choose(iter(records))
    assert [kind for kind, _ in choose(records[:2])] == ["recovery", "destruction"]


def test_pictures_of_little_are_pictures() -> None:
    for picture in (
        reward_curves({}),
        reward_curves({"a": [{"step": 1, "generate/reward": float("nan")}, {"step": 2}], "_b $x$": fake_metrics(1)}),
        accuracy_by_round({}),
        accuracy_by_round({"one": table(fake_evaluation(0.1, problems=1), k=9).to_dict()}),
    ):
        assert picture.startswith(PNG)


def test_smooth_is_a_centred_mean() -> None:
    assert smooth([]) == [] and smooth([1.0, 0.0]) == [1.0, 0.0]  # a short series is left as it is
    line = [float(step) for step in range(40)]
    assert smooth(line)[2:-2] == line[2:-2]  # windows of five: a straight line does not lag
    assert smooth(line)[0] == 1.0


def test_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    append_json_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}, {"step": 2}, {"step": 1, "loss": 2.0}, {}])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2}]


def test_comparison(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path / "grpo", method="dr_grpo", gain=0.0)
    found = compare([run, other])
    assert [one.label for one in found.runs] == ["paragator", "dr_grpo"]
    mine, theirs = (table(fake_evaluation(gain, seed=1)) for gain in (0.1, 0.0))
    assert found.runs[0].table == mine
    for t, gain in enumerate(found.runs[1].gains):
        difference = theirs.rounds[t].pass_at_1.mean - mine.rounds[t].pass_at_1.mean
        assert gain is not None and gain.mean == pytest.approx(difference)
    assert found.runs[0].gains == (None, None, None)
    assert f"| paragator | {mine.rows()[1][1]} | {mine.rows()[1][2]} |" in found.markdown()
    assert "| pass@1 - paragator |" in found.markdown()
    rows = list(csv.DictReader(found.csv().splitlines()))
    assert len(rows) == 2 * 3 * 4
    assert float(rows[0]["mean"]) == pytest.approx(mine.rounds[0].pass_at_1.mean, abs=1e-6)
    assert rows[3]["measure"] == "pass@1 - first run" and rows[3]["mean"] == ""
    assert r"dr\_grpo & " in found.latex() and found.latex().count(r"\begin{tabular}{lrrrr}") == 1
    json.dumps(found.to_dict(), allow_nan=False)
    paths = found.draw(tmp_path / "out")
    assert [path.name for path in paths] == ["reward_curves.png", "accuracy_by_round.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_comparison_of_runs_that_share_a_method(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path / "second", gain=0.0)
    assert [one.label for one in compare([run, other]).runs] == ["paragator (quick)", "paragator (second)"]
    twins = compare([run, run]).runs
    assert [one.label for one in twins] == ["paragator (quick) #1", "paragator (quick) #2"]
    assert [gain and gain.mean for gain in twins[1].gains] == [0, 0, 0]
    assert len(compare([run]).markdown().split("\n\n")) == 2  # one table and the note


def test_comparison_errors(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="no run given"):
        compare([])
    with pytest.raises(DataError, match="no such run directory"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no eval_after"):
        compare([tmp_path])
    with pytest.raises(DataError, match="differs from that of"):
        compare([run, make_run(tmp_path / "words", text="other")])


def test_latex_text() -> None:
    assert latex_text("-1.0 [-2.0, +0.1] run-2") == "$-$1.0 [$-$2.0, +0.1] run-2"
    assert latex_text("a_b 5% \\ {x}^~") == r"a\_b 5\% \textbackslash{} \{x\}\textasciicircum{}\textasciitilde{}"
