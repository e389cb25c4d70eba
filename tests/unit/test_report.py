"""Pictures and the comparison, from records made up here."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import fake_evaluation, fake_metrics
from paragator.cli.compare import main
from paragator.core.errors import DataError, UsageError
from paragator.core.estimators import Interval
from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, append_json_lines
from paragator.report.bars import bars, temperatures
from paragator.report.canvas import STYLES, Picture, canvas, shade
from paragator.report.compare import draw
from paragator.report.plots import (
    accuracy_by_round,
    accuracy_by_tokens,
    curves,
    draw_line,
    recovery,
    reward_curves,
)
from paragator.runs.events import Steps
from paragator.stats.compare import compare
from paragator.stats.curves import read_metrics, smooth
from paragator.stats.sheet import latex_text
from paragator.stats.table import EvalTable, table

PNG = b"\x89PNG\r\n\x1a\n"


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


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paragator.report.canvas.DPI", 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_run(tmp_path_factory.mktemp("runs") / "quick")


def test_pictures_of_little_are_pictures() -> None:
    one = table(fake_evaluation(0.1, problems=1), k=9)
    for picture in (
        reward_curves({"a": [{"step": 1, "generate/reward": float("nan")}, {"step": 2}], "_b $x$": fake_metrics(1)}),
        accuracy_by_round({"one": one}),
        accuracy_by_tokens({"$one_": one}, "cost$^$test"),
        bars({"$one_": {"a_$b": one}}),
        temperatures({"one": {0.5: one, 1.0: one}}),
    ):
        assert picture is not None and picture.png().startswith(PNG)


def png_size(picture: Picture | None) -> tuple[int, int]:
    assert picture is not None
    data = picture.png()
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_many_methods_on_one_benchmark_share_a_panel() -> None:
    """So their bars are no taller than one method's, but for slanted names; on two benchmarks each has its own panel."""
    one = table(fake_evaluation(0.1, problems=2), k=2)
    low, many = png_size(bars({"a": {"b": one}})), png_size(bars({f"a{i}": {"b": one} for i in range(8)}))
    apart = png_size(bars({f"a{i}": {"b": one, "c": one} for i in range(8)}))
    assert many == low and apart[1] > 3 * low[1]


def test_lines_are_told_apart_by_colour_stroke_or_marker() -> None:
    one, picture = Interval(0.5, 0.4, 0.6), canvas(1, "", [])
    (axes,) = picture.panels
    for i in range(14):
        assert draw_line(picture, axes, [(0, one), (1, one)], str(i), i, 14)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in axes.lines}
    markers = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(markers) == 14
    assert shade(2) == 0.15 > shade(10) > 0


