"""Study configuration: cells (a method and what it changes) by seeds, resolved to run configs that are checked to be comparable."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from paragator.config import Config, EvalConfig, ModelConfig
from paragator.core.errors import UsageError
from paragator.core.methods import method_named
from paragator.engines.local.loading import facts, folder_of
from paragator.runs.defaults import run_config
from paragator.runs.folder import MAY_CHANGE, OWN_WEIGHTS, files_of, flat, hash_of
from paragator.settings import Section, merged, read_toml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Cell(Section):
    """A method, and what it changes in the base config."""

    method: str
    """Which method; see docs/algorithm.md."""
    name: str = Field("", pattern=rf"{NAME}|^$")
    """Names the cell where several have one method; the method's name without it."""
    set: dict[str, Any] = Field({})
    """What differs from the base config, as { method.k = 2 } or { generate.weight = 1.0 }."""
    matched: Literal["steps", "tokens"] = "steps"
    """"tokens": this one takes other train.steps than the rest, so that it trains on as many tokens as they do."""

    @property
    def label(self) -> str:
        return self.name or self.method


class Primary(Section):
    """The outcome that the study is about, fixed before its first run; a study that has begun refuses another."""

    measure: Literal["pass_at_1", "pass_at_k", "maj_at_k"] = "pass_at_1"
    """What is measured."""
    round: int = Field(3, ge=0)
    """After which aggregation round."""


class StudyEvaluation(EvalConfig):
    """The evaluation of every run after training; takes the place of the base config's `eval`."""

    rounds: int = Field(10, ge=0)
    """Aggregation rounds."""
    around_training: Literal[False] = False
    """Always false: the untrained model is the method `base`."""
    temperatures: tuple[float, ...] = ()
    """Further initial temperatures to evaluate at, up to the primary outcome's round; aggregations keep their own."""


class Study(Section):
    """Cells by seeds."""

    name: str = Field("study", pattern=NAME)
    """Names the folder of its runs."""
    runs: str = "runs"
    """Where that folder goes."""
    results: str | None = None
    """Where tables, metrics and pictures go; None: the folder `results` among its runs."""
    base: dict[str, Any] = Field({})
    """A run's config, as in its own file; a file's path is written base = { file = "quickstart.toml" }, more keys beside it."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """One run a cell and seed."""
    reference: str = "paragator"
    """The cell that all others are compared with."""
    cells: tuple[Cell, ...] = Field(min_length=1)
    """What is compared."""
    recorded_problems: int | None = Field(None, ge=1)
    """Offline methods: problems to record candidates of, before easy and hard are mixed; None: as many as the others train on."""
    primary: Primary = Primary()
    evaluation: StudyEvaluation = StudyEvaluation()

    @field_validator("base", mode="before")
    @classmethod
    def path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def consistent(self) -> Study:
        labels = [cell.label for cell in self.cells]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two cells are called {twice}: give one a name of its own")
        if self.reference not in labels:
            raise ValueError(f"reference = {self.reference!r} is not a cell; cells: {', '.join(labels)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} repeats one; list each once")
        if self.primary.round > self.evaluation.rounds:
            raise ValueError(
                f"primary.round = {self.primary.round} is after the last of evaluation.rounds = {self.evaluation.rounds}"
            )
        measure, k = self.primary.measure, self.evaluation.k
        if measure.endswith("_at_k") and k > self.evaluation.candidates:
            raise ValueError(
                f"primary.measure = {measure!r} with evaluation.k = {k} needs as many evaluation.candidates, not "
                f"{self.evaluation.candidates}; lower k, or sample more"
            )
        if any(not t > 0 for t in self.evaluation.temperatures):
            raise ValueError(f"evaluation.temperatures = {list(self.evaluation.temperatures)}: all must be above 0")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def results_dir(self) -> Path:
        return Path(self.results) if self.results else self.folder / "results"


@dataclass(frozen=True, slots=True)
class Unit:
    """One cell with one seed: its folder holds train/, eval/ and an evaluation for each further temperature."""

    cell: Cell
    seed: int
    config: Config
    folder: Path
    recorded_count: int
    """How many problems to record candidates of, where it trains on recorded ones."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def trained(self) -> bool:
        return self.config.method.definition.trains

    @property
    def recorded(self) -> Path | None:
        """The recorded candidates that this run trains on; None for a method that samples its own."""
        return Path(str(self.config.method.recorded)) if self.config.method.definition.source == "offline" else None


