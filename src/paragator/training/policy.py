"""The policy: a model and its optimiser. It takes credited trees and changes weights; it is blind to the method."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from paragator.config import Config, OptimizerConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.hooks import multiplier
from paragator.core.types import Stage
from paragator.training import balance, checkpoint, memory, objective
from paragator.training.compiled import compile_layers, recompute_layers
from paragator.training.packed import Batch, collate, log_probs
from paragator.training.recipe import PolicySettings
from paragator.training.routers import Routers, balance_loss
from paragator.training.rows import STAGES, PackedRow, Tree, pack

IDLE = {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0, "updated": 0.0}
"""Statistics of a step that changed no weight."""


class NotFinite(Exception):
    """What of an update is not finite, and what to do about it."""


class Policy:
    """Model, optimiser and schedule; Accelerate chooses device and mixed precision.

    The learner of one process, and a part of that of many. An engine in this process samples from `raw`, which with
    `settings.lagging` holds the weights last published; `batch_tokens` are those of one pass.
    """

    kind = "local"
    raw: Any

    def __init__(self, model: Any, tokenizer: Any, settings: PolicySettings) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.precision = pick_precision(settings.precision, str(model.device))
        AcceleratorState._reset_state()  # it keeps one precision for a process, and a process may train more than once
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.precision == "bfloat16" else "no",
            cpu=str(model.device) == "cpu",
        )
        reference = frozen_reference(model, settings.kl)
        if self.precision == "bfloat16":
            cast_frozen(model)
        model.eval()  # updates too: dropout would compute other log-probabilities than were sampled from
        self.routers = Routers(model, settings.router_loss) if settings.router_loss else None
        if settings.gradient_checkpointing:
            recompute_layers(model)
        if settings.compile:
            compile_layers(model, *([] if reference is None else [reference]))
        self.model, self.reference = self.placed(model, reference)
        self.optimizer = torch.optim.AdamW(
            decayed([p for p in self.model.parameters() if p.requires_grad], settings.optimizer.weight_decay),
            lr=settings.optimizer.lr,
            betas=settings.optimizer.betas,
            fused=self.accelerator.device.type
            in ("cpu", "cuda"),  # one pass over weights and moments: 7 times as fast on a CPU
        )
        self.batch_tokens = memory.MOST_TOKENS[False]
        self.updates = self.refused = 0
        self.factor: float | None = None  # of candidates' credit, by the gradients measured so far

    @classmethod
    def from_config(cls, model: Any, tokenizer: Any, config: Config) -> Self:
        """The policy of a config, its passes as large as this device's memory allows."""
        policy = cls(model, tokenizer, PolicySettings.from_config(config))
        policy.batch_tokens = budget_on(model.device, model.config, config, policy.precision == "bfloat16")
        return policy

    def placed(self, model: Any, reference: Any) -> tuple[Any, Any]:
        """The model that is trained and its frozen reference, where they compute."""
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.raw = copy.deepcopy(model, frozen) if self.settings.lagging else model
        return model, reference

    def rows(self, trees: Sequence[Tree]) -> list[PackedRow]:
        """The packed rows that this process computes."""
        return pack(trees, self.batch_tokens)

    def measure(self, trees: Sequence[Tree], others: Sequence[Tree]) -> dict[str, float]:
        """Norms and cosines of the stages' gradients, without KL and routers' loss, each in passes of its own; no weight changes.

        `others` are the candidates under another credit. With `settings.stage_ratio`, further updates scale candidates' credit by
        them. Where something is not finite nothing is measured: the update says so.
        """

        def gradient(some: Sequence[Tree]) -> list[torch.Tensor | None]:
            rows = self.rows(some)
            self.accumulate(rows, [None] * len(rows), {})
            found = [parameter.grad for parameter in self.tensors().values()]
            self.optimizer.zero_grad()
            return found

        routers, self.routers = self.routers, None
        try:
            found = balance.compared(gradient, trees, others)
        except NotFinite:
            return {}
        finally:
            self.routers = routers
            self.optimizer.zero_grad()
        if self.settings.stage_ratio:
            self.factor = balance.factor(self.factor, found, self.settings.stage_ratio)
        return found

    def update(self, trees: Sequence[Tree], step: int, kl_constants: Mapping[Stage, float]) -> dict[str, float]:
        """`train.updates` optimiser steps on all trees, each accumulated over packed rows; returns their statistics.

        `kl_constants[stage]` is 1 / (maximum completion length x rollouts) of that stage. Without trees nothing
        changes, not even the optimiser's moments. The ratio is taken to the policy before the first of the steps.
        Loss and what compares with the sampling policy are the first step's, the rest is the last one's. Where something
        is not finite the optimiser does not move: RunError, or a skipped update within `settings.max_refused` of them.
        """
        if not trees:
            return dict(IDLE)
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings.optimizer, step, settings.steps)
        rows = self.rows(trees if self.factor is None else balance.scaled(trees, self.factor))
        old: list[torch.Tensor | None] = [None] * len(rows)
        found, refused = [], {}
        for _ in range(settings.updates):
            try:
                stats, old = self.gradient(rows, old, kl_constants)
            except NotFinite as problem:
                self.refuse(step, problem)
                refused = {"refused": 1.0}
                break
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            found.append(stats)
        if not found:
            return IDLE | refused
        first, last = found[0], found[-1]
        return {
            "loss": first["loss"],
            "grad_norm": last["grad_norm"],
            "lr": self.optimizer.param_groups[0]["lr"],
            "updated": 1.0,
            "ratio": last["ratio"],
            "clipped": last["clipped"],
            "mismatch_kl": first["mismatch"],
            "kl": last["kl"],
            "weight": first["weight"],
            "truncated_weights": first["truncated"],
            **({"router_loss": first["router_loss"]} if self.routers else {}),
            **refused,
            **({} if self.factor is None else {"balance": self.factor}),
        }

    def refuse(self, step: int, problem: NotFinite) -> None:
        """Count an update that is not made; RunError once there are more than may be skipped."""
        self.refused += 1
        (what, fix), allowed = problem.args, self.settings.max_refused
        if self.refused > allowed:
            raise RunError(f"step {step}: {what} is not finite, so no weight was changed; {fix}")
        warnings.warn(
            f"step {step}: {what} is not finite; update skipped, {self.refused} of {allowed} that may be", stacklevel=2
        )

    def gradient(
        self, rows: Sequence[PackedRow], old: Sequence[torch.Tensor | None], kl_constants: Mapping[Stage, float]
    ) -> tuple[dict[str, float], list[torch.Tensor | None]]:
        """The clipped gradient over rows, as `accumulate` has it; NotFinite, with no gradient kept, where it is not."""
        try:
            total, merged, kept = self.accumulate(rows, old, kl_constants)
            norm = clipped_norm(self.model.parameters(), self.settings.optimizer.max_grad_norm)
            if not math.isfinite(norm):
                raise NotFinite("the gradient's norm", SKIP)
        except BaseException:
            self.optimizer.zero_grad()
            raise
        return {**merged, "loss": total, "grad_norm": norm}, kept

    def accumulate(
        self, rows: Sequence[PackedRow], old: Sequence[torch.Tensor | None], kl_constants: Mapping[Stage, float]
    ) -> tuple[float, dict[str, float], list[torch.Tensor | None]]:
        """Add up the gradient over rows: loss, statistics, and each row's `old` log-probabilities (the current ones for None)."""
        total, parts = 0.0, []
        kept: list[torch.Tensor | None] = []
        tokens = self.summed(sum(row.num_tokens for row in rows if not row.idle)) if self.routers else 1.0
        for row, before in zip(rows, old, strict=True):
            batch = collate(row).to(self.accelerator.device)
            with self.watched_routers() as routed:
                value, stats, now = self.loss(batch, kl_constants, before)
            if self.routers:
                balance = balance_loss(routed, self.routers.top_k)
                value = value + self.settings.router_loss * row.num_tokens / tokens * balance
                stats["router_loss"] = float(balance.detach())
            (value * 0 if row.idle else value).backward()
            total += 0.0 if row.idle else float(value.detach())
            parts.append({**stats, "tokens": 0.0} if row.idle else stats)
            kept.append(now if before is None else before)
        return total, objective.merge(parts), kept

    def watched_routers(self) -> AbstractContextManager[list[torch.Tensor]]:
        """The logits that the routers of a mixture of experts give meanwhile, where their loss is trained."""
        return self.routers.watched() if self.routers else nullcontext([])

    def summed(self, number: float) -> float:
        """A number of this process's rows, added up over all processes."""
        return number

    def loss(
        self, batch: Batch, kl_constants: Mapping[Stage, float], old: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
        """The summed loss of one micro-batch, with the KL to the reference where one is kept; statistics; log-probabilities [B]."""
        settings = self.settings
        with self.accelerator.autocast():
            logprobs = log_probs(self.model, batch, settings.temperature)
            reference = self.reference_log_probs(batch) if settings.kl else None
        constants = torch.tensor([kl_constants.get(stage, 0.0) for stage in STAGES], device=batch.stages.device)
        value, stats = objective.loss(
            logprobs,
            batch.sampled_logprobs,
            batch.credit,
            settings.loss,
            old_logprobs=old,
            reference=None
            if reference is None
            else objective.Reference(reference, settings.kl * constants[batch.stages]),
            sequences=batch.sequences if settings.loss.ratio == "sequence" else None,
        )
        now = logprobs.detach()
        parts = (batch.credit, batch.sampled_logprobs, now, (now - batch.sampled_logprobs).exp(), value.detach())
        self.checked(not_finite(dict(zip(FIXES, parts, strict=True))))
        return value, stats, now

    def checked(self, problem: NotFinite | None) -> None:
        """What becomes of a problem with a pass."""
        if problem is not None:
            raise problem

    def reference_log_probs(self, batch: Batch) -> torch.Tensor:
        """[B] under the initial model: its frozen copy, or the policy with its adapters off."""
        off = self.model.disable_adapter() if self.reference is None else nullcontext()
        with torch.no_grad(), off:
            return log_probs(self.model if self.reference is None else self.reference, batch, self.settings.temperature)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state(self) -> tuple[checkpoint.Tensors, checkpoint.Moments]:
        """Weights that are trained and the optimiser's moments, whole and by name."""
        return self.tensors(), checkpoint.moments_of(self.optimizer, self.tensors())

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write a checkpoint from which `restore` continues."""
        own = {"learner": self.kind, "updates": self.updates, "refused": self.refused, "precision": self.precision}
        own |= {} if self.factor is None else {"balance": self.factor}
        checkpoint.save(folder, *self.state(), {**meta, **own})

    def restore(self, folder: Path) -> dict[str, Any]:
        """Take weights and optimiser state from a checkpoint; returns its meta."""
        meta = checkpoint.read_into(folder, self.tensors(), self.optimizer)
        self.updates, self.refused, self.factor = meta["updates"], meta["refused"], meta.get("balance")
        return meta

    def publish(self) -> None:
        """Bring `raw` up to date where it is a copy."""
        self.take(self.tensors())

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy trained weights into `raw`."""
        own = dict(self.raw.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)

    def close(self) -> None:
        """Nothing to do: there are no other processes."""

    def export(self, folder: Path, adapter: bool = False) -> None:
        """Write the model (adapters merged) and tokenizer as a folder that transformers and vLLM load; or the adapters alone."""
        self.publish()
        model = self.raw
        if adapter:
            model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub
            return
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).float().merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


