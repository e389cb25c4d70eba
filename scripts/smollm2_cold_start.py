"""Teaches SmolLM2 the form of a worked sum: `python scripts/smollm2_cold_start.py CONFIG SOURCE [--examples N]`.

Supervised learning with TRL's SFTTrainer on worked solutions of the config's training problems, through the config's own
prompts. Seven demonstrations of eight answer the problem alone; the eighth also shows a pool of attempts, each
step of which is wrong with probability 0.15 by one digit, and answers with the right solution, wherever it stands. The
folder that `model.path` names is written; checkpoints lie beside it, and an interrupted cold start goes on from them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from random import Random

from paragator import tasks
from paragator.config import Config, load
from paragator.core.types import Problem

STEP_ERROR = 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description="Cold start of SmolLM2 on chain arithmetic, by supervised learning.")
    parser.add_argument("config", help="configs/smollm2.toml: its task, prompts and model.path are used")
    parser.add_argument("source", help="the folder of the model to start from")
    parser.add_argument("--examples", type=int, default=720, help="demonstrations (default: 720)")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument(
        "--seed", type=int, default=1000, help="apart from the run's: joint training sees other problems"
    )
    options = parser.parse_args()
    config = load(Config, options.config)
    problems = tasks.load(config.task).problems("train", options.examples, options.seed)
    rng = Random(f"{options.seed}:cold start")
    rows = [demonstration(p, config, rng, aggregation=i % 8 == 7) for i, p in enumerate(problems)]
    fine_tune(rows, options.source, Path(config.model.path), options.lr, options.seed)
    print(f"{config.model.path}: {len(rows)} demonstrations")
    return 0


def demonstration(problem: Problem, config: Config, rng: Random, *, aggregation: bool) -> dict[str, object]:
    """A conversation of one turn, as TRL wants it: a prompt and a completion."""
    templates = config.model.templates()
    if aggregation:
        pool = [worked(problem, rng, STEP_ERROR) for _ in range(config.rollout.pool_size)]
        text = templates.for_aggregation(problem, pool).text
    else:
        text = templates.for_candidate(problem).text
    return {
        "prompt": [{"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": worked(problem, rng)}],
    }


def worked(problem: Problem, rng: Random, error: float = 0.0) -> str:
    """The sum from left to right, a line a step; a step errs with probability `error`, in one digit of its result."""
    first, *rest = re.findall(r"[+-] \d+|\d+", problem.text)
    total, lines = int(first), []
    for term in rest:
        result = total + int(term.replace(" ", ""))
        if rng.random() < error:
            result += rng.choice((-1, 1)) * 10 ** rng.randrange(2)
        lines.append(f"{total} {term} = {result}")
        total = result
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def fine_tune(rows: list[dict[str, object]], source: str, target: Path, lr: float, seed: int) -> None:
    """One pass over `rows`, sixteen an update, short ones with short ones; `target` is written whole or not at all."""
    from datasets import Dataset
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    checkpoints = target.with_name(target.name + "-checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    settings = SFTConfig(
        output_dir=str(checkpoints),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        train_sampling_strategy="group_by_length",
        num_train_epochs=1,
        learning_rate=lr,
        warmup_steps=5,
        lr_scheduler_type="cosine",
        logging_steps=2,
        save_steps=9,
        save_total_limit=1,
        seed=seed,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = SFTTrainer(model=source, args=settings, train_dataset=Dataset.from_list(rows))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    whole = target.with_name(target.name + ".writing")
    trainer.save_model(str(whole))
    whole.rename(target)


if __name__ == "__main__":
    sys.exit(main())
