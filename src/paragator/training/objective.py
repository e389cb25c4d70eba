"""The per-token loss: a clipped policy-gradient surrogate, summed. It knows rows of numbers and nothing of methods.

Differs from textbook PPO in two ways. There is no mean anywhere: the credit of a token already holds its advantage, its
stage's weight and the constant 1 / (maximum completion length x rollouts), so a sum over any split into micro-batches
is the same loss (Dr.GRPO, arXiv 2503.20783, eq. 4). And the policy that moved (`old`) is kept apart from the engine
that sampled (`sampled`): the first is clipped, the second corrected by truncated importance sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paragator.core.errors import UsageError

Ratio = Literal["token", "sequence", "cispo"]
"""Whose ratio is clipped: a token's (PPO); its completion's, the geometric mean over tokens (GSPO, arXiv 2507.18071); a token's,
which then only weighs the gradient, so that no token's is cut to 0 (CISPO, arXiv 2506.13585)."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What bounds the loss: how far a token's ratio counts, and its importance weight.

    clip_low, clip_high  the ratio to the policy before the updates counts between 1 - clip_low and 1 + clip_high
    ratio                see `Ratio`; importance weights are a completion's too where it is "sequence"
    weight_cap           cap of the weight policy / sampler; None takes no weight, right when the engine is the trainer
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    weight_cap: float | None = None
    ratio: Ratio = "token"

    def __post_init__(self) -> None:
        low, high, cap = self.clip_low, self.clip_high, self.weight_cap
        if cap is not None and cap <= 0:
            raise UsageError(f"weight_cap = {cap}: the cap of importance weights must be above 0")
        if not 0 <= low <= 1 or high < 0:
            raise UsageError(f"clip_low = {low}, clip_high = {high}: use 0 <= clip_low <= 1 and 0 <= clip_high")


@dataclass(frozen=True, slots=True)
class Reference:
    """The frozen policy's log-probabilities [B], and the KL coefficient times the same constant as in the credit, per token."""

    logprobs: Tensor
    weight: Tensor | float


def loss(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    credit: Tensor,
    settings: LossSettings,
    *,
    old_logprobs: Tensor | None = None,
    reference: Reference | None = None,
    sequences: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss (a scalar sum, to be minimised) and its statistics. Per-token tensors are [B]; units are nats.

    ratio r = exp(logprobs - old), weight w = min(exp(old - sampled), weight_cap), and per token
    -w * min(r * credit, clip(r, 1 - clip_low, 1 + clip_high) * credit) + reference.weight * k3(reference, logprobs),
    k3 = exp(d) - d - 1 with d = reference - logprobs, an estimate of KL(policy || reference).

    old_logprobs  the policy before this batch's first update. None is the policy as it is now, detached: right for one
                  update per batch, and then r = 1 in value. For several updates pass what the trainer computed
                  first, or `sampled_logprobs` where engine and trainer are the same.
    sequences     [B], which completion a token is of, from 0; needed where `settings.ratio` is "sequence". Every token then has
                  its completion's r and w, exp of the mean log-ratio. The sum over tokens stays (GSPO divides it by the
                  completion's length: ours does not, as Dr.GRPO does not).

    With "cispo" a token's term is -w * detach(clip(r)) * credit * (1 + logprobs - detach(logprobs)).

    Statistics are token means except "tokens": ratio, clipped (share cut, by cispo bounded), weight, truncated (share),
    mismatch (k3 estimate of KL(sampling policy || policy)), kl (to the reference; 0 without one).
    """
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    now = logprobs.detach()
    old = now if old_logprobs is None else old_logprobs
    whose = sequences if settings.ratio == "sequence" else None
    ratio = torch.exp(shared(logprobs - old, whose))
    clipped = ratio.clamp(low, high)
    if settings.ratio == "cispo":
        surrogate = clipped.detach() * credit * (1 + logprobs - now)
    else:
        surrogate = torch.minimum(ratio * credit, clipped * credit)
    raw = torch.exp(shared(old - sampled_logprobs, whose))
    weight = torch.ones_like(raw) if settings.weight_cap is None else raw.clamp(max=settings.weight_cap)
    total = -(weight * surrogate).sum()
    kl = torch.zeros_like(now)
    if reference is not None:
        kl = k3(reference.logprobs - logprobs)
        total = total + (reference.weight * kl).sum()
    cut = ((ratio > high) & (credit > 0)) | ((ratio < low) & (credit < 0))
    if settings.ratio == "cispo":
        cut = ratio != clipped
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


def shared(log_ratio: Tensor, sequences: Tensor | None) -> Tensor:
    """Each token's completion's mean [B]; as it is without `sequences`."""
    if sequences is None or not len(log_ratio):
        return log_ratio
    count = int(sequences.max()) + 1
    sums = log_ratio.new_zeros(count).index_add(0, sequences, log_ratio)
    sizes = log_ratio.new_zeros(count).index_add(0, sequences, torch.ones_like(log_ratio))
    return (sums / sizes.clamp(min=1))[sequences]


def k3(log_ratio: Tensor) -> Tensor:
    """exp(d) - d - 1 per token, never negative: for samples of q and d = log p - log q it estimates KL(q || p)."""
    return torch.expm1(log_ratio) - log_ratio


def merge(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The statistics of several micro-batches as those of one: token-weighted means, tokens added."""
    tokens = sum(part["tokens"] for part in parts)
    names = [name for name in (parts[0] if parts else {}) if name != "tokens"]
    means = {name: sum(part[name] * part["tokens"] for part in parts) / max(1.0, tokens) for name in names}
    return {**means, "tokens": tokens}
