"""Functions of the user's: found by name or handed over, checked before a run, and told what a group is."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paragator.config import Config, ModelConfig, OptimizerConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.hooks import Rewards, function_named, multiplier, name_of
from paragator.core.hub import hub_reached
from paragator.core.methods import CreditSettings
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.engines.local.loading import load_model
from paragator.records import Graded
from paragator.runs.folder import files_of, hash_of
from paragator.runs.resolve import resolve
from paragator.settings import to_json, validate
from paragator.training.credited import credits
from paragator.training.policy import learning_rate
from paragator.training.recipe import Crediting

SOURCE = """
def halve(step, steps):
    return 0.5 ** step

def brief(rewards):
    mean = sum(length for length in rewards.lengths) / len(rewards)
    return [0.0 if r is None else r * (mean - n) for r, n in zip(rewards, rewards.lengths)]

def broken(rewards):
    return 1 / 0

def short(rewards):
    return [1.0]

def late(step, steps):
    return float("nan") if step == 7 else 1.0

def no_number(step, steps):
    return None

def alone(step):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name is new in each test, since imports are remembered."""
    monkeypatch.chdir(tmp_path)
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    return name


def record() -> Graded:
    """Four candidates of 1, 2, 3 and 6 tokens, the second unscored, one more that failed."""
    outputs = tuple(Completion(f"t{n}", "stop", (1,) * n, (0.0,) * n) for n in (1, 2, 3, 6))
    group = Group(Prompt("1 + 1"), (*outputs, Failure("lost")), (1, 2), "generate")
    verdicts = ("correct", "unscored", "incorrect", "correct")
    trace = Trace(Problem("p", "1 + 1", 2), Plan.sampling(5), 0, ((group,),))
    return Graded(trace, (((*(Grade(v, "1") for v in verdicts), None),),))  # type: ignore[arg-type]


def test_credit_of_a_config_sees_lengths_texts_and_the_problem(mine: str) -> None:
    config = validate(Config, {"method": {"name": "dr_grpo", "credit": f"{mine}:brief"}})
    ((round_, group, found),) = credits(record(), Crediting.from_config(config))
    mean = (1 + 2 + 3 + 6 + 0) / 5
    assert found == [mean - 1, 0.0, 0.0, mean - 6, 0.0] and round_ == 0
    seen: list[Rewards] = []

    def note(rewards: Rewards) -> list[float]:
        seen.append(rewards)
        return [0.0] * len(rewards)

    config = Config.model_validate({"method": {"name": "dr_grpo", "credit": note}})
    list(credits(record(), Crediting.from_config(config)))
    (told,) = seen
    assert list(told) == [1.0, None, 0.0, 1.0, None] and told[0] == 1.0 and told[1:3] == (None, 0.0)
    assert told.texts == ("t1", "t2", "t3", "t6", "") and told.lengths == (1, 2, 3, 6, 0)
    assert (told.problem.answer, told.stage, told.round, told.outputs) == (2, "generate", 0, group.outputs)
    with pytest.raises(AttributeError):
        told.round = 1  # type: ignore[misc]


def test_a_credit_function_replaces_those_of_stages_that_are_trained(mine: str) -> None:
    def of(name: str) -> tuple[Any, Any, Any]:
        more = {"recorded": "r.jsonl"} if name.startswith("offline") else {}
        method = validate(Config, {"method": {"name": name, "credit": f"{mine}:brief", **more}}).method.definition
        return method.generate, method.aggregate, method.between

    assert [bool(s) for s in of("dr_grpo")] == [True, False, False]
    assert [bool(s) for s in of("offline_aggregation")] == [False, True, False]
    assert all(callable(s) for s in of("paragator_rounds"))
    with pytest.raises(UsageError, match=r"method.credit is set, but base trains nothing; name another method"):
        of("base")


def test_what_a_credit_function_does_wrong_is_one_line(mine: str) -> None:
    def credit(name: str) -> list[float]:
        method = validate(Config, {"method": {"name": "dr_grpo", "credit": f"{mine}:{name}"}}).method.definition
        return method.credit(method.generate, [1.0, 0.0], CreditSettings())  # type: ignore[arg-type]

    with pytest.raises(RunError, match=rf"credit {mine}:broken raised ZeroDivisionError: .*; fix it and --resume"):
        credit("broken")
    with pytest.raises(UsageError, match=rf"credit {mine}:short gave 1 numbers for 2 rewards; return one for each"):
        credit("short")


def test_a_schedule_multiplies_the_rate_of_every_step(mine: str) -> None:
    settings = OptimizerConfig(lr=2.0, schedule=f"{mine}:halve")
    assert [learning_rate(settings, step, 3) for step in (1, 2, 3)] == [1.0, 0.5, 0.25]
    handed = OptimizerConfig.model_validate({"lr": 2.0, "schedule": lambda step, steps: step / steps})
    assert [learning_rate(handed, step, 4) for step in (1, 4)] == [0.5, 2.0]


WRONG = {
    "optimizer.schedule = 'cosin': use 'constant', 'cosine', 'linear', or a function": ("schedule", "cosin"),
    "optimizer.schedule = 'no_such:f': ModuleNotFoundError": ("schedule", "no_such:f"),
    "called as function(step, steps)": ("schedule", "{}:alone"),
    "late gave nan at step 7 of 9; return a finite number, 0 or more": ("schedule", "{}:late"),
    "no_number raised TypeError": ("schedule", "{}:no_number"),
    "is not a function; write it as module:function": ("schedule", "{}:__name__"),
    "method.credit = 'json:nothing': AttributeError": ("credit", "json:nothing"),
}


@pytest.mark.parametrize(("wanted", "given"), WRONG.items(), ids=WRONG)
def test_a_function_that_cannot_work_is_refused_before_the_run(mine: str, wanted: str, given: tuple[str, str]) -> None:
    section, name = ("method" if given[0] == "credit" else "optimizer"), given[1].format(mine)
    values: dict[str, Any] = {"train": {"steps": 9}, section: {given[0]: name}}
    with pytest.raises(UsageError) as error:
        resolve(validate(Config, values), training=True)
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_their_files_are_those_of_the_run(mine: str, tmp_path: Path) -> None:
    """By content, as for a reward function: a run is not resumed with another one behind the same name."""
    values = {"method": {"credit": f"{mine}:brief"}, "optimizer": {"schedule": f"{mine}:halve"}}
    files = files_of(validate(Config, values))
    assert {key: path.name for key, path in files.items()} == dict.fromkeys(
        ("method.credit", "optimizer.schedule"), f"{mine}.py"
    )
    before = hash_of(files["method.credit"])
    (tmp_path / f"{mine}.py").write_text(SOURCE + "\n")
    assert hash_of(files["method.credit"]) != before
    assert "optimizer.schedule" not in files_of(Config())


def test_a_function_handed_over_is_known_by_its_name() -> None:
    """The config keeps text, and in this process the text leads back to the function."""
    config = Config.model_validate({"task": {"reward": given_reward}, "method": {"credit": given_reward}})
    shown = json.loads(to_json(config))
    assert shown["task"]["reward"] == shown["method"]["credit"] == f"{__name__}:given_reward" == name_of(given_reward)
    assert function_named(shown["task"]["reward"], "task.reward", "problem", "texts") is given_reward

    class Callable_:
        def __call__(self, step: int, steps: int) -> float:
            return 1.0

    assert multiplier(name_of(Callable_()), 1, 2) == 1.0


def given_reward(problem: Problem, texts: Any) -> list[float]:
    return [0.0 for _ in texts]


def test_a_module_is_no_function() -> None:
    assert not callable(ModuleType("m"))
    with pytest.raises(UsageError, match="schedule = <module 'm'>"):
        validate(Config, {"optimizer": {"schedule": ModuleType("m")}})


def test_a_hub_that_does_not_answer_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reached()
    with pytest.raises(UsageError, match=r"^model.path = 'no/model' cannot be loaded: the hub does not answer"):
        load_model(ModelConfig(path="no/model"))
