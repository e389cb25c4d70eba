"""The per-token loss: a clipped policy-gradient surrogate, summed. It knows rows of numbers and nothing of methods.

Differs from textbook PPO in two ways. There is no mean anywhere: the credit of a token already holds its advantage, its
stage's weight and the constant 1 / (maximum completion length x rollouts), so a sum over any split into micro-batches
is the same loss (Dr.GRPO, arXiv 2503.20783, eq. 4). And the policy that moved (`old`) is kept apart from the engine
that sampled (`sampled`): the first is clipped, the second corrected by truncated importance sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paragator.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What bounds the loss: how far a token's ratio counts, and its importance weight.

    clip_low, clip_high  the ratio to the policy before the updates counts between 1 - clip_low and 1 + clip_high
    weight_cap           cap of the weight policy / sampler; None takes no weight, right when the engine is the trainer
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    weight_cap: float | None = None

    def __post_init__(self) -> None:
        low, high, cap = self.clip_low, self.clip_high, self.weight_cap
        if cap is not None and cap <= 0:
            raise UsageError(f"weight_cap = {cap}: the cap of importance weights must be above 0")
        if not 0 <= low <= 1 or high < 0:
            raise UsageError(f"clip_low = {low}, clip_high = {high}: use 0 <= clip_low <= 1 and 0 <= clip_high")


def loss(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    credit: Tensor,
    settings: LossSettings,
    *,
    old_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    kl_weight: Tensor | float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss (a scalar sum, to be minimised) and its statistics. Per-token tensors are [B]; units are nats.

    ratio r = exp(logprobs - old), weight w = min(exp(old - sampled), weight_cap), and per token
    -w * min(r * credit, clip(r, 1 - clip_low, 1 + clip_high) * credit) + kl_weight * k3(reference, logprobs),
    k3 = exp(d) - d - 1 with d = reference - logprobs, an estimate of KL(policy || reference).

    old_logprobs  the policy before this batch's first update. None is the policy as it is now, detached: right for one
                  update per batch, and then r = 1 in value. For several updates pass what the trainer computed
                  first, or `sampled_logprobs` where engine and trainer are the same.
    kl_weight     KL coefficient times the same constant 1 / (maximum length x rollouts) as in the credit, per token.

    Statistics are token means except "tokens": ratio, clipped (share whose gradient is cut), weight, truncated (share),
    mismatch (k3 estimate of KL(sampling policy || policy)), kl (to the reference; 0 without one).
    """
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    now = logprobs.detach()
    old = now if old_logprobs is None else old_logprobs
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(low, high)
    surrogate = torch.minimum(ratio * credit, clipped * credit)
    raw = torch.exp(old - sampled_logprobs)
    weight = torch.ones_like(raw) if settings.weight_cap is None else raw.clamp(max=settings.weight_cap)
    total = -(weight * surrogate).sum()
    kl = torch.zeros_like(now)
    if reference_logprobs is not None:
        kl = k3(reference_logprobs - logprobs)
        total = total + (kl_weight * kl).sum()
    cut = ((ratio > high) & (credit > 0)) | ((ratio < low) & (credit < 0))
    columns = {
        "ratio": ratio,
        "clipped": cut,
        "weight": weight,
        "truncated": weight < raw if settings.weight_cap is not None else torch.zeros_like(cut),
        "mismatch": k3(now - sampled_logprobs),
        "kl": kl,
    }
    sums = torch.stack([column.detach().double().sum() for column in columns.values()])
    means = (sums / max(1, logprobs.numel())).tolist()
    return total, {**dict(zip(columns, means, strict=True)), "tokens": float(logprobs.numel())}


def k3(log_ratio: Tensor) -> Tensor:
    """exp(d) - d - 1 per token, never negative: for samples of q and d = log p - log q it estimates KL(q || p)."""
    return torch.expm1(log_ratio) - log_ratio


def merge(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The statistics of several micro-batches as those of one: token-weighted means, tokens added."""
    tokens = sum(part["tokens"] for part in parts)
    names = [name for name in (parts[0] if parts else {}) if name != "tokens"]
    means = {name: sum(part[name] * part["tokens"] for part in parts) / max(1.0, tokens) for name in names}
    return {**means, "tokens": tokens}
