"""Trackers: the real ones where they are installed, and one that fails."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fakes import fake_evaluation
from paragator.config import Config
from paragator.runs import trackers
from paragator.runs.trackers import COLUMNS, MOST_ROWS, Tracking, in_markdown, table_rows

METRICS = {"step": 3, "generate/reward": 0.25, "seconds/update": 1.5, "lr": 1e-5, "loss": math.nan}
NAMES = {"generate/reward", "seconds/update", "lr"}


def tracked(name: str, tmp_path: Path) -> list[str]:
    """What is said while two steps, an evaluation and some rollouts are tracked."""
    said: list[str] = []
    config = Config.model_validate({"tracker": name, "runs": str(tmp_path / "runs"), "name": "mine"})
    config.run_dir.mkdir(parents=True)
    tracking = Tracking(config, said.append)
    tracking.step(METRICS, 3, fake_evaluation(0.1, problems=2))
    tracking.step({"eval/round_0": 0.5}, 3)
    tracking.step({**METRICS, "step": 4, "generate/reward": 0.75}, 4)
    tracking.close()
    return said


def test_tensorboard_has_every_number_and_the_rollouts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert tracked("tensorboard", tmp_path) == []
    found = EventAccumulator(str(tmp_path / "runs" / "mine" / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == NAMES | {"eval/round_0"}
    assert [(e.step, e.value) for e in found.Scalars("generate/reward")] == [(3, 0.25), (4, 0.75)]
    (text,) = found.Tensors("rollouts/text_summary")
    assert "problem 0" in text.tensor_proto.string_val[0].decode() or "p0" in text.tensor_proto.string_val[0].decode()


def test_wandb_offline_has_every_number_and_the_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert tracked("wandb", tmp_path) == []
    (file,) = (tmp_path / "runs" / "mine" / "wandb").glob("offline-run-*/*.wandb")
    data = file.read_bytes()
    assert all(name.encode() in data for name in (NAMES | {"eval/round_0", "rollouts"}))
    (table,) = file.parent.rglob("*.table.json")
    assert json.loads(table.read_text())["columns"] == list(COLUMNS)


def test_trackio_has_every_number_and_the_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    assert tracked("trackio", tmp_path) == []
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        rows = [json.loads(row[0]) for row in base.execute("select metrics from metrics order by step, id")]
    assert {name for row in rows for name in row} >= NAMES | {"eval/round_0", "rollouts"}


def test_mlflow_has_every_number_and_the_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    assert tracked("mlflow", tmp_path) == []
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("paragator").experiment_id])
    assert set(run.data.metrics) == NAMES | {"eval/round_0"} and run.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "generate/reward")] == [0.25, 0.75]
    assert run.data.params["name"] == "mine" and run.data.params["optimizer.betas"] == "[0.9, 0.95]"
    data = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/rollouts/step_3.json")
    assert list(data) == list(COLUMNS)


@pytest.mark.parametrize("place", ["init", "numbers", "table", "close"])
def test_one_that_fails_is_left_out_in_one_line(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Failing:
        def __init__(self, config: Config, settings: Any) -> None:
            self.call("init")

        def call(self, name: str) -> None:
            calls.append(name)
            if name == place:
                raise SystemExit("no key:\nlog in") if place == "init" else OSError("no key:\nlog in")

        def numbers(self, values: Any, step: int) -> None:
            self.call("numbers")

        def table(self, rows: Any, step: int) -> None:
            self.call("table")

        def close(self) -> None:
            self.call("close")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Failing)
    (line,) = tracked("wandb", tmp_path)
    assert line == ("tracker wandb failed and is left out from now on: no key:\\nlog in (metrics.jsonl has all)")
    assert calls.count(place) == 1 and calls[-1] == place


def test_a_table_has_some_whole_traces() -> None:
    rows = list(table_rows(fake_evaluation(0.1, problems=12), 7))
    assert 0 < len(rows) <= MOST_ROWS and all(len(row) == len(COLUMNS) and row[0] == "7" for row in rows)
    assert len({row[1] for row in rows}) == MOST_ROWS // 12
    assert list(table_rows([], 7)) == []
    assert in_markdown("<a>|*x*\n$y$") == r"&lt;a>\|\*x\* \$y\$"
