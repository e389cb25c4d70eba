"""The simulator's limits: what must hold whatever the efficiencies are. And what `paragator plan` refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from paragator.cli.main import run
from paragator.config import Config
from paragator.core.errors import ParagatorError, UsageError
from paragator.planning.assumptions import shape_with
from paragator.planning.estimate import pass_flops
from paragator.planning.hardware import PRESETS, Cost, Efficiency, assumed
from paragator.planning.lengths import Lengths
from paragator.planning.rollout_events import Batching, GroupRequest, Rollouts, roll_out
from paragator.planning.simulate import Cluster, Workload, groups_of, plan, updated
from paragator.settings import validate
from paragator.training.memory import HUB
from paragator.training.rows import first_fit

SMALL, MOE = HUB["Qwen/Qwen3-4B"], HUB["Qwen/Qwen3-235B-A22B"]
FREE = Efficiency(decode_s=0, row_s=0, prefill_s=0)
H100 = PRESETS["h100"]


def workload(tail: float = 0.0, *, mean: float = 500, **rollout: int) -> Workload:
    config = validate(
        Config,
        {
            "rollout": {"candidates": 8, "pool_size": 4, **rollout},
            "generate": {"max_tokens": 8192},
            "aggregate": {"max_tokens": 8192},
            "train": {"problems": 16, "batch_tokens": 16384},
            "model": {"gradient_checkpointing": True},
        },
    )
    return Workload(config, Lengths(100), Lengths(mean, tail), Lengths(mean, tail))


def test_two_updates_a_step_cost_twice_and_rollouts_as_before() -> None:
    once = workload()
    train = once.config.train.model_copy(update={"updates": 2})
    twice = replace(once, config=once.config.model_copy(update={"train": train}))
    cluster = Cluster(H100, gpus_train=8, gpus_rollout=8)
    one, two = (plan(work, SMALL, cluster, draws=2)["variants"][0] for work in (once, twice))
    assert two["seconds"]["update"] == pytest.approx(2 * one["seconds"]["update"])
    assert two["flop"]["update"] == 2 * one["flop"]["update"] and two["flop"]["rollout"] == one["flop"]["rollout"]
    assert two["seconds"]["generate"] == one["seconds"]["generate"]


def step(found: dict[str, Any], rollout: str, update: str) -> dict[str, float]:
    seconds: dict[str, float] = next(
        v["seconds"] for v in found["variants"] if (v["rollout"], v["update"]) == (rollout, update)
    )
    return seconds


def sampling(seconds: dict[str, float]) -> float:
    return seconds["generate"] + seconds["both"] + seconds["aggregate"]


def requests(lengths: Sequence[Sequence[int]], prompt: int = 50) -> list[GroupRequest]:
    return [GroupRequest(i, "generate", prompt, group) for i, group in enumerate(lengths)]


def rolled(
    first: list[GroupRequest], then: list[GroupRequest] | None = None, replicas: int = 1, **more: Any
) -> Rollouts:
    barrier = more.pop("barrier", False)
    return roll_out(first, then or [], Cost(SMALL, H100, FREE), Batching(**more), replicas, barrier=barrier)


# ---- decoding --------------------------------------------------------------------------------------------------------


def test_decoding_that_waits_for_memory_is_linear_in_bytes() -> None:
    cost = Cost(SMALL, H100, FREE)
    one, two, three = (cost.decode_step_s(1, tokens) for tokens in (0, 1e6, 2e6))
    assert one == pytest.approx(2 * SMALL.parameters / (3.35e12 * FREE.memory_share))
    assert three - two == pytest.approx(two - one)
    assert two - one == pytest.approx(1e6 * cost.kv_bytes / (3.35e12 * FREE.memory_share))
    assert Cost(SMALL, replace(H100, value_bytes=4), FREE).decode_step_s(1, 1e6) == pytest.approx(2 * two)


def test_many_rows_wait_for_arithmetic() -> None:
    rows = 10_000
    flop = pass_flops(SMALL, rows, 10, rows)
    expected = flop / (H100.flops_s * FREE.decode_share)
    assert Cost(SMALL, H100, FREE).decode_step_s(rows, 10 * rows) == pytest.approx(expected)


def test_experts_are_read_when_a_row_needs_them_and_computed_when_active() -> None:
    cost = Cost(MOE, H100, FREE)
    assert cost.weight_bytes(1) == pytest.approx(2 * MOE.active)
    assert cost.weight_bytes(10_000) == pytest.approx(2 * MOE.parameters)
    assert pass_flops(MOE, 1, 0) == 2 * MOE.active


def test_a_group_takes_one_prefill_and_a_step_for_each_further_token() -> None:
    cost = Cost(SMALL, H100, FREE)
    found = rolled(requests([[11]]))
    decode = sum(cost.decode_step_s(1, 50 + i) for i in range(10))
    assert found.seconds == pytest.approx(cost.prefill_flop(50) / cost.prefill_rate() + decode)


def test_an_arrival_does_not_change_what_the_decode_steps_before_it_cost() -> None:
    """A memory-bound step is linear in the cache, so the whole is the sum of its steps however it is cut."""
    late = [GroupRequest(0, "aggregate", 1, [1]), GroupRequest(1, "aggregate", 1, [1])]
    cut = rolled(requests([[100], [40]]), late)
    cost = Cost(SMALL, H100, FREE)
    prefills = (2 * cost.prefill_flop(50) + 2 * cost.prefill_flop(1)) / cost.prefill_rate()
    steps = sum(cost.decode_step_s(2, 100 + 2 * i) for i in range(39))
    steps += sum(cost.decode_step_s(1, 89 + i) for i in range(60))
    assert cut.seconds == pytest.approx(prefills + steps, rel=1e-6)


# ---- conservation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rows": 3}, {"capacity": 900}, {"continuous": False}, {"leave_at": 0.5}])
@pytest.mark.parametrize("barrier", [True, False])
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_token_is_sampled_once(options: dict[str, Any], barrier: bool, replicas: int) -> None:
    rng = Random(1)
    lengths = [[rng.randint(1, 200) for _ in range(4)] for _ in range(9)]
    then = [GroupRequest(i, "aggregate", 300, list(reversed(group))) for i, group in enumerate(lengths)]
    found = rolled(requests(lengths), then, replicas, barrier=barrier, **options)
    assert found.generated == 2 * sum(map(sum, lengths))
    assert found.prefilled == 9 * (50 + 300)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert max(found.ends) == found.seconds and min(found.ends) > 0
    assert found.busy_s <= replicas * found.seconds * (1 + 1e-9)
    assert ("both" in found.parts) <= (not barrier)


def test_without_a_prefix_cache_siblings_read_their_prompts_anew() -> None:
    assert rolled(requests([[5] * 8]), shared=False).prefilled == 8 * 50


def test_the_update_trains_on_the_tokens_that_were_sampled() -> None:
    work, cluster = workload(0.8), Cluster(H100, gpus_train=8)
    groups = groups_of(work, Random(0))
    sampled = sum(sum(r.lengths) for pair in groups for r in pair if r)
    prompts = sum(r.prompt for pair in groups for r in pair if r)
    packed, padded = (updated(work, groups, SMALL, cluster, p) for p in (True, False))
    assert packed.predicted == padded.predicted == sampled
    assert padded.tokens == sampled + 8 * prompts
    assert sampled + prompts <= packed.tokens <= padded.tokens


def test_rows_are_those_of_the_packer() -> None:
    rng = Random(3)
    sizes = [rng.randint(1, 130) for _ in range(200)]
    bins = first_fit(sizes, 100)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(200))
    assert all(sum(sizes[i] for i in bin_) <= 100 or len(bin_) == 1 for bin_ in bins)


# ---- the four variants -----------------------------------------------------------------------------------------------


def test_without_a_tail_pipelining_gains_nothing() -> None:
    found = plan(workload(), SMALL, Cluster(H100, gpus_train=8, gpus_rollout=8))
    barrier, pipelined = (sampling(step(found, name, "packed")) for name in ("barrier", "pipelined"))
    assert pipelined == pytest.approx(barrier, rel=0.01)


def test_with_a_tail_and_room_for_all_rows_pipelining_gains() -> None:
    found = plan(workload(1.2), SMALL, Cluster(H100, gpus_train=8, gpus_rollout=8), draws=5)
    assert sampling(step(found, "pipelined", "packed")) < 0.95 * sampling(step(found, "barrier", "packed"))


@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("m", [1, 4, 8])
def test_packed_is_never_slower_than_padded(tail: float, m: int) -> None:
    found = plan(workload(tail, pool_size=m), SMALL, Cluster(H100, gpus_train=4))
    assert step(found, "barrier", "packed")["update"] <= step(found, "barrier", "padded")["update"]


def test_more_gpus_are_never_slower() -> None:
    seconds = [
        step(plan(workload(0.5), SMALL, Cluster(H100, gpus_train=n, gpus_rollout=n)), "barrier", "packed")
        for n in (1, 2, 4, 8)
    ]
    for part in ("generate", "aggregate", "update", "step"):
        assert [s[part] for s in seconds] == sorted((s[part] for s in seconds), reverse=True), part


def test_a_plan_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    cluster = Cluster(H100, gpus_train=4)
    one, same, other = (plan(workload(0.5), SMALL, cluster, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_cost_is_hours_times_gpus_times_price() -> None:
    found = plan(workload(), SMALL, Cluster(H100, gpus_train=2, gpus_rollout=2), price=3.0)
    for variant in found["variants"]:
        assert variant["cost"] == pytest.approx(3 * 4 * variant["hours"])
        assert variant["hours"] == pytest.approx(variant["seconds"]["step"] * found["steps"] / 3600)
        assert 0 <= variant["idle_s"] < variant["seconds"]["step"]


def test_one_step_ahead_takes_the_longer_half_where_it_has_gpus_of_its_own() -> None:
    work = workload(0.5)
    ahead = replace(work, config=validate(Config, {**work.config.model_dump(), "train": {"ahead": 1, "steps": 10}}))
    for variant in plan(work, SMALL, Cluster(H100, gpus_train=2, gpus_rollout=2))["variants"]:
        seconds = variant["seconds"]
        halves = sampling(seconds) + seconds["grade"], seconds["update"]
        assert max(halves) - 1e-9 <= variant["ahead"]["step"] - seconds["publish"] < sum(halves)
        worked = seconds["step"] - variant["idle_s"]
        assert 0 <= variant["ahead"]["idle_s"] == pytest.approx(variant["ahead"]["step"] - worked)
    for variant in plan(work, SMALL, Cluster(H100, gpus_train=4))["variants"]:
        assert variant["ahead"] == {"step": variant["seconds"]["step"], "idle_s": variant["idle_s"]}
    found = plan(ahead, SMALL, Cluster(H100, gpus_train=2, gpus_rollout=2))
    assert all(v["hours"] == pytest.approx(10 * v["ahead"]["step"] / 3600) for v in found["variants"])


def test_groups_without_signal_cost_no_update() -> None:
    found = plan(replace(workload(), signal={"generate": 0.0, "aggregate": 0.0}), SMALL, Cluster(H100, gpus_train=4))
    assert found["tokens_per_step"]["trained"] == 0


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0])
def test_a_lognormal_has_the_mean_that_was_asked_for(sigma: float) -> None:
    lengths, rng = Lengths.parse(f"lognormal:1000:{sigma}", "solution"), Random(0)
    assert sum(lengths.draw(rng) for _ in range(20_000)) / 20_000 == pytest.approx(1000, rel=0.05)


def test_lengths_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl"
    path.write_text('12\n{"tokens": 20}\n\n')
    assert Lengths.parse(str(path), "solution").observed == (12, 20)


@pytest.mark.parametrize(("params", "active"), [(1e9, None), (7e9, None), (70e9, None), (30e9, 3e9), (1e12, 32e9)])
def test_a_shape_has_about_the_parameters_asked_for(params: float, active: float | None) -> None:
    shape = shape_with(params, active)
    assert shape.parameters == pytest.approx(params, rel=0.02)
    assert shape.active == pytest.approx(active or params, rel=0.02)


def test_an_assumption_replaces_a_figure() -> None:
    hardware, efficiency = assumed(H100, Efficiency(), ["flops_s=5e14", "update_share=0.5"])
    assert (hardware.flops_s, efficiency.update_share, efficiency.decode_s) == (5e14, 0.5, Efficiency().decode_s)


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["plan", "--preset", "cpu", "--gpus-train", "1", "--price", "0.1", "--plot", str(tmp_path / "plan.png")]
    assert run(words) == 0
    assert "whole step, s" in capsys.readouterr().out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["variants"]) == 4 and found["assumed"]["update_share"] == Efficiency().update_share


REFUSED = {
    "--gpus-train 0": ["--gpus-train 0", "at least 1"],
    "--gpus-rollout 6 --rollout-parallel 4": ["--rollout-parallel 4", "does not divide the 6"],
    "--train-parallel 3": ["--train-parallel 3", "does not divide the 8"],
    "--solution long": ["--solution long", "lognormal:MEAN:SIGMA"],
    "--solution lognormal:100": ["--solution lognormal:100"],
    "--solution lognormal:100:9": ["sigma 0 to 3"],
    "--problem 0": ["--problem 0"],
    "--aggregation none.jsonl": ["none.jsonl", "No such file"],
    "--aggregation bad.jsonl": ["bad.jsonl:2", "write a number of tokens"],
    "--aggregation empty.jsonl": ["empty.jsonl holds no lengths"],
    "--assume speed=2": ["'speed' is not known", "flops_s"],
    "--assume update_share=2": ["update_share is a number from"],
    "--assume flops_s=fast": ["flops_s is a number from"],
    "--params 1e9 --model embedded": ["give one of them"],
    "--params 5": ["--params 5", "1e8 <= active"],
    "--active 1e9": ["--active", "--params"],
    "--model some/model": ["sizes known are"],
    "--model Qwen/Qwen3-235B-A22B --gpus-rollout 8": ["raise --rollout-parallel"],
    "--preset b9": ["invalid choice"],
    "--draws 0": ["--draws 0"],
    "--rows 0": ["--rows 0"],
    "--shown 2": ["--shown 2"],
    "--price -1": ["--price -1"],
    "--rollout.pool_size 99": ["rollout.pool_size = 99"],
    "--plot nowhere/x.png": ["--plot nowhere/x.png"],
}


@pytest.mark.parametrize(("line", "wanted"), REFUSED.items(), ids=REFUSED)
def test_wrong_inputs_are_refused(
    line: str, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("5\nfive\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ParagatorError) as caught:
        run(["plan", *line.split()])
    assert isinstance(caught.value, UsageError) or caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    for part in wanted:
        assert part in str(caught.value)
