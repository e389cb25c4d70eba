"""Studies without running one: their files, what a folder still needs, the statistics, and the analysis of made-up runs."""

from __future__ import annotations

import csv
import json
import math
import random
import tomllib
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import pytest
from test_report import fake_evaluation, fake_metrics

from paragator.cli.cells import Study, Unit, digest, to_toml, units
from paragator.cli.compare import main as compare_main
from paragator.cli.jobs import FINISHED, environment, forget_evaluations, left, state_of, works
from paragator.cli.main import run
from paragator.config import Config, load, validate
from paragator.core.errors import DataError, UsageError
from paragator.records import append, append_json_lines
from paragator.report.bands import curves, recent, step_at, together
from paragator.report.resample import Sampled, holm, over_seeds, problem_counts, resample, seed_weights
from paragator.report.study import Results, recorded

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("paragator", "base", "offline_aggregation")


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are laid out, not rendered: the end-to-end test does that."""
    for module in ("plots", "bars", "bands"):
        monkeypatch.setattr(f"paragator.report.{module}.finish", lambda figure, panels: b"PNG")


def study(cells: list[dict[str, Any]] | None = None, **more: Any) -> Study:
    base = {"train": {"steps": 6, "problems": 4}, "rollout": {"candidates": 8}, **more.pop("base", {})}
    cells = cells or [{"method": name} for name in METHODS]
    return validate(Study, {"name": "s", "base": base, "cells": cells, **more})


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("study-*.toml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_load(path: Path) -> None:
    found = load(Study, path)
    assert found.name == path.stem and (found.primary.measure, found.primary.round) == ("pass_at_1", 3)
    every = units(found, path.parent)
    assert len(every) == len(found.cells) * len(found.seeds) == len({unit.folder for unit in every})
    assert {unit.config.train.precision for unit in every} == {"float32"}


def test_cells_become_runs_seed_by_seed() -> None:
    cells: list[dict[str, Any]] = [
        {"method": "paragator"},
        {"method": "paragator", "name": "k2", "set": {"method": {"k": 2}}},
    ]
    every = units(study([*cells, {"method": "base"}], seeds=[3, 1], evaluation={"rounds": 7, "candidates": 6}))
    names = ["paragator-seed3", "k2-seed3", "base-seed3", "paragator-seed1", "k2-seed1", "base-seed1"]
    assert [unit.name for unit in every] == names
    first, second, base = every[:3]
    assert first.config.seed == 3 and str(first.config.run_dir) == "runs/s/paragator-seed3/train"
    assert (first.config.method.k, second.config.method.k) == (4, 2)
    assert first.config.train.steps == 6 and first.config.train.threads == 1
    assert first.config.eval.rounds == 7 and first.config.eval.candidates == 6 and not first.config.eval.around_training
    assert first.trained and not base.trained


def test_recorded_pools_are_shared_by_what_samples_them() -> None:
    offline = {"method": "offline_aggregation"}
    cells: list[dict[str, Any]] = [
        {"method": "paragator"},
        offline,
        {**offline, "name": "hard", "set": {"method": {"hard_share": 0.9}}},
        {**offline, "name": "n4", "set": {"rollout": {"candidates": 4}, "train": {"problems": 8}}},
    ]
    _, a, b, c = units(study(cells))
    assert a.pools == b.pools != c.pools and str(a.pools).startswith("runs/s/pools-seed0-")
    assert units(study(cells, seeds=[1]))[1].pools != a.pools
    assert (a.pools_count, c.pools_count) == (24, 48)


BAD: dict[str, dict[str, Any]] = {
    "two cells are called paragator": {"cells": [{"method": "paragator"}, {"method": "paragator"}]},
    "reference = 'x' is not a cell; cells: paragator": {"reference": "x"},
    "known: base, dr_grpo": {"cells": [{"method": "paragator"}, {"method": "grpo"}]},
    r"primary.round = 3 is after the last of evaluation.rounds = 2": {"evaluation": {"rounds": 2}},
    r"seeds = \[1, 1\] holds one twice": {"seeds": [1, 1]},
    "evaluation.temperatures": {"evaluation": {"temperatures": [0.0]}},
    "unknown key sed; did you mean seeds": {"sed": [1]},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_studies_are_one_line(message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        units(study(**BAD[message]))
    assert "\n" not in str(caught.value)


CHANGES: dict[str, dict[str, Any]] = {
    r"generate.max_tokens = 9, but 40 in paragator: cells must not differ in it": {"generate": {"max_tokens": 9}},
    "task.max_value = 50": {"task": {"max_value": 50}},
    "train.steps = 7, but 6.*matched": {"train": {"steps": 7}},
    "4 problems by 16 candidates are 64 rollouts a step, but 32 in paragator": {"rollout": {"candidates": 16}},
    "sets eval: all cells are evaluated alike": {"eval": {"rounds": 1}},
    "sets seed: the study gives every run its own": {"seed": 3},
    "cell x: unknown key method.kk; did you mean method.k": {"method": {"kk": 3}},
    "cell x: method.k = 8 must be below rollout.candidates = 8": {"method": {"k": 8}},
}


@pytest.mark.parametrize("message", CHANGES)
def test_cells_that_cannot_be_compared_are_refused(message: str) -> None:
    cells: list[dict[str, Any]] = [
        {"method": "paragator"},
        {"method": "paragator", "name": "x", "set": CHANGES[message]},
    ]
    with pytest.raises(UsageError, match=message):
        units(study(cells))


def test_a_cell_matched_by_tokens_may_take_more_steps() -> None:
    more: dict[str, Any] = {"method": "dr_grpo", "name": "long", "matched": "tokens", "set": {"train": {"steps": 12}}}
    assert [unit.config.train.steps for unit in units(study([{"method": "paragator"}, more]))] == [6, 12]


def test_a_base_file_and_keys_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[train]\nsteps = 5\nproblems = 4\n[method]\nk = 3\n")
    base = {"file": "base.toml", "train": {"steps": 6}}
    found = units(validate(Study, {"base": base, "cells": [{"method": "paragator"}]}), tmp_path)[0].config
    assert (found.train.steps, found.train.problems, found.method.k) == (6, 4, 3)
    with pytest.raises(UsageError, match=r"base file .*nowhere.toml: No such file"):
        units(validate(Study, {"base": "nowhere.toml", "cells": [{"method": "paragator"}]}), tmp_path)


def test_a_run_s_config_survives_toml() -> None:
    values = {"name": "a", "task": {"fields": {"a b": 'q"\\\n'}, "kind": None}, "optimizer": {"betas": (0.9, 0.95)}}
    values |= {"engine": {"extra_body": {"x": {"y": [True, "é"]}}}}
    read = tomllib.loads(to_toml(values))
    assert validate(Config, read) == validate(Config, values)
    assert read["engine"]["extra_body"] == {"x": {"y": [True, "é"]}}


# ---- what is left to do ----------------------------------------------------------------------------------------------


def mark(unit: Unit, of: Study, *names: str) -> None:
    """As if these works had finished."""
    unit.folder.mkdir(parents=True, exist_ok=True)
    done = {work.name: {"digest": work.digest} for work in works(unit, of) if work.name in names}
    (unit.folder / FINISHED).write_text(json.dumps(done))
    for name in names:
        (unit.folder / name).mkdir(exist_ok=True)
        (unit.folder / name / "config.json").write_text("{}")


def names_left(unit: Unit, of: Study) -> list[str]:
    return [work.name for work in left(unit, of)]


def test_what_a_tree_of_runs_still_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = study(evaluation={"temperatures": [0.6, 1.0]})
    trained, base, offline = units(of)
    assert names_left(trained, of) == ["train", "eval", "eval-t0.6"]
    assert names_left(base, of) == ["eval", "eval-t0.6"]
    assert names_left(offline, of) == ["pools", "train", "eval", "eval-t0.6"]
    assert [state_of(unit, of) for unit in units(of)] == ["missing"] * 3

    (trained.folder / "train").mkdir(parents=True)
    (trained.folder / "train" / "config.json").write_text("{}")  # killed in training
    assert names_left(trained, of) == ["train", "eval", "eval-t0.6"] and state_of(trained, of) == "begun"
    mark(trained, of, "train")
    assert names_left(trained, of) == ["eval", "eval-t0.6"]
    mark(trained, of, "train", "eval", "eval-t0.6")
    assert names_left(trained, of) == [] and state_of(trained, of) == "finished"

    assert offline.pools is not None
    offline.pools.write_text("{}\n" * 23 + '{"torn')
    assert names_left(offline, of)[0] == "pools"
    offline.pools.write_text("{}\n" * 24)
    assert names_left(offline, of) == ["train", "eval", "eval-t0.6"] and state_of(offline, of) == "missing"
    offline.pools.unlink()
    mark(offline, of, "train", "eval", "eval-t0.6")
    assert names_left(offline, of) == []  # its pools have served


def test_what_a_changed_study_needs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = study()
    for unit in units(before):
        mark(unit, before, "train", "eval")
    longer = study(base={"train": {"steps": 9, "problems": 4}})
    trained, base, _ = units(longer)
    assert names_left(trained, longer) == ["train", "eval"] and names_left(base, longer) == []
    rounds = study(evaluation={"rounds": 4})
    assert names_left(units(rounds)[1], rounds) == ["eval"]
    threads = study(base={"train": {"steps": 6, "problems": 4, "threads": 2}})
    assert [names_left(unit, threads) for unit in units(threads)] == [[], [], []]
    assert [digest(unit) for unit in units(threads)] == [digest(unit) for unit in units(before)]
    warm = study(evaluation={"temperatures": [0.8]})
    assert names_left(units(warm)[0], warm) == ["eval-t0.8"]


def test_training_again_voids_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = study()
    unit = units(of)[0]
    mark(unit, of, "train", "eval")
    (unit.folder / "notes").mkdir()
    forget_evaluations(unit)
    assert sorted(path.name for path in unit.folder.iterdir()) == ["notes", "train"]
    assert names_left(unit, of) == ["train", "eval"]


def test_the_primary_outcome_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('name = "s"\ncells = [{ method = "paragator" }]\n')
    Path("runs/s").mkdir(parents=True)
    note = {"primary": {"measure": "pass_at_1", "round": 2}, "reference": "paragator"}
    Path("runs/s/study.json").write_text(json.dumps(note))
    with pytest.raises(UsageError, match=r"primary = .*'round': 3.* but the study began with .*'round': 2"):
        run(["study", "s.toml", "--dry-run"])
    assert run(["study", "s.toml", "--dry-run", "--primary.round", "2"]) == 0


def test_a_dry_run_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('name = "s"\nseeds = [0, 1]\ncells = [{ method = "paragator" }, { method = "base" }]\n')
    assert run(["study", "s.toml", "--dry-run", "--only", "paragator:1", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["state"] == {"seed1": "missing"} and cell["steps"] == 60 and cell["tokens_a_step_at_most"] == 20480
    assert run(["study", "s.toml", "--dry-run"]) == 0
    assert "no training; 2 missing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "s.toml"]
    with pytest.raises(UsageError, match=r"--only para: no such run; cells: paragator, base; seeds: 0, 1"):
        run(["study", "s.toml", "--only", "para"])


def test_a_run_s_environment_fixes_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment(2)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2" and found["MKL_DYNAMIC"] == "FALSE"


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979's procedure, by hand
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []
    with_gap = holm([0.02, math.nan, 0.02])
    assert with_gap[0] == with_gap[2] == 0.04 and math.isnan(with_gap[1])


def test_p_value_counts_draws_on_the_other_side() -> None:
    assert Sampled(1.0, np.arange(-49.0, 950.0)).p_value() == pytest.approx(2 * 51 / 1000)  # 50 of 999 are not above 0
    assert Sampled(1.0, np.ones(999)).p_value() == pytest.approx(0.002)
    assert Sampled(0.0, np.zeros(999)).p_value() == 1.0
    assert math.isnan(Sampled(math.nan, np.full(9, math.nan)).p_value())


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
    found = over_seeds([Sampled(level, np.full(40_000, level)) for level in levels])
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
    note["cells"] = [{"method": name.partition("-")[0], "name": name, "matched": "steps"} for name in cells]
    for cell in note["cells"]:
        cell["matched"] = "tokens" if cell["name"].endswith("-tokens") else "steps"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({**note, "primary": {"measure": "pass_at_1", "round": 1}}))
    for name, gain in cells.items():
        for seed in seeds:
            unit = folder / f"{name}-seed{seed}"
            for kind, temperature in (("eval", 1.0), ("eval-t0.6", 0.6)):
                append(unit / kind / "eval.jsonl", fake_evaluation(gain, seed=seed, text=task))
                config = {"seed": seed, "task": {"name": task}, "generate": {"temperature": temperature}}
                (unit / kind / "config.json").write_text(json.dumps({**config, "method": {"name": name}}))
            append_json_lines(unit / "train" / "metrics.jsonl", [] if name == "base" else fake_metrics(10))
            (unit / "config.toml").write_text(f"seed = {seed}\n")
            (unit / FINISHED).write_text(json.dumps({"train": {}, "eval": {}, "eval-t0.6": {}}))
    return folder


CELLS = {"base": 0.0, "paragator": 0.3, "dr_grpo": 0.3, "dr_grpo-tokens": 0.1}


def test_a_study_s_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = make_study(tmp_path / "s", CELLS), tmp_path / "out"
    assert compare_main([str(folder), "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["primary"]
    assert [row["cell"] for row in found] == ["base", "dr_grpo", "dr_grpo-tokens"]
    base, same, less = found
    assert base["high"] < 0 and base["p"] < 0.05 and base["p_holm"] == pytest.approx(3 * base["p"])
    assert same["mean"] == 0 and same["p_holm"] == 1 and less["mean"] == pytest.approx(-0.2, abs=0.15)
    text = (out / "tables.md").read_text()
    for title in ("Primary outcome, t", "Accuracy, t", "By seed", "Matched by tokens, t", "Initial temperature, t"):
        assert title.lower() in text.lower(), title
    assert "comparisons of a table" in text and "Seeds: 0, 1 of every cell." in text
    pictures = {path.stem for path in out.glob("*.png")}
    assert {"accuracy_by_round", "reward_by_step", "reward_by_tokens", "dead_zone", "temperature"} <= pictures
    assert "reward_curves" not in pictures and all(f"({name}.png)" in text for name in pictures)
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert len(rows) == 4 * 2 * 2 * 3  # cells, seeds, temperatures, rounds
    metrics = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert len(metrics) == 3 * 2 * 10 and "seconds" not in metrics[0]
    assert len(list((out / "configs").glob("*.toml"))) == 8
    value = recorded(out, "paragator", 1, 1.0, "pass_at_1", 1)
    assert value == pytest.approx(
        float(next(r for r in rows if (r["cell"], r["seed"]) == ("paragator", "1"))["pass_at_1"]), abs=1
    )
    assert recorded(out, "paragator", 9, 1.0, "pass_at_1", 1) is None


def test_matched_views(tmp_path: Path) -> None:
    found = Results([make_study(tmp_path / "s", CELLS)])
    steps, tokens = found.matched()
    assert [label for label, _ in steps.rows] == ["paragator", "base", "dr_grpo"]
    assert [label for label, _ in tokens.rows] == ["paragator", "base", "dr_grpo-tokens"]
    cells = dict(steps.rows)["paragator"]
    assert cells[0] is not None and cells[0].mean == 10 and cells[1] is not None and cells[1].mean == 123450


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", CELLS)
    (folder / "base-seed1" / FINISHED).unlink()
    found = Results([folder])
    assert "0 of base" in found.seeds()[1] and found.whole.rows[0].label == "paragator"
    for seed in (0, 1):
        (folder / f"paragator-seed{seed}" / FINISHED).unlink()
    with pytest.raises(DataError, match="no run of paragator is finished"):
        Results([folder])


def test_two_tasks_and_their_average(tmp_path: Path) -> None:
    folders = [make_study(tmp_path / task, {"paragator": 0.2, "base": 0.0}, task=task) for task in ("a", "b")]
    found = Results(folders)
    assert [place for place, *_ in found.primary()] == ["a", "b", "average"]
    assert found.primary()[2][2].mean == pytest.approx(fmean(gap.mean for _, _, gap, _, _ in found.primary()[:2]))
    note = json.loads((folders[1] / "study.json").read_text())
    (folders[1] / "study.json").write_text(json.dumps({**note, "primary": {"measure": "pass_at_1", "round": 2}}))
    with pytest.raises(DataError, match="another primary"):
        Results(folders)
