"""On one CUDA card, in bfloat16: an update and rollouts against their peers, memory and speed against the estimates.

    python benchmarks/gpu.py [--quick] [--repeats 5]

The model has the shape of Qwen3-0.6B and random weights, so that nothing is downloaded. TRL recomputes activations by
default, and is measured with and without. `of_product` is the packed work's model FLOP/s as a share of what torch.mm
reaches on 8192 x 8192 matrices of bfloat16. Memory is torch's own peak, less what was held before.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any
from unittest import mock

import common
import rollout
import torch
import update
from transformers import Qwen3Config, Qwen3ForCausalLM

from paragator.config import Config
from paragator.engines.local.generation import SequenceRequest, sample_rows
from paragator.engines.local.loading import EMBEDDED, add_lora
from paragator.engines.sampling import Sampling
from paragator.settings import validate
from paragator.training import flex
from paragator.training import memory as estimate
from paragator.training.compiled import recompute_layers
from paragator.training.policy import Policy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A CPU is for --quick: to see that it works."""
AGREE = 0.03
"""Most that two gradients in bfloat16 may differ, relative to their size."""
SDPA, PLAIN, LIGER = "ours without FlexAttention", "ours, layers not compiled", "ours by liger-kernel"
HELD = (
    "rollouts, loss (Dr.GRPO, its constant), bfloat16 autocast over float32 weights, fused AdamW, norm clipping; "
    "no layer is compiled (TRL's never) but where the case says so"
)
KERNELS = {
    "attention": ("flex", "flash", "fmha"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "optimiser": ("multi_tensor", "adam"),
    "softmax": ("softmax", "nll_loss"),
    "gathers": ("index", "gather", "scatter", "embedding", "sort"),
    "sums": ("reduce",),
    "elementwise": ("elementwise", "triton", "cat", "memset", "memcpy"),
    "other": (),
}
"""Kinds of kernels by words in their names; the first that fits."""
HELD_ROLLOUT = "prompts, number of siblings, length of every completion, temperature 1, bfloat16 autocast, weights"


def model_of(quick: bool) -> Any:
    """A Qwen3 of random weights, in float32 on the device."""
    sizes = (1024, 3072, 28, 16, 8, 128, 151_936) if not quick else (64, 96, 2, 4, 2, 16, 999)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip((*names, "head_dim", "vocab_size"), sizes, strict=True))
    more = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "attn_implementation": "sdpa"}
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**shape, **more, tie_word_embeddings=True)).to(DEVICE)


def works(quick: bool) -> list[update.Work]:
    """Groups of 8: pools of 4 attempts in view, and a problem's two stages."""
    rng = random.Random("gpu")
    scale = 32 if quick else 1
    tail = [tuple(common.heavy_tailed(rng, 8, 768 // scale)) for _ in range(8)]
    prompt, short, even = 1600 // scale, 160 // scale, (384 // scale,) * 8
    both: list[Any] = [("generate", short, lengths) for lengths in tail[:4]]
    both += [("aggregate", prompt, lengths) for lengths in tail[4:]]
    return [
        update.Work("pool of 4, uniform", "", (("aggregate", prompt, even),) * 4),
        update.Work("pool of 4, heavy tail", "", tuple(("aggregate", prompt, lengths) for lengths in tail[:4])),
        update.Work("two stages, heavy tail", "", tuple(both)),
    ]


def policy_of(model: Any, more: dict[str, Any] | None = None, lora: int = 0) -> Policy:
    settings = {
        "train": {"precision": "bfloat16", "steps": 10**6, "batch_tokens": 2**14, **(more or {})},
        "model": {"lora_rank": lora},
        "optimizer": {"lr": 1e-6, "warmup_steps": 0, "betas": (0.9, 0.999)},
    }
    return Policy.from_config(model, None, validate(Config, settings))


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], Any]) -> Callable[[], None]:
    """The call, until the device has done its work."""

    def done() -> None:
        call()
        wait()

    return done


def by_sdpa(call: Callable[..., Any], *args: Any) -> None:
    """The call without FlexAttention."""
    with mock.patch.object(flex, "usable", lambda *_: False):
        call(*args)


def has_liger() -> bool:
    """Whether Liger's kernels can run: it is installed (`pip install liger-kernel`), on a card or in Triton's slow interpreter."""
    runs = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and find_spec("liger_kernel") is not None


def product_rate(quick: bool) -> float:
    """FLOP/s of torch.mm on square bfloat16 matrices, the median."""
    size = 256 if quick else 8192
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / statistics.median(common.interleaved({"mm": timed(lambda: torch.mm(a, b))}, 20)["mm"])


