"""Run a study from Python: check it, run what it still needs, analyse it. Nothing is printed; what is wrong is raised."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paragator.core.errors import RunError, UsageError
from paragator.engines.local.threads import usable_cores
from paragator.report.compare import check_folder
from paragator.runs import resolve
from paragator.runs.folder import clear, locked, write_whole
from paragator.stats.runs import load_run, read_json
from paragator.study.cells import Study, Unit, rollouts, tokens_at_most, units
from paragator.study.finished import CONFIG, NOTE, outcome, recorded
from paragator.study.jobs import Job, Runner, check_trained, left, phases, state_of
from paragator.study.output import write_results
from paragator.study.results import Results


async def run_study(
    study: Study,
    beside: Path = Path(),
    *,
    only: Sequence[str] = (),
    at_once: int = 0,
    overwrite: bool = False,
    changed: Callable[[Job], None] = lambda job: None,
) -> Results:
    """Run what a study still needs, each run in a process of its own, and write and return its results.

    `beside` is the folder that the study's base file is relative to; `changed` is called whenever a run changes its status
    or phase. UsageError before anything is written where the study cannot be run; RunError, once the others have ended,
    where runs failed. Cancelled, it kills its processes; the next call resumes them.
    """
    prepared = StudyRun(study, beside, only=only, overwrite=overwrite)
    runner = prepared.start(at_once, changed)
    await runner.run()
    if failed := [job.line() for job in runner.jobs if job.status != "finished"]:
        raise RunError(f"{len(failed)} of {len(runner.jobs)} runs are not finished: {'; '.join(failed)}")
    return prepared.results()


class StudyRun:
    """A study and the runs chosen of it, checked: what cannot be run is refused here, before anything is written."""

    def __init__(
        self, asked: Study, beside: Path = Path(), *, only: Sequence[str] = (), overwrite: bool = False
    ) -> None:
        self.study, self.overwrite = with_known_seeds(asked), overwrite
        self.every = units(self.study, beside)
        self.chosen = selected([one for one in self.every if one.seed in asked.seeds], only)
        check_first(self.chosen)
        check_primary(self.study, forced=overwrite and len(self.chosen) == len(self.every))
        for one in [] if overwrite else self.chosen:
            check_trained(one)
        check_folder(self.study.results_dir)

    def start(self, at_once: int = 0, changed: Callable[[Job], None] = lambda job: None) -> Runner:
        """A Runner of what is left to do; `at_once` 0 is as many as the cores allow. Writes the study's note."""
        if at_once < 0:
            raise UsageError(f"--jobs = {at_once}: at least 1 is needed")
        threads = self.every[0].config.train.threads or 1
        if self.overwrite:
            remove(self.chosen)
        self.study.folder.mkdir(parents=True, exist_ok=True)
        write_note(self.study, self.every)
        todo = [Job(unit) for unit in self.chosen if left(unit, self.study)]
        return Runner(self.study, todo, at_once or max(1, usable_cores() // threads), changed)

    def results(self) -> Results:
        """Tables, metrics and pictures of all runs that are finished, written into the study's folder of results."""
        return write_results([self.study.folder], self.study.results_dir)

    def states(self) -> dict[str, str]:
        """Each chosen run's state: finished, begun or missing."""
        return {unit.name: state_of(unit, self.study) for unit in self.chosen}

    def outcomes(self) -> dict[str, tuple[float, float | None]]:
        """The primary outcome of each chosen run that is finished (NaN: not measured), and what runs.csv says of it."""
        primary, found = self.study.primary, {}
        for unit in self.chosen:
            if left(unit, self.study):
                continue
            scores = load_run(unit.folder / "eval", self.study.evaluation.k).scores
            what = (primary.measure, primary.round)
            temperature = unit.config.generate.temperature
            known = recorded(self.study.results_dir, unit.cell.label, unit.seed, temperature, *what)
            found[unit.name] = (outcome(scores, *what), known)
        return found

    def described(self) -> dict[str, Any]:
        """The cells as JSON values: what each changes, costs and still needs."""
        study, cells = self.study, []
        for label in dict.fromkeys(one.cell.label for one in self.chosen):
            own = [one for one in self.chosen if one.cell.label == label]
            config, trained = own[0].config, own[0].trained
            cells.append(
                {
                    "cell": label,
                    "method": config.method.name,
                    "set": own[0].cell.set,
                    "steps": config.train.steps if trained else 0,
                    "rollouts_a_step": rollouts(config) if trained else 0,
                    "tokens_a_step_at_most": tokens_at_most(config),
                    "needs": {f"seed{one.seed}": [phase.name for phase in left(one, study)] for one in own},
                    "state": {f"seed{one.seed}": state_of(one, study) for one in own},
                }
            )
        return {"study": study.name, "folder": str(study.folder), "results": str(study.results_dir), "cells": cells}

    def overview(self) -> str:
        """The same in lines for people."""
        found, study = self.described(), self.study
        head = f"{study.name}: {len(found['cells'])} cells, {len(self.chosen)} runs in {study.folder}"
        primary = f"{study.primary.measure} at round {study.primary.round}, each cell minus {study.reference}"
        lines = [f"{head}, results in {study.results_dir}", f"primary outcome: {primary}"]
        for cell in found["cells"]:
            states = list(cell["state"].values())
            counts = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "begun", "missing") if s in states)
            change = f"  {json.dumps(cell['set'])}" if cell["set"] else ""
            tokens = f"at most {cell['tokens_a_step_at_most']:,} tokens"
            cost = f"{cell['steps']} steps of {cell['rollouts_a_step']} rollouts, {tokens}"
            cost = cost if cell["steps"] else "no training"
            lines.append(f"  {cell['cell']:<22} {cell['method']:<20} {cost}; {counts}{change}")
        return "\n".join(lines)


