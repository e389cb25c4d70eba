"""`Local`: a model in this process as an engine for scripts. Importable without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from paragator.config import ModelConfig
from paragator.core.errors import UsageError
from paragator.core.types import Group, Prompt, Stage
from paragator.engines.encoding import misfit
from paragator.engines.local.loading import Facts, facts, folder_of
from paragator.engines.sampling import Sampling

if TYPE_CHECKING:
    from paragator.engines.local.transformers import TransformersEngine

PLAIN = Sampling()


class Local:
    """Satisfies `Sample` with a model that runs in this process. It is loaded by `connect`, or by the first use.

    path      "embedded", a model folder, or a hub id owner/name
    sampling  the settings of both stages, or of each stage by its name
    device    "auto" (cuda, else cpu), "cpu" or "cuda"
    threads   CPU threads; None leaves it to OMP_NUM_THREADS, else takes the cores that the process may use

    UsageError for what cannot be loaded. It may be used from one event loop after another.
    """

    def __init__(
        self,
        path: str = "embedded",
        *,
        sampling: Sampling | Mapping[Stage, Sampling] = PLAIN,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads = {threads}: at least 1 is needed")
        self.config = ModelConfig(path=path, device=device)
        folder_of(self.config)
        both: dict[Stage, Sampling] = {"generate": PLAIN, "aggregate": PLAIN}
        self.sampling = dict.fromkeys(both, sampling) if isinstance(sampling, Sampling) else dict(sampling)
        self.threads = threads
        self._loading: Future[TransformersEngine] | None = None

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of one prompt, in order, with their token ids and log-probabilities as sampled."""
        engine = await self._loaded()
        return await engine(prompt, n, stage=stage, seed=seed)

    async def connect(self) -> None:
        """Load the model, if it is not loaded yet."""
        await self._loaded()

    @cached_property
    def facts(self) -> Facts:
        """Context, chat template and fingerprint of the model's files; loads nothing."""
        return facts(self.config)

    @property
    def fingerprint(self) -> str:
        """Tells this model's weights from others."""
        return self.facts.fingerprint

    def settings(self) -> dict[str, str]:
        """The model and its prompts, as keys of the config."""
        chat = self.facts.has_chat_template is not False
        style = (
            {"model.template": "chat", "task.style": "words"}
            if chat
            else {"model.template": "compact", "task.style": "compact"}
        )
        return {"model.path": self.config.path, "model.device": self.config.device, **style}

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and completion together; None while unknown: a hub's model tells once it is loaded."""
        engine = self._engine()
        return self.facts.context if engine is None else engine.context

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens. Loads the model if need be, and waits for that."""
        return self._begun().result().count(prompt)

    def misfit(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why a prompt of this length cannot be sampled, or None."""
        return misfit(prompt_tokens, max_tokens, self.context)

    def close(self) -> None:
        """Wait for the batch that is running, if any, and release the model. A later use loads it again."""
        if (engine := self._engine()) is not None:
            engine.close()
        self._loading = None

    async def _loaded(self) -> TransformersEngine:
        if self._loading is None:  # the import takes seconds, so it does not block the loop
            await asyncio.to_thread(import_module, "paragator.engines.local.transformers")
        return await asyncio.shield(asyncio.wrap_future(self._begun()))

    def _engine(self) -> TransformersEngine | None:
        """The engine, where its model has been loaded."""
        done = self._loading is not None and self._loading.done() and self._loading.exception() is None
        return self._loading.result() if done and self._loading is not None else None

    def _begun(self) -> Future[TransformersEngine]:
        """The model being loaded in the computing thread; again where that failed."""
        from paragator.engines.local.compute import set_threads, submit

        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            set_threads(self.threads)
            self._loading = submit(self._load)
        return self._loading

    def _load(self) -> TransformersEngine:
        from paragator.engines.local.loading import load_model
        from paragator.engines.local.proof import prove_sampling
        from paragator.engines.local.transformers import TransformersEngine

        arguments = self.config.template_arguments
        engine = TransformersEngine(*load_model(self.config), sampling=self.sampling, template_arguments=arguments)
        prove_sampling(engine.model)
        return engine
