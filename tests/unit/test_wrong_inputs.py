"""Wrong inputs: one line with cause and remedy, exit code 2, no traceback, and no weights loaded. (Those that need a model: e2e.)"""

from __future__ import annotations

import builtins
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paragator import records
from paragator.cli.main import main
from paragator.config import Config, ModelConfig
from paragator.core.errors import UsageError
from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.engines.local.loading import facts
from paragator.records import Graded
from paragator.results import run_json
from paragator.runs.folder import open_run
from paragator.settings import to_json

SOURCE = Path(__file__).parents[2] / "src"
Fails = Callable[..., str]


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run the command line in an empty folder; its error line, after checking what every error has in common."""
    real = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.partition(".")[0] not in ("torch", "transformers"), f"{name} is loaded before the input is refused"
        return real(name, *args, **kwargs)

    def fail(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["paragator", *words])
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
            patch.setattr(builtins, "__import__", without_torch)
            main()
        out, err = capsys.readouterr()
        assert exit_.value.code == 2, err
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err.strip()

    monkeypatch.chdir(tmp_path)
    return fail


def write_jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pool_record(index: int, right: int, model: str, size: int = 4) -> Graded:
    """A candidate group of `size` solutions, `right` of them right."""
    group = Group(Prompt("p"), tuple(Completion("1", "stop", (5, 2)) for _ in range(size)))
    grades = tuple(Grade("correct" if i < right else "incorrect", "1") for i in range(size))
    trace = Trace(Problem(f"p{index}", "1 + 1", 2), Plan.sampling(size), 0, ((group,),), extra={"model": model})
    return Graded(trace, ((grades,),))


# ---- the config and its overrides ------------------------------------------------------------------------------------

OVERRIDES = {
    "k equal to N": ("--method.k 16", ["method.k = 16", "rollout.candidates = 16", "lower k or sample more"]),
    "pool above the candidates": (
        "--rollout.pool_size 17",
        ["rollout.pool_size = 17", "above rollout.candidates = 16"],
    ),
    "pool above the population": ("--eval.pool_size 5", ["eval.pool_size = 5", "above eval.candidates = 4"]),
    "pools that do not divide": ("--eval.pools 3", ["eval.pools = 3", "does not divide eval.candidates = 4"]),
    "a number as a text": ("--name 42", ["name = 42: a text is needed", """'"42"'"""]),
    "unknown key": ("--optimizer.lrate 1", ["unknown key optimizer.lrate", "did you mean optimizer.lr?"]),
    "unknown section": ("--zzz.qqq 1", ["unknown key zzz", "known: ", "optimizer"]),
    "no value": ("--train.steps", ["--train.steps has no value", "write --train.steps VALUE"]),
    "no value before a key": ("--train.steps --seed 3", ["--train.steps has no value"]),
    "not a number": ("--optimizer.lr fast", ["optimizer.lr = 'fast'", "should be a valid number"]),
    "not finite": ("--optimizer.lr nan", ["optimizer.lr = nan", "should be a finite number"]),
    "not one of the choices": ("--train.truncated keep", ["train.truncated = 'keep'", "'mask', 'drop' or 'wrong'"]),
    "unknown method": ("--method.name grpo", ["method.name = 'grpo' is not a method", "did you mean dr_grpo?"]),
    "negative steps": ("--train.steps -1", ["train.steps = -1", "greater than or equal to 0"]),
    "min above max": ("--task.min_value 9 --task.max_value 3", ["task.min_value = 9 is above task.max_value = 3"]),
    "a section as a value": ("--train 5", ["train = 5, but it is a section; set train.KEY"]),
    "a path as a name": ("--name ../other", ["name = '../other'", "should match pattern"]),
    "offline without pools": ("--method.name offline_aggregation", ["method.recorded is not set", "paragator sample"]),
    "offline pools that are not there": (
        "--method.name offline_aggregation --method.recorded none.jsonl",
        ["none.jsonl: no such file"],
    ),
    "template without its field": ("--model.candidate_prompt hi", ["template 'candidate'", "{problem}", "add it"]),
    "attempt without its field": ("--model.attempt_format {label}", ["template 'attempt'", "{attempt}", "add it"]),
    "no chat template": (
        "--model.template chat",
        ["model.path = 'embedded' has no chat template", "set model.template = 'compact'"],
    ),
    "no room for a prompt": ("--generate.max_tokens 512", ["generate.max_tokens = 512", "context of 512", "lower it"]),
    "no room for a pool": ("--aggregate.max_tokens 600", ["aggregate.max_tokens = 600", "context of 512", "lower it"]),
    "nucleus sampling in training": ("--generate.top_p 0.9", ["generate.top_p = 0.9", "set it to 1"]),
    "top-k in training": ("--aggregate.top_k 5", ["aggregate.top_k = 5", "set it to 0"]),
    "no model folder": ("--model.path ./nowhere", ["model.path = './nowhere'", "no such folder", "embedded"]),
    "a reward without its module": (
        "--task.reward no_such:score",
        ["task.reward = 'no_such:score'", "module:function"],
    ),
    "a reward that is not there": ("--task.reward json:score", ["task.reward = 'json:score'", "module:function"]),
    "a reward that is no function": ("--task.reward json:__name__", ["is not a function", "module:function"]),
    "a data set without a path": ("--task.name jsonl", ["task.path is not set", "JSONL file"]),
    "a data set that is not there": (
        "--task.name jsonl --task.path none.jsonl",
        ["task.path = none.jsonl: no such file"],
    ),
}


@pytest.mark.parametrize(("line", "wanted"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_value_that_cannot_be(fails: Fails, line: str, wanted: list[str]) -> None:
    error = fails("train", *line.split(), "--dry-run")
    assert all(part in error for part in wanted), error


@pytest.mark.parametrize("line", ["--method.k 16", "--generate.top_p 0.9", "--model.path ./nowhere"])
def test_a_real_run_refuses_the_same_and_leaves_nothing_behind(fails: Fails, tmp_path: Path, line: str) -> None:
    fails("train", *line.split())
    assert list(tmp_path.iterdir()) == []


def test_an_override_never_becomes_the_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    from paragator.cli.main import run

    assert run(["train", "--seed", "3", "--train.steps", "7", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["seed"], shown["train"]["steps"]) == (3, 7)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_missing_config(fails: Fails) -> None:
    error = fails("train", "none.toml")
    assert "config none.toml" in error and "give the path of a TOML file" in error


@pytest.mark.parametrize("content", [b"steps = [", b"\xff\xfe"], ids=["broken", "binary"])
def test_config_that_is_not_toml(fails: Fails, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    error = fails("train", "c.toml")
    assert "config c.toml is not TOML" in error and "fix it" in error


def test_unknown_key_in_a_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[rollout]\ncandidats = 8\n")
    assert "unknown key rollout.candidats; did you mean rollout.candidates?" in fails("eval", "c.toml")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, ["holds no config.json", "save_pretrained"]),
        ("{", ["config.json is not JSON", "copy the model again"]),
        ("[1]", ["config.json is not a JSON object", "copy the model again"]),
    ],
    ids=["no config", "broken config", "list"],
)
def test_folder_that_is_no_model(fails: Fails, tmp_path: Path, content: str | None, wanted: list[str]) -> None:
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "config.json").write_text(content)
    error = fails("train", "--model.path", "./model", "--dry-run")
    assert all(part in error for part in wanted), error


GOOD = {"problem": "1 + 1", "answer": 2}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], ["no problems in it", "fields problem and answer"]),
        ([GOOD, {"problem": "1 + 2"}], ["data.jsonl:2", "'answer' is missing or empty"]),
        ([GOOD, {"problem": "1 + 2", "answer": " "}], ["data.jsonl:2", "'answer' is missing or empty"]),
        ([{**GOOD, "id": "a"}, {**GOOD, "id": "a"}], ["data.jsonl:2", "id 'a' occurs twice"]),
        ([GOOD, [1]], ["data.jsonl:2", "not a JSON object", "remove or fix the line"]),
    ],
    ids=["empty", "no answer", "blank answer", "doubled id", "not an object"],
)
def test_a_bad_data_set(fails: Fails, tmp_path: Path, rows: list[Any], wanted: list[str]) -> None:
    write_jsonl(tmp_path / "data.jsonl", *rows)
    error = fails("train", "--task.name", "jsonl", "--task.path", "data.jsonl", "--dry-run")
    assert all(part in error for part in wanted), error


def test_a_reward_module_that_raises(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "raising_reward.py").write_text("1 / 0\n")
    error = fails("train", "--task.reward", "raising_reward:score", "--dry-run")
    assert "task.reward = 'raising_reward:score'" in error and "division by zero" in error


def offline(fails: Fails, *more: str) -> str:
    method = ("--method.name", "offline_aggregation", "--method.recorded", "pools.jsonl")
    return fails("train", "--dry-run", *method, *more)


def test_pools_of_another_model(fails: Fails, tmp_path: Path) -> None:
    records.append(tmp_path / "pools.jsonl", [pool_record(0, 1, "someone-else")])
    error = offline(fails)
    assert "candidates of model someone-else" in error and "run paragator sample again" in error


def test_pools_that_cannot_give_the_mix(fails: Fails, tmp_path: Path) -> None:
    mine = facts(Config().model).fingerprint
    records.append(tmp_path / "pools.jsonl", [pool_record(i, 4, mine) for i in range(3)])
    error = offline(fails, "--method.hard_share", "0.5")
    assert "3 easy and 0 hard problems cannot give hard_share = 0.5" in error and "change method.hard_share" in error


def test_pools_of_too_few_candidates(fails: Fails, tmp_path: Path) -> None:
    mine = facts(Config().model).fingerprint
    records.append(tmp_path / "pools.jsonl", [pool_record(i, i % 2, mine, size=2) for i in range(4)])
    assert "0 easy and 0 hard problems" in offline(fails)


def test_fewer_problems_than_a_step_takes(fails: Fails, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": str(i), "problem": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(8))
    (tmp_path / "few.jsonl").write_text(rows)
    (tmp_path / "test.jsonl").write_text('{"problem": "9 + 1", "answer": "10"}\n')
    files = ("--task.path", str(tmp_path / "few.jsonl"), "--task.held_out_path", str(tmp_path / "test.jsonl"))
    error = fails("train", "--task.name", "jsonl", *files, "--train.problems", "9")
    assert "train.problems = 9, but there are 8 training problems: lower it" in error
    assert not Path("runs").exists()  # so that the next try finds nothing in use


def test_weights_that_differ_behind_the_first_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is known by its header and by where each tensor begins, however late in it that is."""
    monkeypatch.setattr("paragator.engines.local.loading.HASHED_BYTES", 256)
    monkeypatch.setattr("paragator.engines.local.loading.HASHED_OF_TENSOR", 8)
    (tmp_path / "config.json").write_text("{}")
    header = json.dumps({n: {"data_offsets": [a, a + 400]} for n, a in (("head", 0), ("late", 400))}).encode()

    def fingerprint(late: bytes) -> str:
        data = len(header).to_bytes(8, "little") + header + bytes(400) + late + bytes(399)
        (tmp_path / "model.safetensors").write_bytes(data)
        return facts(ModelConfig(path=str(tmp_path))).fingerprint

    assert fingerprint(b"a") != fingerprint(b"b") and fingerprint(b"a") == fingerprint(b"a")


