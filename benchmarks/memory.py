"""The memory estimate of `paragator doctor --config` against measured peaks, at small sizes on a CPU.

    python benchmarks/memory.py            # a table, and benchmarks/results/memory.json

Each case is a process of its own with one thread, or two that share the weights (the worse one counts): imports, then a
model with random weights, and two optimiser steps of two micro-batches each in float32, so that the moments exist and
gradients accumulate at the peak. Measured is the highest resident size (getrusage) less what was resident after the
imports and the same steps of a tiny model.
glibc is told to give freed blocks back (MALLOC_MMAP_THRESHOLD_): by itself it keeps them, which added 150 MB to the two
smallest cases and is in no formula.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common

RESULTS = common.RESULTS / "memory.json"
HELD = "model, groups, precision, one thread; `estimated` against `measured`, in bytes: no time was taken"
WITHIN = 0.15
# name, kind, (hidden, inner, layers, heads, kv heads, head size, vocabulary), tied, group, batch, further
CASES: list[dict[str, Any]] = [
    {"name": "embedded", "batch": 2048, "group": 320},
    {
        "name": "llama 8M",
        "kind": "Llama",
        "sizes": (256, 704, 6, 8, 4, 32, 8000),
        "tied": True,
        "batch": 1024,
        "group": 512,
    },
    {
        "name": "qwen3 15M",
        "kind": "Qwen3",
        "sizes": (320, 896, 8, 8, 4, 64, 8000),
        "tied": True,
        "batch": 2048,
        "group": 512,
    },
    {
        "name": "llama 27M",
        "kind": "Llama",
        "sizes": (448, 1216, 8, 7, 7, 64, 8000),
        "tied": False,
        "batch": 512,
        "group": 512,
    },
    {
        "name": "qwen3 32M",
        "kind": "Qwen3",
        "sizes": (384, 1024, 10, 6, 3, 64, 32000),
        "tied": True,
        "batch": 1024,
        "group": 1024,
    },
    {
        "name": "llama 60M",
        "kind": "Llama",
        "sizes": (640, 1728, 8, 10, 5, 64, 24000),
        "tied": True,
        "batch": 1024,
        "group": 512,
    },
    {
        "name": "llama 100M",
        "kind": "Llama",
        "sizes": (768, 2048, 12, 12, 4, 64, 32000),
        "tied": True,
        "batch": 320,
        "group": 320,
    },
    {"name": "qwen3 32M, checkpointing", "as": "qwen3 32M", "checkpointed": True},
    {"name": "qwen3 15M, KL", "as": "qwen3 15M", "kl": 0.01},
    {"name": "qwen3 15M, LoRA 8", "as": "qwen3 15M", "lora": 8},
    {"name": "qwen3 15M, group of 2048", "as": "qwen3 15M", "group": 2048},
    {"name": "embedded, 2 processes", "as": "embedded", "processes": 2},
    {"name": "qwen3 15M, 2 processes", "as": "qwen3 15M", "processes": 2},
    {"name": "llama 27M, 2 processes", "as": "llama 27M", "processes": 2},
    {"name": "qwen3 15M, 2, checkpointing", "as": "qwen3 15M", "processes": 2, "checkpointed": True},
    {"name": "llama 100M, 2 processes", "as": "llama 100M", "processes": 2},
    {"name": "llama 27M, 2, KL", "as": "llama 27M", "processes": 2, "kl": 0.01},
]


def case_of(name: str) -> dict[str, Any]:
    found = next(case for case in CASES if case["name"] == name)
    return {**case_of(found["as"]), **found} if "as" in found else found


def measure(name: str) -> dict[str, Any]:
    """One case in this process: estimated and measured bytes."""
    import random
    import resource

    import torch
    import transformers

    from paragator.config import Config, ModelConfig
    from paragator.engines.local.loading import add_lora, load_model
    from paragator.settings import validate
    from paragator.training.memory import Load, Shards, from_json, memory, part_of
    from paragator.training.policy import Policy
    from paragator.training.rows import Branch, Tree

    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same weights in all processes
    case = case_of(name)
    config = validate(
        Config,
        {
            "model": {"lora_rank": case.get("lora", 0), "gradient_checkpointing": case.get("checkpointed", False)},
            "train": {
                "precision": "float32",
                "kl": case.get("kl", 0.0),
                "batch_tokens": case["batch"],
            },
            "rollout": {"candidates": 5},
        },
    )
    # every group: a prompt of a fifth, four branches of a fifth each
    processes = case.get("processes", 1)
    part, groups = case["group"] // 5, 2 * processes * (case["batch"] // case["group"])
    team = joined() if processes > 1 else None

    def trained(model: Any, vocabulary: int, part: int, groups: int) -> None:
        rng = random.Random(0)
        ids = [tuple(rng.randrange(vocabulary) for _ in range(part)) for _ in range(5)]
        branches = tuple(Branch(chosen, (-1.0,) * part, 0.001) for chosen in ids[1:])
        policy = policy_of(model, config, team) if team else Policy.from_config(model, None, config)
        for step in (1, 2):
            policy.update([Tree("generate", ids[0], branches)] * groups, step, {"generate": 0.001})

    lora = config.model.lora_rank
    for small in small_models(transformers):  # whatever is imported late is imported now
        trained(add_lora(small, 1) if lora else small, 16, 2, processes)
    before = resident()
    model = load_model(ModelConfig(device="cpu"))[0] if "kind" not in case else build(transformers, case)
    shape = from_json(model.config.to_dict(), name)
    count = sum(p.numel() for p in model.parameters())
    trained(add_lora(model, lora) if lora else model, shape.vocabulary, part, groups)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    at_once = Load(max(1, case["batch"] // (5 * part)), part, 4, part)
    found = memory(
        shape,
        at_once,
        bfloat16=False,
        checkpointed=config.model.gradient_checkpointing,
        lora=lora,
        kl=config.train.kl > 0,
    )
    if team:
        found = part_of(
            found, shape, Shards(processes, whole=team.rank == 0), checkpointed=config.model.gradient_checkpointing
        )
    return {
        "name": name,
        "parameters": count,
        "counted_parameters": shape.parameters,
        "micro_batch": asdict(at_once),
        "estimated": found.peak,
        "measured": peak,
        "parts": asdict(found),
        "before": before,
        "rank": team.rank if team else 0,
    }


def joined() -> Any:
    """The processes of a case, which find each other by the environment."""
    from paragator.training.team import Team

    team = Team(120.0)
    team.join()
    return team


def policy_of(model: Any, config: Any, team: Any) -> Any:
    """This process's part of the policy; rank 0 keeps the whole model as well."""
    from paragator.training.recipe import PolicySettings
    from paragator.training.sharded import Shard

    policy = Shard(model, None, PolicySettings.from_config(config), team)
    policy.batch_tokens = config.train.batch_tokens
    return policy


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def small_models(transformers: Any) -> list[Any]:
    """One of each architecture, to load its code before anything is measured."""
    sizes = (16, 16, 1, 2, 2, 8, 16)
    return [build(transformers, {"kind": kind, "sizes": sizes, "tied": True}) for kind in ("Llama", "Qwen3")]


