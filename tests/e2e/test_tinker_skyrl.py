"""Three joint steps on a real SkyRL server: its gradient norms are torch's. Needs the environment of `make tinker`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from paragator.config import Config, ModelConfig
from paragator.engines.local.loading import EMBEDDED, load_model
from paragator.runs.train import train
from paragator.settings import validate
from paragator.training.rows import Tree
from paragator.training.tinker import TinkerLearner

pytestmark = [
    pytest.mark.tinker,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("skyrl") is None, reason="needs `make tinker`"),
]
ROOT = Path(__file__).parents[2]
START_S = 300.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a SkyRL server of the embedded model, on this CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = {"max_lora_adapters": 3, "max_lora_rank": 8, "train_micro_batch_size": 1, "sample_max_num_sequences": 8}
    command = [sys.executable, str(ROOT / "scripts" / "skyrl_server.py"), "--base-model", str(EMBEDDED)]
    command += ["--backend", "jax", "--backend-config", json.dumps(sizes), "--port", str(port)]
    command += ["--database-url", f"sqlite:///{tmp_path / 'tinker.db'}", "--checkpoints-base", str(tmp_path / "kept")]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # compiles sooner
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "server.log").read_text()[
                    -2000:
                ]
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def norm_of(model: Any, archive: bytes, trees: list[Tree], cap: float) -> float:
    """The gradient's norm of our loss with an adapter, one rollout at a time in torch, in the model's precision."""
    dtype = model.dtype
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {Path(one.name).name: file.read() for one in tar if (file := tar.extractfile(one))}
    settings, tensors = json.loads(files["adapter_config.json"]), load(files["adapter_model.safetensors"])
    leaves = {name.removeprefix("base_model.model."): t.to(dtype).requires_grad_() for name, t in tensors.items()}
    own = dict(model.named_parameters())
    names = [name.replace(".lora_A.", ".") for name in leaves if ".lora_A." in name]
    assert len(names) == 42  # seven linear layers in each of six
    scale, total = settings["lora_alpha"] / settings["r"], torch.zeros((), dtype=dtype)
    for tree in trees:
        for branch in tree.branches:
            at = {name: name.removesuffix(".weight") for name in names}
            weights = {
                n: own[n].detach() + scale * leaves[f"{m}.lora_B.weight"] @ leaves[f"{m}.lora_A.weight"]
                for n, m in at.items()
            }
            ids = torch.tensor([[*tree.prompt_ids, *branch.token_ids]])
            logits = torch.func.functional_call(model, weights, (ids,)).logits[0, len(tree.prompt_ids) - 1 : -1]
            now = logits.log_softmax(-1).gather(1, torch.tensor(branch.token_ids)[:, None])[:, 0]
            weight = (now - torch.tensor(branch.logprobs, dtype=dtype)).exp().clamp(max=cap).detach()
            total = total - branch.credit * (weight * now).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def test_three_joint_steps(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "runs": str(tmp_path),
        "model": {"lora_rank": 8},
        "method": {"k": 2},
        "rollout": {"candidates": 4, "pool_size": 2},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "train": {"backend": "tinker", "tinker_url": server, "steps": 3, "problems": 2},
        "eval": {"around_training": False},
    }
    config = validate(Config, tables)
    model = load_model(ModelConfig(device="cpu"))[0].double()  # in float32 the sum itself is off by up to 1.1e-5
    seen: list[tuple[list[Tree], bytes]] = []
    real = TinkerLearner.update

    def update(self: TinkerLearner, trees: Any, *more: Any) -> dict[str, float]:
        path = self.service.asked("t", lambda: self.adapter.client.save_weights_for_sampler(f"t{len(seen)}")).path
        seen.append((list(trees), self.service.archive(path)))
        return real(self, trees, *more)

    monkeypatch.setattr(TinkerLearner, "update", update)
    result = asyncio.run(train(config))
    assert result.finished and {tree.stage for trees, _ in seen for tree in trees} == {"generate", "aggregate"}
    for (trees, archive), row in zip(seen, result.metrics, strict=True):
        norm, seconds = norm_of(model, archive, trees, config.train.weight_cap), row["seconds"]
        print(f"step {row['step']:.0f}: {row['grad_norm']:.9f} on SkyRL, {norm:.9f} in torch, {seconds:.1f} s")
        assert row["updated"] == 1 and row["mismatch_kl"] < 1e-6
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (EMBEDDED, config.run_dir / "model"))
    assert max((before[name].float() - after[name]).abs().max() for name in before.keys() & after.keys()) > 1e-4