def units(study: Study, beside: Path = Path()) -> list[Unit]:
    """Every run of a study, seed by seed; UsageError where cells cannot be compared. `beside` is the study file's folder."""
    base = base_values(study, beside)
    out = [unit(study, base, cell, seed) for seed in study.seeds for cell in study.cells]
    check_comparable(out[: len(study.cells)])
    return out


def base_values(study: Study, beside: Path) -> dict[str, Any]:
    """The base config's own values, a named file's first."""
    values = dict(study.base)
    if (named := values.pop("file", None)) is None:
        return values
    return merged(read_toml(beside / str(named), "base file"), values)


def unit(study: Study, base: Mapping[str, Any], cell: Cell, seed: int) -> Unit:
    """A cell's run with one seed. All runs take the same threads and precision: what is fastest now may differ later."""
    folder = study.folder / f"{cell.label}-seed{seed}"
    try:
        offline = method_named(cell.method).source == "offline"
    except UsageError as error:
        raise UsageError(f"cell {cell.label}: method = {error}") from None
    for key in ("name", "runs", "seed"):
        if key in cell.set:
            raise UsageError(f"cell {cell.label} sets {key}: the study gives every run its own; take it out")
    if "eval" in cell.set:
        raise UsageError(f"cell {cell.label} sets eval: all cells are evaluated alike; set it in [evaluation]")
    values = merged(base, cell.set)
    for section in ("method", "train"):
        if not isinstance(values.get(section, {}), Mapping):
            raise UsageError(
                f"cell {cell.label}: {section} = {values[section]!r}, but it is a section; set {section}.KEY"
            )
    if "name" in cell.set.get("method", {}):
        raise UsageError(f"cell {cell.label} sets method.name: a cell's method stands beside set; take it out")
    values = merged(values, {"method": {"name": cell.method}, "name": "train", "runs": str(folder), "seed": seed})
    train = values.setdefault("train", {})
    train["threads"] = train.get("threads") or 1
    if train.get("precision", "auto") == "auto":
        train["precision"] = "float32"
    train["batch_tokens"] = train.get("batch_tokens") or 4096
    evaluation = study.evaluation.model_dump(exclude={"temperatures"}, exclude_unset=True)
    values["eval"] = {**evaluation, "rounds": study.evaluation.rounds, "around_training": False}
    if offline:
        values["method"] = {"recorded": "to be sampled", **values["method"]}
    try:
        config = run_config(values)
    except UsageError as error:
        raise UsageError(f"cell {cell.label}: {error}") from None
    count = study.recorded_problems or max(
        1, min(config.train.distinct_problems, config.train.steps * config.train.problems)
    )
    if offline and config.method.recorded == "to be sampled":
        values["method"]["recorded"] = str(study.folder / recorded_name(config, count))
        config = run_config(values)
    return Unit(cell, seed, config, folder, count)


def recorded_name(config: Config, count: int) -> str:
    """The file of recorded candidates, shared by all runs that would sample the same ones of as many problems."""
    stage = {f"generate.{name}" for name in SHARED_OF_A_STAGE} | {"rollout.candidates"}
    values = flat(config.model_dump(mode="json"))
    own = [item for item in sorted(values.items()) if item[0] in stage or item[0].startswith(("model.", "task."))]
    text = json.dumps([own, behind(config)])
    return f"candidates-seed{config.seed}-{count}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"


def behind(config: Config) -> list[str]:
    """Hashes of what a config's paths hold now: weights, and a task's files and reward code. Nothing where there is none yet."""
    weights = ""
    if config.engine.kind in OWN_WEIGHTS:
        with suppress(UsageError):
            folder = folder_of(config.model)
            weights = weights_of(config.model.path, stamps(folder.glob("*"))) if folder else ""
    return [weights, *(hash_of(path) for key, path in files_of(config).items() if key.startswith("task."))]


