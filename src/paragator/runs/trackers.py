"""Trackers: wandb, tensorboard, trackio and mlflow get the metrics under their own names, and a table of rollouts.

A tracker only watches: one that fails is left out from then on, in one line, and the run goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any, Protocol

from paragator.config import Config
from paragator.core.text import one_line
from paragator.records import Graded
from paragator.results import rows_of
from paragator.runs.folder import flat
from paragator.stats.curves import is_number

PROJECT = "paragator"
COLUMNS = ("step", "problem", "round", "index", "text", "answer", "verdict", "reward", "tokens", "pool")
"""Of the table of rollouts, as strings."""
MOST_ROWS, MOST_CHARS = 32, 2000
"""Of one step's table, and of one of its cells."""


class Tracker(Protocol):
    """What hears of a run."""

    def numbers(self, values: Mapping[str, float], step: int) -> None: ...

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None: ...

    def close(self) -> None: ...


class Tensorboard:
    """Events in the run directory's folder `tensorboard`; a table is text in Markdown."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(config.run_dir / "tensorboard"))
        self.writer.add_text("config", f"```\n{json.dumps(settings, indent=2)}\n```", 0)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        text = "\n".join("| " + " | ".join(map(in_markdown, line)) + " |" for line in lines)
        self.writer.add_text("rollouts", text, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of the project, in the run directory; WANDB_MODE=offline keeps it there."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        self.wandb = import_module("wandb")
        self.run = self.wandb.init(project=PROJECT, name=config.name, dir=str(config.run_dir), config=dict(settings))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        self.run.log({"rollouts": self.wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the project in trackio's own folder on this machine (TRACKIO_DIR)."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        self.trackio = import_module("trackio")
        self.run = self.trackio.init(project=PROJECT, name=config.name, config=dict(settings))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        frame = import_module("pandas").DataFrame(list(rows), columns=list(COLUMNS))
        self.run.log({"rollouts": self.trackio.Table(dataframe=frame)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of the experiment at MLFLOW_TRACKING_URI; a step's table is rollouts/step_N.json among its artifacts."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        self.mlflow = import_module("mlflow")
        self.client = self.mlflow.MlflowClient()
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT)
        self.run = self.client.create_run(experiment, run_name=config.name).info.run_id
        for name, value in settings.items():
            self.client.log_param(self.run, name, str(value)[:500])

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        data = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
        self.client.log_dict(self.run, data, f"rollouts/step_{step}.json")

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, Callable[[Config, Mapping[str, Any]], Tracker]] = {
    "tensorboard": Tensorboard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


class Tracking:
    """A run's tracker, if any, behind a wall: what it raises ends the tracking and never the run."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.name, self.say = config.tracker, say
        self.tracker: Tracker | None = None
        if self.name == "none":
            return
        settings = flat(config.model_dump(mode="json"))
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        with self.wall():
            self.tracker = TRACKERS[self.name](config, plain)

    def step(self, metrics: Mapping[str, float], number: int, sampled: Sequence[Graded] = ()) -> None:
        """Hand on a step's finite numbers, and some of what it sampled."""
        numbers = {name: float(value) for name, value in metrics.items() if is_number(value) and name != "step"}
        rows = list(table_rows(sampled, number)) if self.tracker else []
        with self.wall():
            if self.tracker and numbers:
                self.tracker.numbers(numbers, number)
            if self.tracker and rows:
                self.tracker.table(rows, number)

    def close(self) -> None:
        with self.wall():
            if self.tracker:
                self.tracker.close()

    @contextmanager
    def wall(self) -> Iterator[None]:
        """What is raised inside is said and ends the tracking; what is printed does not mix with a run's own output."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except (Exception, SystemExit) as error:  # noqa: BLE001  (said; code of others that only watches)
            self.tracker = None
            why = one_line(str(error) or type(error).__name__, 200)
            self.say(f"tracker {self.name} failed and is left out from now on: {why} (metrics.jsonl has all)")


def table_rows(sampled: Sequence[Graded], step: int) -> Iterator[list[str]]:
    """The first traces of a step, as many as fit, a completion a row."""
    left = MOST_ROWS
    for record in sampled:
        rows = list(rows_of(record))
        if (left := left - len(rows)) < 0 and left + len(rows) < MOST_ROWS:
            return
        for row in rows[:MOST_ROWS]:
            cells = {"text": row.get("failure", ""), **row, "step": step}
            yield [clipped("" if (cell := cells.get(name)) is None else str(cell)) for name in COLUMNS]


def clipped(text: str) -> str:
    """Text that any tracker can store: valid Unicode, not too long."""
    return text[:MOST_CHARS].encode("utf-8", "replace").decode()


def in_markdown(text: str) -> str:
    """A cell of a table whose text is neither markup nor a line break."""
    escaped = "".join(
        f"\\{c}" if c in r"\`*_{}[]()#+!|~$" else c for c in text.replace("&", "&amp;").replace("<", "&lt;")
    )
    return " ".join(escaped.split())
