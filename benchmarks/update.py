"""One update on the same rollouts: packed groups against TRL 1.16's GRPOTrainer, padded rows and prefix-grouper 0.0.1 (verl's).

    python benchmarks/update.py [--quick] [--full] [--repeats 5] [--threads 2]

Every case first compares the gradients: all sides must agree to 1e-4. `us_per_token` is the time per token of work
delivered (a completion token that was trained on); `of_product` is the packed work's model FLOP/s as a share of what
torch.mm reaches on 2048 x 2048 matrices in the same run. Last, an update of ours with a 4 times longer aggregation
prompt: time and peak memory. prefix-grouper is no dependency: `pip install prefix-grouper==0.0.1`; without it, its rows are missing.
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import torch

from paragator.config import Config, ModelConfig
from paragator.core.types import Stage
from paragator.engines.local.loading import load_model
from paragator.settings import validate
from paragator.training.packed import collate
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree, pack

AGREE = 1e-4
GROUPER = "prefix-grouper"
HELD = (
    "rollouts, loss (Dr.GRPO, its constant, no clipping active), gradients (checked), float32, threads, AdamW, norm clipping; "
    "no side recomputes activations unless the case says so"
)


@dataclass(frozen=True)
class Work:
    """Groups to train on: (stage, prompt tokens, branch lengths) each."""

    name: str
    model: str
    groups: tuple[tuple[Stage, int, tuple[int, ...]], ...]
    full: bool = False  # only with --full


def works(quick: bool) -> list[Work]:
    """The cases. Uniform branches are of 64 tokens (embedded model: 32), heavy-tailed ones of up to 192 (40)."""
    rng = random.Random("update")
    if quick:
        tail = tuple(common.heavy_tailed(rng, 8, 24, 4))
        return [
            Work("SmolLM2, tiny", "smollm2", (("generate", 8, (4,) * 8), ("aggregate", 40, (4,) * 8))),
            Work("embedded, tiny, heavy tail", "embedded", (("aggregate", 110, tail),)),
        ]
    out = []
    for model, n, short, prompts, uniform, longest, problems in (
        ("smollm2", 8, 60, (356, 700), 64, 192, 1),
        ("embedded", 16, 14, (112, 212), 32, 40, 8),
    ):
        label = "SmolLM2" if model == "smollm2" else "embedded"
        tails = [tuple(common.heavy_tailed(rng, n, longest)) for _ in range(2 * problems)]
        for m, prompt in zip((4, 8), prompts, strict=True):
            even: tuple[Stage, int, tuple[int, ...]] = ("aggregate", prompt, (uniform,) * n)
            out.append(Work(f"{label}, pool of {m}, uniform", model, (even,) * problems, full=m == 8))
            groups = tuple(("aggregate", prompt, tail) for tail in tails[:problems])
            out.append(Work(f"{label}, pool of {m}, heavy tail", model, groups, full=True))
        both = [("generate", short, tails[i]) for i in range(problems)]
        both += [("aggregate", prompts[0], tails[problems + i]) for i in range(problems)]
        out.append(Work(f"{label}, two stages, heavy tail", model, tuple(both), full=True))
    return [w if w.model == "smollm2" else replace(w, full=False) for w in out]


def trees_of(work: Work, vocabulary: int) -> tuple[list[Tree], float]:
    """Random rollouts of those lengths, and the constant in their credit: 1 / (longest completion x rollouts)."""
    rng = random.Random(work.name)
    rows = sum(len(lengths) for _, _, lengths in work.groups)
    constant = 1 / (max(max(lengths) for _, _, lengths in work.groups) * rows)
    trees = []
    for stage, prompt, lengths in work.groups:
        ids = tuple(rng.randrange(4, vocabulary) for _ in range(prompt))
        rewards = [i % 2 for i in range(len(lengths))]
        branches = []
        for length, reward in zip(lengths, rewards, strict=True):
            tokens = tuple(rng.randrange(4, vocabulary) for _ in range(length))
            credit = (reward - sum(rewards) / len(rewards)) * constant
            branches.append(Branch(tokens, (-1.0,) * length, credit))
        trees.append(Tree(stage, ids, tuple(branches)))
    return trees, constant


def flops(trees: list[Tree], config: Any) -> float:
    """Floating-point operations of forward and backward on the packed groups: masked positions are not counted."""
    heads, size = config.num_attention_heads, config.head_dim
    attention = config.hidden_size * size * (2 * heads + 2 * config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    total = 0.0
    for tree in trees:
        p = len(tree.prompt_ids)
        lengths = [len(b.token_ids) for b in tree.branches]
        pairs = p * (p + 1) / 2 + sum(p * n + n * (n + 1) / 2 for n in lengths)
        total += 6 * weights * tree.num_tokens + 6 * config.hidden_size * config.vocab_size * sum(lengths)
        total += 12 * pairs * heads * size * config.num_hidden_layers
    return total


def product_rate(size: int, repeats: int = 5) -> float:
    """FLOP/s of torch.mm on square float32 matrices, the median."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    return 2 * size**3 / statistics.median(common.interleaved({"mm": lambda: torch.mm(a, b)}, repeats)["mm"])


