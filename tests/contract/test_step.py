"""One training step: what becomes of a graded trace, what each config key changes, and that only sampled ids are trained on."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from paragator.config import Config
from paragator.core import credit
from paragator.core.errors import RunError, UsageError
from paragator.core.methods import METHODS, OF_POOLS, Method
from paragator.core.packing import Packer
from paragator.core.types import UNREAD, Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.engines.local.loading import add_lora
from paragator.grading.decide import decide
from paragator.records import Graded
from paragator.settings import load
from paragator.tasks import Task
from paragator.training import balance, checkpoint, packed
from paragator.training import policy as policy_module
from paragator.training.credited import constant, credited, overlong
from paragator.training.loop import choose, further
from paragator.training.policy import Policy, as_begun
from paragator.training.recipe import Crediting, Recipe, Schedule
from paragator.training.rows import Branch, Tree, pack
from paragator.training.step import Step, step
from paragator.training.telemetry import Timeline
from toys import padded_log_probs

BASE = (
    "--rollout.candidates=4", "--rollout.pool_size=2", "--method.k=2", "--train.precision=float32",
    "--generate.max_tokens=12", "--aggregate.max_tokens=12", "--optimizer.warmup_steps=0", "--optimizer.lr=0.01",
)  # fmt: skip


def configured(*overrides: str) -> Config:
    return load(Config, None, [*BASE, *overrides])


def output(index: int, finish: Any = "stop") -> Completion:
    return Completion(f"w{index}", finish, (4 + index, 2), (-1.0 - index, -0.5))


def group(outputs: tuple[Any, ...], stage: Any = "generate", pool: tuple[int, ...] = ()) -> Group:
    return Group(Prompt("w0"), outputs, (1, 4, 5), stage, pool)


def graded(rewards: list[list[float | None]], finish: Any = "stop") -> Graded:
    """A trace of one or two rounds with these rewards (None: unscored); the first output of each round ends by `finish`."""
    groups = [
        group(tuple(output(i, finish if i == 0 else "stop") for i in range(len(row))), stage)
        for row, stage in zip(rewards, ("generate", "aggregate"), strict=False)
    ]
    grades = [
        tuple(Grade("unscored") if r is None else Grade("correct" if r == 1 else "incorrect", value=r) for r in row)
        for row in rewards
    ]
    trace = Trace(Problem("p", "w0"), Plan.training(4, 2), 0, tuple((g,) for g in groups))
    return Graded(trace, tuple((g,) for g in grades))


MIXED = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]


def crediting(config: Config, name: str | None = None) -> Crediting:
    """How a config credits, by another method than its own where one is named."""
    made = Crediting.from_config(config)
    return replace(made, method=METHODS[name]) if name else made


def credits(record: Graded, config: Config, name: str | None = None) -> dict[str, list[float]]:
    """Each stage's credit, the constant taken out again."""
    how = crediting(config, name)
    return {t.stage: [b.credit / constant(t.stage, how, 1) for b in t.branches] for t in credited(record, how, 1)}


# ---- credited: from a record to trees --------------------------------------------------------------------------------


def test_trees_hold_the_ids_and_log_probs_as_sampled() -> None:
    trees = credited(graded(MIXED), crediting(configured(), "paragator"), 1)
    assert [t.stage for t in trees] == ["generate", "aggregate"]
    for tree in trees:
        assert tree.prompt_ids == (1, 4, 5)
        assert [(b.token_ids, b.logprobs) for b in tree.branches] == [
            ((4 + i, 2), (-1.0 - i, -0.5)) for i in range(len(tree.branches))
        ]


def test_credit_is_the_scheme_times_weight_and_constant() -> None:
    config = configured()
    found = credits(graded(MIXED), config)
    assert found["generate"] == pytest.approx([0.5, -1 / 6, -1 / 6, -1 / 6])  # N = 4, k = 2, n = 3
    assert found["aggregate"] == pytest.approx([0.5, 0.5, -0.5, -0.5])
    assert constant("generate", crediting(config), 3) == pytest.approx(1 / (12 * 3 * 4))


@pytest.mark.parametrize(("stage", "other"), [("generate", "aggregate"), ("aggregate", "generate")])
def test_a_stage_weight_scales_its_stage_alone(stage: str, other: str) -> None:
    before, after = credits(graded(MIXED), configured()), credits(graded(MIXED), configured(f"--{stage}.weight=3"))
    assert after[stage] == pytest.approx([3 * c for c in before[stage]])
    assert after[other] == before[other]


def test_a_weight_of_0_leaves_the_stage_out() -> None:
    assert set(credits(graded(MIXED), configured("--generate.weight=0"))) == {"aggregate"}


@pytest.mark.parametrize("flip", ["--method.k=3", "--method.mean=reward", "--method.scale=std"])
def test_k_mean_and_scale_change_the_generators_credit(flip: str) -> None:
    record = graded([[1.0, 0.0, 0.0, 0.0], MIXED[1]])
    assert credits(record, configured(flip))["generate"] != credits(record, configured())["generate"]