def selected(every: Sequence[Unit], only: Sequence[str]) -> list[Unit]:
    """The runs that CELL:SEED or CELL names; all without any."""
    out: list[Unit] = []
    for word in only:
        label, _, seed = word.partition(":")
        found = [one for one in every if one.cell.label == label and seed in ("", str(one.seed))]
        if not found:
            cells = ", ".join(dict.fromkeys(one.cell.label for one in every))
            seeds = ", ".join(dict.fromkeys(str(one.seed) for one in every))
            raise UsageError(f"--only {word}: no such run; cells: {cells}; seeds: {seeds}")
        out += [one for one in found if one not in out]
    return out if only else list(every)


def check_first(chosen: Sequence[Unit]) -> None:
    """Refuse what could not run. Cells share task, model and lengths, so the first run stands for all."""
    resolve.resolve(chosen[0].config, training=any(one.trained for one in chosen), recorded=False)


def with_known_seeds(study: Study) -> Study:
    """The study with the seeds that it was started with before: fewer of them now choose runs, as --only does."""
    known = read_json(study.folder / NOTE).get("seeds", [])
    if not isinstance(known, list) or not all(isinstance(seed, int) for seed in known):
        raise UsageError(f"{study.folder / NOTE}: seeds = {known!r} are not numbers; delete it, or give another --name")
    return study.model_copy(update={"seeds": tuple(dict.fromkeys([*known, *study.seeds]))})


def write_note(study: Study, every: Sequence[Unit]) -> None:
    """The study, with the digests that tell whether what is finished of each run has these settings."""
    digests = {one.name: {phase.name: phase.digest for phase in phases(one, study) if phase.digest} for one in every}
    note = {**study.model_dump(mode="json"), "digests": digests}
    write_whole(study.folder / NOTE, json.dumps(note, indent=2) + "\n")


def check_primary(study: Study, *, forced: bool) -> None:
    """The primary outcome and the reference are fixed by the study's first run."""
    path = study.folder / NOTE
    if forced or not path.is_file():
        return
    old = read_json(path)
    for key, value in {"primary": study.primary.model_dump(), "reference": study.reference}.items():
        if key not in old:
            raise UsageError(f"{path} has no {key!r}; delete it, or give another --name")
        if old[key] != value:
            raise UsageError(
                f"{key} = {value} but the study began with {old[key]}, which is fixed before its runs are looked at; "
                "take it back, or give another --name"
            )


def remove(chosen: Sequence[Unit]) -> None:
    """Empty the folders of runs; UsageError where something else lies there, or a process still works."""
    there = [unit.folder for unit in chosen if unit.folder.exists()]
    for folder in there:
        if not (folder / CONFIG).is_file():
            raise UsageError(f"{folder} is not a run of a study; give another --name")
    for folder in there:
        with locked(folder):
            clear(folder)
