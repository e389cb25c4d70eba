"""The estimate's arithmetic against sizes that are known."""

from __future__ import annotations

import pytest

from paragator.config import Config, ModelConfig
from paragator.core.errors import UsageError
from paragator.train.estimate import HUB, Load, estimate, memory, shape_of, stages


def test_parameters_are_those_of_the_models() -> None:
    assert HUB["Qwen/Qwen3-4B-Base"].parameters == 4_022_468_096
    assert shape_of(ModelConfig()).parameters == 1_889_120


def test_an_unknown_hub_id_is_refused() -> None:
    with pytest.raises(UsageError, match="sizes known"):
        shape_of(ModelConfig(path="some/model"))


def test_checkpointing_and_adapters_need_less_and_a_reference_more() -> None:
    shape, load = HUB["Qwen/Qwen3-4B-Base"], Load(1, 2048, 4, 512)
    plain = memory(shape, load, bfloat16=True, checkpointed=False).peak
    assert memory(shape, load, bfloat16=True, checkpointed=True).peak < plain
    assert memory(shape, load, bfloat16=True, checkpointed=False, lora=16).peak < plain
    assert memory(shape, load, bfloat16=True, checkpointed=False, kl=True).peak == plain + 4 * shape.parameters


def test_tokens_of_a_step_are_those_of_the_plan() -> None:
    generate, aggregate = stages(Config(), prompt=10)
    assert generate.generated == 16 * 16 * 40
    assert aggregate.generated == 16 * 16 * 40
    assert aggregate.prompt == 10 + 4 * 40


def test_a_wrong_rate_is_refused() -> None:
    with pytest.raises(UsageError, match="flops"):
        estimate(Config(), bfloat16=False, cuda=False, rate=0)
