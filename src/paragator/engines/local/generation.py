"""Batched sampling from a causal language model: each distinct prompt is prefilled once and shared by its samples.

What differs from `model.generate`: siblings share one prefill; every row draws from its own named stream, so the rest
of the batch cannot change it (apart from float rounding); the log-probabilities are those that were sampled from;
finished rows leave the batch; siblings share their prompt's keys and values, and add theirs in place (branching.py; the
stock cache holds a copy of the prompt for each row and copies itself for each token).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from paragator.engines.local.branching import (
    NO_MASK,
    SharedPrefixCache,
    attending,
    can_branch,
    check_rope,
    full_cache,
    text_config,
    without_router_logits,
)
from paragator.engines.local.products import narrow_products
from paragator.engines.sampling import Sampling

COMPACT_BELOW = 0.75
"""Finished rows are removed once fewer than this share of the batch is unfinished."""


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One completion to sample: its prompt, and the name of its stream of uniform numbers."""

    prompt_ids: tuple[int, ...]
    stream: str


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """token_ids [T] and logprobs [T] as sampled; `stopped` when the last token is an end-of-sequence token.

    `confidences` [T] and `certainty` where Sampling.confidence asks for them: see `Sureness`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    confidences: tuple[float, ...] | None = None
    certainty: float | None = None


def sample_rows(
    model: Any,
    rows: Sequence[SequenceRequest],
    sampling: Sampling,
    eos_ids: Sequence[int],
    *,
    max_batch_tokens: int,
    device: torch.device,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[SampledSequence]:
    """Sample every row, in order, in batches of at most `max_batch_tokens` (rows times their longest length).

    Runs in evaluation mode without gradients and restores the model's mode. `cancelled` is called at every token;
    InterruptedError when it returns True.
    """
    results: dict[int, SampledSequence] = {}
    mode = model.training
    model.eval()
    try:
        # Not inference_mode: buffers that a model updates in its forward pass must stay usable by autograd.
        with torch.no_grad(), narrow_products(model):
            for batch in batches(rows, sampling.max_tokens, max_batch_tokens):
                sampled = sample_batch(model, [rows[i] for i in batch], sampling, eos_ids, device, cancelled)
                results.update(zip(batch, sampled, strict=True))
    finally:
        model.train(mode)
    return [results[i] for i in range(len(rows))]


def batches(rows: Sequence[SequenceRequest], max_tokens: int, max_batch_tokens: int) -> Iterator[list[int]]:
    """Row indices, similar lengths together. Siblings are split only where one prompt's rows exceed the budget."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids), rows[i].prompt_ids))
    batch: list[int] = []
    for prompt_ids, group in groupby(order, key=lambda i: rows[i].prompt_ids):
        siblings = list(group)
        capacity = max(1, max_batch_tokens // (len(prompt_ids) + max_tokens))
        if batch and len(batch) + len(siblings) > capacity:
            yield batch
            batch = []
        while len(siblings) > capacity:
            yield siblings[:capacity]
            siblings = siblings[capacity:]
        batch += siblings
    if batch:
        yield batch


def sample_batch(
    model: Any,
    rows: Sequence[SequenceRequest],
    sampling: Sampling,
    eos_ids: Sequence[int],
    device: torch.device,
    cancelled: Callable[[], bool],
) -> list[SampledSequence]:
    """Sample one batch of B rows, each at most T = max_tokens long."""
    count, max_tokens = len(rows), sampling.max_tokens
    uniforms = torch.tensor([stream(row.stream, max_tokens) for row in rows], dtype=torch.float64, device=device)
    eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    tokens = torch.zeros(count, max_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, max_tokens, device=device)
    alive = torch.arange(count, device=device)  # the rows that the cache still holds
    unfinished = torch.ones(count, dtype=torch.bool, device=device)  # of those
    sureness = Sureness(count, max_tokens, sampling.confidence, device) if sampling.confidence else None
    logits, following = prefill(model, rows, max_tokens, device)
    for step in range(max_tokens):
        if cancelled():
            raise InterruptedError("every request of the batch was cancelled")
        token, logprob = draw(logits, uniforms[alive, step], sampling)
        tokens[alive, step] = token
        logprobs[alive, step] = logprob
        if sureness:
            sureness.note(logits, alive, step)
        unfinished &= ~torch.isin(token, eos)
        left = int(unfinished.sum())
        if left == 0 or step + 1 == max_tokens:
            break
        if left < COMPACT_BELOW * len(alive):
            keep = unfinished.nonzero().squeeze(1)
            following.keep(keep)
            alive, token, unfinished = (x[keep] for x in (alive, token, unfinished))
        logits = following(token, step)
    sampled = cut(tokens, logprobs, eos)
    return sureness.told(sampled) if sureness else sampled


def prefill(
    model: Any, rows: Sequence[SequenceRequest], max_tokens: int, device: torch.device
) -> tuple[Tensor, Branched | Copied]:
    """Run each distinct prompt once, padded on the left: the rows' first logits [B, V], and how to get the next ones."""
    index: dict[tuple[int, ...], int] = {}
    for row in rows:
        index.setdefault(row.prompt_ids, len(index))
    width = max(len(ids) for ids in index)
    check_rope(text_config(model), width + max_tokens)
    padding = [width - len(ids) for ids in index]
    input_ids = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, index, strict=True)], device=device)
    first = torch.tensor(padding, device=device)[:, None]
    columns = torch.arange(width + max_tokens, device=device)
    mask = (columns >= first).long()
    output = model(
        input_ids=input_ids,
        attention_mask=mask[:, :width],
        position_ids=(columns[:width] - first).clamp(min=0),
        past_key_values=full_cache(model),
        use_cache=True,
        logits_to_keep=1,
        **without_router_logits(model),
    )
    prompt = torch.tensor([index[row.prompt_ids] for row in rows], device=device)
    cache, position = output.past_key_values, (width - first)[prompt]
    following: Branched | Copied
    if can_branch(model, cache):
        following = Branched(model, SharedPrefixCache(cache, prompt, mask[:, :width] == 0, max_tokens), position)
    else:
        cache.reorder_cache(prompt)  # unlike batch_select_indices, linear-attention layers have it too
        following = Copied(model, cache, mask[prompt], width, position)
    return output.logits[prompt, -1], following


