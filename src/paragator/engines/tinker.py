"""A service that speaks the Tinker API, as the engine of training: the adapter that it trains samples, exact tokens out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp

from paragator.config import Config, ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Completion, Failure, Group, Prompt, Stage
from paragator.engines.encoding import decode, encode, misfit, open_thinking
from paragator.engines.local.loading import end_tokens, folder_of, shape
from paragator.engines.sampling import Sampling

HOSTED = "https://tinker.thinkingmachines.dev/services/tinker-prod"
KEY = "TINKER_API_KEY"
NO_KEY = "tml-none"
"""What a service that asks for no key gets: the client wants one that begins so."""
SEEDS = 2**30
"""Seeds are taken modulo this: SkyRL counts siblings up from the seed, in 32 bits."""


class Service:
    """A Tinker service: what is asked of it, where a failure is a RunError of one line."""

    def __init__(self, config: Config) -> None:
        import tinker

        self.tinker, self.types = tinker, tinker.types
        self.url, self.key = config.train.tinker_url or HOSTED, os.environ.get(KEY) or NO_KEY
        self.timeout_s = config.engine.total_timeout_s
        folder, model = folder_of(config.model), config.model
        self.base = str(folder) if folder and model.path == "embedded" else model.path
        self.errors = (tinker.TinkerError, ValueError, OSError, TimeoutError)  # the client raises all of these
        self.client = self.asked("the connection", lambda: tinker.ServiceClient(base_url=self.url, api_key=self.key))

    def asked(self, what: str, call: Callable[[], Any]) -> Any:
        """What the service answers, waited for."""
        try:
            found = call()
            return found.result(self.timeout_s) if hasattr(found, "result") else found
        except self.errors as error:
            raise RunError(f"{self.said(what, error)}; --resume once it answers") from None

    def said(self, what: str, error: BaseException) -> str:
        """A failure in one line, without the key."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(self.key, "...")
        return f"the Tinker service at {self.url} failed at {what} ({reason[:200]})"

    def adapter(self, rank: int, seed: int) -> Any:
        """A client that trains a new adapter of the base model; the head has none, as in this process."""

        def made() -> Any:
            return self.client.create_lora_training_client(
                base_model=self.base, rank=rank, seed=seed % SEEDS, train_unembed=False
            )

        return self.asked(f"an adapter of rank {rank} on {self.base}", made)

    def archive(self, path: str) -> bytes:
        """The archive of saved weights; not to be called where an event loop runs."""
        run, _, name = path.removeprefix("tinker://").partition("/")
        url = f"{self.url.rstrip('/')}/api/v1/training_runs/{run}/checkpoints/{name}/archive"
        return bytes(self.asked("downloading the adapter", lambda: asyncio.run(self.downloaded(url))))

    async def downloaded(self, url: str) -> bytes:
        """The bytes behind a URL and one redirect, which may lead elsewhere and so does not get the key."""
        limit = aiohttp.ClientTimeout(self.timeout_s)
        async with aiohttp.ClientSession(timeout=limit, raise_for_status=True) as session:
            async with session.get(url, headers={"X-API-Key": self.key}, allow_redirects=False) as answer:
                if (elsewhere := answer.headers.get("Location")) is None:
                    return await answer.read()
            async with session.get(elsewhere, allow_redirects=False) as answer:
                return await answer.read()


def tokenizer_of(config: ModelConfig) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer of a model whose weights are not loaded, and the ids that end its completions."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder = folder_of(config)
    source = config.path if folder is None else str(folder)
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        tokenizer, settings = (kind.from_pretrained(source, **options) for kind in (AutoTokenizer, AutoConfig))
    except (OSError, ValueError) as error:
        raise UsageError(f"model.path = {config.path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    try:
        generation = GenerationConfig.from_pretrained(source, revision=config.revision or "main")
    except OSError:
        generation = None
    ends = end_tokens(SimpleNamespace(config=settings, generation_config=generation), tokenizer)
    if not ends:
        raise UsageError(f"model.path = {config.path!r} names no end token, so no completion would ever end")
    return tokenizer, ends


class TinkerEngine:
    """Satisfies `Sample` with the newest sampling handle of an adapter, as `newest` gives it.

    An older handle is never asked: SkyRL takes the adapter that is being trained back to a named one's weights, without
    a word. RunError where new weights are published while a request is under way.
    """

    def __init__(
        self, service: Service, newest: Callable[[], Any], model: ModelConfig, sampling: Mapping[Stage, Sampling]
    ) -> None:
        self.service, self.newest, self.sampling = service, newest, dict(sampling)
        self.tokenizer, self.ends = tokenizer_of(model)
        self.template_arguments, self.context = model.template_arguments, shape(model)[0]

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of one prompt, in order, with their token ids and log-probabilities as sampled."""
        sampling, types = self.sampling[stage], self.service.types
        prompt_ids = tuple(encode(self.tokenizer, prompt, self.template_arguments))
        if reason := self.misfit(len(prompt_ids), sampling.max_tokens):
            return Group(prompt, (Failure(reason),) * n, prompt_ids, stage)
        asked = types.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=seed % SEEDS,
            stop=list(self.ends),
        )
        handle = self.newest()
        try:
            request = handle.sample_async(types.ModelInput.from_ints(list(prompt_ids)), n, asked)
            answer = await asyncio.wait_for(request, self.service.timeout_s)
        except self.service.errors as error:
            return Group(prompt, (Failure(self.service.said("sampling", error)),) * n, prompt_ids, stage)
        if self.newest() is not handle:
            raise RunError("the weights changed while a request was under way: its tokens are of no one version")
        if len(answer.sequences) != n:
            raise RunError(f"the Tinker service gave {len(answer.sequences)} samples where {n} were asked for")
        opened = open_thinking(self.tokenizer, prompt_ids)
        return Group(prompt, tuple(self.output(one, opened) for one in answer.sequences), prompt_ids, stage)

    def output(self, sequence: Any, opened: str) -> Completion | Failure:
        """A sampled sequence with its text; a Failure where it cannot be trained on."""
        ids, logprobs = tuple(map(int, sequence.tokens)), tuple(map(float, sequence.logprobs or ()))
        if not ids or len(ids) != len(logprobs):
            return Failure(f"the Tinker service gave {len(ids)} tokens with {len(logprobs)} log-probabilities")
        stopped = ids[-1] in self.ends
        if sequence.stop_reason == "stop" and not stopped:
            return Failure("the Tinker service left out the end token of a completion")
        text = opened + decode(self.tokenizer, ids[:-1] if stopped else ids)
        return Completion(text, "stop" if stopped else "length", ids, logprobs)

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens."""
        return len(encode(self.tokenizer, prompt, self.template_arguments))

    def misfit(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why a prompt of this length cannot be sampled, or None."""
        return misfit(prompt_tokens, max_tokens, self.context)
