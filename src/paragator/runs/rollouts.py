"""Who samples while a policy trains: this process, or a vLLM server that gets the weights after each step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.runs import resolve
from paragator.config import Config
from paragator.engines.http.vllm import NAME, VllmEngine, served, written

if TYPE_CHECKING:
    from paragator.training.policy import Policy

Publish = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def rollouts(
    config: Config, policy: Policy, run_dir: Path, say: Callable[[str], None]
) -> AsyncIterator[tuple[Any, Publish | None]]:
    """The engine, and what hands it the weights after a step; None where it samples from the policy itself."""
    from paragator.engines.local.compute import computed_now, set_threads

    if config.engine.kind == "transformers":
        engine = resolve.build_engine(config, policy.raw, policy.tokenizer, autocast=policy.accelerator.autocast)
        try:
            yield engine, None
        finally:
            engine.close()
        return
    set_threads(config.train.threads)
    weights, export = run_dir / "weights", partial(computed_now, policy.export)
    settings = config.engine
    async with AsyncExitStack() as stack:
        if settings.launch:
            say(f"starting vLLM ({settings.vllm_python}); its log is {run_dir / 'logs' / 'vllm.log'}")
            model = written(export, weights, 0).resolve()
            log, arguments = run_dir / "logs" / "vllm.log", settings.vllm_arguments
            if not any(word.split("=")[0] == "--dtype" for word in arguments):
                arguments = [*arguments, "--dtype", policy.precision]  # the trainer's own: its log-probabilities match
            url = await stack.enter_async_context(served(settings.vllm_python, model, log, arguments))
            settings = settings.model_copy(update={"url": url, "model": NAME})
        engines = resolve.build_endpoints(settings, resolve.samplings(config), policy.tokenizer)
        stack.push_async_callback(engines.close)
        for engine in engines.engines:
            await engine.served_model()
        remote = VllmEngine(engines, weights.resolve())
        stack.push_async_callback(remote.close)

        async def publish(step: int) -> None:
            await remote.publish(export, step)

        if not (run_dir / "checkpoints").exists():  # an evaluation comes first, of these weights
            await publish(0)
        yield remote, publish