def test_a_tracker_that_is_not_installed(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paragator.runs.resolve.find_spec", lambda name: None)
    error = fails("train", "--dry-run", "--tracker", "wandb")
    assert "tracker = 'wandb' is not installed: pip install wandb, or set tracker = 'none'" in error


def test_request_fields_that_change_what_is_sampled_in_training(fails: Fails) -> None:
    words = (
        "--engine.kind",
        "vllm",
        "--engine.url",
        "http://localhost:1/v1",
        "--engine.extra_body",
        "{top_p = 0.9}",
    )
    assert "engine.extra_body sets top_p: training needs the log-probabilities" in fails("train", "--dry-run", *words)


# ---- run directories -------------------------------------------------------------------------------------------------


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A run directory that an earlier run left."""
    run_dir = tmp_path / "runs" / "run"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(to_json(Config()))
    return run_dir


def test_run_directory_in_use(fails: Fails, used: Path) -> None:
    error = fails("train")
    assert "runs/run exists and is not finished; add --resume" in error and all(
        flag in error for flag in ("--resume", "--overwrite", "--name")
    )


def test_resume_with_a_changed_config_names_the_key(fails: Fails, used: Path) -> None:
    error = fails("train", "--resume", "--optimizer.lr", "0.5", "--train.steps", "99")
    assert "optimizer.lr (0.0001 -> 0.5)" in error and "--overwrite" in error
    assert "train.steps" not in error  # more steps do not change what the run means


def test_resume_of_nothing(fails: Fails) -> None:
    error = fails("train", "--resume")
    assert "runs/run does not exist" in error and "leave --resume out" in error


def test_resume_of_a_run_whose_config_is_broken(fails: Fails, used: Path) -> None:
    (used / "config.json").write_text("{")
    error = fails("train", "--resume")
    assert "config.json cannot be read" in error and "--overwrite" in error


def test_overwrite_spares_what_is_no_run(fails: Fails, used: Path) -> None:
    (used / "config.json").rename(used / "thesis.tex")
    error = fails("train", "--overwrite")
    assert "is not a run directory" in error and "choose another name" in error
    assert (used / "thesis.tex").exists()


# ---- verbs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("trian", ["unknown verb 'trian'", "did you mean train?"]),
        ("zzz", ["unknown verb 'zzz'", "paragator --help"]),
        ("train a.toml b.toml", ["b.toml", "paragator train --help"]),
        ("sample", ["--output", "paragator sample --help"]),
        ("sample --output o.jsonl --count 0", ["--count = 0", "at least 1"]),
        ("sample --output o.jsonl --count many", ["--count", "'many'", "paragator sample --help"]),
        ("warmup", ["no config given", "configs/warmup-countdown.toml"]),
        ("report .", [".: no run directory", "config.json"]),
        ("report . --loud 1", ["unknown option --loud", "paragator report --help"]),
        ("doctor --loud", ["unknown option --loud", "paragator doctor --help"]),
        ("compare", ["runs", "paragator compare --help"]),
        ("compare a --format pdf", ["'pdf'", "paragator compare --help"]),
    ],
)
def test_a_verb_used_wrongly(fails: Fails, line: str, wanted: list[str]) -> None:
    error = fails(*line.split())
    assert all(part in error for part in wanted), error


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


def test_compare_of_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, cause in (("empty", "holds no eval_after.jsonl"), ("none", "no such run directory")):
        code = f"import sys; sys.argv = ['paragator', 'compare', {name!r}]; from paragator.cli.main import main; main()"
        done = python(code, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {name}: {cause}") and done.stderr.count("\n") == 1, done.stderr


def test_refusing_loads_no_torch_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    code = """
import sys
from paragator.cli.main import main
from paragator.runs.folder import open_run
from paragator.results import run_json
from paragator.runs.train import StepEvents
sys.argv = ["paragator", "train", "--generate.top_p", "0.9", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    assert not {"torch", "transformers", "numpy"} & set(sys.modules)
    raise
"""
    done = python(code, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    debug = python(code.replace('"0.9"', '"0.9", "--debug"'), tmp_path)
    assert "Traceback" in debug.stderr and debug.returncode != 0


def test_a_warning_is_one_line_that_names_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given = (UserWarning("step 4:\nno weight\x1b[2J"), UserWarning, "loop.py", 192, "x = await y")
    for words, told in (
        (["--debug"], "as Python has it"),
        ([], r"warning: step 4: no weight[^\x1b\n]*\n"),
    ):
        monkeypatch.setattr(warnings, "formatwarning", lambda *_: "as Python has it")
        monkeypatch.setattr(sys, "argv", ["paragator", "--version", *words])
        with pytest.raises(SystemExit):
            main()
        assert re.fullmatch(told, warnings.formatwarning(*given))


def test_a_file_as_the_name_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"problem": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(200))
    (tmp_path / "mine.jsonl").write_text(rows)
    monkeypatch.setattr(sys, "argv", ["paragator", "train", "--task.name", str(tmp_path / "mine.jsonl"), "--dry-run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "mine" in capsys.readouterr().out


def test_a_key_in_the_place_of_its_variable_is_not_shown(fails: Fails) -> None:
    error = fails("eval", "--engine.key_env", "sk-abc-secret", "--url", "http://localhost:1/v1", "--dry-run")
    assert "engine.key_env is not the name of an environment variable" in error and "secret" not in error


@pytest.mark.parametrize("flag", ["--url", "--recording"])
def test_an_empty_shell_variable_is_no_other_engine(fails: Fails, flag: str) -> None:
    assert f"{flag} is empty" in fails("eval", flag, "")


def test_escapes_in_data_do_not_reach_the_terminal(fails: Fails, tmp_path: Path) -> None:
    row = {"id": "a\x1b[31m", "problem": "1 + 1", "answer": "2"}
    path = write_jsonl(tmp_path / "data.jsonl", row, row)
    error = fails("eval", "--task", path, "--dry-run")
    assert "occurs twice" in error and "\x1b" not in error


@pytest.mark.parametrize("verb", [("solve", "1 + 1"), ("sample",)])
def test_a_file_of_something_else_is_not_appended_to(fails: Fails, tmp_path: Path, verb: tuple[str, ...]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes without a newline")
    assert "notes.txt holds something other than records; name another file" in fails(*verb, "--output", str(notes))
    assert notes.read_text() == "my notes without a newline"
    assert f"--output {tmp_path} cannot be written" in fails(*verb, "--output", str(tmp_path))


def test_a_run_that_is_refused_leaves_no_directory(tmp_path: Path) -> None:
    config = Config.model_validate({"runs": str(tmp_path), "name": "run"})
    for found in ("", "one"):
        with (
            pytest.raises(UsageError, match="too late"),
            open_run(config, resume=False, overwrite=False, manifest={"model": ""}) as run_dir,
        ):
            (run_dir / "eval.jsonl").write_text(found)
            raise UsageError("too late")
        assert run_dir.exists() is bool(found)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "runs/a\x1b[31m/eval.jsonl")

    monkeypatch.setattr("paragator.cli.main.run", full)
    monkeypatch.setattr(sys, "argv", ["paragator", "eval"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: runs/a\\x1b[31m/eval.jsonl: No space left on device\n"


def test_an_evaluation_without_a_record_yet_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text("")
    assert "eval" not in run_json(tmp_path, 4)


# ---- the table in docs/errors.md -------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
MORE = (
    "trian",
    "train none.toml",
    "train --learning_rate 1e-5",
    "train --optimizer.schedule cosin",
    "train --optimizer.schedule no_such:f --dry-run",
    "train --method.credit json:nothing --dry-run",
    "train --engine.sync adapter --dry-run",
    "train --method.name base --method.credit json:dumps",
    "train --generate.temperature 0",
    "train --resume",
    "eval --task countdow",
    "eval --model ./nowhere",
    "eval --engine.kind openai",
    "eval --engine.kind own",
    "eval --judge.mode hybrid",
    "sample --output o.jsonl --count 0",
    "report .",
)


def test_the_table_of_wrong_inputs_is_what_the_user_reads(fails: Fails) -> None:
    """PARAGATOR_WRITE_DOCS=1 writes it again."""
    lines = [*MORE, *(f"train {line} --dry-run" for line, _ in OVERRIDES.values())]
    rows = [(f"paragator {line}", fails(*line.split()).removeprefix("error: ")) for line in lines]
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    table = "".join(f"| `{line}` | {error} |\n" for line, error in cells)
    head = (
        "# Wrong inputs\n\nWhat the command line says, after `error: `: what is wrong, which value, what to do. Each ends "
        "with exit code 2,\nbefore weights are loaded, and leaves no run directory. A test runs every line of this table "
        "and compares.\n\n"
    )
    text = f"{head}| command | error |\n|---|---|\n{table}"
    if os.environ.get("PARAGATOR_WRITE_DOCS"):
        PAGE.write_text(text, encoding="utf-8")
    assert len(rows) >= 40 and PAGE.read_text(encoding="utf-8") == text
