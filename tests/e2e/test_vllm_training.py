"""Several servers end to end: training on a fake vLLM that samples from the weights it was handed, its death; evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from peft import PeftModel

from paragator import records
from paragator.config import ModelConfig
from paragator.core.errors import RunError
from paragator.engines.local import loading
from servers import Server, VllmServer, running

Cli = Callable[..., int]
pytestmark = pytest.mark.e2e
STEPS = 4
CALLS = 4 * 2
"""Completion requests of a step: candidates and aggregations of four problems."""

LOADING = Lock()
"""transformers loads one model at a time in a process."""


@dataclass
class Sampler(VllmServer):
    """Answers in tokens of the published policy; an answer depends on weights, prompt, seed and index alone."""

    model: Any = "policy"
    policy: Any = None
    tokenizer: Any = None

    def load(self, folder: str) -> None:
        super().load(folder)
        with LOADING:
            self.policy, self.tokenizer = loading.load_model(ModelConfig(path=folder))
        settings = json.loads((Path(folder) / "generation_config.json").read_text())["eos_token_id"]
        self.ends = set(settings if isinstance(settings, list) else [settings])

    def choice(self, body: Any, prompt: str, index: int, chat: bool) -> dict[str, Any]:
        rng = random.Random(f"{prompt}:{body['seed']}:{index}")
        ids, logprobs = list(body["prompt"]), []
        start = len(ids)
        while len(logprobs) < body["max_tokens"] and not (logprobs and ids[-1] in self.ends):
            with torch.no_grad():
                found = torch.log_softmax(self.policy(torch.tensor([ids])).logits[0, -1].float(), -1)
            ids.append(rng.choices(range(len(found)), weights=found.exp().tolist())[0])
            logprobs.append(float(found[ids[-1]]))
        sampled, ended = ids[start:], ids[-1] in self.ends
        return {
            "index": index,
            "finish_reason": "stop" if ended else "length",
            "text": self.tokenizer.decode(sampled, skip_special_tokens=True),
            "words": len(sampled),
            "token_ids": sampled,
            "prompt_token_ids": ids[:start],
            "logprobs": {"token_logprobs": logprobs},
        }


def trained(cli: Cli, name: str, *servers: Sampler, words: tuple[str, ...] = ()) -> Path:
    """A run of STEPS steps over some servers, which live as long."""
    with ExitStack() as stack:
        urls = [stack.enter_context(running(server)).url for server in servers]
        settings = {
            "name": name,
            "engine.kind": "vllm",
            "engine.url": json.dumps(urls if len(urls) > 1 else urls[0]),
            "engine.wait_s": "0.3",
            "train.steps": str(STEPS),
            "train.checkpoint_every": "100",
            "eval.around_training": "false",
        }
        assert cli("train", *(word for key, value in settings.items() for word in (f"--{key}", value)), *words) == 0
    return Path("runs") / name


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file of a run, without seconds."""
    found = records.read_json_lines(run_dir / name)
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in found]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return loading.load_model(ModelConfig(path=str(run_dir / "model")))[0].state_dict()