SKIP = "--resume with a higher train.max_refused skips such updates; else start again with a lower optimizer.lr"
FIXES = {
    "the credit": "bound the rewards and --resume",
    "a sampled log-probability": "fix the engine and --resume",
    "a log-probability of the model": SKIP,
    "an importance weight": "the engine samples from another model than the trainer's: fix it and --resume",
    "the loss": SKIP,
}
"""What must be finite in a pass, in the order in which one makes the next one not so, and what to do."""


def not_finite(found: Mapping[str, torch.Tensor]) -> NotFinite | None:
    """The first of FIXES that is not finite, after one read from the device."""
    flags = torch.stack([torch.isfinite(values).all() for values in found.values()]).tolist()
    return next((NotFinite(name, FIXES[name]) for name, finite in zip(found, flags, strict=True) if not finite), None)


def clipped_norm(parameters: Iterable[torch.Tensor], most: float) -> float:
    """The gradient's global norm; the gradient is scaled down to `most` where it is larger."""
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of a sharded gradient it is a part


def budget_on(device: torch.device, sizes: Any, config: Config, bfloat16: bool) -> int:
    """Tokens of one pass that fit this device's free memory; a CPU's most where the estimate does not know the architecture."""
    cuda = device.type == "cuda"
    try:
        shape = memory.from_json(sizes.get_text_config().to_dict(), config.model.path)
    except UsageError:
        return config.train.batch_tokens or memory.MOST_TOKENS[False]
    free = torch.cuda.mem_get_info(device)[0] if cuda else memory.free_memory()
    return memory.budget(config, shape, free, bfloat16=bfloat16, cuda=cuda)


