"""The public functions in their async form. `paragator.evaluate` and the others are these, waited for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.methods import Method, register_method
from paragator.core.types import Grade, Plan, Problem, Sample
from paragator.engines.by_stage import Engines
from paragator.results import EvalResult, TrainResult
from paragator.runs.defaults import eval_config, solve_config, suited
from paragator.runs.events import Events
from paragator.runs.folder import is_used
from paragator.runs.solve import Seen, Solution, problem_of, watch_of
from paragator.settings import load, merged, nested, read_values, validate
from paragator.strategies import Strategy, register_strategy
from paragator.tasks import Task

OneEngine = str | Sample
Engine = OneEngine | tuple[OneEngine, OneEngine]
"""A model ("embedded", a folder, a hub id), a server's URL, or an engine: OpenAI, Local, Replay, or one of your own. Two of
them: the first one gives candidates, the other one (a server's URL or an engine) aggregations and ratings."""
StrategyLike = str | Strategy
"""A strategy by name, or one of your own: an async function of an Asking."""
Settings = Mapping[str, Any]
"""Keys of the config, dotted, as {"generate.temperature": 0.8}; docs/configure.md lists them."""


async def evaluate(
    task: str | Task | Sequence[Problem],
    engine: Engine = "embedded",
    *,
    plan: Plan | None = None,
    folder: str | Path | None = None,
    config: Settings | None = None,
    events: Events | None = None,
    strategy: StrategyLike | Sequence[StrategyLike] | None = None,
) -> EvalResult:
    """Run rounds of aggregation on held-out problems, grade them, and measure accuracy by round with intervals.

    task    a task's name ("aime25", "countdown"), a .jsonl file, a Task, or problems whose `answer` is their reference
    engine  whoever samples; see `Engine`
    plan    how many candidates, rounds and pools; Plan.method(4, 3) by default
    folder  where records, report and finished requests are kept; called again, what is missing is asked for. Without
            one nothing is kept
    config  further keys, as {"eval.repeats": 2, "eval.problems": 30, "judge.mode": "hybrid", "judge.url": "..."}
    events  hears of progress, and may ask to stop
    strategy  a way to spend tokens instead of the plan's rounds, by name ("rsa", "pairwise:budget=2") or as a function of
            an Asking, or several, which share their candidates; `result.compared` has them side by side

    UsageError or DataError for what cannot work, before anything is asked; RunError where a run cannot go on.
    """
    from paragator.runs.evaluate import evaluate as evaluate_run
    from paragator.tasks.files import is_data_file

    values = engine_values(engine)
    own = None if isinstance(task, str) else task if isinstance(task, Task) else task_of(task)
    if isinstance(task, str):
        is_file = is_data_file(task)
        more = {"task.name": "jsonl", "task.path": task, "task.held_out_path": task} if is_file else {"task.name": task}
        values = merged(values, nested(more))
    elif not isinstance(task, Task):
        values = merged(values, {"eval": {"problems": len(task)}})
    values = merged(merged(values, plan_values(plan)), strategy_values(strategy))
    values = merged(values, nested(config or {}))
    with tempfile.TemporaryDirectory(prefix="paragator-") as scratch:
        place = Path(folder) if folder else Path(scratch) / "evaluation"
        settings = eval_config(merged(values, {"name": place.name, "runs": str(place.parent)}))
        result = await evaluate_run(
            settings,
            task=own,
            engine=engine_object(engine),
            resume=is_used(settings.run_dir),
            events=events,
            report=folder is not None,
        )
        return result if folder else result.apart()


async def train(
    config: Config | str | Path | Settings,
    *,
    task: Task | None = None,
    engine: Sample | None = None,
    method: Method | None = None,
    resume: bool = False,
    overwrite: bool = False,
    events: Events | None = None,
) -> TrainResult:
    """Evaluate, train, evaluate and report, in the run directory that the config names.

    config     a Config, a TOML file, or dotted keys
    task       problems and grades from Python, instead of the config's
    engine     whoever samples, instead of the policy itself; it returns token ids and their log-probabilities
    method     a method of one's own, which is registered; instead of the config's `method.name`
    resume     continue what the run directory holds; `overwrite` deletes it first
    events     hears of steps and progress, and may ask to stop; the result then says that it is not finished

    UsageError or DataError for what cannot work, before a model loads; RunError where a run cannot go on.
    """
    from paragator.runs.train import train as train_run

    if method is not None:
        register_method(method)
        if isinstance(config, Config):
            config = config.model_dump(exclude_unset=True)
        elif not isinstance(config, str | Path | Mapping):
            raise UsageError(
                f"config = {config!r:.60}: give a Config, the path of a TOML file, or keys and their values"
            )
        values = nested(config) if isinstance(config, Mapping) else read_values(config)
        config = validate(Config, merged(values, {"method": {"name": method.name}}))
    elif isinstance(config, Mapping):
        config = validate(Config, nested(config))
    elif isinstance(config, str | Path):
        config = load(Config, config)
    elif not isinstance(config, Config):
        raise UsageError(f"config = {config!r:.60}: give a Config, the path of a TOML file, or keys and their values")
    return await train_run(suited(config), task=task, engine=engine, resume=resume, overwrite=overwrite, events=events)


async def solve(
    problem: str,
    engine: Engine = "embedded",
    *,
    plan: Plan | None = None,
    seed: int = 0,
    config: Settings | None = None,
    seen: Seen = lambda round_: None,
    strategy: StrategyLike | None = None,
) -> Solution:
    """Solve one new problem by candidates and rounds of aggregation; nothing is graded, nothing is kept.

    plan    how many candidates, rounds and pools; Plan.method(4, 3) by default
    config  further keys, as {"generate.temperature": 0.8}
    seen    called with a Round when it begins and whenever something of it arrives
    strategy  what finds the answer instead of the plan's rounds and a vote, as for `evaluate`

    UsageError for a wrong value, RunError with the reason when no request gave a solution.
    """
    from paragator.runs.solve import solve as solve_problem

    asked = problem_of(problem)
    values = merged(merged(plan_values(plan), {"seed": seed}), strategy_values(strategy))
    settings = one_problem(engine, values, config)
    return await solve_problem(settings, asked, watch_of(settings, seen), engine=engine_object(engine))


async def aggregate(
    problem: str,
    solutions: Sequence[str],
    engine: Engine = "embedded",
    *,
    aggregations: int = 4,
    seed: int = 0,
    config: Settings | None = None,
) -> Solution:
    """One round of aggregation over texts that one already has, wherever they come from: all in one pool.

    The result's `answer` is the commonest among `aggregations` samples, `trace.rounds[1]` holds them all. UsageError
    without a text, RunError when no request gave a solution.
    """
    from paragator.runs.solve import aggregate as aggregate_texts

    values = {"eval": {"candidates": aggregations, "pool_size": 1, "rounds": 1}, "seed": seed}
    settings = one_problem(engine, values, config)
    return await aggregate_texts(settings, problem_of(problem), solutions, engine=engine_object(engine))


async def grade(text: str, reference: str, kind: str | None = None) -> Grade:
    """Compare a solution's final answer with a reference: correct, incorrect, or unscored with a reason.

    `kind` says what the answer is ("number", "set", ...; docs/grading.md); None infers it from the reference.
    """
    from paragator.grading import grade_async

    return await grade_async(text, reference, kind)


# ---- arguments as settings ----


def engine_values(engine: Engine) -> dict[str, Any]:
    """What an engine says of the config: which kind it is, and its model, server or sampling."""
    if isinstance(engine, str):
        url = engine.startswith(("http://", "https://"))
        return nested({"engine.kind": "openai", "engine.url": engine} if url else {"model.path": engine})
    if isinstance(engine, tuple):
        first, later = two(engine)
        if isinstance(later, str):
            return merged(engine_values(first), {"aggregate": {"url": later}})
        own = engine_values(later).get("aggregate")
        return merged(engine_values(first), {"aggregate": own} if own else {})
    if not callable(engine):
        raise UsageError(
            f"engine = {engine!r:.60}: give a model's name, a server's URL, or an engine; see docs/add-an-engine.md"
        )
    values: dict[str, Any] = {"engine.kind": "own"}
    sampling = getattr(engine, "sampling", None)
    for stage, own in sampling.items() if isinstance(sampling, Mapping) else ():
        known = {"temperature": own.temperature, "max_tokens": own.max_tokens, "top_p": own.top_p, "top_k": own.top_k}
        values |= {f"{stage}.{name}": value for name, value in known.items()}
    return nested(values | dict(engine.settings() if hasattr(engine, "settings") else {}))


def two(engine: tuple[OneEngine, ...]) -> tuple[OneEngine, OneEngine]:
    """An engine for candidates and one for what comes after them; UsageError where it is something else."""
    if len(engine) != 2 or (isinstance(engine[1], str) and not engine[1].startswith(("http://", "https://"))):
        raise UsageError(
            f"engine = {engine!r:.80}: give two, the second one a server's URL or an engine (paragator.Local(...))"
        )
    return engine[0], engine[1]


def engine_object(engine: Engine) -> Engines:
    """The engine itself, where it is more than a name; of two engines both."""
    if isinstance(engine, tuple):
        first, later = (None if isinstance(one, str) else one for one in two(engine))
        return (first, later) if later is not None else first
    return None if isinstance(engine, str) else engine


def plan_values(plan: Plan | None) -> dict[str, Any]:
    """A plan as the config's `eval`."""
    if plan is None:
        return {}
    if plan.rounds == 0:
        return {"eval": {"candidates": plan.candidates, "rounds": 0}}
    if plan.aggregations != plan.candidates or plan.minimum != 1:
        raise UsageError(
            f"plan: {plan.aggregations} aggregations of {plan.candidates} candidates: evaluations sample as many of both"
        )
    names = ("candidates", "rounds", "pool_size", "pools")
    return {"eval": {name: getattr(plan, name) for name in names}}


def strategy_values(strategy: StrategyLike | Sequence[StrategyLike] | None) -> dict[str, Any]:
    """Strategies as the config's `eval`; a function of the user's own is registered under its name."""
    if strategy is None:
        return {}
    given = [strategy] if isinstance(strategy, str) or callable(strategy) else list(strategy)
    names = []
    for one in given:
        if not isinstance(one, str):
            name = str(getattr(one, "__name__", type(one).__name__)).strip("_")
            register_strategy(name, one)
            one = name
        names.append(one)
    return {"eval": {"strategies": names}}


def one_problem(engine: Engine, values: Settings, config: Settings | None) -> Config:
    return solve_config(merged(merged(engine_values(engine), values), nested(config or {})))


def task_of(problems: Sequence[Problem]) -> Task:
    """Problems whose `answer` is the reference that solutions are graded by."""
    from paragator.grading import grade_many_async

    given = list(problems)
    for problem in given:
        if not isinstance(problem, Problem) or not isinstance(problem.answer, str):
            raise UsageError(
                f"task: {problem!r:.80} is no Problem with its reference, a text, as answer; or give a Task"
            )

    async def graded(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        return await grade_many_async([(text, str(problem.answer)) for text in texts])

    return Task("problems", lambda split, count, seed: given[:count], graded)