def test_a_bound_a_rounding_error_beyond_its_mean_is_drawn() -> None:
    cell = Interval(0.3, math.nextafter(0.3, 1), math.nextafter(0.3, 0))
    picture = canvas(1, "", [])
    assert draw_line(picture, picture.panels[0], [(0, cell)], "a", 0, 1)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels of the pictures that reward_curves and curves draw, in place of pictures."""
    found: list[Any] = []
    monkeypatch.setattr("paragator.report.canvas.Picture.finish", lambda self: found.extend(self.panels) or self)
    return found


def test_negative_rewards_are_shown(panels: list[Any]) -> None:
    rows = [{"step": step, "generate/reward": -2.0 + step, "aggregate/reward": -3.0} for step in range(3)]
    assert reward_curves({"a": rows}) and curves({"a": [rows]})
    assert all(low <= -3 < 0 <= high for low, high in (axes.get_ylim() for axes in panels))
    panels.clear()
    assert reward_curves({"a": fake_metrics()}) and curves({"a": [fake_metrics()]})
    assert [axes.get_ylim()[0] for axes in panels] == [0] * 4


def test_a_label_that_begins_with_an_underscore_is_in_the_legend(panels: list[Any]) -> None:
    assert reward_curves({"_a": fake_metrics()}) and curves({"_a": [fake_metrics()]})
    assert [axes.get_legend_handles_labels()[1] for axes in panels] == [[" _a"]] * 4


def test_recovery_counts_right_members_of_each_pool() -> None:
    """Against a plain loop over the traces: pools of round 1 by their right members, then a mean over problems."""
    records = fake_evaluation(0.2, problems=12)
    found: dict[int, dict[str, list[float]]] = {}
    for record in records:
        right, outputs = record.right(0), iter(record.right(1))
        for group in record.trace.rounds[1]:
            count = int(sum(right[i] or 0 for i in group.pool))
            own = found.setdefault(count, {}).setdefault(record.trace.problem.id, [])
            own += [next(outputs) or 0.0 for _ in group.outputs]
    picture = recovery({"a": table(records)})
    assert picture is not None and len(found) > 1
    wanted = {m: 100 * sum(sum(x) / len(x) for x in some.values()) / len(some) for m, some in found.items()}
    assert {at: mean for _, _, at, mean, _, _ in picture.points} == pytest.approx(wanted)
    assert picture.panels[0].lines[-1].get_xdata()[1] == len(records[0].trace.rounds[1][0].pool)


def test_a_column_is_narrower_and_stacks_its_panels() -> None:
    one = {"a": table(fake_evaluation(0.1, problems=2))}
    column, wide = (accuracy_by_round(one, STYLES[name]) for name in ("column", "wide"))
    assert column is not None and wide is not None
    (w, h), (w2, h2) = (picture.figure.get_size_inches() for picture in (column, wide))
    assert w < w2 / 2 + 0.1 and h > h2


def test_pictures_of_nothing_are_none() -> None:
    unscored = Grade("unscored")
    trace = Trace(Problem("p", "p"), Plan.sampling(1), 0, ((Group(Prompt("p"), (Completion("x"),)),),))
    empty = table([Graded(trace, (((unscored,),),))])
    assert [reward_curves({}), reward_curves({"a": [{"step": 1}]}), accuracy_by_round({}), bars({})] == [None] * 4
    for picture in (accuracy_by_round, accuracy_by_tokens):
        assert picture({"one": empty}) is None
    assert bars({"one": {"b": empty}}) is None and temperatures({"one": {1.0: empty}}) is None


def test_smooth_is_a_centred_mean() -> None:
    assert smooth([]) == [] and smooth([1.0, 0.0]) == [1.0, 0.0]  # a short series is left as it is
    line = [float(step) for step in range(40)]
    assert smooth(line)[2:-2] == line[2:-2]  # windows of five: a straight line does not lag
    assert smooth(line)[0] == 1.0


def test_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    append_json_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}, {"step": 2}, {"step": 1, "loss": 2.0}, {}])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2}]


# ---- comparison ------------------------------------------------------------------------------------------------------


def make_eval(path: Path, method: str, task: str, seed: int = 0, gain: float = 0.1, **config: Any) -> Path:
    """A run directory of `paragator eval`: one evaluation of one task."""
    path.mkdir(parents=True)
    values = {"seed": seed, "method": {"name": method}, "task": {"name": task}, **config}
    (path / "config.json").write_text(json.dumps(values))
    append(path / "eval.jsonl", fake_evaluation(gain, seed=seed, text=task))
    return path


def known(found: EvalTable) -> list[dict[str, object]]:
    """What a table has numbers for."""
    return [{name: cell for name, cell in row.items() if cell is not None} for row in found.to_dict()["rounds"]]


def test_comparison(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path / "grpo", method="dr_grpo", gain=0.0)
    found = compare([run, other])
    assert [row.label for row in found.rows] == ["paragator", "dr_grpo"]
    mine, theirs = (table(fake_evaluation(gain, seed=1)) for gain in (0.1, 0.0))
    place = found.places[0]
    assert known(found.tables[0, place]) == known(mine) and found.places == ["unknown"]
    gains = found.paired(1)
    for t in range(3):
        difference = theirs.cell("pass_at_1", t).mean - mine.cell("pass_at_1", t).mean
        assert gains[place, ("pass_at_1", t, t)].mean == pytest.approx(difference)
    cells = mine.sheets()[0].cells()
    assert f"| paragator | {cells[1][1]} | {cells[1][2]} | {cells[2][1]} | {cells[3][1]} |" in found.markdown()
    assert "**Pass@1 - paragator, unknown**" in found.markdown()
    rows = list(csv.DictReader(found.csv().splitlines()))
    assert len(rows) == 2 * 4 + 4
    assert float(rows[0]["mean"]) == pytest.approx(mine.cell("pass_at_1", 0).mean, abs=1e-6)
    assert rows[-1]["table"] == "pass@1 - paragator" and rows[-1]["column"] == "last round"
    assert r"dr\_grpo & " in found.latex() and found.latex().count(r"\begin{tabular}{lrrrr}") == 2
    json.dumps(found.to_dict(), allow_nan=False)


def test_pictures_of_a_comparison(tmp_path: Path, run: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "temperature.png").write_text("of an earlier comparison")
    drawn, missing = draw(compare([run]), tmp_path / "out")
    expected = ["accuracy_by_round.png", "accuracy_by_tokens.png", "bars.png", "reward_curves.png"]
    assert [path.name for path in drawn] == expected
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    assert list(missing) == ["temperature.png"] and not (tmp_path / "out" / "temperature.png").exists()


def test_figures_of_runs_are_vectors_bitmaps_and_data(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    out.mkdir()
    (out / "temperature.png").write_text("of other runs")
    assert main([str(run), "--figures", str(out), "--style", "wide"]) == 0
    said = capsys.readouterr()
    assert said.err == "left out: temperature, which needs runs of one method that differ in generate.temperature\n"
    drawn = {"reward_curves", "accuracy_by_round", "bars", "accuracy_by_tokens", "recovery"}
    assert {path.stem for path in out.iterdir()} == drawn | {"main"}
    for name in drawn:
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF") and (out / f"{name}.png").read_bytes()[:8] == PNG
    points = list(csv.DictReader((out / "accuracy_by_round.csv").open()))
    last = [p for p in points if (p["panel"], p["line"], p["x"]) == ("pass@1", "paragator", "2")]
    wanted = compare([run]).tables[0, "unknown"].cell("pass_at_1", 2)
    assert [float(last[0][key]) / 100 for key in ("mean", "low", "high")] == pytest.approx(
        [wanted.mean, wanted.low, wanted.high], abs=1e-6
    )
    assert r"\toprule" in (out / "main.tex").read_text() and r"\bottomrule" in (out / "main.tex").read_text()
    with pytest.raises(UsageError, match="--output is for tables"):
        main([str(run), "--figures", str(out), "--output", "x"])


def test_benchmarks_are_averaged(tmp_path: Path) -> None:
    grid = [(method, task) for method in ("base", "paragator") for task in ("aime", "hmmt")]
    paths = [
        make_eval(tmp_path / f"{method}-{task}", method, task, gain=0.1 * (method != "base")) for method, task in grid
    ]
    found = compare(paths)
    assert found.places == ["aime", "hmmt", "average"]
    means = [found.tables[1, place].cell("pass_at_1", 2) for place in found.places]
    assert means[2].mean == pytest.approx((means[0].mean + means[1].mean) / 2)
    assert means[2].high - means[2].low < means[0].high - means[0].low
    assert found.paired(1)["average", ("pass_at_1", 2, 2)].low > 0
    wide = found.main()[0].cells()[0]
    assert wide[1:3] == ["aime initial pass@1", "aime initial pass@4"] and len(wide) == 1 + 3 * 4
    assert r" & \multicolumn{4}{c}{aime} & \multicolumn{4}{c}{hmmt}" in found.latex("main")
    assert [sheet.of for sheet in found.bars()] == ["base", "paragator"]
    assert {sheet.of.partition(":")[0] for sheet in found.rounds()} == set(found.places)
    partial = compare(paths[:3])  # paragator has no hmmt
    assert [cell is None or cell.mean != cell.mean for cell in partial.main()[-1].rows[1][1]] == [True] * 4
    assert partial.markdown().count("| paragator |") >= 2


def test_seeds_of_a_method_are_averaged(tmp_path: Path) -> None:
    paths = [make_eval(tmp_path / f"p{seed}", "paragator", "aime", seed) for seed in (1, 0, 2)]
    found = compare(paths)
    assert [row.label for row in found.rows] == ["paragator (seeds 0, 1, 2)"]
    alone = [compare([path]).tables[0, "aime"].cell("pass_at_1", 1).mean for path in paths]
    assert found.tables[0, "aime"].cell("pass_at_1", 1).mean == pytest.approx(sum(alone) / 3)
    assert "Seeds of a method are averaged" in found.markdown()
    labelled = compare(paths, labels=["a", "b", "b"])
    assert [row.label for row in labelled.rows] == ["a", "b (seeds 0, 2)"]


def test_initial_temperatures(tmp_path: Path) -> None:
    paths = [
        make_eval(tmp_path / f"t{t}", "paragator", "aime", gain=t / 10, generate={"temperature": t}) for t in (1.0, 0.6)
    ]
    found = compare(paths)
    assert [row.label for row in found.rows] == ["paragator T=1", "paragator T=0.6"]
    (sheet,) = found.temperature()
    assert [label for label, _ in sheet.rows] == ["paragator T=0.6", "paragator T=1"]
    assert sheet.rows[1][1][2] == found.tables[0, "aime"].cell("pass_at_1", 2)
    drawn, missing = draw(found, tmp_path / "out")
    assert "temperature.png" in [path.name for path in drawn] and list(missing) == ["reward_curves.png"]
    with pytest.raises(UsageError, match=r"do not differ in generate\.temperature"):
        compare(paths[:1]).temperature()


def test_a_picture_of_temperatures_has_every_row(tmp_path: Path) -> None:
    grid = (("a", 1.0), ("b", 1.0), ("c", 0.6))
    found = compare([make_eval(tmp_path / name, "base", "aime", generate={"temperature": t}) for name, t in grid])
    assert [row.label for row in found.rows] == ["base T=1 (a)", "base T=1 (b)", "base T=0.6"]
    assert {panel: list(tables) for panel, tables in found.warmth().items()} == {
        "base": [0.6],
        "base (a)": [1.0],
        "base (b)": [1.0],
    }
    seeds = [make_eval(tmp_path / str(seed), "base", "aime", seed, generate={"temperature": 1.0}) for seed in (0, 1)]
    assert {panel: list(tables) for panel, tables in compare([*seeds, tmp_path / "c"]).warmth().items()} == {
        "base": [0.6, 1.0]
    }


def test_an_interrupted_evaluation_is_named(tmp_path: Path) -> None:
    path = make_eval(tmp_path / "cut", "base", "aime", eval={"problems": 128, "repeats": 2})
    (path / "manifest.json").write_text('{"held_out": 8}')
    said = "only 12 of 16 traces (interrupted"
    assert f"Incomplete: {path}, {said}" in compare([path]).markdown()
    whole = make_eval(tmp_path / "whole", "base", "aime", eval={"problems": 128, "repeats": 1})
    (whole / "manifest.json").write_text('{"held_out": 12}')
    assert "(interrupted" not in compare([whole]).markdown()


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    paths = [make_eval(tmp_path / f"p{seed}", "base", "aime", seed) for seed in (0, 1, 2)]
    assert "Of one seed: every row;" in compare(paths[:1]).markdown()
    assert "Of one seed: a;" in compare(paths, labels=["a", "b", "b"]).markdown()
    assert "Of one seed" not in compare(paths).markdown()


def test_a_folder_that_cannot_hold_pictures(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, file = compare([run]), tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(found, "metrics", lambda: pytest.fail("drawn before the folder was looked at"))
    for folder in (file, file / "below" / "it"):
        with pytest.raises(UsageError, match=f"{folder}: cannot hold results, as {file} is not a folder"):
            draw(found, folder)


def test_a_malformed_record_is_named(tmp_path: Path) -> None:
    path = make_eval(tmp_path / "odd", "base", "aime") / "eval.jsonl"
    path.write_text(path.read_text().replace('"pool": [2, 0, 3, 1]', '"pool": [2, 0, 3, 4]', 1))
    with pytest.raises(DataError, match=r"odd/eval\.jsonl:1: .*round 1 shows solution 4 of 4"):
        compare([tmp_path / "odd"])


def test_last_rounds_are_compared_where_one_went_further(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.mkdir()
    records = fake_evaluation(0.1, text="aime")
    cut = [Graded(replace(r.trace, rounds=r.trace.rounds[:1], plan=Plan.sampling(4)), r.grades[:1]) for r in records]
    append(short / "eval.jsonl", cut)
    (short / "config.json").write_text(json.dumps({"method": {"name": "voting"}, "task": {"name": "aime"}}))
    found = compare([short, make_eval(tmp_path / "long", "paragator", "aime")])
    sheet = found.differences(["pass_at_1"])[0]
    (label, cells), long = sheet.rows[0], found.tables[1, "aime"]
    assert label == "paragator" and cells[0] is not None and cells[0].mean == 0 and cells[1] is None
    last = long.cell("pass_at_1", 2, "first")
    assert cells[-1] is not None and (cells[-1].mean, cells[-1].low) == pytest.approx((last.mean, last.low))


def test_comparison_of_runs_that_share_a_method(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path / "second", gain=0.0)
    assert [row.label for row in compare([run, other]).rows] == ["paragator (quick)", "paragator (second)"]
    twins = compare([run, run])
    assert [row.label for row in twins.rows] == ["paragator (quick) #1", "paragator (quick) #2"]
    assert {cell.mean for cell in twins.paired(1).values()} == {0}
    assert len(compare([run]).markdown().split("\n\n")) == 3  # a title, one table and the note


def test_files_of_one_s_own_are_benchmarks_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(4)]
    for path, file in zip(paths, ("a/x.jsonl", "b/x.jsonl", "b/y.jsonl", None), strict=True):
        config = json.loads((make_eval(path, "base", "jsonl") / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "task": {"name": "jsonl", "path": file}}))
    assert compare(paths).benchmarks == ["jsonl x", "jsonl x #2", "y", "jsonl"]


def test_comparison_errors(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="no run given"):
        compare([])
    with pytest.raises(DataError, match="no such run directory"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no eval_after"):
        compare([tmp_path])
    with pytest.raises(DataError, match=r"words: problem 'p0' differs from that of .*quick"):
        compare([run, make_run(tmp_path / "words", text="other")])
    with pytest.raises(UsageError, match="1 labels for 2 runs"):
        compare([run, run], labels=["a"])
    with pytest.raises(UsageError, match="quick is given 2 times as a"):
        compare([run, run], labels=["a", "a"])
    fewer = tmp_path / "fewer"
    append(fewer / "eval.jsonl", fake_evaluation(0.1)[:-2])
    with pytest.raises(DataError, match=r"fewer: lacks problem 'p10' of .*quick .2 problems"):
        compare([run, fewer])
    grid = [make_eval(tmp_path / name / task, "base", task) for name in ("m1", "m2") for task in ("aime", "hmmt")]
    with pytest.raises(UsageError, match=r"m1/aime, .*m2/hmmt: runs of base with the same task and seed.*--label"):
        compare(grid)
    assert [row.label for row in compare(grid, labels=["m1", "m1", "m2", "m2"]).rows] == ["m1", "m2"]


def test_the_command(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main([str(run), "--table", "rounds", "--format", "csv", "--output", out]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert {row["table"] for row in rows} == {"rounds"} and "oracle" in {row["column"] for row in rows}
    assert "pictures: " in printed.err and "not drawn: temperature.png" in printed.err
    assert main([str(run), str(run), "--label", "a", "--label", "b", "--json", "--output", out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found["rows"]] == ["a", "b"] and len(found["pictures"]) == 4
    assert list(found["not_drawn"]) == ["temperature.png"]


def test_latex_text() -> None:
    assert latex_text("-1.0 [-2.0, +0.1] run-2") == "$-$1.0 [$-$2.0, +0.1] run-2"
    assert latex_text("a_b 5% \\ {x}^~") == r"a\_b 5\% \textbackslash{} \{x\}\textasciicircum{}\textasciitilde{}"


def test_a_steps_line_tells_the_time_left_by_the_last_ten_steps() -> None:
    steps = Steps()
    said = [
        steps.line(
            {
                "step": number,
                "steps": 20,
                "seconds": 100.0 if number < 3 else 2.0,
                "tokens": 200,
                "generate/reward": 0.25,
            }
        )
        for number in range(1, 13)
    ]
    assert said[0] == "step 1/20  generate 0.250  2 tokens/s  100.0 s  1900 s left"
    assert said[-1] == "step 12/20  generate 0.250  100 tokens/s  2.0 s  16 s left"


def test_runs_that_are_no_seeds_of_one_method_are_not_averaged(tmp_path: Path) -> None:
    paths = [
        make_eval(tmp_path / f"p{i}", "base", "aime", i, optimizer={"lr": lr})
        for i, lr in enumerate((1e-4, 1e-4, 1e-5))
    ]
    assert len(compare(paths[:2]).rows) == 1
    with pytest.raises(
        DataError, match=r"p2: optimizer.lr = 1e-05, but 0.0001 in .*p0, so they are not seeds of one base"
    ):
        compare(paths)
    assert len(compare(paths, labels=["a", "a", "b"]).rows) == 2


def test_a_server_s_model_and_a_recording_are_rows_of_their_own_name(tmp_path: Path) -> None:
    engines = [{"kind": "openai", "model": "big"}, {"kind": "replay", "recording": "some/where.jsonl"}]
    paths = [make_eval(tmp_path / f"p{i}", "paragator", "aime", engine=e) for i, e in enumerate(engines)]
    assert [row.label for row in compare(paths).rows] == ["big", "where"]
