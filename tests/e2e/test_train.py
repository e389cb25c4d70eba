"""From a config to a report through the command line: methods, interruption, resumption, and wrong inputs that need a model."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import paragator
from paragator import records
from paragator.cli.main import main, run
from paragator.config import ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.estimators import pass_at_k
from paragator.core.methods import METHODS, OF_POOLS
from paragator.engines.local import loading
from paragator.engines.local.loading import EMBEDDED
from paragator.engines.local.transformers import TransformersEngine
from paragator.results import TrainResult
from paragator.settings import load
from paragator.training import loop
from paragator.training.policy import Policy

SOURCE = Path(__file__).parents[2] / "src"
HANG_S = 120
Cli = Callable[..., int]
pytestmark = pytest.mark.e2e


def rows(path: Path) -> list[dict[str, Any]]:
    return list(records.read_json_lines(path))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run, seconds left out."""
    found = rows(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in found]


def traces(run_dir: Path) -> list[dict[str, Any]]:
    return rows(run_dir / "traces.jsonl")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = loading.load_model(ModelConfig(path=str(folder)))
    return {name: p.detach() for name, p in model.named_parameters()}


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(cli: Cli, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train") == 0
    out = capsys.readouterr().out
    assert "step 3/3" in out and "pass@1" in out and "report: " in out
    run_dir = Path("runs/toy")
    assert json.loads((run_dir / "config.json").read_text())["method"]["k"] == 2
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["model"] and manifest["versions"]["torch"] and "{problem}" in manifest["prompts"]["candidate"]
    assert [row["step"] for row in metrics(run_dir)] == [1, 2, 3]
    assert all(row["updated"] == 1 and row["mismatch_kl"] < 1e-5 for row in metrics(run_dir))
    assert len(traces(run_dir)) == 3 * 4
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step_2", "step_3"]
    assert [len(list(records.read(run_dir / f"eval_{when}.jsonl"))) for when in ("before", "after")] == [3, 3]
    assert "<html" in (run_dir / "report.html").read_text() and (run_dir / "logs" / "attempt_1.log").is_file()
    before, after = weights(toy / "model"), weights(run_dir / "model")
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
    assert loading.load_model(ModelConfig(path=str(run_dir / "model")))[1].encode("1 -> 2 solve:")


def test_the_same_config_gives_the_same_run(cli: Cli) -> None:
    assert cli("train", "--name", "a") == cli("train", "--name", "b") == 0
    assert metrics(Path("runs/a")) == metrics(Path("runs/b"))
    assert traces(Path("runs/a")) == traces(Path("runs/b"))
    assert cli("train", "--name", "c", "--seed", "1") == 0
    assert metrics(Path("runs/a")) != metrics(Path("runs/c"))


def test_everything_large_is_computed_in_one_thread(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread that computes has OpenMP helpers of its own, and both then run slower (engines/local/compute.py)."""
    seen: dict[str, set[tuple[str, int]]] = {}

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def noted(*args: Any, **more: Any) -> Any:
            seen.setdefault(name, set()).add((threading.current_thread().name, torch.get_num_threads()))
            return real(*args, **more)

        monkeypatch.setattr(owner, name, noted)

    watch(loading, "load_model")
    watch(TransformersEngine, "_sample")
    for name in ("__init__", "update", "save", "restore", "export"):
        watch(Policy, name)
    assert cli("train", "--train.steps", "1") == cli("train", "--resume") == 0
    assert len(seen) == 7
    assert set().union(*seen.values()) == {("paragator-torch_0", 1)}  # by its configuration: one product, one core


@pytest.mark.parametrize("name", [n for n in METHODS if n != "offline_aggregation"])
def test_every_online_method_runs(cli: Cli, name: str) -> None:
    pools = ["--rollout.pools", "2"] if METHODS[name].generate in OF_POOLS else []
    if METHODS[name].names:
        pools = ["--model.template", "compact-select", "--rollout.pool_size", "2"]
    assert cli("train", "--method.name", name, *pools, "--train.steps", "2", "--eval.around_training", "false") == 0
    found = metrics(Path("runs/toy"))
    method = METHODS[name]
    assert ("generate/zero_credit" in found[0]) is (method.generate is not None)
    assert ("aggregate/zero_credit" in found[0]) is (method.aggregate is not None)
    assert any(row["updated"] for row in found) is (name not in ("base", "selection"))  # random text names nobody


METHOD = """
from paragator import Method

def centred(rewards):
    scored = [r for r in rewards if r is not None]
    return [0.0 if r is None else r - sum(scored) / len(scored) for r in rewards]

METHOD = Method("theirs", generate=centred, aggregate="pass@1")
"""


def test_a_method_of_an_installed_package_trains(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by its name alone; its credit is pass@1's here, so the run is that of online_multitask."""
    info = tmp_path / "site" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paragator.methods]\ntheirs = offers_theirs:METHOD\n")
    (info.parent / "offers_theirs.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(info.parent))
    more = ("--train.steps", "2", "--eval.around_training", "false")
    for name in ("theirs", "online_multitask"):
        assert cli("train", "--name", name, "--method.name", name, *more) == 0
    theirs, known = (metrics(Path("runs") / name) for name in ("theirs", "online_multitask"))
    assert any(row["updated"] for row in theirs)
    assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in known])
    METHODS.pop("theirs")


