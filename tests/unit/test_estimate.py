"""The estimate's arithmetic against sizes that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from paragator.config import Config, ModelConfig
from paragator.core.errors import UsageError
from paragator.planning.estimate import estimate
from paragator.training.memory import (
    HUB,
    MOST_TOKENS,
    Load,
    Shards,
    budget,
    free_memory,
    memory,
    part_of,
    shape_of,
    stages,
    with_tokens,
)


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


def test_a_shard_holds_its_part_and_what_is_whole_at_a_time() -> None:
    shape, load = HUB["Qwen/Qwen3-32B"], Load(1, 2048, 4, 512)
    alone = memory(shape, load, bfloat16=False, checkpointed=True)
    assert part_of(alone, shape, Shards(1)) is alone
    assert part_of(alone, shape, Shards(1, whole=True)).peak == alone.peak + 4 * shape.parameters
    parts = [part_of(alone, shape, Shards(count), checkpointed=True) for count in (2, 4, 8, 64)]
    assert [part.optimiser for part in parts] == [alone.optimiser / count for count in (2, 4, 8, 64)]
    assert [part.activations for part in parts] == [alone.activations] * 4
    peaks = [part.peak for part in parts]
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] == 8 * shape.parameters  # loading is not sharded
    whole = part_of(alone, shape, Shards(2, whole=True), checkpointed=True)
    assert whole.peak == parts[0].peak + 4 * shape.parameters
    casts = [part_of(alone, shape, Shards(64), checkpointed=c, bfloat16=True).weights for c in (True, False)]
    assert casts[1] - casts[0] > shape.parameters  # copies in bfloat16 of all layers, or of those being computed


def test_tokens_of_a_step_are_those_of_the_plan() -> None:
    generate, aggregate = stages(Config(), prompt=10)
    assert generate.generated == 16 * 16 * 40
    assert aggregate.generated == 16 * 16 * 40
    assert aggregate.prompt == 10 + 4 * 40


def test_a_wrong_rate_is_refused() -> None:
    with pytest.raises(UsageError, match="flops"):
        estimate(Config(), bfloat16=False, cuda=False, rate=0)


def test_a_pass_takes_the_tokens_that_half_of_the_memory_holds() -> None:
    config = Config(model=ModelConfig(path="HuggingFaceTB/SmolLM2-135M-Instruct"))
    shape = shape_of(config.model)

    def chosen(free: float, cuda: bool = False) -> int:
        return budget(config, shape, free, bfloat16=False, cuda=cuda)

    assert (chosen(1e12), chosen(1e12, cuda=True)) == (MOST_TOKENS[False], MOST_TOKENS[True])
    sizes = [chosen(free) for free in (1e9, 8e9, 12e9, 20e9, 40e9)]
    assert sizes == sorted(sizes) and sizes[0] == 512 < sizes[2] < sizes[-1]
    assert budget(with_tokens(config, 777), shape, 1e9, bfloat16=False, cuda=False) == 777


def test_an_estimate_without_a_budget_is_that_of_the_largest_one() -> None:
    free, fixed = Config(), with_tokens(Config(), MOST_TOKENS[True])
    made = [estimate(c, bfloat16=True, cuda=True, rate=1e12) for c in (free, fixed)]
    assert made[0] == made[1]


LIMITS = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


@pytest.mark.parametrize("folder", LIMITS)
def test_free_memory_is_what_a_containers_limit_leaves(folder: str, tmp_path: Path) -> None:
    assert free_memory(tmp_path) > 0  # no control group: the machine's
    (tmp_path / folder).mkdir(exist_ok=True)
    limit, used = LIMITS[folder]
    for name, text in ((used, "700000"), ("memory.stat", "anon 5\ninactive_file 200000\n"), (limit, "1000000")):
        (tmp_path / folder / name).write_text(text)
    assert free_memory(tmp_path) == 500_000
    (tmp_path / folder / limit).write_text("max")
    assert free_memory(tmp_path) > 500_000
    (tmp_path / folder / limit).write_text("600000")
    (tmp_path / folder / "memory.stat").write_text("inactive_file 0\n")
    assert free_memory(tmp_path) == 0
