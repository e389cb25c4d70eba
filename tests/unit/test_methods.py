"""The methods are data, and credit schemes follow the config's k, mean and scale."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest

from paragator.config import MethodConfig
from paragator.core import credit
from paragator.core.methods import METHODS, Method, schemes

SOURCE = Path(__file__).parents[2] / "src" / "paragator"
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, None]


def test_the_table() -> None:
    assert dict(METHODS) == {
        "base": Method(generate=None, aggregate=None, source="online"),
        "dr_grpo": Method(generate="pass@1", aggregate=None, source="online"),
        "offline_aggregation": Method(generate=None, aggregate="pass@1", source="offline"),
        "online_aggregation": Method(generate=None, aggregate="pass@1", source="online"),
        "online_multitask": Method(generate="pass@1", aggregate="pass@1", source="online"),
        "paragator": Method(generate="pass@k", aggregate="pass@1", source="online"),
        "paragator_outcome": Method(generate="outcome", aggregate="pass@1"),
        "paragator_rounds": Method(generate="pass@k", aggregate="pass@1", rounds=2, between="pass@k"),
    }


def test_a_config_can_name_each_of_them_and_no_other() -> None:
    assert set(METHODS) == set(MethodConfig.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", METHODS)
def test_a_stage_asks_for_its_scheme(name: str) -> None:
    method = METHODS[name]
    assert (method.scheme("generate"), method.scheme("aggregate")) == (method.generate, method.aggregate)
    assert method.scheme("aggregate", last=False) == method.between


def test_step_rows_and_loss_never_name_a_method() -> None:
    for module in ("step", "rows", "objective", "packed", "policy", "loop"):
        tree = ast.parse((SOURCE / "training" / f"{module}.py").read_text())
        named = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in METHODS}
        assert not named, f"training/{module}.py branches on {named}"


def test_schemes_are_those_of_core() -> None:
    give = schemes(MethodConfig(k=3))
    assert set(give) == {"pass@1", "pass@k", "outcome"}
    assert give["outcome"](REWARDS) == give["pass@1"](REWARDS)
    assert give["pass@1"](REWARDS) == credit.pass_at_1(REWARDS)
    assert give["pass@k"](REWARDS) == credit.pass_at_k(REWARDS, 3)


def test_k_mean_and_scale_each_change_credit() -> None:
    base = schemes(MethodConfig(k=3))["pass@k"](REWARDS)
    assert schemes(MethodConfig(k=2))["pass@k"](REWARDS) != base
    assert schemes(MethodConfig(k=3, mean="reward"))["pass@k"](REWARDS) != base
    assert schemes(MethodConfig(k=3, scale="std"))["pass@k"](REWARDS) != base
    plain, scaled = (schemes(MethodConfig(scale=s))["pass@1"](REWARDS) for s in ("none", "std"))
    assert scaled == credit.pass_at_1(REWARDS, scale="std") != plain


def test_k_and_mean_leave_pass_at_1_alone() -> None:
    base = schemes(MethodConfig())["pass@1"](REWARDS)
    assert schemes(MethodConfig(k=2, mean="reward"))["pass@1"](REWARDS) == base


def test_rewards_other_than_0_and_1_take_the_continuous_form() -> None:
    rewards = [0.0, 0.5, 1.0, 0.25, None]
    assert schemes(MethodConfig(k=2))["pass@k"](rewards) == credit.max_at_k(rewards, 2)


def test_the_ablation_warns_once_a_run_not_once_a_group() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schemes(MethodConfig(k=3, mean="reward"))["pass@k"](REWARDS)
