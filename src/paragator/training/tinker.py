"""Training as a service through the Tinker API: the adapter and its optimiser live on a server, credited trees are sent to it.

Our loss is a sum over tokens. How a server divides what it is sent is its own matter (SkyRL: by each sequence's length,
then by their number), so that it is measured at the start, and credit is scaled so that the division cancels.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from paragator.config import Config, ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Stage
from paragator.engines.local.loading import load_model
from paragator.engines.tinker import Service
from paragator.training import checkpoint, objective
from paragator.training.policy import FIXES, IDLE, learning_rate, not_finite
from paragator.training.recipe import PolicySettings
from paragator.training.rows import Branch, Tree

LOSS = "cispo"
"""The service's loss: the log-probability, weighted by the truncated importance weight policy / sampler and by credit; with one
update a batch that is ours, value by value."""
EPSILON = 1e-8
"""AdamW's, as torch has it."""
CLOSE = 1e-3
"""How near a measured ratio of norms must be to one that is understood."""
PROMPT, ANSWER, REST = (3, 4, 5), (6, 7, 3), (5, 4, 6, 7, 3, 5)
"""Token ids of the probe; which ones is all the same."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a service divides a batch's summed loss by: each sequence's length, the number of sequences, both or nothing."""

    by_length: bool
    by_number: bool

    def undone(self, length: int, number: int) -> float:
        """What credit is multiplied by, so that the division cancels."""
        return float((length if self.by_length else 1) * (number if self.by_number else 1))

    def __str__(self) -> str:
        parts = [name for name, on in (("length", self.by_length), ("number of sequences", self.by_number)) if on]
        return f"losses divided by {' and '.join(parts)}" if parts else "losses summed"


class RemoteAdapter:
    """An adapter on a service, and the optimiser step on it."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client

    def datum(self, prompt: Sequence[int], branch: Branch, scale: float = 1.0, rest: Sequence[int] = ()) -> Any:
        """A rollout as the service takes it: token i + 1 is the target of token i, and the prompt, like `rest`, has no credit."""
        types = self.service.types
        ids, before = [*prompt, *branch.token_ids, *rest], [0.0] * (len(prompt) - 1)
        tail = [0.0] * len(rest)
        columns: dict[str, tuple[Sequence[float], str]] = {
            "target_tokens": (ids[1:], "int64"),
            "logprobs": ([*before, *branch.logprobs, *tail], "float32"),
            "advantages": ([*before, *[branch.credit * scale] * len(branch.token_ids), *tail], "float32"),
        }
        made = {
            name: types.TensorData(data=list(data), dtype=dtype, shape=[len(data)])
            for name, (data, dtype) in columns.items()
        }
        return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=made)

    def backward(self, data: Sequence[Any], low: float, high: float) -> list[list[float]]:
        """Accumulate the gradient on the service; each datum's log-probabilities under the weights of now."""
        bounds = {"clip_low_threshold": low, "clip_high_threshold": high}
        what = f"forward and backward of {len(data)} rollouts"
        found = self.service.asked(what, lambda: self.client.forward_backward(list(data), LOSS, loss_fn_config=bounds))
        return [list(one["logprobs"].data) for one in found.loss_fn_outputs]

    def step(self, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0) -> float:
        """AdamW with what was accumulated; returns the gradient's norm before it, NaN where the service does not tell."""
        asked = self.service.types.AdamParams(
            learning_rate=lr, beta1=betas[0], beta2=betas[1], eps=EPSILON, weight_decay=weight_decay
        )
        found = self.service.asked("the optimiser step", lambda: self.client.optim_step(asked))
        return next((v for k, v in (found.metrics or {}).items() if k.split("/")[-1] == "grad_norm"), math.nan)


