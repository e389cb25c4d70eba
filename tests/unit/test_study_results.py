"""What a study's analysis computes: the statistics, and the tables of made-up runs."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import pytest

from fakes import fake_evaluation, fake_metrics
from paragator.cli.compare import main as compare_main
from paragator.core.errors import DataError, UsageError
from paragator.records import append, append_json_lines
from paragator.report.figures import NEEDS, FigureData
from paragator.report.plots import curves
from paragator.stats.curves import recent, step_at, together
from paragator.stats.resample import Bootstrapped, holm, over_seeds, problem_counts, resample, seed_weights
from paragator.stats.sheet import to_csv
from paragator.study.finished import FINISHED, NOTE, recorded
from paragator.study.output import write_results
from paragator.study.results import Results


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are laid out, not rendered: the end-to-end test does that."""
    monkeypatch.setattr("paragator.report.canvas.Picture.rendered", lambda self, form, **options: form.encode())


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979's procedure, by hand
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []
    with_gap = holm([0.02, math.nan, 0.02])
    assert with_gap[0] == with_gap[2] == 0.04 and math.isnan(with_gap[1])


def test_p_value_counts_draws_on_the_other_side() -> None:
    assert Bootstrapped(1.0, np.arange(-49.0, 950.0)).p_value() == pytest.approx(
        2 * 51 / 1000
    )  # 50 of 999 are not above 0
    assert Bootstrapped(1.0, np.ones(999)).p_value() == pytest.approx(0.002)
    assert Bootstrapped(0.0, np.zeros(999)).p_value() == 1.0
    assert math.isnan(Bootstrapped(math.nan, np.full(9, math.nan)).p_value())


def test_hierarchical_bootstrap_equals_a_slow_loop() -> None:
    """Every draw: seeds and problems drawn again; the mean over both, written out."""
    rng = random.Random(0)
    values = [[rng.random() for _ in range(7)] for _ in range(3)]  # seeds by problems
    parts = resample(values, draws=50, seed=(5,))
    found = over_seeds(parts, seed=(1, 2))
    counts = next(iter(problem_counts(7, 50, (5,))))
    drawn = np.random.default_rng([1, 2, 3]).multinomial(3, [1 / 3] * 3, size=50)
    plain = fmean(map(fmean, values))
    assert found.mean == pytest.approx(plain)
    for draw in range(50):
        problems = [p for p in range(7) for _ in range(int(counts[draw][p]))]
        seeds = [s for s in range(3) for _ in range(int(drawn[draw][s]))]
        mine = fmean(values[s][p] for s in seeds for p in problems)
        unwidened = fmean(values[s][p] for s in range(3) for p in problems)
        assert found.draws[draw] == pytest.approx(unwidened + (mine - unwidened) * math.sqrt(3 / 2))


def test_seeds_drawn_again_vary_as_much_as_seeds_do() -> None:
    """Problems alike, seeds not: the draws' variance is the unbiased variance of a mean of five."""
    levels = [0.1, 0.3, 0.35, 0.5, 0.9]
    found = over_seeds([Bootstrapped(level, np.full(40_000, level)) for level in levels])
    wanted = pvariance(levels) * 5 / 4 / 5
    assert float(found.draws.var()) == pytest.approx(wanted, rel=0.05)
    assert float(seed_weights(np.array([[2, 1, 0], [1, 1, 1]])).sum(axis=1)[0]) == pytest.approx(1)


def test_curves_over_seeds() -> None:
    runs = [
        [{"step": s, "generate/reward": 0.1 * s + i, "tokens": 10 + i} for s in (1, 2, 3)][: 3 - i] for i in range(2)
    ]
    at, values = together(runs, "generate/reward", "step")
    assert at == [1, 2] and values == [
        [pytest.approx(0.1), pytest.approx(1.1)],
        [pytest.approx(0.2), pytest.approx(1.2)],
    ]
    assert together(runs, "generate/reward", "tokens")[0] == pytest.approx([0.0105, 0.021])
    assert (step_at(runs[0], 25), step_at(runs[0], 5)) == (2, 0)
    assert recent(runs[0], "generate/reward", 3) == pytest.approx(0.3) and math.isnan(recent(runs[0], "x", 3))
    assert curves({"a": runs, "b": []}) is not None and curves({"a": [[]]}) is None