def updates(work: update.Work, model: Any, rate: float, flags: Any) -> list[common.Case]:
    """Ours, padded rows and TRL on one workload, after their gradients were compared."""
    import peers
    from transformers import AutoTokenizer

    trees, constant = update.trees_of(work, model.config.vocab_size)
    batches = [{k: v.to(DEVICE) for k, v in b.items()} for b in peers.trl_batches(trees, constant, 0)]
    mine, theirs = copy.deepcopy(model), copy.deepcopy(model)
    policy, fast = policy_of(mine), policy_of(copy.deepcopy(model), {"compile": DEVICE == "cuda"})
    update.ours_backward(policy, trees)
    want = peers.gradients(mine)
    update.ours_backward(fast, trees)
    want_fast = peers.gradients(fast.raw)
    apart, apart_fast = {}, {PLAIN: peers.distance(want_fast, want)}
    fused = policy_of(peers.liger_model(copy.deepcopy(model))) if has_liger() else None
    if fused is not None:
        update.ours_backward(fused, trees)
        found = peers.gradients(fused.raw)
        apart[LIGER], apart_fast[LIGER] = peers.distance(want, found), peers.distance(want_fast, found)
    longest = max(len(b.token_ids) for tree in trees for b in tree.branches)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
        trainer = peers.trainer_of(theirs, tokenizer, folder, longest=longest, group=8, device=DEVICE)
        theirs = trainer.model
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
        by_sdpa(update.ours_backward, policy, trees)
        apart[SDPA] = peers.distance(want, peers.gradients(mine))
        peers.trl_backward(trainer, batches)
        found = peers.gradients(theirs)
        apart["TRL"], apart_fast["TRL"] = peers.distance(want, found), peers.distance(want_fast, found)
        peers.padded_backward(theirs, batches, constant, torch.bfloat16)
        apart["padded rows"] = peers.distance(want, peers.gradients(theirs))
        del want, want_fast, found
        sides = {
            "ours": timed(lambda: policy.update(trees, 1, {})),
            "TRL": timed(lambda: peers.trl_update(trainer, batches)),
            "padded rows": timed(lambda: peers.padded_update(theirs, optimizer, batches, constant, torch.bfloat16)),
            SDPA: timed(lambda: by_sdpa(policy.update, trees, 1, {})),
            "compiled": timed(lambda: fast.update(trees, 1, {})),
        }
        if fused is not None:
            sides[LIGER] = timed(lambda: fused.update(trees, 1, {}))
        seconds = common.interleaved(sides, flags.repeats, within_s=flags.within)
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        both = {"ours": sides["ours"], "TRL, as by default": sides["TRL"]}
        again = common.interleaved(both, flags.repeats, within_s=flags.within)
    more = [LIGER] if fused is not None else []
    measured = [(work, seconds, peer, apart) for peer in ("TRL", "padded rows", SDPA, *more)]
    measured.insert(1, (work, again, "TRL, as by default", apart))
    compiled = {**seconds, "ours": seconds["compiled"], PLAIN: seconds["ours"]}
    named = replace(work, name=f"{work.name}, layers compiled")
    measured += [(named, compiled, peer, apart_fast) for peer in ("TRL", PLAIN, *more)]
    rows = [(update.report(w, trees, model.config, s, peer, told, rate)) for w, s, peer, told in measured]
    return [{**row, "held_equal": HELD} for row in rows]


def profile(work: update.Work, model: Any, rate: float, compiled: bool) -> common.Case:
    """Where an update's seconds go on the card, by kind of kernel; `idle` is the time in which no kernel ran."""
    trees, _ = update.trees_of(work, model.config.vocab_size)
    policy = policy_of(copy.deepcopy(model), {"compile": compiled})
    call = timed(lambda: policy.update(trees, 1, {}))
    alone = common.interleaved({"ours": call}, 3)["ours"]
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        call()
    parts = dict.fromkeys(KERNELS, 0.0)
    for event in found.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            name = event.key.lower()
            kind = next((k for k, words in KERNELS.items() if any(word in name for word in words)), "other")
            parts[kind] += event.self_device_time_total / 1e6
    parts["idle"] = statistics.median(alone) - sum(parts.values())
    name = f"profile, {work.name}{', layers compiled' if compiled else ''}"
    common.say(f"{name}: " + ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in parts.items()))
    share = update.flops(trees, model.config) / statistics.median(alone) / rate
    return common.case(name, alone, None, [], HELD, parts_s=parts, of_product=share)


