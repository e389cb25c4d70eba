"""A stand-in for the module tinker: adapters of a small model, trained in this process one rollout at a time, without packing."""

from __future__ import annotations

import copy
import io
import json
import sys
import tarfile
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from paragator.config import ModelConfig
from paragator.engines.local.generation import SequenceRequest, sample_rows
from paragator.engines.local.loading import load_model
from paragator.engines.sampling import Sampling
from paragator.engines.tinker import Service


@dataclass
class Fake:
    """A service that divides losses by lengths, by their number, by all tokens of the batch, or by nothing."""

    by_length: bool = False
    by_number: bool = False
    by_tokens: bool = False
    tells_norm: bool = True
    bounds: bool = True
    scale: float = 1.0
    """Of the norm that it tells."""
    clients: list[Client] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def ServiceClient(self, base_url: str, api_key: str) -> Any:
        return SimpleNamespace(create_lora_training_client=self.create)

    def create(self, base_model: str, rank: int, seed: int, train_unembed: bool) -> Client:
        assert not train_unembed
        self.clients.append(
            Client(self, *load_model(ModelConfig(path=base_model, lora_rank=rank, device="cpu"), seed), rank)
        )
        return self.clients[-1]


class Done:
    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self, timeout: float) -> Any:
        return self.value


class Client:
    def __init__(self, service: Fake, model: Any, tokenizer: Any = None, rank: int = 4) -> None:
        self.service, self.model, self.rank = service, model, rank
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values())
        self.number = self.steps = 0
        self.handle: Any = None

    def forward_backward(self, data: list[Any], loss: str, loss_fn_config: dict[str, float]) -> Done:
        assert loss == "cispo"
        low, high = (loss_fn_config[f"clip_{end}_threshold"] for end in ("low", "high"))
        tokens, found = sum(len(one.model_input) for one in data), []
        for one in data:
            targets, sampled, credit = (one.loss_fn_inputs[k].data for k in ("target_tokens", "logprobs", "advantages"))
            logits = self.model(torch.tensor([one.model_input])).logits[0]
            now = logits.log_softmax(-1).gather(1, torch.tensor(targets)[:, None])[:, 0]
            ratio = (now - torch.tensor(sampled)).exp().detach()
            ratio = ratio.clamp(low, high) if self.service.bounds else ratio
            value = -(ratio * torch.tensor(credit) * now).sum()
            (value / (len(targets) if self.service.by_length else tokens if self.service.by_tokens else 1)).backward()
            found.append({"logprobs": SimpleNamespace(data=now.tolist())})
        self.number += len(data)
        return Done(SimpleNamespace(loss_fn_outputs=found))

    def optim_step(self, asked: SimpleNamespace) -> Done:
        for p in self.weights.values():
            p.grad /= self.number if self.service.by_number else 1
        norm = float(torch.cat([p.grad.flatten() for p in self.weights.values()]).norm())
        for group in self.optimizer.param_groups:
            group |= {"lr": asked.learning_rate, "betas": (asked.beta1, asked.beta2), "eps": asked.eps}
            group |= {"weight_decay": asked.weight_decay}
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number, self.steps = 0, self.steps + 1
        return Done(
            SimpleNamespace(metrics={"host/grad_norm": norm * self.service.scale} if self.service.tells_norm else {})
        )

    def save_weights_and_get_sampling_client(self) -> Handle:
        self.handle = Handle(self)
        return self.handle

    def save_state(self, name: str) -> Done:
        state = {name: p.detach().clone() for name, p in self.weights.items()}
        return self.keep(f"weights/{name}", (state, copy.deepcopy(self.optimizer.state_dict())))

    def load_state_with_optimizer(self, path: str) -> Done:
        weights, moments = self.service.kept[path]
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(weights[name])
        self.optimizer.load_state_dict(moments)
        return Done(None)

    def save_weights_for_sampler(self, name: str) -> Done:
        tensors = {name.replace(".default", ""): p.detach().clone() for name, p in self.weights.items()}
        settings = {"r": self.rank, "lora_alpha": 2 * self.rank, "target_modules": None}
        return self.keep(name, archive(tensors, settings))

    def keep(self, name: str, value: Any) -> Done:
        self.service.kept[f"tinker://run/{name}"] = value
        return Done(SimpleNamespace(path=f"tinker://run/{name}"))


def archive(tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in (
            ("adapter_model.safetensors", save(tensors)),
            ("adapter_config.json", json.dumps(settings).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Handle:
    """Samples from the weights of now; an older one, or one from before the last step, must never be asked."""

    def __init__(self, client: Client) -> None:
        self.client, self.steps = client, client.steps

    async def sample_async(self, prompt: list[int], n: int, asked: SimpleNamespace) -> Any:
        assert self.client.handle is self and self.client.steps == self.steps
        sampling = Sampling(asked.temperature, asked.max_tokens)
        rows = [SequenceRequest(tuple(prompt), f"{asked.seed}:{i}") for i in range(n)]
        found = sample_rows(self.client.model, rows, sampling, asked.stop, max_batch_tokens=2**15, device="cpu")
        return SimpleNamespace(
            sequences=[
                SimpleNamespace(tokens=s.token_ids, logprobs=s.logprobs, stop_reason="stop" if s.stopped else "length")
                for s in found
            ]
        )


def installed(monkeypatch: pytest.MonkeyPatch, service: Fake) -> Fake:
    """Make the service the module tinker."""
    types = dict.fromkeys(("TensorData", "Datum", "AdamParams", "SamplingParams"), SimpleNamespace)
    module = ModuleType("tinker")
    module.__spec__ = ModuleSpec("tinker", None)
    vars(module).update(
        ServiceClient=service.ServiceClient,
        TinkerError=type("TinkerError", (Exception,), {}),
        types=SimpleNamespace(**types, ModelInput=SimpleNamespace(from_ints=list)),
    )
    monkeypatch.setitem(sys.modules, "tinker", module)
    monkeypatch.setattr(Service, "archive", lambda self, path: service.kept[path])
    return service