def probe(adapter: RemoteAdapter) -> Reduction:
    """How a service reduces, from the gradient norms of four tiny batches; UsageError where that is none of ours.

    One rollout; the same with tokens after it that have no credit (its length changes, its gradient does not); the same
    beside a rollout without credit (the number changes); the same with importance weights bounded to a half. The
    learning rate is 0, but the optimiser's moments move: the adapter is not trained afterwards.
    """
    one, idle = (Branch(ANSWER, (-1.0,) * len(ANSWER), credit) for credit in (1.0, 0.0))
    alone, longer = adapter.datum(PROMPT, one), adapter.datum(PROMPT, one, rest=REST)
    beside = adapter.datum(PROMPT, idle, rest=REST)

    def norm(data: list[Any], weight: float = 1.0) -> float:
        adapter.backward(data, weight, weight)
        return adapter.step(0.0)

    norms = [norm([alone]), norm([longer]), norm([alone, beside]), norm([alone], 0.5)]
    where = f"the Tinker service at {adapter.service.url}"
    if not all(map(math.isfinite, norms)) or not norms[0] > 0:
        raise UsageError(
            f"{where} tells no gradient norm of its optimiser step, so that how it divides losses is not known; use another one"
        )
    length, number, half = (norm / norms[0] for norm in norms[1:])
    if abs(half - 0.5) > CLOSE:
        raise UsageError(f"{where} does not bound importance weights (half of one counts {half:.3f}); use another one")
    steps = len(PROMPT) + len(ANSWER) - 1
    for found in (Reduction(a, b) for a in (False, True) for b in (False, True)):
        wanted = (1 / found.undone(steps + len(REST), 1) * found.undone(steps, 1), 1 / found.undone(1, 2))
        if abs(length / wanted[0] - 1) < CLOSE and abs(number / wanted[1] - 1) < CLOSE:
            return found
    raise UsageError(
        f"{where} divides losses in a way that is not known (a longer rollout's gradient counts {length:.3f}, one of two "
        f"{number:.3f}); use another one"
    )


