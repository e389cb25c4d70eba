"""A run in two processes: the same rewards and weights as in one; killed, hung and resumed; refused launches."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

import idle_steps
from launched import start
from paragator.cli import train
from paragator.config import Config, ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.engines.local.loading import load_model
from paragator.runs import launch
from paragator.training import team
from paragator.training.team import Team

pytestmark = pytest.mark.e2e
CONFIG = """
name = "run"
seed = 3
task.name = "countdown"
eval.around_training = false
[train]
steps = 4
problems = 3
precision = "float32"
threads = 1
checkpoint_every = 1
process_timeout_s = 20
"""
LIMIT_S = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def command(name: str, *more: str) -> list[str]:
    return ["-m", "paragator", "train", "run.toml", "--name", name, *more]


def alone(folder: Path, name: str, *more: str) -> None:
    arguments = [sys.executable, *command(name, *more)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


def several(folder: Path, name: str, *more: str) -> list[str]:
    """Run in two processes; returns what each wrote."""
    processes = start(2, command(name, *more), folder)
    out = []
    for process in processes:
        said, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors
        out.append(said)
    return out


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def distance(first: Path, second: Path) -> float:
    """Relative L2 between the weights of two checkpoints."""
    a, b = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    assert a.keys() == b.keys()
    difference = sum(float((a[n] - b[n]).double().square().sum()) for n in a)
    return float((difference / sum(float(a[n].double().square().sum()) for n in a)) ** 0.5)


def texts(run: Path) -> list[str]:
    """All completions, in order."""
    rows = (json.loads(line) for line in (run / "traces.jsonl").read_text().splitlines())
    return [o.get("text", "") for row in rows for groups in row["rounds"] for g in groups for o in g["outputs"]]


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_a_run_moves_between_them(folder: Path) -> None:
    alone(folder, "one", "--train.batch_tokens", "4096")
    first, second = several(folder, "two", "--train.batch_tokens", "700")
    assert "2 processes" in first and second == ""
    one, two = folder / "runs" / "one", folder / "runs" / "two"
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a["generate/reward"] == b["generate/reward"] and a["aggregate/reward"] == b["aggregate/reward"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert texts(one) == texts(two)
    assert distance(one / "checkpoints" / "step_4", two / "checkpoints" / "step_4") < 1e-5
    meta = json.loads((two / "checkpoints" / "step_4" / "meta.json").read_text())
    assert meta["learner"] == "sharded" and meta["processes"] == 2
    alone(folder, "two", "--train.batch_tokens", "700", "--train.steps", "5", "--resume")
    several(folder, "one", "--train.batch_tokens", "4096", "--train.steps", "5", "--resume")
    assert distance(one / "checkpoints" / "step_5", two / "checkpoints" / "step_5") < 1e-5
    model = load_file(one / "model" / "model.safetensors")
    saved = load_file(one / "checkpoints" / "step_5" / "weights.safetensors")
    assert all(torch.equal(model[name], saved[name]) for name in model)


def eight_heads(folder: Path) -> None:
    """The embedded model, of five heads, with three that nothing reads: it computes the same and can be split in two."""
    model, tokenizer = load_model(ModelConfig(path="embedded", device="cpu"))
    torch.manual_seed(0)
    sizes = model.config.to_dict() | {"num_attention_heads": 8, "num_key_value_heads": 8}
    wide = type(model)(type(model.config)(**sizes))
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in wide.state_dict().items():
            if name.endswith("o_proj.weight"):
                tensor.zero_()
            tensor[tuple(map(slice, own[name].shape))] = own[name]
    wide.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_a_split_model_trains_as_a_whole_one_and_is_resumed_whole(folder: Path) -> None:
    eight_heads(folder / "eight")
    alone(folder, "one", "--model.path", "eight")
    first = several(folder, "two", "--model.path", "eight", "--train.steps", "3", "--train.tensor_parallel", "2")[0]
    assert "2 processes" in first
    one, two = folder / "runs" / "one", folder / "runs" / "two"
    for a, b in zip(metrics(one)[:3], metrics(two), strict=True):
        assert a["generate/reward"] == b["generate/reward"] > 0 and a["aggregate/reward"] == b["aggregate/reward"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert distance(one / "checkpoints" / "step_3", two / "checkpoints" / "step_3") < 1e-5
    model = load_file(two / "model" / "model.safetensors")
    saved = load_file(two / "checkpoints" / "step_3" / "weights.safetensors")
    assert all(torch.equal(model[name], saved[name]) for name in model)
    alone(folder, "two", "--model.path", "eight", "--resume")
    assert distance(one / "checkpoints" / "step_4", two / "checkpoints" / "step_4") < 1e-5


@pytest.mark.slow
def test_batches_without_signal_change_no_bit_in_two_processes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(toy))
    words = ["-m", "idle_steps", "train", str(toy / "toy.toml"), *idle_steps.WORDS]
    processes = start(2, words, tmp_path)
    said = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    idle_steps.check(tmp_path / "runs" / "toy", said[0])


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "victim"), [("SIGKILL", 1), ("SIGKILL", 0), ("SIGSTOP", 1), ("SIGSTOP", 0)])
def test_a_process_that_dies_or_hangs_ends_all_and_the_run_is_resumed(folder: Path, sign: str, victim: int) -> None:
    limit = "6" if sign == "SIGSTOP" else "20"
    processes = start(2, command("hit", "--train.steps", "60", "--train.process_timeout_s", limit), folder)
    checkpoints = folder / "runs" / "hit" / "checkpoints"
    end = time.monotonic() + LIMIT_S
    while not any(checkpoints.glob("step_2")) and time.monotonic() < end:
        time.sleep(0.05)
    processes[victim].send_signal(getattr(signal, sign))
    other = processes[1 - victim]
    _, errors = other.communicate(timeout=LIMIT_S)
    processes[victim].kill()
    processes[victim].communicate(timeout=LIMIT_S)
    assert other.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "--resume" in lines[0], errors
    assert "Traceback" not in errors
    steps = [int(path.name[5:]) for path in checkpoints.glob("step_*") if path.name[5:].isdigit()]
    alone(folder, "hit", "--train.steps", str(max(steps) + 1), "--resume")
    assert [row["step"] for row in metrics(folder / "runs" / "hit")] == list(range(1, max(steps) + 2))


@pytest.mark.parametrize(
    ("rank", "gone", "said"),
    [
        (1, [0], "error: rank 0 ended or was killed; "),
        (1, [1], ""),
        (0, [1], "error: rank 1 ended"),
        (0, [], "error: the launcher"),
    ],
)
def test_a_launcher_that_ends_all_is_answered_in_one_line(
    monkeypatch: pytest.MonkeyPatch, rank: int, gone: list[int], said: str
) -> None:
    """By rank 0, and by another one only where rank 0 is gone."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(Team, "neighbours", {r: dead.pid if r in gone else os.getpid() for r in (0, 1)})
    for name, value in (("WORLD_SIZE", 2), ("RANK", rank)):
        monkeypatch.setenv(name, str(value))
    handlers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda sign, handler: handlers.append(handler))
    train.say_the_end()

    def end(code: int) -> None:
        raise SystemExit(code)

    lines: list[bytes] = []
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(os, "write", lambda to, line: lines.append(line))
    with pytest.raises(SystemExit, match="1"):
        handlers[0]()
    assert len(lines) == bool(said) and all(line.decode().startswith(said) and b"--resume" in line for line in lines)