# ---- analysis --------------------------------------------------------------------------------------------------------


def make_study(folder: Path, cells: dict[str, float], seeds: tuple[int, ...] = (0, 1), task: str = "t") -> Path:
    """A folder as `paragator study` leaves it; a cell's aggregations gain by its number a round."""
    note: dict[str, Any] = {
        "name": folder.name,
        "reference": "paragator",
        "seeds": seeds,
        "evaluation": {"k": 4},
        "results": None,
    }
    note["cells"] = [{"method": name.partition("-")[0], "name": name, "matched": "steps", "set": {}} for name in cells]
    for cell in note["cells"]:
        cell["matched"] = "tokens" if cell["name"].endswith("-tokens") else "steps"
    folder.mkdir(parents=True)
    done = {name: {"digest": name, "seconds": 1.0} for name in ("train", "eval", "eval-t0.6")}
    note["digests"] = {f"{name}-seed{seed}": {k: k for k in done} for name in cells for seed in seeds}
    (folder / NOTE).write_text(json.dumps({**note, "primary": {"measure": "pass_at_1", "round": 1}}))
    for name, gain in cells.items():
        for seed in seeds:
            unit = folder / f"{name}-seed{seed}"
            for kind, temperature in (("eval", 1.0), ("eval-t0.6", 0.6)):
                append(unit / kind / "eval.jsonl", fake_evaluation(gain, seed=seed, text=task))
                config = {"seed": seed, "task": {"name": task}, "generate": {"temperature": temperature}}
                (unit / kind / "config.json").write_text(json.dumps({**config, "method": {"name": name}}))
            append_json_lines(unit / "train" / "metrics.jsonl", [] if name == "base" else fake_metrics(10))
            (unit / "config.toml").write_text(f"seed = {seed}\n")
            (unit / FINISHED).write_text(json.dumps(done))
    return folder


CELLS = {"base": 0.0, "paragator": 0.3, "dr_grpo": 0.3, "dr_grpo-tokens": 0.1}