def test_sample_then_offline_aggregation(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--method.name", "offline_aggregation", "--method.recorded", "pools.jsonl"]  # which is still to come
    assert cli("sample", *config, "--output", "pools.jsonl", "--count", "8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 8
    first = Path("pools.jsonl").read_bytes()
    assert cli("sample", "--output", "pools.jsonl", "--count", "8") == 0  # nothing is missing
    assert Path("pools.jsonl").read_bytes() == first
    offline = ["--method.name", "offline_aggregation", "--method.recorded", "pools.jsonl"]
    assert cli("train", *offline, "--method.hard_share", "0.5", "--train.steps", "2") == 0
    recorded = {r.trace.problem.id: r.trace.rounds[0][0].outputs for r in records.read(Path("pools.jsonl"))}
    used = list(records.read(Path("runs/toy/traces.jsonl")))
    assert all(r.trace.rounds[0][0].outputs == recorded[r.trace.problem.id] for r in used)
    assert any(row["updated"] for row in metrics(Path("runs/toy")))
    assert "generate/zero_credit" not in metrics(Path("runs/toy"))[0]


def test_pools_go_on_where_sampling_stopped(cli: Cli) -> None:
    assert cli("sample", "--output", "all.jsonl", "--count", "6") == 0
    lines = Path("all.jsonl").read_bytes().splitlines(keepends=True)
    Path("part.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    assert cli("sample", "--output", "part.jsonl", "--count", "6") == 0
    assert sorted(Path("part.jsonl").read_bytes().splitlines()) == sorted(line.strip() for line in lines)


def test_adapters_are_the_same_in_every_process(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{toy}", "OMP_NUM_THREADS": "1"}
    words = ["--model.lora_rank", "2", "--train.steps", "1", "--eval.around_training", "false"]
    found = {}
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        command = [
            sys.executable,
            "-m",
            "paragator",
            "train",
            str(toy / "toy.toml"),
            *words,
            "--name",
            name,
            "--seed",
            seed,
        ]
        subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
        found[name] = (tmp_path / "runs" / name / "checkpoints" / "step_1" / "weights.safetensors").read_bytes()
    assert found["a"] == found["b"] != found["c"]


def test_lora_and_kl_run_and_export_a_plain_model(cli: Cli, toy: Path) -> None:
    pytest.importorskip("peft")
    quick = ("--train.steps", "2", "--eval.around_training", "false")
    assert cli("train", "--model.lora_rank", "2", "--train.kl", "0.05", *quick) == 0
    assert metrics(Path("runs/toy"))[1]["kl"] > 0
    assert weights(Path("runs/toy/model")).keys() == weights(toy / "model").keys()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shift", [0.0, 0.3, -0.3, 2.0, -2.0])
def test_rollouts_of_this_process_are_compared_with_the_trainer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, precision: str, shift: float
) -> None:
    """Log-probabilities that are off by some nats warn, or end the run; its own never do, in bfloat16 neither."""
    real = loop.step

    def step(number: int, problems: Any, sample: Any, *others: Any) -> Any:
        async def shifted(prompt: Any, n: int, *, stage: Any, seed: int) -> Any:
            group = await sample(prompt, n, stage=stage, seed=seed)
            outputs = (replace(o, logprobs=tuple(x + shift for x in o.logprobs)) for o in group.outputs)
            return replace(group, outputs=tuple(outputs))

        return real(number, problems, shifted, *others)

    monkeypatch.setattr(loop, "step", step)
    words = ("--train.precision", precision, "--eval.around_training", "false", "--train.steps", "2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if abs(shift) > 1:
            with pytest.raises(
                RunError, match=r"^step 1: the engine samples from another model .* fix it and --resume$"
            ):
                cli("train", *words)
        else:
            assert cli("train", *words) == 0
    told = [str(w.message) for w in caught if "between engine and trainer" in str(w.message)]
    assert len(told) == (2 if abs(shift) == 0.3 else 0)


SILENT = "none of the 2 steps changed a weight"


@pytest.mark.parametrize(
    ("words", "silent"),
    [
        ((), False),
        (("--task.reward", "flat_reward:same"), True),
        (("--task.reward", "flat_reward:nothing"), True),
        (("--task.reward", "flat_reward:right"), True),
        (("--generate.weight", "0", "--aggregate.weight", "0"), True),
        (("--task.reward", "flat_reward:same", "--train.kl", "0.1"), False),  # the KL is an update of its own
        (("--method.name", "base"), False),  # trains nothing, and says so by its name
    ],
)
def test_a_run_of_which_no_step_updated_says_so(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], silent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "flat_reward.py").write_text(
        "def same(p, ts):\n    return [0.5] * len(ts)\n\ndef nothing(p, ts):\n    return [None] * len(ts)\n"
        "\ndef right(p, ts):\n    return [1.0] * len(ts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli("train", "--train.steps", "2", "--eval.around_training", "false", *words) == 0
    assert (SILENT in capsys.readouterr().out) is silent
    result = TrainResult.read("runs/toy")
    assert result.to_dict()["updated"] == result.updated == sum(row["updated"] for row in metrics(Path("runs/toy")))
    if silent:
        assert result.updated == 0


@pytest.mark.parametrize(
    ("made_by", "settings", "experts"),
    [
        ("Qwen3MoeConfig", {"num_experts": 4}, 4),
        ("Qwen2MoeConfig", {"num_experts": 6}, 6),
        ("MixtralConfig", {"num_local_experts": 8}, 8),
        ("OlmoeConfig", {"num_experts": 3}, 3),
        ("GraniteMoeConfig", {"num_local_experts": 5}, 5),
        ("Glm4MoeConfig", {"n_routed_experts": 7}, 7),
        ("Gemma3Config", {}, 0),
        ("LlamaConfig", {}, 0),
        ("Qwen3Config", {}, 0),
        ("GPT2Config", {}, 0),
    ],
)
def test_a_models_experts_are_counted(made_by: str, settings: dict[str, int], experts: int) -> None:
    import transformers

    from paragator.runs.train import num_experts

    assert num_experts(SimpleNamespace(config=getattr(transformers, made_by)(**settings))) == experts


# ---- interruption and resumption -------------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_exactly_the_same_end(cli: Cli) -> None:
    """Killed after step 3 was recorded but before its checkpoint, with a torn line; checkpoints are every 2 steps.

    What was evaluated after step 3 is of other weights than those after step 5, and of no use there.
    """
    assert cli("train", "--name", "whole", "--train.steps", "5") == 0
    assert cli("train", "--name", "killed", "--train.steps", "3", "--eval.around_training", "true") == 0
    killed = Path("runs/killed")
    shutil.rmtree(killed / "checkpoints" / "step_3")
    for name in ("metrics.jsonl", "traces.jsonl"):
        with (killed / name).open("a") as file:
            file.write('{"step": 4, "torn')
    assert cli("train", "--name", "killed", "--train.steps", "5", "--resume") == 0
    assert metrics(killed) == metrics(Path("runs/whole"))
    assert traces(killed) == traces(Path("runs/whole"))
    whole, resumed = weights(Path("runs/whole/model")), weights(killed / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        assert sorted(map(str, rows(killed / name))) == sorted(map(str, rows(Path("runs/whole") / name)))
    assert (killed / "logs" / "attempt_2.log").is_file()


def test_an_error_keeps_the_steps_before_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Policy.update

    def fail_at_step_3(self: Policy, trees: Any, number: int, constants: Any) -> dict[str, float]:
        if number == 3:
            raise OSError("out of luck")
        return update(self, trees, number, constants)

    monkeypatch.setattr(Policy, "update", fail_at_step_3)
    words = ("--train.steps", "4", "--train.checkpoint_every", "100")
    with pytest.raises(OSError, match="luck"):
        cli("train", *words)
    assert [p.name for p in Path("runs/toy/checkpoints").iterdir()] == ["step_2"]
    monkeypatch.setattr(Policy, "update", update)
    assert cli("train", *words, "--resume") == cli("train", *words, "--name", "whole") == 0
    assert metrics(Path("runs/toy")) == metrics(Path("runs/whole"))


def test_training_from_python_more_than_once_and_inside_a_loop(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy))
    config = load(paragator.Config, toy / "toy.toml", ["--train.steps=1"])
    other = load(paragator.Config, toy / "toy.toml", ["--train.steps=1", "--train.precision=bfloat16", "--name=b"])

    async def notebook() -> Any:
        return paragator.train(other)

    first, second = paragator.train(config), asyncio.run(notebook())
    assert first.finished and second.finished and len(first.metrics) == len(second.metrics) == 1
    assert second.folder == Path("runs/b") and second.model == Path("runs/b/model") and second.report
    assert [path.name for path in second.checkpoints] == ["step_1"] and "1 steps, finished" in repr(second)
    assert second.before and second.after and second.after.table().num_rounds == second.before.table().num_rounds


def test_other_weights_behind_the_path_are_not_gone_on_with(cli: Cli, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "model", tmp_path / "model")
    words = ("train", "--model.path", str(tmp_path / "model"), "--train.steps")
    assert cli(*words, "1") == 0
    model, _ = loading.load_model(ModelConfig(path=str(tmp_path / "model")))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="was begun with other weights"):
        cli(*words, "2", "--resume")


QUICK = ("--train.steps", "1", "--eval.around_training", "false")


def in_files(toy: Path, home: Path) -> tuple[str, ...]:
    """Words that train on files in `home`: problems, held-out problems and a reward in a package, all the toy's own."""
    for name in ("train", "test"):
        shutil.copy(toy / f"{name}.jsonl", home / f"{name}.jsonl")
    (home / "graders").mkdir()
    (home / "graders" / "__init__.py").touch()
    shutil.copy(toy / "toy_reward.py", home / "graders" / "parity.py")
    words = (
        "--task.path",
        "train.jsonl",
        "--task.held_out_path",
        "test.jsonl",
        "--task.reward",
        "graders.parity:score",
    )
    return words + QUICK


CHANGES: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a problem": ("train.jsonl", lambda text: text.replace("0 2 ->", "7 2 ->", 1), "task.path"),
    "an answer": ("train.jsonl", lambda text: text.replace('"answer": 3', '"answer": 4'), "task.path"),
    "a problem more": ("train.jsonl", lambda text: text + '{"id": "x", "problem": "1", "answer": 1}\n', "task.path"),
    "a problem less": ("train.jsonl", lambda text: text.split("\n", 1)[1], "task.path"),
    "their order": ("train.jsonl", lambda text: "".join(reversed(text.splitlines(keepends=True))), "task.path"),
    "a space": ("train.jsonl", lambda text: text.replace("2 ->", "2  ->", 1), "task.path"),
    "held-out problems": ("test.jsonl", lambda text: text.replace("2 ->", "3 ->", 1), "task.held_out_path"),
    "the reward": ("graders/parity.py", lambda text: text.replace("% 2", "% 3"), "task.reward"),
    "a line of its code": ("graders/parity.py", lambda text: text + "\nLIMIT = 3\n", "task.reward"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changed_is_refused_on_resume(
    cli: Cli, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By name; once it is put back, or was only touched, the run goes on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    words = in_files(toy, tmp_path)
    assert cli("train", *words) == 0
    file, change, key = CHANGES[name]
    text = Path(file).read_text()
    Path(file).write_text(change(text))
    with pytest.raises(
        UsageError, match=rf"^runs/toy was begun with another \S*{file} \({key}\); put it back, or use --over"
    ):
        cli("train", *words, "--resume")
    Path(file).write_text(text)
    os.utime(file)
    assert cli("train", *words, "--train.steps", "2", "--resume") == 0
    monkeypatch.delitem(sys.modules, "graders.parity")
    monkeypatch.delitem(sys.modules, "graders")


def test_problems_named_by_their_file_are_noted_too(cli: Cli, toy: Path) -> None:
    shutil.copy(toy / "train.jsonl", "mine.jsonl")
    values = ["--model.path", str(toy / "model"), "--task.name", "mine.jsonl", "--task.reward", "toy_reward:score"]
    words = ("train", *values, "--method.k", "2", "--rollout.candidates", "4", "--rollout.pool_size", "2", *QUICK)
    small = ("--train.problems", "2", "--generate.max_tokens", "8", "--aggregate.max_tokens", "8", "--name", "named")
    assert run([*words, *small]) == 0
    with Path("mine.jsonl").open("a") as file:
        file.write('{"id": "more", "problem": "1 2 -> 3", "answer": 3}\n')
    with pytest.raises(UsageError, match=r"^runs/named was begun with another mine\.jsonl \(task\.path\)"):
        run([*words, *small, "--resume"])


def test_recorded_candidates_that_changed_are_refused_on_resume(cli: Cli) -> None:
    words = ("--method.name", "offline_aggregation", "--method.recorded", "pools.jsonl")
    assert cli("sample", *words, "--output", "pools.jsonl", "--count", "8") == 0
    assert cli("train", *words, *QUICK) == 0
    lines = Path("pools.jsonl").read_text().splitlines(keepends=True)
    Path("pools.jsonl").write_text("".join(lines[::-1]))
    with pytest.raises(UsageError, match=r"begun with another pools.jsonl \(method.recorded\)"):
        cli("train", *words, *QUICK, "--resume")


def test_a_reward_that_raised_may_be_fixed(
    cli: Cli, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it scored before stays, so the run ends as one that nobody disturbed; after that it is the run's own again."""
    source, words = (toy / "toy_reward.py").read_text(), (*QUICK[2:], "--task.reward", "mended_reward:score")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> None:
        (tmp_path / "mended_reward.py").write_text(text)
        sys.modules.pop("mended_reward", None)
        importlib.invalidate_caches()

    for wrong in ("1 / (problem.id != 'train5')", "'good'"):
        write(source + f"\nreal = score\ndef score(problem, texts):\n    bad = {wrong} if problem.id == 'train5' else 0\n"
              "    return [bad] * len(texts) if bad else real(problem, texts)\n")  # fmt: skip
        with pytest.raises((RunError, UsageError), match=r"reward mended_reward:score (raised|gave)"):
            cli("train", *words, "--overwrite")
        write(source)
        assert cli("train", *words, "--resume") == 0
    assert cli("train", *words, "--name", "whole") == 0
    assert metrics(Path("runs/toy")) == metrics(Path("runs/whole"))
    write(source + "\n")
    with pytest.raises(UsageError, match=r"begun with another \S*mended_reward\.py"):
        cli("train", *words, "--resume")


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_other_steps_under_a_schedule_are_told(cli: Cli, schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--optimizer.schedule", schedule, "--eval.around_training", "false", "--train.steps")
    for steps, more, told in (("2", (), False), ("2", ("--resume",), False), ("4", ("--resume",), True)):
        assert cli("train", *words, steps, *more) == 0
        said = "train.steps was 2: optimizer.schedule" in capsys.readouterr().out
        assert said is (told and schedule != "constant")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_at_any_moment_a_training_ends_in_the_same_bytes() -> None:
    """With adapters, a KL, a schedule and two updates a step; PARAGATOR_KILLS says how many kills (6 unless set)."""
    script = SOURCE.parent / "scripts" / "kills.py"
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), os.environ.get("PARAGATOR_KILLS", "6")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    end = re.search(r"in (\d+) runs: every end that of an undisturbed run, (\d+) of them in every bit", done.stdout)
    assert done.returncode == 0 and end and end[1] == end[2], done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_servers_change_nothing() -> None:
    """Of an evaluation and of a training; PARAGATOR_SERVER_KILLS says how many kills (4 unless set)."""
    script = SOURCE.parent / "scripts" / "server_kills.py"
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), os.environ.get("PARAGATOR_SERVER_KILLS", "4"), "--seed=5"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "every end that of an undisturbed run" in done.stdout, done.stdout + done.stderr


def test_what_a_kill_left_of_checkpoints_is_cleared(cli: Cli) -> None:
    """An old one that was about to be removed, one of which half was removed, one that was half written."""
    assert cli("train", "--train.steps", "4", "--eval.around_training", "false") == 0
    kept = Path("runs/toy/checkpoints")
    for name in ("step_1", "step_3.tmp"):
        shutil.copytree(kept / "step_2", kept / name)
    (kept / "step_1" / "meta.json").unlink()
    shutil.copytree(kept / "step_2", kept / "step_0")
    assert cli("train", "--train.steps", "4", "--eval.around_training", "false", "--resume") == 0
    assert sorted(path.name for path in kept.iterdir()) == ["step_2", "step_4"]


def test_a_killed_export_leaves_no_half_model(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Policy, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Policy, "export", half)
        cli("train", *QUICK)
    assert not Path("runs/toy/model").exists()
    assert cli("train", *QUICK, "--resume") == 0
    assert weights(Path("runs/toy/model")) and not Path("runs/toy/model.tmp").exists()


def test_resuming_a_finished_run_changes_nothing(cli: Cli) -> None:
    assert cli("train") == 0
    before = {p: p.read_bytes() for p in Path("runs/toy").glob("*.jsonl")}
    assert cli("train", "--resume") == 0
    assert {p: p.read_bytes() for p in Path("runs/toy").glob("*.jsonl")} == before


def test_overwrite_starts_again(cli: Cli) -> None:
    assert cli("train", "--train.steps", "1") == 0
    assert cli("train", "--train.steps", "2", "--overwrite") == 0
    assert len(metrics(Path("runs/toy"))) == 2
    assert not Path("runs/toy/logs/attempt_2.log").exists()


def test_ctrl_c_leaves_a_resumable_run_and_a_valid_report(cli: Cli, toy: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{toy}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "paragator", "train", str(toy / "toy.toml"), "--train.steps", "1000"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopping after this step" in err and "Traceback" not in err
    assert "interrupted; go on with --resume" in out
    run_dir = Path("runs/toy")
    assert (run_dir / "report.html").read_text().rstrip().endswith("</html>")
    taken = len(metrics(run_dir))
    assert 3 <= taken < 1000
    assert (run_dir / "checkpoints" / f"step_{taken}").is_dir()
    assert cli("train", "--train.steps", str(taken + 1), "--resume") == 0
    assert [row["step"] for row in metrics(run_dir)] == list(range(1, taken + 2))
    assert cli("train", "--name", "whole", "--train.steps", str(taken + 1)) == 0
    assert metrics(run_dir) == metrics(Path("runs/whole"))


class Handed:
    """An engine from Python: another copy of the model, which gets the policy's weights after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, list[int]()
        self.engine = paragator.Local(str(folder), sampling=paragator.Sampling(max_tokens=8))

    async def __call__(self, prompt: paragator.Prompt, n: int, *, stage: Any, seed: int) -> paragator.Group:
        return await self.engine(prompt, n, stage=stage, seed=seed)

    async def publish(self, step: int, export: Callable[[Path], None]) -> None:
        self.steps.append(step)
        self.engine.close()
        export(folder := self.folder.with_name(f"weights-{step}"))
        self.engine = paragator.Local(str(folder), sampling=self.engine.sampling)


def test_an_engine_handed_over_samples_and_gets_the_weights(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy))
    words = ["--train.steps=3", "--train.precision=float32", "--generate.max_tokens=8", "--aggregate.max_tokens=8"]
    config = load(paragator.Config, toy / "toy.toml", [*words, "--eval.around_training=false"])
    engine = Handed(Path(config.model.path).resolve() if config.model.path != "embedded" else EMBEDDED)
    engine.folder = tmp_path / "copies" / "first"
    found = paragator.train(config, engine=engine)
    plain = paragator.train(config.model_copy(update={"name": "plain"}))
    assert engine.steps == [0, 1, 2, 3] and found.finished
    for mine, own in zip(found.metrics, plain.metrics, strict=True):
        assert mine["mismatch_kl"] < 1e-6 and mine["loss"] == pytest.approx(own["loss"], rel=1e-3, abs=1e-6)


# ---- the other verbs -------------------------------------------------------------------------------------------------


SLOW = """
import signal, sys, time
from paragator.cli.main import main
from paragator.training.policy import Policy
def slow(*args):
    print("updating", flush=True)
    if where == "here":  # the signal reaches this thread, so that nothing interrupts the main thread's waiting
        signal.raise_signal(signal.SIGINT)
    time.sleep(3600)
Policy.update = slow
where = sys.argv.pop()
sys.argv = ["paragator", "train", sys.argv[1], "--eval.around_training", "false"]
main()
"""


@pytest.mark.parametrize("first", ["sent", "here"])
def test_ctrl_c_twice_ends_a_run_in_the_middle_of_an_update(toy: Path, tmp_path: Path, first: str) -> None:
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{toy}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SLOW, str(toy / "toy.toml"), first]
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert any("updating" in line for line in process.stdout)
        if first == "sent":
            process.send_signal(signal.SIGINT)
        assert "again stops at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANG_S) == 130
        assert process.stderr.read().splitlines()[-1] == "interrupted"
    finally:
        process.kill()
        process.communicate()


def test_eval_prints_json_and_resumes(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("eval", "--json", "--eval.rounds", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == "runs/toy-eval" and len(found["eval"]["rounds"]) == 3
    first = sorted(map(str, rows(Path("runs/toy-eval/eval.jsonl"))))
    page = Path("runs/toy-eval/report.html").read_text()
    assert '"evaluations":{"eval":{' in page
    assert run(["compare", "runs/toy-eval", "runs/toy-eval"]) == 0
    capsys.readouterr()
    assert cli("eval", "--eval.rounds", "2", "--resume") == 0
    assert sorted(map(str, rows(Path("runs/toy-eval/eval.jsonl")))) == first


def test_train_prints_json(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", "--json", "--train.steps", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 1 and {"run", "report", "eval_before", "eval_after"} <= set(found)


def test_compare_draws_two_runs(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("paragator", "dr_grpo"):
        assert cli("train", "--name", name, "--method.name", name, "--train.steps", "2") == 0
    capsys.readouterr()
    assert run(["compare", "runs/paragator", "runs/dr_grpo", "--output", "pictures"]) == 0
    out = capsys.readouterr().out
    assert "paragator" in out and "dr_grpo" in out and "pass@1" in out
    assert len(list(Path("pictures").iterdir())) >= 2
    assert run(["compare", "runs/paragator", "runs/dr_grpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"]
    assert run(["report", "runs/dr_grpo"]) == 0


def warmup_file(folder: Path, steps: int, task: str) -> Path:
    """A config of a tiny warm-up that writes to `folder`/model."""
    path = folder / "warmup.toml"
    sizes = "width = 32\nlayers = 1\ncontext = 160\nsolve_rows = 2\nreview_rows = 2\n"
    path.write_text(f'output = "{folder}/model"\nsteps = {steps}\n{sizes}[task]\n{task}')
    return path


def test_warmup_writes_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = warmup_file(tmp_path, 3, "min_numbers = 2\nmax_numbers = 3\nmax_value = 4\n")
    assert run(["warmup", str(path)]) == 0
    model, tokenizer = loading.load_model(ModelConfig(path=str(tmp_path / "model")))
    ids = tokenizer("1 2 -> 3\nsolve:", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all() and 3 not in ids  # 3 is <unk>
    first = weights(tmp_path / "model")
    assert run(["warmup", str(path), "--output", str(tmp_path / "again")]) == 0
    again = weights(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert run(["doctor"]) in (0, 1)


def test_warmup_on_sums_knows_their_numbers(tmp_path: Path) -> None:
    path = warmup_file(tmp_path, 1, 'name = "arithmetic"\nmin_numbers = 3\nmax_numbers = 3\nmax_value = 20\n')
    assert run(["warmup", str(path)]) == 0
    _, tokenizer = loading.load_model(ModelConfig(path=str(tmp_path / "model")))
    text = "12 - 40 + 3\nsolve: 12 - 40 = -28 , -28 + 3 = -25"
    ids = tokenizer(text)["input_ids"]
    assert 3 not in ids  # <unk>
    assert tokenizer.convert_ids_to_tokens(ids[-6:]) == [",", "-28", "+", "3", "=", "-25"]


def test_warmup_starts_from_a_model_that_knows_the_words(tmp_path: Path) -> None:
    sums = 'name = "arithmetic"\nmin_numbers = 3\nmax_numbers = 4\nmax_value = 9\n'
    composite = 'name = "composite"\nparts = 2\nmin_numbers = 2\nmax_numbers = 2\nmax_value = 9\n'
    assert run(["warmup", str(warmup_file(tmp_path, 1, sums))]) == 0
    path, first = warmup_file(tmp_path, 1, composite), weights(tmp_path / "model")
    started = ["--start", str(tmp_path / "model"), "--output", str(tmp_path / "next"), "--lr", "1e-9"]
    assert run(["warmup", str(path), *started]) == 0
    then = weights(tmp_path / "next")
    assert all(torch.allclose(first[name], then[name], atol=1e-6) for name in first)
    with pytest.raises(
        UsageError, match=r"start = 'embedded': no local model that knows the words of this task, such as '-"
    ):
        run(["warmup", str(path), "--start", "embedded"])


def test_warmup_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paragator.config import TaskConfig
    from paragator.training import warmup as module

    def config(name: str) -> Any:
        task = TaskConfig(min_numbers=2, max_numbers=2, max_value=6, min_target=2)
        return module.WarmupConfig(
            output=str(tmp_path / name), steps=203, width=32, layers=1, solve_rows=1, review_rows=1, pool_size=1, task=task
        )  # fmt: skip

    module.warmup(config("whole"), lambda line: None)
    taken = 0
    real = module.batch

    def stop_after_201(*args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > 201:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "batch", stop_after_201)
    with pytest.raises(KeyboardInterrupt):
        module.warmup(config("cut"), lambda line: None)
    monkeypatch.setattr(module, "batch", real)
    said: list[str] = []
    module.warmup(config("cut"), said.append)
    assert "resuming after step 200" in said
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_fractional_reward_that_is_awaited(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same reward, plain and async, trains alike, and a step counts as correct what the evaluation does."""
    body = "return [(len(text) % 5 / 4, text[:1]) for text in texts]\n"
    (tmp_path / "fractional.py").write_text(
        f"import asyncio\ndef plain(problem, texts):\n    {body}"
        f"async def waits(problem, texts):\n    await asyncio.sleep(0)\n    {body}"
    )
    for name in ("plain", "waits"):
        words = ("--name", name, "--task.reward", f"fractional:{name}", "--task.correct_from", "0.5")
        assert cli("train", *words, "--train.steps", "2") == 0
    said = capsys.readouterr().out
    assert "mean reward" in said and "correct is a reward of 0.5 or more (task.correct_from)" in said
    assert {row["extra"]["correct_from"] for row in traces(tmp_path / "runs" / "plain")} == {0.5}
    first, second = (metrics(tmp_path / "runs" / name) for name in ("plain", "waits"))
    assert first == second
    for row in first:
        graded = [
            t
            for t in records.read(tmp_path / "runs" / "plain" / "traces.jsonl")
            if t.trace.extra["step"] == row["step"]
        ]
        shares = [pass_at_k(4, sum(g.reward >= 0.5 for g in t.of_round(0)), 2) for t in graded]  # type: ignore[operator]
        assert row["generate/pass_at_k"] == pytest.approx(sum(shares) / len(shares))


# ---- wrong inputs that only a model or its output can show -----------------------------------------------------------


@pytest.fixture
def fails(
    cli: Cli, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a verb that must fail as a usage error; its one line."""

    def fail(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["paragator", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.strip()]
        assert exit_.value.code == 2, err
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        return lines[0]

    return fail


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("[float('nan')] * len(texts)", ["gave nan", "return a finite number, or None"]),
        ("[1.0]", ["gave 1 values for 4 texts", "return one for each"]),
        ("['good'] * len(texts)", ["gave 'good'", "return a finite number, or None"]),
    ],
    ids=["nan", "wrong length", "text"],
)
def test_a_reward_that_returns_nonsense(
    fails: Callable[..., str], toy: Path, tmp_path: Path, body: str, wanted: list[str], request: pytest.FixtureRequest
) -> None:
    name = "bad_reward_" + request.node.callspec.id.replace(" ", "_")
    (tmp_path / f"{name}.py").write_text(f"def score(problem, texts):\n    return {body}\n")
    error = fails("eval", str(toy / "toy.toml"), "--task.reward", f"{name}:score")
    assert f"reward {name}:score" in error and all(part in error for part in wanted), error


def test_a_prompt_longer_than_the_context(fails: Callable[..., str], toy: Path, tmp_path: Path) -> None:
    row = {"id": "long", "problem": "1 + " * 200 + "1", "answer": 201}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    error = fails("eval", str(toy / "toy.toml"), "--task.held_out_path", str(tmp_path / "long.jsonl"))
    assert "problem long" in error and "context of 160" in error and "shorten it" in error


def test_warmup_of_an_unknown_task(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('output = "out"\n')
    error = fails("warmup", "w.toml", "--task.name", "chess")
    assert "task.name = 'chess'" in error and "countdown and arithmetic" in error
    error = fails("warmup", "w.toml", "--device", "abacus")
    assert "device = 'abacus'" in error and '"cpu" or "cuda"' in error
    error = fails("warmup", "w.toml", "--task.max_numbers", "9")
    assert "task.max_numbers = 9: Countdown has 8 numbers at most" in error
    error = fails("warmup", "w.toml", "--task.name", "arithmetic", "--task.max_value", "9999")
    assert "task.max_value = 9999" in error
    assert not Path("out").exists()


def test_more_problems_than_the_ranges_hold(fails: Callable[..., str]) -> None:
    few = {"min_numbers": 2, "max_numbers": 2, "max_value": 3, "min_target": 1, "max_target": 6}
    error = fails("eval", "--eval.problems", "20", *(f"--task.{key}={value}" for key, value in few.items()))
    assert "distinct held-out problems of 20" in error and "widen the ranges" in error


def test_weights_that_are_not_there(fails: Callable[..., str], toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    error = fails("eval", str(toy / "toy.toml"), "--model.path", "./bare")
    assert "model.path = './bare' cannot be loaded" in error
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"\x00" * 100)
    error = fails("eval", str(toy / "toy.toml"), "--model.path", "./bare", "--overwrite")
    assert "model.path = './bare' cannot be loaded" in error


BREAKS: dict[str, Callable[[Path], object]] = {
    "weights.safetensors has 10 bytes": lambda folder: os.truncate(folder / "weights.safetensors", 10),
    "optimizer.safetensors has": lambda folder: flip(folder / "optimizer.safetensors"),
    "meta.json has": lambda folder: (folder / "meta.json").write_text('{"step": 1, "updates": 1, "refused": 0}'),
    "weights.safetensors is missing": lambda folder: (folder / "weights.safetensors").unlink(),
    "manifest.json was changed or cut": lambda folder: os.truncate(folder / "manifest.json", 30),
    "manifest.json is missing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_checkpoint_is_named_and_the_one_before_it_is_taken(cli: Cli, what: str) -> None:
    words = ("--train.checkpoint_every", "1", "--eval.around_training", "false")
    assert cli("train", "--name", "whole", *words, "--train.steps", "3") == 0
    assert cli("train", *words, "--train.steps", "2") == 0
    folder = Path("runs/toy/checkpoints")
    BREAKS[what](folder / "step_2")
    with pytest.warns(UserWarning, match=rf"step_2 is not whole: {what}[^\n]*resumed from step_1$"):
        assert cli("train", *words, "--train.steps", "3", "--resume") == 0
    assert metrics(Path("runs/toy")) == metrics(Path("runs/whole"))
    for path in folder.rglob("*.safetensors"):
        assert path.read_bytes() == (Path("runs/whole/checkpoints") / path.relative_to(folder)).read_bytes()
    for one in folder.iterdir():
        BREAKS[what](one)
    with pytest.raises(RunError, match=rf"step_3 is not whole: {what}[^\n]*no older one is there") as caught:
        cli("train", *words, "--train.steps", "4", "--resume")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_an_older_layout_is_refused_in_one_line(cli: Cli) -> None:
    assert cli("train", "--train.steps", "1", "--eval.around_training", "false") == 0
    (Path("runs/toy/checkpoints/step_1") / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"step_1 is of an older version of paragator[^\n]*use --overwrite"):
        cli("train", "--train.steps", "2", "--eval.around_training", "false", "--resume")


def test_credit_and_schedule_of_ones_own_in_a_run(cli: Cli, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name in a config; the credit sees lengths, and neither file may change before the run is resumed."""
    source = "def halve(step, steps):\n    return 0.5**step\n\ndef brief(rewards):\n"
    source += (
        "    assert rewards.stage in ('generate', 'aggregate') and rewards.problem.text and len(rewards.texts) == 4\n"
    )
    source += "    return [2.0 - n for n in rewards.lengths]\n"
    Path("my_hooks.py").write_text(source)
    words = (
        "--method.credit",
        "my_hooks:brief",
        "--optimizer.schedule",
        "my_hooks:halve",
        "--eval.around_training=false",
    )
    assert cli("train", *words, "--train.steps", "2") == 0
    assert [row["lr"] for row in rows(Path("runs/toy/metrics.jsonl"))] == [0.005, 0.0025]
    assert all(row["updated"] for row in rows(Path("runs/toy/metrics.jsonl")))
    Path("my_hooks.py").write_text(source + "\n")
    with pytest.raises(UsageError, match=r"begun with another my_hooks.py \(optimizer.schedule|method.credit\)"):
        cli("train", *words, "--train.steps", "3", "--resume")
