"""`paragator eval` over each engine: its flags, files, exit codes and resumption. (kill -9: test_eval_kill.py)"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paragator import records
from paragator.cli.main import run
from paragator.core.errors import DataError, UsageError
from paragator.core.packing import Packer
from paragator.core.types import Prompt
from paragator.engines.http.fitting import estimated_tokens
from paragator.engines.replay import Replay
from paragator.runs import folder
from paragator.runs.connect import Connection
from paragator.runs.defaults import eval_config, say_prompts
from paragator.runs.evaluate import Tally
from paragator.runs.events import Events

Cli = Callable[..., int]
pytestmark = pytest.mark.e2e


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two hundred sums with four recorded completions each, half of them right."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": f"r{i}",
            "problem": f"What is {i} + 1?",
            "answer": str(i + 1),
            "completions": [f"\\boxed{{{i + 1 + (j % 2)}}}" for j in range(4)],
        }
        for i in range(200)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "sums.jsonl"


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["eval", *words, "--dry-run"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_short_flags_are_the_dotted_keys(capsys: pytest.CaptureFixture[str]) -> None:
    short = "--rounds 2 --candidates 8 --pool-size 3 --pools 4 --repeats 5 --problems 6 --task arithmetic"
    long = (
        "--eval.rounds 2 --eval.candidates 8 --eval.pool_size 3 --eval.pools 4 --eval.repeats 5 --eval.problems 6 "
        "--task.name arithmetic"
    )
    assert dry(capsys, *short.split()) == dry(capsys, *long.split())


def test_a_url_makes_the_engine_and_what_suits_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, "--url", "http://localhost:1/v1", "--model", "some/model")
    assert found["engine"]["kind"] == "openai" and found["engine"]["model"] == "some/model"
    assert found["model"]["template"] == "chat" and found["task"]["style"] == "words"
    assert found["generate"]["max_tokens"] == found["aggregate"]["max_tokens"] == 4096
    found = dry(capsys, "--url", "http://localhost:1/v1", "--model.template", "compact", "--generate.max_tokens", "9")
    assert found["model"]["template"] == "compact" and found["generate"]["max_tokens"] == 9
    assert found["engine"]["model"] is None


@pytest.fixture
def chat_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is read of a model of 2,048 tokens with a chat template before its weights are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatty").mkdir()
    (tmp_path / "chatty" / "config.json").write_text('{"max_position_embeddings": 2048}')
    (tmp_path / "chatty" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return "./chatty"


def test_an_ordinary_model_is_asked_through_its_chat_template(
    chat_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words and at length, in training too; what somebody set stays, and the embedded model is what it was."""
    for verb, model, length in (("eval", chat_model, 512), ("train", chat_model, 512), ("eval", "some/model", 1024)):
        assert run([verb, "--model.path", model, "--dry-run"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["model"]["template"], found["task"]["style"]) == ("chat", "words")
        assert found["generate"]["max_tokens"] == found["aggregate"]["max_tokens"] == length
    found = dry(capsys, "--model", chat_model, "--generate.max_tokens", "9", "--task.style", "compact")
    assert (found["generate"]["max_tokens"], found["aggregate"]["max_tokens"]) == (9, 512)
    assert found["task"]["style"] == "compact"
    for words in ((), ("--model", chat_model, "--model.template", "compact")):
        found = dry(capsys, *words)
        assert (found["model"]["template"], found["generate"]["max_tokens"]) == ("compact", 40)


def test_a_base_model_without_a_chat_template_may_answer_at_length(
    chat_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a context as small as that of models warmed up here keeps their short lengths."""
    (Path(chat_model) / "tokenizer_config.json").unlink()
    for context, length in ((512, 40), (1024, 256), (32768, 1024)):
        (Path(chat_model) / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
        found = dry(capsys, "--model", chat_model)
        assert (found["model"]["template"], found["aggregate"]["max_tokens"]) == ("compact", length)
    said: list[str] = []
    say_prompts(eval_config({"model": {"path": chat_model}}), said.append)
    (line,) = said
    assert line == (
        "a model without a chat template: model.template = 'compact', completions of up to 1,024 and 1,024 tokens"
    )
    say_prompts(eval_config({"model": {"path": chat_model, "template": "compact"}}), said.append)
    say_prompts(eval_config({}), said.append)
    assert said == [line]


def test_an_evaluation_is_named_by_its_task_and_model(
    recording: str, chat_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url, there = ("--url", "http://host.example:1/v1"), ("--task", "arithmetic")
    assert dry(capsys)["name"] == "countdown-embedded"
    assert dry(capsys, "--model", chat_model, *there)["name"] == "arithmetic-chatty"
    assert dry(capsys, *url, *there, "--model", "Qwen/Qwen3-4B")["name"] == "arithmetic-Qwen-Qwen3-4B"
    assert dry(capsys, *url, "--task", recording)["name"] == "sums-host.example"
    assert dry(capsys, "--recording", recording)["name"] == "sums"
    assert dry(capsys, "--name", "mine")["name"] == "mine"
    Path("c.toml").write_text('name = "toy"')
    assert dry(capsys, "c.toml")["name"] == "toy-eval"


def test_a_file_as_task_is_evaluated_whole(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, "--task", recording)
    assert found["task"]["name"] == "jsonl" and found["task"]["held_out_path"] == recording
    assert found["eval"]["problems"] == 200
    assert dry(capsys, "--task", recording, "--problems", "7")["eval"]["problems"] == 7


def test_help_tells_what_a_flag_is_short_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["eval", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "eval.pool_size: Candidates an aggregation sees." in shown and "engine.url: " in shown


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rounds 1 --eval.rounds 2", "--rounds is short for --eval.rounds; give one of them"),
        ("--engine.kind openai", "engine.url is not set"),
        ("--engine.kind replay", "engine.recording is not set"),
        ("--recording none.jsonl", "engine.recording = none.jsonl: no such file"),
        ("--recording sums.jsonl --rounds 1", "rounds = 1 is a round beyond what is recorded"),
        ("--recording sums.jsonl --candidates 5", "5 candidates asked, 4 recorded"),
        ("--recording sums.jsonl --task arithmetic", "no recording for this prompt"),
        ("--judge.mode hybrid", "judge.url is not set"),
        ("--rounds many", "eval.rounds = 'many'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_directory(recording: str, line: str, wanted: str) -> None:
    with pytest.raises((UsageError, DataError), match=wanted.replace("(", r"\(")):
        run(["eval", *line.split()])
    assert not Path("runs").exists()


def test_training_over_an_endpoint_is_refused(recording: str) -> None:
    with pytest.raises(UsageError, match=r"engine.kind = 'openai': training needs exact tokens"):
        run(["train", "--engine.kind", "openai", "--engine.url", "http://localhost:1/v1"])


# ---- a recording -----------------------------------------------------------------------------------------------------


def test_a_recording_is_evaluated_by_itself(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--recording", recording]) == 0
    out = capsys.readouterr().out
    assert "200 held-out problems" in out and "50.0" in out
    found = list(records.read(Path("runs/sums/eval.jsonl")))
    assert len(found) == 200 and all(len(r.trace.population(0)) == 4 for r in found)
    manifest = json.loads(Path("runs/sums/manifest.json").read_text())
    assert manifest["model"].startswith("sums.jsonl:")
    assert not Path("runs/sums/calls.jsonl").exists() and not Path("runs/run-eval/usage.json").exists()


def test_repeats_of_a_recording_draw_anew_and_json_is_alone_on_stdout(
    recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--recording",
        recording,
        "--candidates",
        "2",
        "--eval.pool_size",
        "2",
        "--repeats",
        "3",
        "--problems",
        "20",
    ]
    assert run(["eval", *words, "--eval.k", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["exit_code"] == 0 and shown["usage"] is None and shown["eval"]["traces"] == 60
    found = list(records.read(Path("runs/sums/eval.jsonl")))
    drawn = {
        tuple(c.text for c in r.trace.population(0)) for r in found if r.trace.problem.id == found[0].trace.problem.id
    }
    assert len(found) == 60 and 1 <= len(drawn) <= 3


# ---- in-process ------------------------------------------------------------------------------------------------------


def test_a_run_cut_anywhere_ends_in_the_same_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("eval", "--name", "whole", "--candidates", "4", "--rounds", "2") == 0
    wanted = Path("runs/whole/eval.jsonl").read_bytes()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    whole_calls = 3 * (1 + 2)

    from paragator.engines.local.transformers import TransformersEngine

    asked: list[int] = []
    real = TransformersEngine.__call__

    async def counted(self: Any, prompt: Prompt, n: int, **more: Any) -> Any:
        if stop_after and len(asked) >= stop_after[0]:
            raise KeyboardInterrupt  # as a second Ctrl-C would, in the middle of everything
        asked.append(n)
        return await real(self, prompt, n, **more)

    monkeypatch.setattr(TransformersEngine, "__call__", counted)
    stop_after = [4]
    words = ["eval", "--name", "cut", "--candidates", "4", "--rounds", "2"]
    with pytest.raises(KeyboardInterrupt):
        cli(*words)
    finished = Path("runs/cut/calls.jsonl").read_bytes().count(b"\n")
    stop_after.clear()
    asked.clear()
    assert cli(*words, "--resume") == 0
    assert len(asked) == whole_calls - finished
    assert Path("runs/cut/eval.jsonl").read_bytes() == wanted
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")] == table
    assert not Path("runs/cut/calls.jsonl").exists()


def test_resuming_a_complete_evaluation_loads_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["eval", "--name", "done", "--rounds", "1"]
    assert cli(*words) == 0

    async def never(*_: Any) -> Any:
        raise AssertionError("connected")

    monkeypatch.setattr("paragator.runs.connect.loaded", never)
    assert cli(*words, "--resume") == 0


@pytest.mark.parametrize(("old", "new"), [('"answer": "1"', '"answer": "7"'), ('"id": "r0"', '"id": "other"')])
def test_data_that_changed_are_not_resumed(recording: str, old: str, new: str) -> None:
    words = ["eval", "--recording", recording, "--name", "run", "--json"]
    assert run(words) == 0
    Path(recording).write_text(Path(recording).read_text().replace(old, new))
    with pytest.raises(UsageError, match=rf"begun with another {recording} \(task.path\); put it back"):
        run([*words, "--resume"])
    note = Path("runs/run/manifest.json")  # of a version that noted no files: each record is still looked at
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "files"}))
    with pytest.raises(DataError, match=r"eval.jsonl: problem 'r0', repeat 0 is not what it was"):
        run([*words, "--resume"])
    assert run([*words, "--overwrite"]) == 0


def test_one_process_at_a_time_works_in_a_run_directory(recording: str) -> None:
    words = ["eval", "--recording", recording, "--name", "run"]
    assert run(words) == 0
    for more in ("--resume", "--overwrite"):
        with folder.locked(Path("runs/run")), pytest.raises(UsageError, match="runs/run is in use by another process"):
            run([*words, more])
    assert run([*words, "--resume"]) == 0


def test_a_directory_without_a_config_is_not_yet_a_run(cli: Cli) -> None:
    """A process killed while it wrote its first files leaves nothing in the way of the next."""
    Path("runs/early").mkdir(parents=True)
    Path("runs/early/manifest.json").write_text("{")
    Path("runs/early/config.new").write_text("{")
    assert cli("eval", "--name", "early", "--rounds", "0") == 0


# ---- an endpoint -----------------------------------------------------------------------------------------------------

LINE = "eval --candidates 3 --pool-size 2 --rounds 1 --problems 4 --eval.k 2 --name over"


@pytest.fixture
def fake(recording: str) -> Iterator[Any]:
    """A server of tests/servers.py, running, and the task's file in the current folder."""
    spec = importlib.util.spec_from_file_location("fake_servers", Path(__file__).parents[1] / "servers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with module.running(module.Server()) as server:
        yield server


def over(server: Any, *more: str) -> int:
    return run([*LINE.split(), "--task", "sums.jsonl", "--url", server.url, *more])


def test_an_endpoint_is_asked_one_completion_at_a_time_and_billed(
    fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert over(fake, "--engine.price_out", "1000000", "--engine.extra_body", '{note = "x"}') == 0
    calls = [call for call in fake.calls if call.path.endswith("completions")]
    assert len(calls) == 4 * (3 + 3)
    assert all(call.body.get("n") in (None, 1) and call.body["note"] == "x" for call in calls)
    assert len({call.body["seed"] for call in calls}) == len(calls)
    found = list(records.read(Path("runs/over/eval.jsonl")))
    tokens = sum(c.length or 0 for r in found for t in (0, 1) for c in r.trace.population(t))
    bill = json.loads(Path("runs/over/usage.json").read_text())
    assert bill["model"] == "fake" and bill["attempts"] == 1 and bill["total"] == bill["this_attempt"]
    assert bill["total"]["completion_tokens"] == tokens and bill["total"]["calls"] == len(calls)
    assert bill["total"]["cost"] == pytest.approx(tokens)
    assert "usage of fake in 1 attempts: " in capsys.readouterr().out


def test_failed_problems_are_partial_and_tried_again(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake.context = 40  # candidates fit, aggregation prompts do not
    assert over(fake) == 3
    assert "4 of 4 traces failed, most by: " in capsys.readouterr().out
    assert Path("runs/over/calls.jsonl").exists()
    fake.context = None
    before = len(fake.calls)
    assert over(fake, "--resume") == 0
    assert len([call for call in fake.calls[before:] if call.path.endswith("completions")]) == 4 * 3
    assert not any(record.trace.failure for record in records.read(Path("runs/over/eval.jsonl")))
    assert json.loads(Path("runs/over/usage.json").read_text())["attempts"] == 2
    assert not Path("runs/over/calls.jsonl").exists()


def test_another_model_does_not_go_on(fake: Any) -> None:
    fake.context = 40
    assert over(fake) == 3
    fake.model = "other"
    with pytest.raises(UsageError, match="was answered by 'fake', the server now has 'other'"):
        over(fake, "--resume")


def test_a_prompt_budget_without_a_tokenizer(fake: Any) -> None:
    fake.reply = lambda prompt, seed, index: "so " * 200 + f"\\boxed{{{seed % 7}}}"
    assert over(fake, "--rollout.max_prompt_tokens", "320") == 0
    found = list(records.read(Path("runs/over/eval.jsonl")))
    groups = [group for record in found for group in record.trace.rounds[1]]
    assert all(estimated_tokens(group.prompt) <= 320 and group.pool for group in groups)
    assert all(group.reductions for group in groups)


def test_a_problem_that_leaves_no_room_fails_and_says_so(fake: Any) -> None:
    assert over(fake, "--rollout.max_prompt_tokens", "60") == 3
    found = list(records.read(Path("runs/over/eval.jsonl")))
    outputs = [output for record in found for group in record.trace.rounds[1] for output in group.outputs]
    assert outputs and all("leaves no room" in getattr(output, "reason", "") for output in outputs)


def test_a_judge_stands_behind_the_grader(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--judge.mode", "always", "--judge.url", fake.url, "--judge.cache", "j.sqlite"]
    fake.reply = lambda prompt, seed, index: "VERDICT: CORRECT" if "VERDICT" in prompt else f"\\boxed{{{seed}}}"
    assert over(fake, *words) == 0
    kept = json.loads(Path("runs/over/judge.json").read_text())
    assert kept["judge"] == f"fake@{fake.url}" and kept["asked"] == 24 and kept["agree"] == 0
    assert f"judge fake@{fake.url}: asked 24, from the cache 0, agrees with the rules 0.0%" in capsys.readouterr().out
    grades = [g for r in records.read(Path("runs/over/eval.jsonl")) for groups in r.grades for gs in groups for g in gs]
    assert {grade.verdict for grade in grades if grade} == {"correct"}
    assert over(fake, *words, "--resume") == 0
    assert json.loads(Path("runs/over/judge.json").read_text()) == kept


def test_a_device_that_is_not_there_is_one_line_and_leaves_nothing(cli: Cli) -> None:
    with pytest.raises(UsageError, match=r"model.device = 'tpu': .*; use .auto., .cpu. or .cuda."):
        cli("eval", "--model.device", "tpu", "--name", "run")
    assert not Path("runs/run").exists()


def test_progress_tells_of_attempts_that_were_repeated(tmp_path: Path) -> None:
    connection = Connection(Replay({}), Packer(), trouble=lambda: "3 retries, the last: http 500")
    tally = Tally("eval", Events(), connection)
    tally.total = 9
    line = tally.progress().line()
    assert line == "eval: 0/9 traces  3 retries, the last: http 500"