def assert_equal_runs(one: Path, other: Path) -> None:
    assert rows(one, "metrics.jsonl") == rows(other, "metrics.jsonl")
    assert rows(one, "traces.jsonl") == rows(other, "traces.jsonl")
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_servers_train_as_one(cli: Cli) -> None:
    both = Sampler(), Sampler()
    run_dir = trained(cli, "two", *both)
    found = rows(run_dir, "metrics.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert all(row["mismatch_kl"] < 1e-5 and row["updated"] == 1 for row in found)
    assert all(server.asked >= STEPS for server in both) and sum(server.asked for server in both) == STEPS * CALLS
    assert {server.label for server in both} == {str((run_dir / "weights" / "version_4").resolve())}
    assert [path.name for path in (run_dir / "weights").iterdir()] == ["version_4"]
    assert all("seconds/publish" in row for row in records.read_json_lines(run_dir / "metrics.jsonl"))
    assert_equal_runs(run_dir, trained(cli, "one", Sampler()))


class AdapterSampler(Sampler):
    """Of the model that it was started with, under the adapter that a request names."""

    def change(self, lora_name: str, lora_path: str = "", load: bool = True) -> dict[str, Any]:
        with LOADING:
            if load and self.policy is None:
                path = json.loads((Path(lora_path) / "adapter_config.json").read_text())["base_model_name_or_path"]
                base, self.tokenizer = loading.load_model(ModelConfig(path=path))
                self.policy = PeftModel.from_pretrained(base, lora_path, lora_name)
                self.ends = set(loading.end_tokens(base, self.tokenizer))
            elif load:
                self.policy.load_adapter(lora_path, lora_name)
        return super().change(lora_name, lora_path, load)

    def choice(self, body: Any, prompt: str, index: int, chat: bool) -> dict[str, Any]:
        self.policy.set_adapter(body["model"])
        return super().choice(body, prompt, index, chat)


def test_adapters_alone_train_as_the_merged_model_does(cli: Cli) -> None:
    rank = ("--model.lora_rank", "4", "--optimizer.lr", "1e-2")
    one = AdapterSampler(max_lora_rank=8)
    run_dir = trained(cli, "adapter", one, words=(*rank, "--engine.sync", "adapter"))
    merged = rows(trained(cli, "merged", Sampler(), words=rank), "metrics.jsonl")
    for found, other in zip(rows(run_dir, "metrics.jsonl"), merged, strict=True):
        assert found["mismatch_kl"] < 1e-9 and found["updated"] == 1
        assert found["loss"] == pytest.approx(other["loss"], abs=1e-4)
    (name,) = one.adapters
    assert name.startswith("version_4-") and one.told == []
    (folder,) = (run_dir / "weights").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_one_step_ahead_trains_on_the_version_before_and_weighs_it(cli: Cli) -> None:
    found = rows(trained(cli, "ahead", Sampler(), words=("--train.ahead", "1")), "metrics.jsonl")
    assert [row["staleness"] for row in found] == [0, 1, 1, 1] and all(row["updated"] == 1 for row in found)
    assert found[0]["mismatch_kl"] < 1e-9 and found[0]["weight"] == pytest.approx(1, abs=1e-5)
    for row in found[1:]:
        assert 1e-8 < row["mismatch_kl"] < 0.1 and row["weight"] != pytest.approx(1, abs=1e-5)


def test_the_other_server_takes_over_from_one_that_dies_and_nothing_else_changes(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = Sampler(die_at=CALLS + 3)  # of two servers that share the calls: in the third step or so
    run_dir = trained(cli, "mourning", dying, Sampler())
    assert f"engine.url = {dying.url}: the server is lost (" in capsys.readouterr().out
    assert_equal_runs(run_dir, trained(cli, "whole", Sampler()))


def test_the_last_server_that_dies_leaves_the_last_step_and_resuming_ends_like_an_unbroken_run(cli: Cli) -> None:
    dying = Sampler(die_at=2 * CALLS + 3)
    with pytest.raises(RunError) as caught:
        trained(cli, "broken", dying)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert f"no server is left, for 0.3 s ({dying.url}: " in str(caught.value) and "--resume" in str(caught.value)
    run_dir = Path("runs/broken")
    assert [row["step"] for row in rows(run_dir, "metrics.jsonl")] == [1, 2]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_2"]
    assert [path.name for path in (run_dir / "weights").iterdir()] == ["version_2"]
    assert trained(cli, "broken", Sampler(), words=("--resume",)) == run_dir
    assert_equal_runs(run_dir, trained(cli, "whole", Sampler()))


def test_a_server_that_fails_to_load_weights(cli: Cli) -> None:
    class Failing(Sampler):
        def load(self, folder: str) -> None:
            super().load(folder)
            if folder.endswith("version_1"):
                self.refused = (500, "out of memory")

    with pytest.raises(RunError, match=r"/collective_rpc failed \(http 500: out of memory\)"):
        trained(cli, "broken", Failing())
    run_dir = Path("runs/broken")
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_2"]
    trained(cli, "broken", Sampler(), words=("--resume",))
    assert_equal_runs(run_dir, trained(cli, "whole", Sampler()))


def test_death_in_the_first_step_starts_again(cli: Cli) -> None:
    with pytest.raises(RunError, match="no server is left"):
        trained(cli, "broken", Sampler(die_at=2))
    run_dir = Path("runs/broken")
    assert not (run_dir / "checkpoints").exists() and not (run_dir / "metrics.jsonl").exists()
    trained(cli, "broken", Sampler(), words=("--resume",))
    assert_equal_runs(run_dir, trained(cli, "whole", Sampler()))


def test_an_evaluation_over_two_servers_keeps_siblings_together(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paragator.runs.evaluate.EVERY_S", 0.0)
    with running(Server(latency_s=0.7)) as one, running(Server(latency_s=0.7)) as two:
        assert cli("eval", "--url", json.dumps([one.url, two.url]), "--eval.problems", "6", "--eval.rounds", "1") == 0
    asked = [{json.dumps(call.body["messages"]) for call in server.calls if call.body} for server in (one, two)]
    assert not asked[0] & asked[1] and min(map(len, asked)) >= 3
    assert sum(bool(call.body) for server in (one, two) for call in server.calls) == 6 * (4 + 4)
    assert "eval: 0/6 traces" in capsys.readouterr().out
    shown = json.loads(Path("runs/toy-eval/usage.json").read_text())["total"]
    assert shown["calls"] == 48