def test_scale_changes_the_aggregators_credit_k_and_mean_do_not() -> None:
    def aggregators(*flips: str) -> list[float]:
        return credits(graded(MIXED), configured(*flips))["aggregate"]

    assert aggregators("--method.k=3", "--method.mean=reward") == aggregators()
    assert aggregators("--method.scale=std") == pytest.approx([1, 1, -1, -1])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].generate not in OF_POOLS])  # these: below
def test_a_method_trains_its_stages_and_no_other(name: str) -> None:
    method = METHODS[name]
    wanted = {s for s in ("generate", "aggregate") if method.scheme(s, last=method.rounds == 1)}  # type: ignore[arg-type]
    assert set(credits(graded(MIXED), configured(), name)) == wanted


def several(pools: list[tuple[int, ...]], rewards: list[list[float | None]], first: list[float | None]) -> Graded:
    """Candidates with rewards `first`, the second one failed, and a round of several pools."""
    failed = (output(0), Failure("gone"), *(output(i) for i in range(2, len(first) + 1)))
    groups = [
        group(tuple(output(i) for i in range(len(row))), "aggregate", pool)
        for pool, row in zip(pools, rewards, strict=True)
    ]
    marks = [Grade("unscored") if r is None else Grade("correct" if r == 1 else "incorrect", value=r) for r in first]
    grades = tuple(tuple(Grade("incorrect", value=r) for r in row) for row in rewards)
    trace = Trace(Problem("p", "w0"), Plan.training(4, 2, 2), 0, ((group(failed),), tuple(groups)))
    return Graded(trace, (((marks[0], None, *marks[1:]),), grades))