def build(transformers: Any, case: dict[str, Any]) -> Any:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip((*names, "head_dim", "vocab_size"), case["sizes"], strict=True))
    more = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "attn_implementation": "sdpa"}
    made = getattr(transformers, f"{case['kind']}Config")(**sizes, **more, tie_word_embeddings=case["tied"])
    return getattr(transformers, f"{case['kind']}ForCausalLM")(made)


def started(name: str, environment: dict[str, str]) -> list[tuple[int, str, str]]:
    """A case in processes of its own: exit code, output and errors of each."""
    size = case_of(name).get("processes", 1)
    if size > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = environment | {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--one", name],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}),
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank in range(size)
    ]
    texts = [process.communicate() for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=[case["name"] for case in CASES], help="(one case, in this process)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="measure this case again; the others stay as they are"
    )
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags.one)))
        return 0
    found = [row for row in json.loads(RESULTS.read_text()) if row["name"] not in flags.only] if flags.only else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    print(f"{'case':<26} {'parameters':>11} {'estimated':>10} {'measured':>10}   off")
    for case in (case for case in CASES if not flags.only or case["name"] in flags.only):
        done = started(case["name"], environment)
        if failed := next((text for code, _, text in done if code), None):
            print(f"{case['name']:<26} failed: {failed.strip().splitlines()[-1]}")
            return 1
        rows = [json.loads(said.splitlines()[-1]) for _, said, _ in done]
        row = max(rows, key=lambda row: abs(row["estimated"] / row["measured"] - 1))  # of several processes the worst
        row["off"] = row["estimated"] / row["measured"] - 1
        row["within"] = abs(row["off"]) <= WITHIN
        found.append({**common.untimed(row["name"], "measured peak", HELD), **row, **common.environment()})
        megabytes = f"{row['estimated'] / 1e6:>7,.0f} MB {row['measured'] / 1e6:>7,.0f} MB"
        miss = "" if row["within"] else f"  outside {WITHIN:.0%}"
        print(f"{row['name']:<26} {row['parameters']:>11,} {megabytes} {row['off']:>+6.1%}{miss}", flush=True)
        common.write(RESULTS, found, where={})
    print(f"{sum(row['within'] for row in found)} of {len(found)} within {WITHIN:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