@dataclass(slots=True)
class Branched:
    """The next logits [B, V] of rows that share their prompts' keys and values; position [B, 1] is of the first token."""

    model: Any
    branches: SharedPrefixCache
    position: Tensor

    def __call__(self, token: Tensor, step: int) -> Tensor:
        with attending(self.model):
            output = self.model(
                input_ids=token[:, None],
                attention_mask=NO_MASK,
                position_ids=self.position + step,
                past_key_values=self.branches.cache,
                use_cache=True,
                branches=self.branches,
                **without_router_logits(self.model),
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        self.branches.keep(rows)
        self.position = self.position[rows]


@dataclass(slots=True)
class Copied:
    """The same with a stock cache that holds a copy of its prompt for each row, for models that cannot share."""

    model: Any
    cache: Any
    mask: Tensor
    width: int
    position: Tensor

    def __call__(self, token: Tensor, step: int) -> Tensor:
        output = self.model(
            input_ids=token[:, None],
            attention_mask=self.mask[:, : self.width + step + 1],
            position_ids=self.position + step,
            past_key_values=self.cache,
            use_cache=True,
            **without_router_logits(self.model),
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token for each row by inverse CDF: logits [B, V] and uniforms [B] to tokens [B] and log-probabilities [B].

    The log-probabilities are those of the distribution that is sampled from: after temperature, top-k and top-p.
    At temperature 0 they are the model's own, at temperature 1.
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits.float(), -1)
        token = logprobs.argmax(-1)
    else:
        logprobs = torch.log_softmax(truncate(logits.float() / sampling.temperature, sampling), -1)
        cdf = logprobs.double().exp().cumsum(-1)
        token = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True).squeeze(1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


class Sureness:
    """How sure the model is of each token, by its own distribution p, before temperature: two published measures.

    confidence  minus the mean log-probability of its `likeliest` tokens (DeepConf, arXiv 2508.15260, equation 2)
    certainty   the mean of -log(V p) over the vocabulary of V (arXiv 2502.18581, equation 9), here of one token
    """

    def __init__(self, rows: int, max_tokens: int, likeliest: int, device: torch.device) -> None:
        self.likeliest = likeliest
        self.confidences = torch.zeros(rows, max_tokens, device=device)
        self.certainties = torch.zeros(rows, max_tokens, device=device)

    def note(self, logits: Tensor, rows: Tensor, step: int) -> None:
        """One step's logits [B, V] of these rows [B]."""
        logprobs = torch.log_softmax(logits.float(), -1)
        vocabulary = logprobs.shape[-1]
        top = logprobs.topk(min(self.likeliest, vocabulary), dim=-1).values
        self.confidences[rows, step] = -top.mean(-1)
        self.certainties[rows, step] = -logprobs.mean(-1) - math.log(vocabulary)

    def told(self, sampled: Sequence[SampledSequence]) -> list[SampledSequence]:
        """The same sequences with what was noted of them; confidences to three decimals, as published code keeps them."""
        rows = zip(sampled, self.confidences.tolist(), self.certainties.tolist(), strict=True)
        out = []
        for one, confidences, certainties in rows:
            length = len(one.token_ids)
            rounded = tuple(round(value, 3) for value in confidences[:length])
            out.append(replace(one, confidences=rounded, certainty=math.fsum(certainties[:length]) / max(1, length)))
        return out


def truncate(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores [B, V] with what top-k and then top-p leave out at minus infinity."""
    if 0 < sampling.top_k < scores.shape[-1]:
        kept = scores.topk(sampling.top_k, dim=-1)
        scores = torch.full_like(scores, -torch.inf).scatter(-1, kept.indices, kept.values)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        scores = scores.masked_fill((before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p), -torch.inf)
    return scores


def stream(name: str, count: int) -> list[float]:
    """The first `count` numbers in [0, 1) of a named stream. (A torch generator keeps 32 bits of its seed only.)"""
    rng = random.Random(name)
    return [rng.random() for _ in range(count)]


def cut(tokens: Tensor, logprobs: Tensor, eos: Tensor) -> list[SampledSequence]:
    """Each row of tokens [B, T] up to and with its first end-of-sequence token."""
    ends = torch.isin(tokens, eos)
    stopped = ends.any(1)
    lengths = torch.where(stopped, ends.int().argmax(1) + 1, tokens.shape[1])
    rows = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
    return [SampledSequence(tuple(ids[:length]), tuple(logs[:length]), stop) for ids, logs, length, stop in rows]