def stamps(paths: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of change of each file: what a hash is remembered by."""
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths))


@cache
def weights_of(path: str, stamps: tuple[tuple[int, int], ...]) -> str:
    return facts(ModelConfig(path=path)).fingerprint


SHARED = (
    "model.",
    "task.",
    "engine.",
    "judge.",
    "eval.",
    *(f"train.{k}" for k in ("distinct_problems", "threads", "precision")),
)
SHARED_OF_A_STAGE = ("max_tokens", "temperature", "top_p", "top_k")
NO_EVALUATION = "{ problems = 1, around_training = false }"
"""The section `eval` of a training, as TOML: the evaluation is a process of its own."""


def is_shared(key: str, cell: Cell) -> bool:
    """Whether a key may not differ between cells: the problems, the model, the evaluation, and how much is sampled."""
    section, _, name = key.partition(".")
    if key == "train.steps":
        return cell.matched == "steps"
    return key.startswith(SHARED) or (section in ("generate", "aggregate") and name in SHARED_OF_A_STAGE)


def check_comparable(cells: list[Unit]) -> None:
    """UsageError unless all cells share problems, rollouts and lengths a step, steps and evaluation."""
    first = next((one for one in cells if one.cell.matched == "steps"), cells[0])
    wanted = flat(first.config.model_dump(mode="json"))
    for one in cells:
        own = flat(one.config.model_dump(mode="json"))
        for key in sorted(own.keys() | wanted.keys()):
            if own.get(key) != wanted.get(key) and is_shared(key, one.cell):
                hint = ', or say matched = "tokens"' if key == "train.steps" else ""
                raise UsageError(
                    f"cell {one.cell.label}: {key} = {own.get(key)!r}, but {wanted.get(key)!r} in {first.cell.label}: "
                    f"cells must not differ in it; set it in [base]{hint}"
                )
    trained = [one for one in cells if one.trained]
    for one in trained:
        own_rollouts, per_step = rollouts(one.config), rollouts(trained[0].config)
        if own_rollouts != per_step:
            raise UsageError(
                f"cell {one.cell.label}: {one.config.train.problems} problems by {one.config.rollout.candidates} candidates are "
                f"{own_rollouts} rollouts a step, but {per_step} in {trained[0].cell.label}; change train.problems too"
            )


def rollouts(config: Config) -> int:
    """Candidates a step; as many aggregations where the method trains them."""
    return config.train.problems * config.rollout.candidates


def tokens_at_most(config: Config) -> int:
    """The most tokens that a step samples."""
    method = config.method.definition
    if not method.trains:
        return 0
    own = config.generate.max_tokens if method.source == "online" else 0
    return rollouts(config) * (own + (method.rounds * config.aggregate.max_tokens if method.aggregate else 0))


def training(config: Config) -> Config:
    """A run's config as its training takes it, without an evaluation: to change the evaluation leaves the training as it is."""
    never = tomllib.loads(f"eval = {NO_EVALUATION}")["eval"]
    return config.model_copy(update={"eval": EvalConfig.model_validate(never)})


def digest(one: Unit, *more: object) -> str:
    """A hash of the settings that decide a phase's result: whether what is finished is what the study asks for now.

    Where and how fast it runs is left out. `more` is what an evaluation has of its own; without any, it is of the training.
    """
    config = one.config if more else training(one.config)
    ignored = MAY_CHANGE - {"train.steps"}
    if one.recorded and one.recorded.parent == one.folder.parent:
        ignored.add("method.recorded")  # the study's own file, wherever it lies
    values = {k: v for k, v in flat(config.model_dump(mode="json")).items() if k not in ignored}
    if not one.trained:
        values = {k: v for k, v in values.items() if not k.startswith(("train.", "optimizer.", "method."))}
    recorded = one.recorded_count if one.recorded else 0
    text = json.dumps([sorted(values.items()), behind(config), recorded, *more], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_toml(values: Mapping[str, Any]) -> str:
    """Nested plain values as TOML, which has no None: such keys are left out."""
    import tomli_w

    return tomli_w.dumps(without_none(values))


def without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return [without_none(one) for one in value] if isinstance(value, list | tuple) else value