class TinkerLearner:
    """The learner whose weights are an adapter on a service; `handle` samples from the newest ones.

    No KL, one update a batch, no clipping: what the service cannot do is refused by `backends.check_tinker`, and a gradient
    whose norm is above `optimizer.max_grad_norm` ends the run, since the service has already taken the step.
    """

    def __init__(
        self, service: Service, client: Any, reduction: Reduction, settings: PolicySettings, model: ModelConfig
    ) -> None:
        self.service, self.adapter, self.reduction = service, RemoteAdapter(service, client), reduction
        self.settings, self.model = settings, model
        self.updates = 0
        self.handle: Any = None

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """An adapter of its own for a run, after a probe of the service with another one."""
        service, rank = Service(config), config.model.lora_rank
        reduction = probe(RemoteAdapter(service, service.adapter(rank, config.seed)))
        client = service.adapter(rank, config.seed)
        return cls(service, client, reduction, PolicySettings.from_config(config), config.model)

    def update(self, trees: Sequence[Tree], step: int, kl_constants: Mapping[Stage, float]) -> dict[str, float]:
        """One optimiser step on all trees; statistics as of a policy in this process. RunError for what is not finite."""
        rollouts = [(tree.prompt_ids, branch) for tree in trees for branch in tree.branches]
        if not rollouts:
            return dict(IDLE)
        optimizer, loss = self.settings.optimizer, self.settings.loss
        credit = torch.tensor([branch.credit for _, branch in rollouts for _ in branch.token_ids])
        sampled = torch.tensor([value for _, branch in rollouts for value in branch.logprobs])
        self.check(step, credit, sampled)
        data = []
        for prompt, branch in rollouts:
            scale = self.reduction.undone(len(prompt) + len(branch.token_ids) - 1, len(rollouts))
            data.append(self.adapter.datum(prompt, branch, scale))
        assert loss.weight_cap is not None  # PolicySettings has one wherever another program samples
        found = self.adapter.backward(data, 0.0, loss.weight_cap)
        parts = [values[-len(b.token_ids) :] for (_, b), values in zip(rollouts, found, strict=True)]
        now = torch.tensor([value for part in parts for value in part])
        value, stats = objective.loss(now, sampled, credit, loss)
        self.check(step, credit, sampled, now, (now - sampled).exp(), value)
        lr = learning_rate(optimizer, step, self.settings.steps)
        norm = self.adapter.step(lr, optimizer.betas, optimizer.weight_decay)
        self.updates += 1
        if not norm <= optimizer.max_grad_norm:
            raise RunError(
                f"step {step}: the gradient's norm {norm:.4g} is above optimizer.max_grad_norm = {optimizer.max_grad_norm}, and the "
                "service does not clip: start again with a higher one, or with a lower optimizer.lr"
            )
        return {
            "loss": float(value),
            "grad_norm": norm,
            "lr": lr,
            "updated": 1.0,
            "ratio": stats["ratio"],
            "clipped": stats["clipped"],
            "mismatch_kl": stats["mismatch"],
            "kl": 0.0,
            "weight": stats["weight"],
            "truncated_weights": stats["truncated"],
        }

    def check(self, step: int, *values: torch.Tensor) -> None:
        """RunError for the first of FIXES that is not finite; the service has not stepped yet, and `restore` drops its gradient."""
        if problem := not_finite(dict(zip(FIXES, values, strict=False))):
            raise RunError(f"step {step}: {problem.args[0]} is not finite, so no weight was changed; {problem.args[1]}")

    def measure(self, trees: Sequence[Tree], others: Sequence[Tree]) -> dict[str, float]:
        """Nothing: gradients stay on the service."""
        return {}

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Have the service keep weights and moments; the checkpoint says under which name."""
        name = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        kept = self.service.asked("saving", lambda: self.adapter.client.save_state(name)).path
        checkpoint.save(folder, {}, {}, {**meta, "learner": "tinker", "updates": self.updates, "state": kept})

    def restore(self, folder: Path) -> dict[str, Any]:
        """Have the service take back what it kept."""
        _, _, meta = checkpoint.read(folder)
        if meta.get("learner") != "tinker":
            raise RunError(
                f"checkpoint {folder} was not written with train.backend = 'tinker'; resume it as it was begun"
            )
        self.service.asked(
            f"restoring {meta['state']}", lambda: self.adapter.client.load_state_with_optimizer(meta["state"])
        )
        self.updates = meta["updates"]
        return meta

    def publish(self) -> None:
        """Take a handle on the weights of now; the one before it is dropped."""
        self.handle = self.service.asked(
            "publishing weights", lambda: self.adapter.client.save_weights_and_get_sampling_client()
        )

    def export(self, folder: Path, adapter: bool = False) -> None:
        """Write the base model with the adapter merged into it, and the tokenizer; the adapter alone is refused, see `merge`."""
        if adapter:
            raise UsageError("the service's adapter alone lacks what peft needs: export the merged model")
        name = f"export-{uuid.uuid4().hex[:8]}"
        kept = self.service.asked("saving", lambda: self.adapter.client.save_weights_for_sampler(name)).path
        model, tokenizer = load_model(self.model.model_copy(update={"lora_rank": 0, "device": "cpu"}))
        merge(model, self.service.archive(kept))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def close(self) -> None:
        """Nothing to do: the service drops an adapter whose session has ended."""


def merge(model: Any, archive: bytes) -> None:
    """Add an adapter (a tar of peft's two files) to the weights. By name, since `target_modules` is not to be relied on: SkyRL's
    files have none, and peft then leaves out a part without a word. RunError for a tensor that fits nowhere.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            files = {Path(one.name).name: file.read() for one in tar if (file := tar.extractfile(one))}
        settings, tensors = json.loads(files["adapter_config.json"]), load(files["adapter_model.safetensors"])
        scale = settings["lora_alpha"] / settings["r"]
    except (tarfile.TarError, SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"the service's adapter cannot be read ({type(error).__name__}: {error})") from None
    weights = {f"base_model.model.{name}": weight for name, weight in model.named_parameters()}
    for name in sorted(tensors):
        part, pair = ("A", "B") if ".lora_A." in name else ("B", "A")
        weight, other = (
            weights.get(name.replace(f".lora_{part}.", ".")),
            name.replace(f".lora_{part}.", f".lora_{pair}."),
        )
        if f".lora_{part}." not in name or weight is None or other not in tensors:
            raise RunError(f"the service's adapter has a tensor {name} that does not fit the model at model.path")
        if part == "A":
            with torch.no_grad():
                weight += scale * (tensors[other].float() @ tensors[name].float())
