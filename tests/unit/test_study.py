"""Studies without running one: their files, and what a folder still needs."""

from __future__ import annotations

import asyncio
import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from paragator.cli import study as command
from paragator.cli.main import run
from paragator.config import Config
from paragator.core.errors import RunError, UsageError
from paragator.runs.folder import locked
from paragator.settings import load, to_json, validate
from paragator.study.cells import Study, Unit, digest, to_toml, training, units
from paragator.study.finished import CONFIG, FINISHED
from paragator.study.jobs import Job, Runner, begin, environment, left, note, phases, state_of
from paragator.study.run import run_study

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("paragator", "base", "offline_aggregation")


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


def test_a_model_that_does_not_exist_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"model.path = './configs/arithmetic-model': no such folder"):
        run(["study", str(CONFIGS / "study-arithmetic.toml"), "--dry-run"])


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


def test_recorded_candidates_are_shared_by_what_samples_them() -> None:
    offline = {"method": "offline_aggregation"}
    cells: list[dict[str, Any]] = [
        {"method": "paragator"},
        offline,
        {**offline, "name": "hard", "set": {"method": {"hard_share": 0.9}}},
        {**offline, "name": "n4", "set": {"rollout": {"candidates": 4}, "train": {"problems": 8}}},
    ]
    _, a, b, c = units(study(cells))
    assert a.recorded == b.recorded != c.recorded and str(a.recorded).startswith("runs/s/candidates-seed0-24-")
    assert (
        units(study(cells, recorded_problems=30))[1].recorded != a.recorded
    )  # what is recorded for fewer problems stays as it is
    assert units(study(cells, seeds=[1]))[1].recorded != a.recorded
    assert (a.recorded_count, c.recorded_count) == (24, 48)