def rollouts(tokens: int, prompts: int, longest: int, tail: bool, model: Any, flags: Any) -> common.Case:
    """8 siblings of each prompt; generate gets each as its own row."""
    rng, siblings = random.Random("rollout"), 8
    ids = [tuple(rng.randrange(4, 150) for _ in range(tokens)) for _ in range(prompts)]
    rows = [SequenceRequest(p, f"{i}:{j}") for i, p in enumerate(ids) for j in range(siblings)]
    lengths = common.heavy_tailed(rng, len(rows), longest) if tail else [longest] * len(rows)
    end = 2 if tail else rollout.NO_TOKEN
    every = torch.tensor([row.prompt_ids for row in rows], device=DEVICE)

    def ours() -> None:
        found = sample_rows(
            model, rows, Sampling(1.0, longest), (end,), max_batch_tokens=2**22, device=torch.device(DEVICE)
        )
        assert [len(s.token_ids) for s in found] == lengths, "lengths were not as asked"

    def ours_forced() -> None:
        with rollout.forced({row.stream: n for row, n in zip(rows, lengths, strict=True)}, longest, end):
            ours()

    def theirs() -> None:
        rollout.generated(model, every, lengths, end if tail else None)

    model.eval()
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        sides = {"ours": timed(ours_forced if tail else ours), "theirs": timed(theirs)}
        seconds = common.interleaved(sides, flags.repeats, within_s=flags.within)
    name = f"rollout, {prompts} prompts of {tokens}, N = {siblings}, {'heavy tail' if tail else 'uniform'} to {longest}"
    peer = f"transformers {common.installed('transformers')} generate"
    found = common.case(name, seconds["ours"], peer, seconds["theirs"], HELD_ROLLOUT, sampled_tokens=sum(lengths))
    made = sum(lengths)
    return {**found, "tokens_per_s": made / found["ours_s"], "peer_tokens_per_s": made / found["peer_s"]}


def memory(name: str, model: Any, *, checkpointed: bool, lora: int, compiled: bool, quick: bool) -> common.Case:
    """Torch's highest count of bytes in two updates, against the estimate."""
    shape = estimate.from_json(model.config.to_dict(), name)
    prompt, length, groups = (30, 9, 2) if quick else (1800, 512, 4)
    rows = 2  # the second update starts with gradients of the first
    trees, _ = update.trees_of(
        update.Work(name, "", (("aggregate", prompt, (length,) * 8),) * groups * rows), shape.vocabulary
    )
    found = copy.deepcopy(model)
    found = add_lora(found, lora) if lora else found
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() - sum(p.numel() * p.element_size() for p in found.parameters())
    torch.cuda.reset_peak_memory_stats()
    policy = policy_of(found, {"batch_tokens": sum(t.num_tokens for t in trees) // rows, "compile": compiled}, lora)
    if checkpointed:
        recompute_layers(found)
    for step in (1, 2):
        policy.update(trees, step, {})
    measured = torch.cuda.max_memory_allocated() - before
    at_once = estimate.Load(groups, prompt, 8, length)
    told = estimate.memory(shape, at_once, bfloat16=True, checkpointed=checkpointed, lora=lora, cuda=True)
    row = common.untimed(
        f"memory, {name}", "measured peak", "model, groups, bfloat16; `estimated` against `measured`, bytes"
    )
    off = told.peak / measured - 1
    common.say(f"{name}: estimated {told.peak / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, {off:+.1%}")
    return {**row, "estimated": told.peak, "measured": measured, "off": off, "parts": asdict(told)}


def main() -> int:
    flags = common.parser(__doc__).parse_args()
    if DEVICE == "cpu" and not flags.quick:
        raise SystemExit("no CUDA device: only --quick runs here")
    model, cases = model_of(flags.quick), []
    rate = product_rate(flags.quick)
    common.say(f"products: {rate / 1e12:.0f} TFLOP/s")

    def add(*found: common.Case) -> None:
        """Results so far are on disk: a card may be lent for minutes."""
        cases.extend(found)
        common.print_cases(found, "of_product", "gradient_distance", "tokens_per_s", "peer_tokens_per_s")
        if flags.output or not flags.quick:
            common.write(flags.output or common.RESULTS / "gpu.json", cases)

    for work in works(flags.quick):
        add(*updates(work, model, rate, flags))
    for compiled in (False, True) if DEVICE == "cuda" else ():
        for name, checkpointed, lora in (("whole", False, 0), ("checkpointed", True, 0), ("LoRA 16", False, 16)):
            kind = f"{name}{', layers compiled' if compiled else ''}"
            add(memory(kind, model, checkpointed=checkpointed, lora=lora, compiled=compiled, quick=flags.quick))
    for prompts, tail in ((8, False), (8, True)):
        tokens, longest = (30, 16) if flags.quick else (1600, 128)
        add(rollouts(tokens, prompts, longest, tail, model, flags))
    for compiled in (False, True) if DEVICE == "cuda" else ():
        add(*(profile(work, model, rate, compiled) for work in works(flags.quick)))
    common.finish(flags, "gpu", cases, "of_product", "gradient_distance", "tokens_per_s", "off")
    return common.disagreed(cases, AGREE)


if __name__ == "__main__":
    sys.exit(main())