def decayed(parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The optimiser's groups: matrices decay, norms and biases do not. One group where nothing decays."""
    if not weight_decay:
        return [{"params": list(parameters), "weight_decay": 0.0}]
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def frozen_reference(model: Any, kl: float) -> Any:
    """A frozen copy of the model when a KL is asked for and no adapters can be switched off; else None."""
    if kl == 0 or hasattr(model, "disable_adapter"):
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def cast_frozen(model: Any) -> None:
    """Keep frozen weights (under adapters) in bfloat16, in which autocast multiplies them.

    Autocast remembers its copies of weights that are trained, and casts others in every call: each token of a
    completion. The products are the same. What is not only multiplied stays: norms, embeddings, a head tied to them.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for module in model.modules():
        if (
            isinstance(module, torch.nn.Linear)
            and not module.weight.requires_grad
            and id(module.weight) not in embeddings
        ):
            module.weight.data = module.weight.data.to(torch.bfloat16)


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then as scheduled; or by the user's function."""
    if ":" in settings.schedule:
        return settings.lr * multiplier(settings.schedule, step, steps)
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    progress = (step - settings.warmup_steps - 1) / max(1, steps - settings.warmup_steps)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * (1 - progress) if settings.schedule == "linear" else settings.lr


def as_begun(config: Config, run_dir: Path) -> Config:
    """The config of a run that may resume from a checkpoint: a precision that it chose stays what it was."""
    begun = checkpoint.newest_meta(run_dir / "checkpoints").get("precision")
    if config.train.precision != "auto" or begun is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": begun})})


def pick_precision(wanted: str, device: str) -> str:
    """ "bfloat16" or "float32"; "auto" is bfloat16 on CUDA, and on a CPU what a small product says is faster."""
    if wanted != "auto":
        return wanted
    if device != "cpu":
        return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(7):  # in turns and the best of each: other programs slow single products down
        for dtype in seconds:
            a = torch.ones(512, 512, dtype=dtype)
            start = time.perf_counter()
            a @ a
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return "bfloat16" if seconds[torch.bfloat16] < 0.7 * seconds[torch.float32] else "float32"