def test_outcome_credit_is_what_aggregations_made_of_a_candidate() -> None:
    """Pools index the candidates that did not fail: here the first, third and fourth output."""
    record = several([(0, 1), (0, 2)], [[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0, 1.0])
    found = credits(record, configured("--rollout.pools=2"), "paragator_outcome")["generate"]
    assert found == pytest.approx([0.25, -0.25])  # the first, 0.75, is what they are on average
    same = several([(0, 1), (0, 1)], [[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0, 1.0])
    assert "generate" not in credits(same, configured("--rollout.pools=2"), "paragator_outcome")


def test_spiral_credit_is_what_the_pools_that_hold_a_candidate_gain() -> None:
    record = several([(0, 1), (0, 2)], [[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0, 1.0])
    found = credits(record, configured("--rollout.pools=2"), "spiral")["generate"]
    assert found == pytest.approx([0.25, -0.25])  # the first is in both pools: it tells nothing
    unscored = several([(0, 1), (1, 2)], [[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0, None])
    assert credits(unscored, configured("--rollout.pools=2"), "spiral")["generate"] == pytest.approx([0.25])


def test_an_aggregation_that_others_will_see_has_a_candidates_credit() -> None:
    """Two rounds: the first is credited by pass@k, the last by pass@1."""
    record = graded(MIXED)
    rounds = (*record.trace.rounds, record.trace.rounds[1])
    record = Graded(replace(record.trace, rounds=rounds), (*record.grades, record.grades[1]))
    trees = credited(record, crediting(configured("--method.k=2"), "paragator_rounds"), 1)
    found = [[b.credit / constant(t.stage, crediting(configured()), 1) for b in t.branches] for t in trees]
    assert found[1] == pytest.approx(credit.pass_at_k([1.0, 1.0, 0.0, 0.0], 2))
    assert found[2] == pytest.approx([0.5, 0.5, -0.5, -0.5])


def test_truncated_rollouts_are_masked_dropped_or_wrong() -> None:
    """A truncated right one among three: mask keeps its reward in the mean, drop does not, wrong makes it a 0."""
    record = graded([[1.0, 1.0, 0.0, 0.0]], finish="length")

    def pass_at_1(policy: str) -> list[float]:
        return credits(record, configured(f"--train.truncated={policy}"), "dr_grpo")["generate"]

    assert pass_at_1("mask") == pytest.approx([0.5, -0.5, -0.5])
    assert pass_at_1("drop") == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert pass_at_1("wrong") == pytest.approx([-0.25, 0.75, -0.25, -0.25])


def test_length_costs_reward_in_its_last_share() -> None:
    """DAPO's equation 13 (arXiv 2503.14476): nothing up to L - C, a line down to -1 at L; where the rollout counts at all."""
    for most, cache in ((12, 3), (100, 20)):
        for length in range(1, most + 1):
            ids = tuple(range(length))
            cost = overlong(Completion("w", "stop", ids, (-1.0,) * length), most, cache / most)
            expected = 0.0 if length <= most - cache else (most - cache - length) / cache
            assert -cost == pytest.approx(expected, abs=1e-12)
    record = graded([[1.0, 0.0, 0.0, 0.0]])
    long = Completion("w", "stop", tuple(range(12)), (-1.0,) * 12)
    changed = replace(record.trace.rounds[0][0], outputs=(long, *record.trace.rounds[0][0].outputs[1:]))
    record = Graded(replace(record.trace, rounds=((changed,),)), record.grades)
    assert credits(record, configured())["generate"][0] == pytest.approx(0.5)
    config = configured("--train.soft_length=0.25", "--method.name=dr_grpo")
    assert not credits(record, config) and credits(
        record, configured("--method.name=dr_grpo")
    )  # 1 - 1 is no better than 0
    dropped = configured("--train.soft_length=0.25", "--train.truncated=drop", "--method.name=dr_grpo")
    assert not credits(graded([[1.0, 0.0, 0.0, 0.0]], "length"), dropped)
    with pytest.raises(UsageError, match=r"train.soft_length = 0.25 makes rewards negative, and max_rl divides"):
        configured("--train.soft_length=0.25", "--method.name=max_rl")


def test_unscored_and_failed_rollouts_leave_the_group() -> None:
    record = graded([[None, 1.0, 0.0, 0.0]])
    assert credits(record, configured(), "dr_grpo")["generate"] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    failed = group((Failure("gone"), output(1), output(2)))
    trace = replace(record.trace, rounds=((failed,),))
    lost = Graded(trace, (((None, Grade("correct"), Grade("incorrect")),),))
    assert credits(lost, configured(), "dr_grpo")["generate"] == pytest.approx([0.5, -0.5])


def unread_first(reason: str, rest: list[Grade]) -> Graded:
    """A candidate without a verdict for this reason, then others."""
    outputs = group(tuple(output(i) for i in range(1 + len(rest))))
    trace = Trace(Problem("p", ""), Plan.sampling(1 + len(rest)), 0, ((outputs,),))
    return Graded(trace, (((Grade("unscored", reason=reason), *rest),),))


def test_an_answer_that_is_not_read_is_wrong_in_training_unless_dropped() -> None:
    """The grader's own verdict on unknown notation: as wrong as the two others, or out of the group."""
    reason = decide(r"\boxed{\mystery{7}}", "7 + x").reason
    record = unread_first(reason, [Grade("correct"), Grade("incorrect"), Grade("incorrect")])
    found = credits(record, configured(), "dr_grpo")["generate"]
    assert found == pytest.approx([-0.25, 0.75, -0.25, -0.25])
    dropped = credits(record, configured("--train.unreadable=drop"), "dr_grpo")["generate"]
    assert dropped == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    alone = unread_first(reason, [Grade("correct"), Grade("correct"), Grade("correct")])
    assert credits(alone, configured(), "dr_grpo")["generate"] == pytest.approx([-0.75, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    "reason",
    ["", "timeout after 5 s", "judge m failed: 503", "unsure: the reference is not read", "the reference is empty"],
)
def test_what_the_policy_did_not_cause_leaves_the_group(reason: str) -> None:
    record = unread_first(reason, [Grade("correct"), Grade("incorrect"), Grade("incorrect")])
    assert credits(record, configured(), "dr_grpo")["generate"] == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_an_unread_aggregation_is_a_wrong_one_for_the_candidates_that_it_was_shown() -> None:
    grades = ((Grade("correct"), Grade("incorrect")), (Grade("unscored", reason=UNREAD), Grade("correct")))
    rounds = (group((output(0), output(1))),), tuple(group((output(i),), "aggregate", (i,)) for i in (0, 1))
    record = Graded(
        Trace(Problem("p", ""), Plan(2, 1, 1, 2, 2), 0, rounds), ((grades[0],), tuple((g,) for g in grades[1]))
    )
    found = credits(record, configured("--rollout.pools=2"), "paragator_outcome")["generate"]
    assert found == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("rewards", [[0.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, 0.0], [None] * 4])
def test_dead_groups_give_no_tree(rewards: list[float | None]) -> None:
    """All wrong, all right, fewer wrong ones than k, nothing scored."""
    assert credited(graded([rewards]), crediting(configured(), "paragator"), 1) == []


def test_with_a_kl_dead_groups_are_kept_for_it() -> None:
    found = credits(graded([[0.0] * 4]), configured("--train.kl=0.1"))
    assert found["generate"] == [0.0] * 4


def test_outputs_without_ids_are_not_trained_on() -> None:
    bare = group((Completion("a"), Completion("b")))
    record = Graded(
        Trace(Problem("p", ""), Plan.sampling(2), 0, ((bare,),)), (((Grade("correct"), Grade("incorrect")),),)
    )
    assert credited(record, crediting(configured(), "dr_grpo"), 1) == []


def test_more_steps_change_nothing_of_those_before() -> None:
    """The first pass is in the task's order, so a run that is made longer has not seen what follows."""
    problems = [Problem(f"p{i}", "") for i in range(12)]
    schedule = Schedule(steps=8, problems=3, checkpoint_every=20, seed=0)
    taken = [[p.id for p in choose(problems[:n], step, schedule)] for n in (6, 12) for step in (1, 2)]
    assert taken[:2] == taken[2:] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]
    again = [p.id for step in (5, 6, 7, 8) for p in choose(problems, step, schedule)]
    assert sorted(again) == sorted(p.id for p in problems) and again != [p.id for p in problems]


# ---- the policy ------------------------------------------------------------------------------------------------------

CONSTANTS = {"generate": 0.1, "aggregate": 0.1}
TREES = [Tree("generate", (1, 4, 5), (Branch((6, 7, 2), (-1.0,) * 3, 0.3), Branch((8, 2), (-1.0,) * 2, -0.3)))]


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.raw.named_parameters()}


def test_a_batch_without_signal_changes_nothing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = Policy.from_config(model, tokenizer, configured("--optimizer.weight_decay=0.1"))
    policy.update(TREES, 1, CONSTANTS)
    before, moments = weights(policy), str(policy.optimizer.state_dict())
    assert policy.update([], 2, CONSTANTS)["updated"] == 0
    assert all(torch.equal(before[n], p) for n, p in policy.raw.named_parameters())
    assert str(policy.optimizer.state_dict()) == moments


def test_a_batch_with_signal_moves_the_policy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = Policy.from_config(model, tokenizer, configured())
    before = weights(policy)
    stats = policy.update(TREES, 1, CONSTANTS)
    assert stats["updated"] == 1 and stats["grad_norm"] > 0 and stats["ratio"] == pytest.approx(1)
    assert any(not torch.equal(before[n], p) for n, p in policy.raw.named_parameters())


@pytest.mark.parametrize("ratio", ["token", "sequence", "cispo"])
def test_a_second_update_is_clipped_against_the_policy_before_the_first(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ratio: str
) -> None:
    """Two updates on one batch are one update, and one by hand whose ratio is taken to where that began."""
    settings = (
        "--train.clip_low=0.05",
        "--train.clip_high=0.01",
        "--optimizer.max_grad_norm=100",
        f"--train.ratio={ratio}",
    )
    by_hand = Policy.from_config(copy.deepcopy(model), tokenizer, configured(*settings))
    twice = Policy.from_config(model, tokenizer, configured(*settings, "--train.updates=2"))
    (row,) = pack(TREES, 4096)
    batch = packed.collate(row)
    old = packed.log_probs(by_hand.model, batch, {"generate": 1.0, "aggregate": 1.0}).detach()
    first = by_hand.update(TREES, 1, CONSTANTS)
    value, stats, _ = by_hand.loss(batch, CONSTANTS, old)
    value.backward()
    by_hand.optimizer.step()
    found = twice.update(TREES, 1, CONSTANTS)
    assert all(torch.equal(p, weights(by_hand)[n]) for n, p in weights(twice).items())
    assert twice.updates == 2 and found["clipped"] == stats["clipped"] > 0 and found["ratio"] == stats["ratio"] != 1
    assert found["loss"] == first["loss"] and found["mismatch_kl"] == first["mismatch_kl"]


BOTH = [*TREES, Tree("aggregate", (1, 5), (Branch((9, 4, 2), (-1.0,) * 3, 0.2), Branch((3, 2), (-1.0,) * 2, -0.1)))]
MEASURED = ("--stages.balance=gradient", "--stages.measure_every=2", "--stages.ratio=3")


def test_gradients_of_the_stages_are_measured_and_balanced(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Norms and cosines are those of torch's own gradients; nothing moves until the update, which is by the stated ratio."""
    policy = Policy.from_config(model, tokenizer, configured(*MEASURED, "--train.kl=0.1"))

    def by_hand(trees: list[Tree]) -> torch.Tensor:
        logs = padded_log_probs(policy.model, trees)
        credit = torch.tensor([b.credit for t in trees for b in t.branches for _ in b.token_ids])
        found = torch.autograd.grad(-(logs * credit).sum(), list(policy.tensors().values()))
        return torch.cat([part.flatten() for part in found])

    other = [replace(TREES[0], branches=(TREES[0].branches[0], replace(TREES[0].branches[1], credit=0.4)))]
    first, second, third = (by_hand(trees) for trees in (TREES, BOTH[1:], other))
    before = weights(policy)
    found = policy.measure(BOTH, other)
    assert all(torch.equal(before[n], p) for n, p in policy.raw.named_parameters())
    assert all(p.grad is None for p in policy.raw.parameters())
    cosine = torch.nn.functional.cosine_similarity
    assert found == pytest.approx(
        {
            "generate/grad_norm": float(first.norm()),
            "aggregate/grad_norm": float(second.norm()),
            "stage_cosine": float(cosine(first, second, dim=0)),
            "generate/credit_cosine": float(cosine(first, third, dim=0)),
        },
        rel=1e-4,
    )
    factor = 3 * float(second.norm() / first.norm())
    assert policy.factor == pytest.approx(factor, rel=1e-4)
    plain = Policy.from_config(copy.deepcopy(model), tokenizer, configured("--train.kl=0.1"))
    stronger = [replace(b, credit=b.credit * policy.factor) for b in TREES[0].branches]  # type: ignore[operator]
    plain.update([replace(TREES[0], branches=tuple(stronger)), BOTH[1]], 1, CONSTANTS)
    assert policy.update(BOTH, 1, CONSTANTS)["balance"] == policy.factor
    assert all(torch.equal(p, weights(plain)[n]) for n, p in weights(policy).items())
    policy.save(tmp_path / "step_1", {"step": 1})
    again = Policy.from_config(copy.deepcopy(model), tokenizer, configured(*MEASURED, "--train.kl=0.1"))
    again.restore(tmp_path / "step_1")
    assert again.factor == policy.factor


def test_a_factor_is_smoothed_and_needs_both_stages() -> None:
    norms = {"generate/grad_norm": 2.0, "aggregate/grad_norm": 8.0}
    assert balance.factor(None, norms, 1.0) == 4.0 and balance.factor(None, {"generate/grad_norm": 2.0}, 1.0) is None
    assert balance.factor(4.0, norms | {"generate/grad_norm": 0.5}, 1.0) == pytest.approx(4 * 4**0.3)
    assert balance.factor(4.0, norms | {"aggregate/grad_norm": 0.0}, 1.0) == 4.0
    assert balance.compared(lambda trees: [None], [], TREES) == {}


def lora(model: LlamaForCausalLM) -> Any:
    pytest.importorskip("peft")
    return add_lora(model, 2)


@pytest.mark.parametrize("seed", [*range(8), -1, 2**70])
def test_adapters_are_drawn_from_the_seed_alone(model: LlamaForCausalLM, seed: int) -> None:
    """The same ones whatever was drawn before, others for another seed; the process's own draws are left alone."""
    pytest.importorskip("peft")

    def adapters(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)
        expected = torch.rand(4)
        torch.manual_seed(before)
        found = add_lora(copy.deepcopy(model), 2, seed)
        assert torch.equal(torch.rand(4), expected)
        return {name: p for name, p in found.named_parameters() if "lora_A" in name}

    first, again, other = adapters(seed, 1), adapters(seed, 2), adapters(seed + 1, 1)
    assert first and all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_update_in_bfloat16(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, many: bool, rank: int
) -> None:
    """Under Accelerate's autocast, which also wraps the model's forward; with all logits at once, and in chunks.

    Under adapters the frozen weights are in bfloat16 themselves.
    """
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 2 if many else 2**26)
    policy = Policy.from_config(
        lora(model) if rank else model, tokenizer, configured("--train.precision=bfloat16", f"--model.lora_rank={rank}")
    )
    tree = Tree("generate", (4, 5), (Branch((6, 7), (-1.0, -1.0), 1.0), Branch((7,), (-1.0,), -1.0)))
    assert policy.update([tree], 1, {"generate": 0.1})["grad_norm"] > 0
    with policy.accelerator.autocast():
        assert packed.has_plain_head(policy.model)


def test_frozen_weights_are_kept_in_the_type_they_are_multiplied_in(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under adapters and bfloat16: the same update, and a plain float32 model at the end."""
    settings = configured("--train.precision=bfloat16", "--model.lora_rank=2")
    found = []
    for cast in (policy_module.cast_frozen, lambda model: None):
        monkeypatch.setattr(policy_module, "cast_frozen", cast)
        policy = Policy.from_config(lora(copy.deepcopy(model)), tokenizer, settings)
        policy.update(TREES, 1, CONSTANTS)
        stats = policy.update(TREES, 2, CONSTANTS)
        found.append((stats, policy.tensors()))
        types = {p.dtype for name, p in policy.raw.named_parameters() if "_proj.base_layer" in name}
        assert types == {torch.bfloat16 if len(found) == 1 else torch.float32}
        policy.export(tmp_path / str(len(found)))
    assert found[0][0] == found[1][0] and all(torch.equal(p, found[1][1][n]) for n, p in found[0][1].items())
    first, second = (LlamaForCausalLM.from_pretrained(tmp_path / name) for name in "12")
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    apart = max(float((p - q).abs().max()) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert 0 < apart < 0.01  # what bfloat16 keeps of a weight


@pytest.mark.parametrize("flags", [[], ["--train.precision=float32"]])
def test_a_precision_that_was_chosen_is_kept(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, flags: list[str]
) -> None:
    Policy.from_config(model, tokenizer, configured("--train.precision=bfloat16")).save(
        tmp_path / "checkpoints" / "step_3", {"step": 3}
    )
    assert as_begun(configured("--train.precision=auto", *flags), tmp_path).train.precision == (
        "float32" if flags else "bfloat16"
    )
    assert as_begun(configured("--train.precision=auto"), tmp_path / "another").train.precision == "auto"


@pytest.mark.parametrize("adapters", [False, True], ids=["frozen copy", "adapters off"])
def test_kl_is_0_at_the_start_and_grows_as_the_policy_moves(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adapters: bool
) -> None:
    policy = Policy.from_config(lora(model) if adapters else model, tokenizer, configured("--train.kl=0.5"))
    assert (policy.reference is None) is adapters
    assert policy.update(TREES, 1, CONSTANTS)["kl"] == pytest.approx(0, abs=1e-10)
    moved = policy.update(TREES, 2, CONSTANTS)
    assert moved["kl"] > 1e-5
    again = Policy.from_config(policy.raw, tokenizer, configured("--train.kl=0"))
    without = again.update(TREES, 3, CONSTANTS)
    assert without["kl"] == 0


def test_the_kl_enters_the_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Without credit the loss is the KL alone, and descending it brings the policy back."""
    policy = Policy.from_config(model, tokenizer, configured("--train.kl=1", "--optimizer.lr=0.003"))
    for number in (1, 2, 3):
        policy.update(TREES, number, CONSTANTS)
    idle = [replace(t, branches=tuple(replace(b, credit=0.0) for b in t.branches)) for t in TREES]
    losses = [policy.update(idle, number, CONSTANTS)["loss"] for number in range(4, 24)]
    assert losses[0] > 0
    assert losses[-1] < losses[0]


def test_adapters_off_is_the_base_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([[1, 4, 5, 6]])
    base = model(ids).logits.detach().clone()
    policy = Policy.from_config(lora(model), tokenizer, configured("--train.kl=0.1", "--model.lora_rank=2"))
    policy.update(TREES, 1, CONSTANTS)
    policy.update(TREES, 2, CONSTANTS)
    with torch.no_grad():
        assert not torch.allclose(policy.raw(ids).logits, base)
        with policy.raw.disable_adapter():
            assert torch.equal(policy.raw(ids).logits, base)
    assert all("lora" in name for name in policy.tensors())


def test_a_checkpoint_restores_weights_and_moments(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy = Policy.from_config(model, tokenizer, configured())
    policy.update(TREES, 1, CONSTANTS)
    policy.save(tmp_path / "step_1", {"step": 1})
    policy.update(TREES, 2, CONSTANTS)
    wanted = weights(policy)
    assert policy.restore(tmp_path / "step_1")["step"] == 1
    policy.update(TREES, 2, CONSTANTS)
    assert all(torch.equal(wanted[n], p) for n, p in policy.raw.named_parameters())


def with_biases() -> Any:
    """A model with biases, norms with biases, and learned positions."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 40}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


@pytest.mark.parametrize("kind", ["norms", "biases", "adapters"])
def test_weight_decay_shrinks_matrices_and_nothing_else(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    """AdamW's decay is apart from its step: a matrix ends lr x decay x weight below what it does without."""
    made = {
        "norms": lambda: copy.deepcopy(model),
        "biases": with_biases,
        "adapters": lambda: lora(copy.deepcopy(model)),
    }
    lr, decay = 0.01, 0.5
    before, plain, shrunk = (
        Policy.from_config(made[kind](), tokenizer, configured(f"--optimizer.weight_decay={x}", f"--optimizer.lr={lr}"))
        for x in (0, 0, decay)
    )
    for policy in (plain, shrunk):
        policy.update(TREES, 1, CONSTANTS)
    old, without, found = before.tensors(), plain.tensors(), shrunk.tensors()
    assert kind == "adapters" or any(p.ndim == 1 for p in found.values())
    for name, p in found.items():
        expected = without[name] - (lr * decay * old[name] if p.ndim >= 2 else 0)
        assert torch.equal(p, expected) if p.ndim < 2 else torch.allclose(p, expected, atol=1e-6), name


def test_without_weight_decay_the_optimiser_is_the_plain_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """One group in the model's order, as torch makes it of the parameters alone: every digit stays."""
    policy = Policy.from_config(model, tokenizer, configured())
    (group,) = policy.optimizer.param_groups
    plain = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    assert {k: v for k, v in group.items() if k != "params"} == {
        k: v for k, v in plain.param_groups[0].items() if k != "params"
    }
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", ["norms", "biases", "adapters"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_moments_find_their_parameters_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str, decay: float
) -> None:
    """In a new policy, whatever the groups: the next update is the one that an undisturbed policy makes, bit for bit."""
    made = {
        "norms": lambda: copy.deepcopy(model),
        "biases": with_biases,
        "adapters": lambda: lora(copy.deepcopy(model)),
    }
    config = configured(f"--optimizer.weight_decay={decay}")
    first, second = (Policy.from_config(made[kind](), tokenizer, config) for _ in range(2))
    first.update(TREES, 1, CONSTANTS)
    first.save(tmp_path / "step_1", {"step": 1})
    second.restore(tmp_path / "step_1")
    for policy in (first, second):
        policy.update(TREES, 2, CONSTANTS)
    again = second.tensors()
    assert all(torch.equal(p, again[name]) for name, p in first.tensors().items())
    stored = load_file(tmp_path / "step_1" / "optimizer.safetensors")  # each by its parameter's name
    for name, p in first.tensors().items():
        assert stored[f"exp_avg/{name}"].shape == p.shape


def test_a_checkpoint_is_plain_tensors_by_name(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """So that whoever gathers whole tensors may write one, and reads the same back."""
    policy = Policy.from_config(model, tokenizer, configured())
    policy.update(TREES, 1, CONSTANTS)
    weights_ = policy.tensors()
    moments = checkpoint.moments_of(policy.optimizer, weights_)
    meta = {"step": 1, "learner": "another", "nested": {"position": [1, 2]}}
    checkpoint.save(tmp_path / "step_1", weights_, moments, meta)
    found, states, back = checkpoint.read(tmp_path / "step_1")
    assert back == meta and found.keys() == weights_.keys() == states.keys()
    assert all(torch.equal(found[name], p) for name, p in weights_.items())
    for name, kinds in moments.items():
        assert states[name].keys() == kinds.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(states[name][kind], value) for kind, value in kinds.items())
    names = {"weights.safetensors", "optimizer.safetensors", "meta.json", "manifest.json"}
    assert {path.name for path in (tmp_path / "step_1").iterdir()} == names


def test_a_checkpoint_of_another_shape_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Also one that could be broadcast."""
    policy = Policy.from_config(model, tokenizer, configured())
    cut = {name: p[:1] if p.ndim == 1 else p for name, p in policy.tensors().items()}
    checkpoint.save(tmp_path / "step_1", cut, {}, {"updates": 0, "refused": 0})
    with pytest.raises(RunError, match="is of another model"):
        policy.restore(tmp_path / "step_1")


# ---- the whole step --------------------------------------------------------------------------------------------------


def first_word_parity(problem: Problem, texts: Any) -> list[Grade]:
    """A grader with signal on random text."""
    return [Grade("correct" if len(t) % 2 else "incorrect", t) for t in texts]


TASK = Task("parity", lambda *_: [], first_word_parity)
TASK_BY_WORD = Task(
    "by word", lambda *_: [], lambda _, texts: [Grade("correct" if t in ("w0", "w1") else "incorrect") for t in texts]
)
PROBLEMS = [Problem("a", "w1 w2"), Problem("b", "w3")]


class Spy(Policy):
    """A policy that remembers what it was asked to learn."""

    trees: tuple[Tree, ...] = ()

    def update(self, trees: Any, step: int, kl_constants: Any) -> dict[str, float]:
        self.trees = tuple(trees)
        return super().update(trees, step, kl_constants)


def take_step(policy: Policy, engine: Any, config: Config, recorded: Any = None) -> Step:
    recipe = Recipe.from_config(config, Packer(), recorded)
    return asyncio.run(step(1, PROBLEMS, engine, TASK, policy, recipe))


def test_training_consumes_exactly_what_was_sampled(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    engine, config = make_engine(), configured("--train.truncated=wrong", "--train.kl=0.01")
    policy = Spy.from_config(engine.model, tokenizer, config)
    result = take_step(policy, engine, config)
    groups = [g for r in result.records for row in r.trace.rounds for g in row]
    sampled = [(g.stage, g.prompt_ids, o.token_ids, o.logprobs) for g in groups for o in g.completions]
    learnt = [(t.stage, t.prompt_ids, b.token_ids, b.logprobs) for t in policy.trees for b in t.branches]
    assert learnt == sampled
    assert len(learnt) == 2 * (4 + 4)
    assert result.metrics["mismatch_kl"] == pytest.approx(
        0, abs=1e-6
    )  # the trainer's log-probabilities are the sampler's
    assert result.metrics["updated"] == 1


def test_a_step_is_reproducible_and_reports_both_stages(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    engine, config = make_engine(), configured()
    first = take_step(Spy.from_config(engine.model, tokenizer, configured("--optimizer.lr=1e-30")), engine, config)
    second = take_step(Spy.from_config(engine.model, tokenizer, config), engine, config)
    assert first.records == second.records
    for name in ("reward", "truncated", "unscored", "failed", "zero_credit"):
        assert {f"generate/{name}", f"aggregate/{name}"} <= set(first.metrics)
    assert first.metrics["step"] == 1 and {"generate/pass_at_k", "pool/has_correct", "tokens"} <= set(first.metrics)


def test_the_seconds_of_a_step_belong_to_one_part_each() -> None:
    at = iter((0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 10.0, 11.0, 16.0, 18.0))
    timeline = Timeline(lambda: next(at))  # begins at 0
    with timeline.during("generate"):  # 1: idle so far
        with timeline.during("aggregate"):  # 3
            pass  # 4: one second of both
        with timeline.during("grade"):  # 6
            pass  # 7: hidden behind sampling
    with timeline.during("update"):  # 10 to 11 is idle
        pass  # 16
    assert timeline.seconds() == {
        "seconds/idle": 1.0 + 1.0 + 2.0,
        "seconds/generate": 2.0 + 2.0 + 1.0 + 3.0,
        "seconds/both": 1.0,
        "seconds/update": 5.0,
        "seconds": 18.0,
    }


def test_a_steps_parts_sum_to_its_seconds(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    engine, config = make_engine(), configured()
    metrics = take_step(Spy.from_config(engine.model, tokenizer, config), engine, config).metrics
    parts = {key: value for key, value in metrics.items() if key.startswith("seconds/")}
    assert {"seconds/generate", "seconds/aggregate", "seconds/update"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(metrics["seconds"])


def test_offline_pools_are_the_candidates(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = make_engine()
    config = configured("--method.name=offline_aggregation", "--method.recorded=recorded.jsonl")
    pools = {p.id: Group(Prompt("w0"), tuple(Completion(f"w{i}") for i in range(4))) for p in PROBLEMS}
    policy = Spy.from_config(engine.model, tokenizer, config)
    result = take_step(policy, engine, config, pools)
    for record in result.records:
        assert record.trace.rounds[0] == (pools[record.trace.problem.id],)
        (group,) = record.trace.rounds[1]
        assert len(group.pool) == 2
        assert all(f"w{i}" in group.prompt.text for i in group.pool)
    assert {t.stage for t in policy.trees} == {"aggregate"}


def test_measuring_changes_no_step_and_compares_credits(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """The same weights with and without; the candidates' own credit is compared with pass@1's, or pass@1's with pass@k's."""
    left = []
    for options in ((), ("--stages.measure_every=5",), ("--stages.measure_every=5", "--method.name=dr_grpo")):
        engine, config = make_engine(), configured("--train.truncated=wrong", "--generate.max_tokens=6", *options)
        policy = Spy.from_config(copy.deepcopy(engine.model), tokenizer, config)
        left.append((take_step(policy, engine, config).metrics, weights(policy)))
    (without, unseen), (measured, seen), (alone, _) = left
    assert all(torch.equal(unseen[n], seen[n]) for n in seen)
    names = {"generate/grad_norm", "aggregate/grad_norm", "stage_cosine", "generate/credit_cosine"}
    assert measured.keys() - without.keys() == names and all(-1 <= measured[n] <= 1 for n in names if "cosine" in n)
    assert alone.keys() & names == {"generate/grad_norm", "generate/credit_cosine"}


@pytest.mark.parametrize("budget", [10**6, 25, 0])
def test_a_step_is_refilled_until_enough_problems_have_credit(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, budget: int
) -> None:
    """Only problems d and f have rewards that differ; as many are added at a time as lack credit, or until tokens are spent."""

    def grade(problem: Problem, texts: Any) -> list[Grade]:
        live = problem.id in "df"
        return [Grade("correct" if live and i % 2 else "incorrect") for i, _ in enumerate(texts)]

    async def engine(prompt: Prompt, n: int, *, stage: Any, seed: int) -> Group:
        return group(tuple(output(i) for i in range(n)), stage)

    config = configured(f"--train.refill={budget}")
    policy = Spy.from_config(model, tokenizer, config)
    spare = [Problem(name, f"w{i}") for i, name in enumerate("cdefgh")]
    recipe, task = Recipe.from_config(config, Packer()), Task("own", lambda *_: [], grade)
    result = asyncio.run(step(1, PROBLEMS, engine, task, policy, recipe, spare))
    names = "".join(record.trace.problem.id for record in result.records)
    assert names == {10**6: "abcdef", 25: "abcd", 0: "ab"}[budget]  # two more, then one at a time
    assert len(policy.trees) == 2 * len({"d", "f"} & set(names))


def test_pools_are_chosen_by_the_grades_of_candidates(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    async def engine(prompt: Prompt, n: int, *, stage: Any, seed: int) -> Group:
        return group(tuple(output(i) for i in range(n)), stage)

    for kind, expected in (("none", {0}), ("mixed", {1}), ("all", {2})):
        config = configured("--rollout.pool_mix={" + kind + " = 1.0}")
        recipe, policy = Recipe.from_config(config, Packer()), Spy.from_config(model, tokenizer, config)
        records = asyncio.run(step(1, PROBLEMS, engine, TASK_BY_WORD, policy, recipe)).records
        assert {sum(r.right(0)[i] == 1 for i in g.pool) for r in records for g in r.trace.rounds[1]} == expected


def test_further_problems_are_others_and_the_same_when_resumed() -> None:
    problems = [Problem(f"p{i}", "") for i in range(40)]
    schedule = Schedule(steps=8, problems=3, checkpoint_every=20, seed=0)
    for number in (1, 20):
        own, more = choose(problems, number, schedule), further(problems, number, schedule)
        assert len(more) == 24 and not {p.id for p in own} & {p.id for p in more} and len({p.id for p in more}) == 24
        assert more == further(problems, number, schedule)
    assert further(problems, 1, schedule) != further(problems, 2, schedule)
    assert further(problems[:4], 1, schedule) == [problems[3]]


def test_without_updates_the_base_method_only_rolls_out(make_engine: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    engine, config = make_engine(), configured("--method.name=base")
    policy = Spy.from_config(engine.model, tokenizer, config)
    before = weights(policy)
    result = take_step(policy, engine, config)
    assert policy.trees == () and result.metrics["updated"] == 0
    assert all(torch.equal(before[n], p) for n, p in policy.raw.named_parameters())


# ---- a method of one's own -------------------------------------------------------------------------------------------


def ranked(rewards: Any) -> list[float]:
    """Only the first of the best gets credit; the others share what it costs."""
    best = max(range(len(rewards)), key=lambda i: -1.0 if rewards[i] is None else rewards[i])
    others = sum(r is not None for r in rewards) - 1
    return [0.0 if r is None or not others else 1.0 if i == best else -1 / others for i, r in enumerate(rewards)]


def test_a_credit_function_of_ones_own_trains(
    make_engine: Any, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "ranked", Method("ranked", ranked, "pass@1"))
    engine, config = make_engine(), configured("--method.name=ranked", "--train.truncated=wrong")
    policy = Spy.from_config(engine.model, tokenizer, config)
    before = weights(policy)
    result = take_step(policy, engine, config)
    assert result.metrics["updated"] == 1 and result.metrics["generate/zero_credit"] == 0
    assert any(not torch.equal(before[n], p) for n, p in policy.raw.named_parameters())
    scale = constant("generate", Crediting.from_config(config), len(PROBLEMS))
    learnt = [[b.credit / scale for b in tree.branches] for tree in policy.trees if tree.stage == "generate"]
    assert learnt == [pytest.approx(ranked(record.rewards(0))) for record in result.records]


def test_a_wrong_credit_function_ends_the_step_in_one_line(
    make_engine: Any, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "short", Method("short", lambda rewards: [1.0]))
    engine, config = make_engine(), configured("--method.name=short")
    with pytest.raises(UsageError, match="method 'short': its credit function gave 1 numbers for 4 rewards"):
        take_step(Spy.from_config(engine.model, tokenizer, config), engine, config)
