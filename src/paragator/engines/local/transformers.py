"""The in-process engine: batched sampling of whatever requests are waiting when the event loop is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Group, Prompt, Stage
from paragator.engines.encoding import decode, encode, misfit, open_thinking
from paragator.engines.local.branching import rope_limit, text_config
from paragator.engines.local.compute import submit
from paragator.engines.local.generation import SampledSequence, SequenceRequest, sample_rows
from paragator.engines.local.loading import end_tokens
from paragator.engines.sampling import Sampling

QUIET_PASSES = 4
"""The event loop is idle after this many passes in which no request arrived: a finished round reaches its next
request in fewer."""


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A waiting call: `future` gets its n samples."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    sampling: Sampling
    future: asyncio.Future[list[SampledSequence]] = field(repr=False)


class TransformersEngine:
    """Satisfies `Sample` with a causal language model of transformers and its tokenizer.

    sampling          the settings of each stage that will be asked for
    max_batch_tokens  budget of one batch in tokens, rows times (prompt + max_tokens); bounds the key-value cache
    device            of the inputs; the model's by default
    template_arguments  of the chat template, such as {"enable_thinking": False}
    autocast          entered around every batch: where the model's own forward autocasts, weights are then cast once a
                      batch and not once a token

    Each distinct prompt is prefilled once for all its samples. A result depends on (prompt, seed, sibling index) and
    the weights, not on what else was in the batch, apart from float rounding. A prompt that leaves no room for
    max_tokens in the context yields Failures. Changed weights (a training step) apply from the next request on.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        sampling: Mapping[Stage, Sampling],
        max_batch_tokens: int = 32_768,
        device: torch.device | str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if max_batch_tokens < 1:
            raise UsageError(f"max_batch_tokens = {max_batch_tokens}: at least 1 is needed")
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = dict(sampling)
        self.max_batch_tokens = max_batch_tokens
        self.device = torch.device(device) if device is not None else model.device
        self.template_arguments = dict(template_arguments or {})
        self.autocast = autocast
        self.eos_ids = end_tokens(model, tokenizer)
        config = text_config(model)
        self.context = min(
            filter(None, (getattr(config, "max_position_embeddings", None), rope_limit(config))), default=None
        )
        self.embeddings = model.get_input_embeddings().weight.shape[0]
        self._waiting: list[QueuedRequest] = []
        self._drain: asyncio.Task[None] | None = None
        self._batch: Future[Any] | None = None

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of one prompt, in order, with their token ids and log-probabilities as sampled."""
        if stage not in self.sampling:
            raise UsageError(f"no sampling settings for stage {stage!r}: this engine has {sorted(self.sampling)}")
        return await self.sampled(prompt, n, stage=stage, seed=seed, sampling=self.sampling[stage])

    async def sampled(self, prompt: Prompt, n: int, *, stage: Stage, seed: int, sampling: Sampling) -> Group:
        """The same with other sampling settings than the stage's."""
        prompt_ids = tuple(encode(self.tokenizer, prompt, self.template_arguments))
        if max(prompt_ids, default=0) >= self.embeddings:
            raise UsageError(
                f"a prompt has token {max(prompt_ids)}, the model embeddings for {self.embeddings}: use the tokenizer that "
                "belongs to the model"
            )
        if reason := self.misfit(len(prompt_ids), sampling.max_tokens):
            return Group(prompt, (Failure(reason),) * n, prompt_ids, stage)
        loop = asyncio.get_running_loop()
        request = QueuedRequest(prompt_ids, n, seed, sampling, loop.create_future())
        self._waiting.append(request)
        if self._drain is None or self._drain.done():
            self._drain = loop.create_task(self._answer_waiting())
        sampled = await request.future
        # Decoded here, in the loop's thread: a fast tokenizer must not be used from two threads at once.
        opened = open_thinking(self.tokenizer, prompt_ids)
        return Group(prompt, tuple(self.completion(s, opened) for s in sampled), prompt_ids, stage)

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens."""
        return len(encode(self.tokenizer, prompt, self.template_arguments))

    def misfit(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why a prompt of this length cannot be sampled, or None."""
        return misfit(prompt_tokens, max_tokens, self.context)

    def completion(self, sampled: SampledSequence, opened: str = "") -> Completion:
        """A sampled row with its text, which leaves out the end-of-sequence token and special tokens.

        Where the prompt opened thinking, the text begins with that marker, so that thinking which was cut is known as such.
        """
        shown = sampled.token_ids[:-1] if sampled.stopped else sampled.token_ids
        text = opened + decode(self.tokenizer, shown)
        return Completion(
            text,
            "stop" if sampled.stopped else "length",
            sampled.token_ids,
            sampled.logprobs,
            confidences=sampled.confidences,
            certainty=sampled.certainty,
        )

    def close(self) -> None:
        """Wait for the batch that is running, if any. The engine may be used again."""
        if self._batch is not None:
            wait([self._batch])

    async def _answer_waiting(self) -> None:
        """Until none waits: let requests gather while the loop is busy, then run them all in the computing thread."""
        while self._waiting:
            await self._quiet()
            requests = [r for r in self._waiting if not r.future.done()]  # a cancelled caller waits no longer
            self._waiting = []
            if not requests:
                continue
            try:
                self._batch = submit(self._sample, requests)
                results = await asyncio.wrap_future(self._batch)
            except Exception as error:  # noqa: BLE001  (not hidden: every caller gets it)
                for request in requests:
                    if not request.future.done():
                        request.future.set_exception(error)
                continue
            for request, sampled in zip(requests, results, strict=True):
                if not request.future.done():
                    request.future.set_result(sampled)

    async def _quiet(self) -> None:
        """Return after QUIET_PASSES passes of the event loop in which no request arrived."""
        passes, seen = 0, len(self._waiting)
        while passes < QUIET_PASSES:
            await asyncio.sleep(0)
            passes = passes + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    def _sample(self, requests: Sequence[QueuedRequest]) -> list[list[SampledSequence]]:
        """The samples of each request. Requests with the same settings share batches, whatever their stage.

        Requests with the same settings that were all cancelled get none; the others are still sampled.
        """
        results: dict[QueuedRequest, list[SampledSequence]] = {}
        for sampling in dict.fromkeys(r.sampling for r in requests):
            chosen = [r for r in requests if r.sampling == sampling]
            try:
                sampled = iter(self._sample_alike(chosen, sampling))
            except InterruptedError:
                results.update((r, []) for r in chosen)
                continue
            results.update((r, [next(sampled) for _ in range(r.n)]) for r in chosen)
        return [results[r] for r in requests]

    def _sample_alike(self, requests: Sequence[QueuedRequest], sampling: Sampling) -> list[SampledSequence]:
        with self.autocast():
            return sample_rows(
                self.model,
                [SequenceRequest(r.prompt_ids, f"{r.seed}:{i}") for r in requests for i in range(r.n)],
                sampling,
                self.eos_ids,
                max_batch_tokens=self.max_batch_tokens,
                device=self.device,
                cancelled=lambda: all(r.future.cancelled() for r in requests),
            )