BAD: dict[str, dict[str, Any]] = {
    "two cells are called paragator": {"cells": [{"method": "paragator"}, {"method": "paragator"}]},
    "reference = 'x' is not a cell; cells: paragator": {"reference": "x"},
    "cell grpo: method = 'grpo' is not a method; did you mean dr_grpo": {
        "cells": [{"method": "paragator"}, {"method": "grpo"}]
    },
    r"primary.round = 3 is after the last of evaluation.rounds = 2": {"evaluation": {"rounds": 2}},
    r"evaluation.k = 8 needs as many evaluation.candidates, not 4": {
        "primary": {"measure": "maj_at_k"},
        "evaluation": {"k": 8},
    },
    r"seeds = \[1, 1\] repeats one": {"seeds": [1, 1]},
    "evaluation.temperatures": {"evaluation": {"temperatures": [0.0]}},
    "unknown key sed; did you mean seeds": {"sed": [1]},
    "evaluation.around_training = True: input should be False": {"evaluation": {"around_training": True}},
    "cell paragator: train = 5, but it is a section; set train.KEY": {"base": {"train": 5}},
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
    "sets method.name: a cell's method stands beside set": {"method": {"name": "dr_grpo"}},
    "method = 5, but it is a section": {"method": 5},
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


def test_rollouts_are_compared_beside_an_untrained_cell() -> None:
    other = {"method": "paragator", "name": "x", "set": {"rollout": {"candidates": 16}}}
    with pytest.raises(
        UsageError, match="cell x: 4 problems by 16 candidates are 64 rollouts a step, but 32 in paragator"
    ):
        units(study([{"method": "base"}, {"method": "paragator"}, other]))


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
    """As if these phases had finished."""
    unit.folder.mkdir(parents=True, exist_ok=True)
    done = {phase.name: {"digest": phase.digest, "seconds": 1.0} for phase in phases(unit, of) if phase.name in names}
    (unit.folder / FINISHED).write_text(json.dumps(done))
    for name in names:
        (unit.folder / name).mkdir(exist_ok=True)
        (unit.folder / name / "config.json").write_text("{}")


def names_left(unit: Unit, of: Study) -> list[str]:
    return [phase.name for phase in left(unit, of)]


def test_what_a_tree_of_runs_still_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = study(evaluation={"temperatures": [0.6, 1.0]})
    trained, base, offline = units(of)
    assert names_left(trained, of) == ["train", "eval", "eval-t0.6"]
    assert names_left(base, of) == ["eval", "eval-t0.6"]
    assert names_left(offline, of) == ["candidates", "train", "eval", "eval-t0.6"]
    assert [state_of(unit, of) for unit in units(of)] == ["missing"] * 3

    (trained.folder / "train").mkdir(parents=True)
    (trained.folder / "train" / "config.json").write_text("{}")  # killed in training
    assert names_left(trained, of) == ["train", "eval", "eval-t0.6"] and state_of(trained, of) == "begun"
    mark(trained, of, "train")
    assert names_left(trained, of) == ["eval", "eval-t0.6"]
    mark(trained, of, "train", "eval", "eval-t0.6")
    assert names_left(trained, of) == [] and state_of(trained, of) == "finished"

    assert offline.recorded is not None
    offline.recorded.write_text("{}\n" * 23 + '{"torn')
    assert names_left(offline, of)[0] == "candidates"
    offline.recorded.write_text("{}\n" * 24)
    assert names_left(offline, of) == ["train", "eval", "eval-t0.6"] and state_of(offline, of) == "missing"
    offline.recorded.unlink()
    mark(offline, of, "train", "eval", "eval-t0.6")
    assert names_left(offline, of) == []  # its candidates have served


def test_what_a_changed_study_needs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = study()
    for unit in units(before):
        mark(unit, before, "train", "eval")
    longer = study(base={"train": {"steps": 9, "problems": 4}})
    trained, base, _ = units(longer)
    assert names_left(trained, longer) == ["train", "eval"] and names_left(base, longer) == []
    rounds = study(evaluation={"rounds": 4})
    assert [names_left(unit, rounds) for unit in units(rounds)] == [["eval"]] * 3  # training never evaluates
    assert [unit.trained and phases(unit, rounds)[-2].words for unit in units(rounds)] == [
        unit.trained and phases(unit, before)[-2].words for unit in units(before)
    ]
    threads = study(base={"train": {"steps": 6, "problems": 4, "threads": 2}})
    assert [names_left(unit, threads) for unit in units(threads)] == [[], [], []]
    assert [digest(unit) for unit in units(threads)] == [digest(unit) for unit in units(before)]
    warm = study(evaluation={"temperatures": [0.8]})
    assert names_left(units(warm)[0], warm) == ["eval-t0.8"]


def test_an_evaluation_with_other_settings_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, after = study(), study(evaluation={"rounds": 4})
    unit = units(before)[0]
    train, same = phases(unit, before)
    other = phases(units(after)[0], after)[1]
    mark(unit, before, "train", "eval")
    begin(same, unit)
    assert (same.target / "config.json").is_file() and names_left(unit, before) == ["eval"]  # begun, so it goes on
    begin(other, unit)
    assert not other.target.exists() and (train.target / "config.json").is_file()
    begin(train, unit)
    assert (train.target / "config.json").is_file()
    other.target.mkdir()
    (other.target / "config.json").write_text("{}")
    for phase in (train, other):
        note(phase, unit, {"seconds": 1.0})
    assert names_left(unit, before) == ["eval"] and names_left(units(after)[0], after) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", "0.5", r"seed0/train was run with another optimizer.lr \(0.0001 -> 0.5\)"),
        ("train.steps", "9", r"seed0/train was run with another train.steps \(60 -> 9\)"),
    ],
)
def test_another_training_is_refused_before_anything_goes(
    key: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('name = "s"\ncells = [{ method = "paragator" }]\n')
    of = load(Study, "s.toml")
    unit = units(of)[0]
    mark(unit, of, "train", "eval")
    (unit.folder / "train" / "config.json").write_text(to_json(training(unit.config)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message + "; take it back, or use --overwrite or another --name"):
        run(["study", "s.toml", f"--base.{key}", value])
    assert sorted(tmp_path.rglob("*")) == before
    for words in (["--overwrite"], ["--name", "other"]):
        assert run(["study", "s.toml", "--dry-run", f"--base.{key}", value, *words]) == 0
    assert run(["study", "s.toml", "--dry-run", "--evaluation.rounds", "4"]) == 0


def test_other_weights_or_data_behind_a_path_are_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    base = {"model": {"path": str(model)}, "task": {"name": "jsonl", "path": "data.jsonl"}}

    def digests(weights: str, data: str) -> list[str]:
        (model / "model.safetensors").write_text(weights)
        Path("data.jsonl").write_text(data)
        trained, untrained, offline = units(study(base=base))
        return [digest(trained), digest(untrained, "eval"), digest(offline), str(offline.recorded)]

    before = digests("a", "a")
    for weights, data in (("bb", "a"), ("a", "bb")):
        assert all(old != new for old, new in zip(before, digests(weights, data), strict=True))
    assert digests("a", "a") == before


def test_recorded_candidates_that_a_cell_names_are_part_of_what_it_is() -> None:
    def of(path: str) -> str:
        cell = {"method": "offline_aggregation", "set": {"method": {"recorded": path}}}
        return digest(units(study([cell], reference="offline_aggregation"))[0])

    assert of("mine-a.jsonl") != of("mine-b.jsonl") and of("runs/s/a.jsonl") == of("runs/s/b.jsonl")


def test_a_run_that_somebody_works_in_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None: ...

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "work", nothing)
    Path("s.toml").write_text('name = "s"\nreference = "base"\ncells = [{ method = "base" }]\n')
    unit = units(of := load(Study, "s.toml"))[0]
    mark(unit, of, "eval")
    (unit.folder / CONFIG).write_text("")
    with locked(unit.folder), pytest.raises(UsageError, match="base-seed0 is in use by another process; wait for it"):
        run(["study", "s.toml", "--overwrite"])
    assert names_left(unit, of) == []
    assert run(["study", "s.toml", "--overwrite"]) == 130 and names_left(unit, of) == ["eval"]


def test_results_that_cannot_be_written_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    Path("s.toml").write_text('name = "s"\nresults = "taken"\ncells = [{ method = "paragator" }]\n')
    with pytest.raises(UsageError, match=r"taken: cannot hold results, as .*taken is not a folder; name another"):
        run(["study", "s.toml"])


def test_a_finished_evaluation_that_is_gone_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unit = units(of := study())[0]
    mark(unit, of, "train", "eval")
    (unit.folder / "eval" / "config.json").unlink()
    assert names_left(unit, of) == ["eval"]


def test_a_study_keeps_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start with fewer is a choice of runs; one with more adds them."""

    async def nothing(*_: Any) -> None: ...

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "work", nothing)
    Path("s.toml").write_text('name = "s"\nreference = "base"\nseeds = [0, 1]\ncells = [{ method = "base" }]\n')
    for words, seeds, runs in [([], [0, 1], 2), (["--seeds", "[1]"], [0, 1], 1), (["--seeds", "[2]"], [0, 1, 2], 1)]:
        assert run(["study", "s.toml", *words]) == 130
        found = json.loads(Path("runs/s/study.json").read_text())
        assert found["seeds"] == seeds and list(found["digests"]) == [f"base-seed{seed}" for seed in seeds]
        assert f"interrupted, {runs} runs to go" in (out := capsys.readouterr().out)
    assert "resume with: paragator study s.toml --seeds '[2]'" in out  # as a shell takes it
    unit = units(of := load(Study, "s.toml"))[0]
    assert found["digests"][unit.name] == {phase.name: phase.digest for phase in phases(unit, of)}


def test_a_process_that_is_being_started_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Process:
        pid, returncode = 1, 0

        def send_signal(self, kind: int) -> None:
            sent.append(kind)
            raise ProcessLookupError  # it has just ended

        async def wait(self) -> int:
            return 0

    async def start(*_: Any, **__: Any) -> Process:
        runner.stop()
        return Process()

    of = study()
    unit = units(of)[0]
    runner = Runner(of, [Job(unit)], 1, lambda job: None)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    with (tmp_path / "log").open("wb") as log:
        assert asyncio.run(runner.process(phases(unit, of)[0], unit, log)) == 0
    assert sent == [signal.SIGINT]


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


def test_a_study_runs_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It calls back with each phase, prints nothing, raises what failed, and leaves signal handlers alone."""

    class Process:
        pid, returncode = 1, 3

        async def wait(self) -> int:
            return 3

    async def start(*words: str, **_: Any) -> Process:
        started.append(words[3])
        return Process()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    started: list[str] = []
    heard: list[tuple[str, str, str]] = []
    handler = signal.getsignal(signal.SIGINT)
    of = study([{"method": "paragator"}, {"method": "base"}])
    with pytest.raises(
        RunError, match=r"2 of 2 runs are not finished: paragator-seed0: train failed.*base-seed0: eval"
    ):
        asyncio.run(run_study(of, at_once=1, changed=lambda job: heard.append((job.unit.name, job.status, job.doing))))
    assert started == ["train", "eval"] and signal.getsignal(signal.SIGINT) == handler
    assert heard == [
        (f"{cell}-seed0", status, doing)
        for cell, doing in (("paragator", "train"), ("base", "eval"))
        for status in ("running", "failed")
    ]
    assert capfd.readouterr() == ("", "")