def policy_of(model: Any, trees: list[Tree]) -> Policy:
    """Our policy; a row holds two thousand tokens or the longest group."""
    budget = max(2048, *(tree.num_tokens for tree in trees))
    train = {"batch_tokens": budget, "precision": "float32", "steps": 10**6}
    config = validate(Config, {"train": train, "optimizer": {"lr": 1e-6, "warmup_steps": 0, "betas": (0.9, 0.999)}})
    return Policy.from_config(model, None, config)


def ours_backward(policy: Policy, trees: list[Tree]) -> None:
    """The gradient that `Policy.update` makes, left in place."""
    for row in pack(trees, policy.batch_tokens):
        policy.accelerator.backward(policy.loss(collate(row).to(policy.accelerator.device), {})[0])


def measure(work: Work, models: dict[str, Any], flags: Any) -> list[common.Case]:
    """The cases of one workload, after its gradients were compared."""
    import peers

    model, tokenizer = models[work.model]
    trees, constant = trees_of(work, model.config.vocab_size)
    longest = max(len(b.token_ids) for tree in trees for b in tree.branches)
    batches = peers.trl_batches(trees, constant, tokenizer.pad_token_id or 0)
    mine = copy.deepcopy(model)
    policy = policy_of(mine, trees)
    ours_backward(policy, trees)
    want = peers.gradients(mine)
    with tempfile.TemporaryDirectory() as folder:
        trainer = peers.trainer_of(copy.deepcopy(model), tokenizer, folder, longest=longest, group=8)
        theirs = trainer.model
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-6, weight_decay=0.0)
        apart = {}
        if flags.peer in (None, "TRL"):
            peers.trl_backward(trainer, batches)
            apart["TRL"] = peers.distance(want, peers.gradients(theirs))
        padded = (work.model == "embedded" or flags.full) and flags.peer in (None, "padded rows")
        if padded:
            peers.padded_backward(theirs, batches, constant)
            apart["padded rows"] = peers.distance(want, peers.gradients(theirs))
        if grouper := find_spec("prefix_grouper"):
            grouped = peers.grouped_model(copy.deepcopy(model))
            batched = peers.grouped_batches(trees, policy.batch_tokens)
            also = torch.optim.AdamW(grouped.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
            peers.grouped_backward(grouped, batched)
            apart[GROUPER] = peers.distance(want, peers.gradients(grouped))
        else:
            common.say(f"no {GROUPER} here: pip install {GROUPER}==0.0.1")
        del want
        sides = {
            "ours": lambda: policy.update(trees, 1, {}),
            "TRL": lambda: peers.trl_update(trainer, batches),
            "padded rows": lambda: peers.padded_update(theirs, optimizer, batches, constant),
        }
        if grouper:
            sides[GROUPER] = lambda: peers.grouped_update(grouped, also, batched)
        if not padded:
            del sides["padded rows"]
        sides = {name: call for name, call in sides.items() if name == "ours" or flags.peer in (None, name)}
        warm = work.model == "embedded" or flags.quick  # on SmolLM2 the gradients have warmed everything
        seconds = common.interleaved(sides, flags.repeats, warm=warm, within_s=flags.within)
        again: common.Seconds = {}
        rate = product_rate(512 if flags.quick else 2048)
        if flags.full and not flags.peer:
            trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            both = {"ours": sides["ours"], "TRL, as by default": sides["TRL"]}
            again = common.interleaved(both, flags.repeats, warm=False, within_s=flags.within)
    measured = [(found, peer) for found in (seconds, again) for peer in found if peer != "ours"]
    return [report(work, trees, model.config, found, peer, apart, rate) for found, peer in measured]


def report(
    work: Work, trees: list[Tree], config: Any, seconds: common.Seconds, peer: str, apart: dict[str, float], rate: float
) -> common.Case:
    delivered = sum(len(b.token_ids) for tree in trees for b in tree.branches)
    ours_s = statistics.median(seconds["ours"])
    version = f"TRL {common.installed('trl')}"
    label = f"{GROUPER} {common.installed(GROUPER)}" if peer == GROUPER else peer
    label = label.replace("TRL, as by default", f"{version} as by default").replace("TRL", version, peer == "TRL")
    return common.case(
        work.name,
        seconds["ours"],
        label,
        seconds[peer],
        HELD,
        delivered_tokens=delivered,
        packed_tokens=sum(tree.num_tokens for tree in trees),
        us_per_token=1e6 * ours_s / delivered,
        peer_us_per_token=1e6 * statistics.median(seconds[peer]) / delivered,
        gradient_distance=apart[peer if peer in apart else "TRL"],
        model_gflops=flops(trees, config) / ours_s / 1e9,
        product_gflops=rate / 1e9,
        of_product=flops(trees, config) / ours_s / rate,
    )


def growth(flags: Any) -> common.Case:
    """Ours with an aggregation prompt of 1 and 4 lengths (--full: and 2), each in a process of its own."""
    base = 40 if flags.quick else 356
    points = []
    for times in (1, 2, 4) if flags.full else (1, 4):
        command = [sys.executable, __file__, "--one", str(base * times), "--threads", str(flags.threads)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
        command += ["--repeats", str(flags.repeats), *(["--quick"] * flags.quick)]
        command += ["--within", str(flags.within)] if flags.within else []
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        points.append(json.loads(done.stdout.splitlines()[-1]))
        common.say(f"growth: {points[-1]}")
    first, last = points[0], points[-1]
    return common.case(
        f"SmolLM2, prompt of {base * 4} tokens against {base}",
        last["seconds"],
        f"ours at {base}",
        first["seconds"],
        "branches (8 of 64 tokens), model, float32, threads; one group, a process each",
        cost_ratio=statistics.median(last["seconds"]) / statistics.median(first["seconds"]),
        memory_ratio=last["peak_mb"] / first["peak_mb"],
        token_ratio=last["tokens"] / first["tokens"],
        points=points,
    )


def one(prompt: int, flags: Any) -> None:
    """One point of `growth`, printed; peak memory is what an update needs above weights, gradients and moments."""
    common.use_threads(flags.threads)
    model, _ = load_model(ModelConfig(path=common.model_path("smollm2"), device="cpu"))
    length = 4 if flags.quick else 64
    trees, _ = trees_of(Work("growth", "smollm2", (("aggregate", prompt, (length,) * 8),)), model.config.vocab_size)
    policy = policy_of(model, trees)
    tiny, _ = trees_of(Work("tiny", "smollm2", (("aggregate", 4, (2, 2)),)), model.config.vocab_size)
    policy.update(tiny, 1, {})  # gradients and moments exist from here on
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's record of peak memory
    before, seconds = resident("VmRSS"), []
    began = time.perf_counter()
    for repeat in range(2 if flags.quick else flags.repeats):
        if common.enough(repeat, began, flags.within):
            break
        start = time.perf_counter()
        policy.update(trees, 1, {})
        seconds.append(time.perf_counter() - start)
    peak = resident("VmHWM") - before - sum(p.numel() for p in model.parameters()) * 4 / 2**20  # and the gradients
    tokens = sum(tree.num_tokens for tree in trees)
    print(json.dumps({"prompt": prompt, "tokens": tokens, "seconds": seconds, "peak_mb": peak}))


def resident(what: str) -> float:
    """Megabytes of this process in memory: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="SmolLM2 with every kind of work, and more peers")
    parser.add_argument("--only", choices=("smollm2", "embedded"), help="one model")
    parser.add_argument("--peer", choices=("TRL", "padded rows", GROUPER), help="time one peer")
    parser.add_argument("--one", type=int, help="(one point of the growth case)")
    flags = parser.parse_args()
    if flags.one:
        one(flags.one, flags)
        return 0
    common.use_threads(flags.threads)
    chosen = [w for w in works(flags.quick) if (flags.full or not w.full) and flags.only in (None, w.model)]
    models = {
        name: load_model(ModelConfig(path=common.model_path(name), device="cpu")) for name in {w.model for w in chosen}
    }
    cases: list[common.Case] = []
    for work in chosen:
        cases += measure(work, models, flags)
        common.print_cases(cases[-1:], "gradient_distance", "of_product")
        if flags.output:  # a busy machine may end this early
            common.write(flags.output, cases)
    if flags.only != "embedded" and not flags.peer:
        cases.append(growth(flags))
    common.finish(
        flags,
        "update",
        cases,
        "us_per_token",
        "peer_us_per_token",
        "gradient_distance",
        "of_product",
        "cost_ratio",
        "memory_ratio",
    )
    return common.disagreed(cases, AGREE)


if __name__ == "__main__":
    sys.exit(main())