def test_a_study_s_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = make_study(tmp_path / "s", CELLS, seeds=(0, 1, 2)), tmp_path / "out"
    assert compare_main([str(folder), "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["primary"]
    assert [row["cell"] for row in found] == ["base", "dr_grpo", "dr_grpo-tokens"]
    base, same, less = found
    assert base["high"] < 0 and base["p"] < 0.05 and base["p_holm"] == pytest.approx(3 * base["p"])
    assert same["mean"] == 0 and same["p_holm"] == 1 and less["mean"] == pytest.approx(-0.2, abs=0.15)
    text = (out / "tables.md").read_text()
    for title in ("Primary outcome, t", "Accuracy, t", "By seed", "Matched by tokens, t", "Initial temperature, t"):
        assert title.lower() in text.lower(), title
    assert "comparisons of a table" in text and "Seeds: 0, 1, 2 of every cell." in text and "No p for" not in text
    pictures = {path.stem for path in out.glob("*.png")}
    assert {"accuracy_by_round", "reward_by_step", "reward_by_tokens", "dead_zone", "temperature"} <= pictures
    assert "reward_curves" not in pictures and all(f"({name}.png)" in text for name in pictures)
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3 * 2 * 3  # cells, seeds, temperatures, rounds
    metrics = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert len(metrics) == 3 * 3 * 10 and "seconds" not in metrics[0]
    assert len(list((out / "configs").glob("*.toml"))) == 12
    wanted = {"cell": "paragator", "seed": "1", "temperature": "1.0", "round": "1"}
    (own,) = [float(row["pass_at_1"]) for row in rows if wanted.items() <= row.items()]
    assert recorded(out, "paragator", 1, 1.0, "pass_at_1", 1) == pytest.approx(own, abs=1e-6)
    assert recorded(out, "paragator", 9, 1.0, "pass_at_1", 1) is None


def test_matched_views(tmp_path: Path) -> None:
    found = Results([make_study(tmp_path / "s", CELLS)])
    steps, tokens = found.matched()
    assert [label for label, _ in steps.rows] == ["paragator", "base", "dr_grpo"]
    assert [label for label, _ in tokens.rows] == ["paragator", "base", "dr_grpo-tokens"]
    assert "initial pass@1, final weights" in tokens.text()
    cells = dict(steps.rows)["paragator"]
    assert cells[0] is not None and cells[0].mean == 10 and cells[1] is not None and cells[1].mean == 123450


def test_every_cell_matched_by_tokens_is_shown(tmp_path: Path) -> None:
    """Where no cell is named like its method, and where a method has two."""
    for number, cells in enumerate(
        (("dr_grpo-a", "dr_grpo-b-tokens"), ("dr_grpo", "dr_grpo-a-tokens", "dr_grpo-b-tokens"))
    ):
        found = Results([make_study(tmp_path / str(number), dict.fromkeys(("paragator", *cells), 0.1), seeds=(0,))])
        steps, tokens = ({label for label, _ in sheet.rows} for sheet in found.matched())
        assert steps == {"paragator", cells[0]} and tokens == {"paragator", *cells[1:]}


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", CELLS)
    (folder / "base-seed1" / FINISHED).unlink()
    found = Results([folder])
    assert "0 of base" in found.seeds()[1] and found.whole.rows[0].label == "paragator"
    for seed in (0, 1):
        (folder / f"paragator-seed{seed}" / FINISHED).unlink()
    with pytest.raises(DataError, match="no run of paragator is finished"):
        Results([folder])


def change(folder: Path, **values: Any) -> None:
    """Other values in a study's note."""
    (folder / NOTE).write_text(json.dumps(json.loads((folder / NOTE).read_text()) | values))


def test_runs_of_other_settings_are_left_out(tmp_path: Path) -> None:
    """What was finished before the study changed, and what is only begun."""
    folder = make_study(tmp_path / "s", {"paragator": 0.2, "base": 0.0})
    wanted = json.loads((folder / NOTE).read_text())["digests"]
    change(folder, digests={**wanted, "base-seed0": {"eval": "other"}, "base-seed1": {"eval": "eval"}})
    (entry,) = [entry for entry in Results([folder]).entries if entry.cell == "base"]
    assert entry.seed == 1 and not entry.warm
    (folder / "base-seed1" / FINISHED).write_text(json.dumps({"eval": {"digest": "eval"}}))
    assert {entry.cell for entry in Results([folder]).entries} == {"paragator"}


def test_holm_s_family_is_what_was_declared(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", CELLS, seeds=(0, 1, 2))
    before = {cell: (p, adjusted) for _, cell, _, p, adjusted in Results([folder]).primary()}
    for seed in (0, 1, 2):
        (folder / f"dr_grpo-seed{seed}" / FINISHED).unlink()
    found = Results([folder])
    after = {cell: (p, adjusted) for _, cell, _, p, adjusted in found.primary()}
    assert after["base"][1] == pytest.approx(3 * after["base"][0]) and set(before) - set(after) == {"dr_grpo"}
    assert "that were declared, finished or not: 3." in " ".join(found.notes())


def test_no_p_with_fewer_than_three_seeds(tmp_path: Path) -> None:
    """Of either side; the comparison stays in Holm's family, and in the tables with its interval."""
    folder = make_study(tmp_path / "s", {"paragator": 0.3, "base": 0.0, "dr_grpo": 0.0}, seeds=(0, 1, 2))
    (folder / "dr_grpo-seed2" / FINISHED).unlink()
    found = Results([folder])
    base, few = found.primary_rows()
    assert base["p"] is not None and base["p_holm"] == pytest.approx(2 * base["p"])
    assert few["p"] is few["p_holm"] is None and few["high"] < 0
    notes = " ".join(found.notes())
    assert "No p for dr_grpo: with fewer than 3 seeds" in notes and "Of one seed" not in notes
    (sheet,) = found.primary_sheets()
    assert sheet.cells()[-1][0] == "dr_grpo" and sheet.cells()[-1][3:] == ["-", "-"]
    assert to_csv([sheet]).endswith('dr_grpo,p,probability,,,\nprimary outcome,t,dr_grpo,"p, Holm",probability,,,\n')
    for seed in (1, 2):
        (folder / f"paragator-seed{seed}" / FINISHED).unlink()
    found = Results([folder])
    assert [(row["p"], row["p_holm"]) for row in found.primary_rows()] == [(None, None)] * 2
    notes = " ".join(found.notes())
    assert "No p for base, dr_grpo:" in notes and "Of one seed: paragator; intervals" in notes


def test_json_holds_no_nan(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"paragator": 0.3, "base": 0.0}, seeds=(0, 1, 2))
    for path in folder.rglob("eval.jsonl"):
        path.write_text(path.read_text().splitlines(keepends=True)[0])  # one problem: no interval, no p
    found = Results([folder])
    (row,) = json.loads(json.dumps(found.primary_rows(), allow_nan=False))
    assert isinstance(row["mean"], float) and row["low"] is row["high"] is row["p"] is row["p_holm"] is None
    json.dumps(found.whole.to_dict(), allow_nan=False)


def test_a_folder_that_cannot_hold_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot hold results, as .* is not a folder; name another"):
        write_results([tmp_path / "not looked at"], tmp_path / "file")


def test_one_run_in_two_studies_is_refused(tmp_path: Path) -> None:
    a, b = (make_study(tmp_path / name, {"paragator": 0.2, "base": 0.0}) for name in "ab")
    with pytest.raises(DataError, match=r"b/paragator-seed0 and .*a/paragator-seed0 are one cell, task and seed"):
        Results([a, b])
    more = make_study(tmp_path / "more", {"paragator": 0.2, "base": 0.0}, seeds=(2,))
    assert Results([a, more]).seeds() == ["0, 1, 2 of every cell"]
    cells = [{"method": "paragator", "name": "", "matched": "steps", "set": {"method": {"k": 2}}}]
    change(more, cells=cells)
    with pytest.raises(DataError, match=r"more: cell paragator is .*'k': 2.*, but .* before; rename one of them"):
        Results([a, more])


def test_cells_of_a_second_study(tmp_path: Path) -> None:
    """A cell matched by tokens takes its method's place only on the task that it was run on."""
    a = make_study(tmp_path / "a", {"paragator": 0.2, "dr_grpo": 0.0}, task="a")
    b = make_study(tmp_path / "b", {"paragator": 0.2, "dr_grpo": 0.0, "dr_grpo-tokens": 0.1}, task="b")
    found = Results([a, b])
    tokens = {sheet.of: [label for label, _ in sheet.rows] for sheet in found.matched() if "tokens" in sheet.name}
    assert tokens == {"a": ["paragator", "dr_grpo"], "b": ["paragator", "dr_grpo-tokens"]}
    assert [found.family(place) for place in ("a", "b", "average")] == [1, 2, 1]


def test_figures_of_a_study_are_those_of_its_written_results(tmp_path: Path) -> None:
    """But for what needs traces: votes at equal tokens and recovery."""
    folder, out = make_study(tmp_path / "s", CELLS), tmp_path / "out"
    found = write_results([folder], out)
    numbers = FigureData.of(found.whole, found.temperatures(), found.trained())
    own, read = (one.pictures(NEEDS) for one in (numbers, FigureData.read(out)))
    assert read.pop("recovery") is None and own.pop("recovery") is not None
    for name, picture in own.items():
        again = read[name]
        assert picture is not None and again is not None, name
        left = [point for point in picture.points if "majority of" not in point[1]]
        for a, b in zip(again.points, left, strict=True):
            assert a[1] == b[1], name
            assert a[2] == (b[2] if isinstance(b[2], str) else pytest.approx(b[2], abs=1e-3))
            assert a[3:] == pytest.approx(b[3:], abs=1e-3, nan_ok=True), (name, a, b)


def test_results_replace_those_of_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_curves(metrics: dict[str, Any]) -> None:
        assert not metrics  # the study draws its own

    monkeypatch.setattr("paragator.report.plots.reward_curves", no_curves)
    one, out = make_study(tmp_path / "one", {"paragator": 0.2, "old": 0.0}), tmp_path / "out"
    two = make_study(tmp_path / "two", {"paragator": 0.2, "new": 0.0}, task="u")
    write_results([one], out)
    (out / "configs" / "mine.toml").write_text("")
    write_results([one, two], out)
    assert (out / "reward_by_step_u.png").is_file() and not (out / "reward_by_step.png").exists()
    write_results([two], out)
    assert not list(out.glob("reward_by_step_*"))
    names = {path.relative_to(out / "configs").as_posix() for path in (out / "configs").rglob("*")}
    assert names == {
        NOTE,
        "mine.toml",
        *(f"{cell}-seed{seed}.toml" for cell in ("paragator", "new") for seed in (0, 1)),
    }


@pytest.mark.parametrize("words", [["--label", "a"], ["--k", "2"]], ids=" ".join)
def test_options_for_runs_are_refused_for_studies(words: list[str], tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"paragator": 0.2}, seeds=(0,))
    with pytest.raises(UsageError, match=f"{words[0]} is for runs; a study names its cells and its k"):
        compare_main([str(folder), "--output", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_two_tasks_and_their_average(tmp_path: Path) -> None:
    folders = [make_study(tmp_path / task, {"paragator": 0.2, "base": 0.0}, task=task) for task in ("a", "b")]
    found = Results(folders)
    assert [place for place, *_ in found.primary()] == ["a", "b", "average"]
    assert found.primary()[2][2].mean == pytest.approx(fmean(gap.mean for _, _, gap, _, _ in found.primary()[:2]))
    change(folders[1], primary={"measure": "pass_at_1", "round": 2})
    with pytest.raises(DataError, match="another primary"):
        Results(folders)


@pytest.mark.parametrize(
    ("key", "value"), [("evaluation", {"k": 4, "candidates": 16}), ("base", {"train": {"steps": 9}})]
)
def test_studies_that_differ_are_not_pooled(tmp_path: Path, key: str, value: dict[str, Any]) -> None:
    a = make_study(tmp_path / "a", {"paragator": 0.2, "x": 0.0})
    b = make_study(tmp_path / "b", {"paragator": 0.2, "y": 0.0}, seeds=(2, 3))
    note = json.loads((b / NOTE).read_text())
    assert len(Results([a, b]).cells) == 3
    (b / NOTE).write_text(json.dumps({**note, key: value}))
    with pytest.raises(DataError, match=f"another {key} than .*a; compare studies that are alike in it"):
        Results([a, b])


@pytest.mark.parametrize(
    ("form", "sign"), [("latex", r"\begin{tabular}"), ("csv", "table,of,row"), ("markdown", "| --- |")]
)
def test_a_table_of_a_study_is_printed_and_nothing_is_written(
    form: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_study(tmp_path / "s", {"paragator": 0.2, "base": 0.0}, seeds=(0,))
    before = sorted(tmp_path.rglob("*"))
    for words in ((), ("--table", "main")):
        assert compare_main([str(folder), "--format", form, *words]) == 0
        assert sign in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