@pytest.mark.parametrize("how", ["before it is reached", "before it says who it is"])
def test_a_rank_0_that_is_gone_at_once_ends_the_others_in_one_line(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Killed before its store is there, and before it wrote its name into a launcher's."""
    store = None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if how == "before it says who it is":
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    values = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (values | {"GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(name, str(value))
    assert team.BEGIN_S < 60
    monkeypatch.setattr(team, "BEGIN_S", 0.5)
    with pytest.raises(RunError) as found:
        Team(0.3)
    assert str(found.value) == "no sign of rank 0 in 0.5 s; start all processes again with --resume"
    del store


def test_launches_that_would_start_one_process_or_an_uneven_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launch.processes() == 1 and launch.rank() == 0
    for name, value, said in (
        ("ACCELERATE_MIXED_PRECISION", "no", "accelerate launch"),
        ("SLURM_STEP_NUM_TASKS", "8", "srun started 8 processes"),
        ("OMPI_COMM_WORLD_SIZE", "2", "mpirun started 2 processes"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(UsageError, match=said):
                launch.processes()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert launch.processes() == 4 and launch.rank() == 3
    launch.check_processes(None, 2)
    with pytest.raises(UsageError, match="tensor_parallel = 3 does not divide the 4 of this run's processes: start"):
        launch.check_processes(4, 3)


@pytest.mark.parametrize("more", [{"lora_rank": 4}, {"compile": True}, {"replicas": 2}])
def test_what_does_not_go_with_tensor_parallelism_is_refused(more: dict[str, Any]) -> None:
    train = {"tensor_parallel": 2} | {k: v for k, v in more.items() if k != "lora_rank"}
    model = {k: v for k, v in more.items() if k == "lora_rank"}
    (name,) = more
    with pytest.raises(ValueError, match=f"train.tensor_parallel = 2 does not go with (model|train).{name}: leave one"):
        Config.model_validate({"train": train, "model": model})


@pytest.mark.slow
def test_replicas_that_do_not_divide_the_processes_are_refused_in_one_line(folder: Path) -> None:
    processes = start(2, command("uneven", "--train.replicas", "3"), folder)
    errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert processes[0].returncode == 2
    assert "train.replicas = 3" in errors[0] and "Traceback" not in errors[0]
