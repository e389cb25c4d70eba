"""Before a run starts: sampled log-probabilities against a plain forward of the same model, token by token.

Sampling shares prompts between rows, pads on the left and keeps keys and values; a model that does anything in its attention
that this does not know would be sampled, and then trained, with other probabilities than its own. Nothing random is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random
from typing import Any

import torch

from paragator.core.errors import ParagatorError, UsageError
from paragator.engines.local.branching import rope_limit, stock_attention, text_config, without_router_logits
from paragator.engines.local.generation import SequenceRequest, sample_rows
from paragator.engines.sampling import Sampling

EXACT, ROUNDED = (2e-3, 5e-4), (float("inf"), 0.3)
"""Nats by which one token's log-probability, and the average one, may differ from a plain forward's: in float32, and where
numbers are rounded to 16 bits (a logit of 20 is then a multiple of 0.125, and a token may go to another expert)."""
WINDOW = 8
"""Wider windows are proved at this width: what is hidden behind a wide one would take thousands of tokens to see."""


def prove_sampling(model: Any, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """UsageError unless a few sampled tokens have the log-probabilities of a plain forward."""
    room = tokens_of_proof(model)
    sampled = room // 3
    prompts = [random_ids(model, n, str(n)) for n in (room // 8 + 1, room - sampled, room // 3)]
    rows = [SequenceRequest(ids, f"proof:{i}") for ids in prompts for i in range(2)]
    sampling, tokens = Sampling(max_tokens=sampled), 10 * room * len(rows)
    with told(model, "sampled"), narrowed(model), autocast():
        found = sample_rows(model, rows, sampling, (), max_batch_tokens=tokens, device=device_of(model))
        plain = plain_log_probs(model, [(row.prompt_ids, f.token_ids) for row, f in zip(rows, found, strict=True)])
        compare(model, "sampled", [x for f in found for x in f.logprobs], plain)


def tokens_of_proof(model: Any) -> int:
    """The length of the longest sequence of a proof: 32 tokens, or what the model has room for."""
    config = text_config(model)
    limits: list[int | None] = [32, getattr(config, "max_position_embeddings", None), rope_limit(config)]
    return min(limit for limit in limits if limit)


def random_ids(model: Any, count: int, name: str) -> tuple[int, ...]:
    """Token ids of a named stream, below those that multimodal models keep for images."""
    rng, vocabulary = Random(f"proof:{name}"), text_config(model).vocab_size
    return tuple(rng.randrange(vocabulary // 10, vocabulary * 9 // 10) for _ in range(count))


def plain_log_probs(model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """Log-probabilities of what follows each prompt, by transformers' own forward of each such sequence alone."""
    config, out = text_config(model), []
    mode, before = model.training, config._attn_implementation
    device = device_of(model)
    model.eval()
    config._attn_implementation = stock_attention(model)
    try:
        with torch.no_grad():
            for prompt, following in sequences:
                ids = torch.tensor([[*prompt, *following]], device=device)
                logits = model(input_ids=ids, use_cache=False, **without_router_logits(model)).logits[0]
                logprobs = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
                out += logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
    finally:
        model.train(mode)
        config._attn_implementation = before
    return out


def compare(model: Any, what: str, found: Sequence[float], plain: Sequence[float]) -> None:
    """UsageError where log-probabilities differ by more than rounding: by how much and where."""
    apart = (torch.tensor(found) - torch.tensor(plain)).abs().nan_to_num(nan=torch.inf)
    worst, mean = int(apart.argmax()), float(apart.mean())
    whole = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    most, average = EXACT if whole and not torch.is_autocast_enabled(device_of(model).type) else ROUNDED
    if float(apart[worst]) > most or mean > average:
        raise UsageError(
            f"{what} log-probabilities of {name_of(model)} differ by {float(apart[worst]):.2g} nats at token {worst + 1} of "
            f"{len(apart)}, {mean:.2g} on average, from a plain forward's ({average:g} on average is rounding): use another model"
        )


@contextmanager
def told(model: Any, what: str) -> Iterator[None]:
    """Whatever a model raises in a proof, as one line; it then attends as it did before."""
    before = text_config(model)._attn_implementation
    try:
        yield
    except Exception as error:
        text_config(model)._attn_implementation = before
        if isinstance(error, ParagatorError | torch.OutOfMemoryError):
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UsageError(
            f"{name_of(model)} cannot be {what} here: {type(error).__name__}: {reason}; use another model"
        ) from error


@contextmanager
def narrowed(model: Any) -> Iterator[None]:
    """The model with windows of WINDOW tokens in place of those that its longest sequences exceed."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    holders = [text_config(model), *model.modules()]
    windows = [(x, x.sliding_window) for x in holders if isinstance(getattr(x, "sliding_window", None), int)]
    windows = [(x, w) for x, w in windows if w > WINDOW and (longest is None or longest > w)]
    for holder, _ in windows:
        holder.sliding_window = WINDOW
    try:
        yield
    finally:
        for holder, window in windows:
            holder.sliding_window = window


def device_of(model: Any) -> torch.device:
    """Where a model's inputs go."""
    device: torch.device = next(model.parameters()).device
    return device


def name_of(model: Any) -> str:
    """The class of a model, inside its wrappers."""
    inner = getattr(model, "module", model)
    return type(inner.get_base_model() if hasattr(inner, "get_base_model") else inner).__name__
