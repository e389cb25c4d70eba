"""The page's data, its index of traces, and what its server refuses. The page itself is driven in tests/e2e/test_page.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fakes import fake_evaluation, fake_metrics
from paragator.cli.report import main as report
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, append_json_lines, encode, read_json_lines
from paragator.report.alarms import MEANINGS, of_training
from paragator.report.contents import find_runs
from paragator.report.index import Query, TraceIndex
from paragator.report.page import DATA, TRACES, built, page, write_report
from paragator.report.rollouts import KINDS, crediting, detail, list_row
from paragator.report.view import Viewer, application
from paragator.stats.table import table

WEB = Path(__file__).parents[2] / "web"
HOSTILE = '</script><script>alert("x")</script><!--\x1b[31m\x00 \u202eevil\ud800\u2028'


def make_run(path: Path, gain: float = 0.1, problems: int = 12, text: str = "problem") -> Path:
    path.mkdir(parents=True)
    config = {"name": path.name, "method": {"name": "paragator"}, "eval": {"k": 4}, "train": {"steps": 30}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps({"versions": {"torch": "2"}}))
    append_json_lines(path / "metrics.jsonl", fake_metrics())
    append(path / "eval_before.jsonl", fake_evaluation(0.0, problems, text=text))
    append(path / "eval_after.jsonl", fake_evaluation(gain, problems, seed=1, text=text))
    append(path / "traces.jsonl", fake_evaluation(0.05, problems=2, text=text))
    return path


def held(path: Path) -> list[dict[str, Any]]:
    """The runs in a page's data."""
    text = path.read_text(encoding="utf-8").partition(DATA)[2].partition("</script>")[0]
    return list(json.loads(text)["runs"])


def spelled(*rounds: str, answers: str = "") -> Graded:
    """A trace from letters: r right, w wrong, u unscored, f failed; one answer a verdict, or a letter each."""
    known = {"r": Grade("correct", "1"), "w": Grade("incorrect", "0"), "u": Grade("unscored"), "f": None}
    groups = tuple(
        (Group(Prompt("p"), tuple(Failure(c) if c == "f" else Completion(c) for c in spec)),) for spec in rounds
    )
    grades = tuple((tuple(known[c] for c in spec),) for spec in rounds)
    return Graded(Trace(Problem("p", "p"), Plan.method(2, 1), 0, groups), grades)


def kinds_of(*rounds: str) -> set[str]:
    found = list_row(encode(spelled(*rounds))).kinds
    return {name for i, name in enumerate(KINDS) if found >> i & 1}


# ---- the file ----------------------------------------------------------------------------------------------------------


def test_the_built_page_is_built_from_the_source_that_is_here() -> None:
    """Without Node: the page holds a hash of what it was built from. `make page` builds it again."""
    names = ["build.mjs", "package-lock.json", "tsconfig.json"]
    names += [f"src/{path.name}" for path in sorted((WEB / "src").iterdir())]
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    assert f'<meta name="built-from" content="{digest.hexdigest()}">' in built(), "run `make page`"


def test_a_file_has_everything_in_it_and_may_fetch_nothing(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "quick"))
    text, (run,) = path.read_text(encoding="utf-8"), held(path)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src 'none'" in policy[1] and "connect-src 'none'" in policy[1]
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    assert not re.search(r"<(link|img|iframe|base|object)\b|<script[^>]+src=", text.partition("<style>")[0])
    assert (run["method"], run["steps"], run["planned"]) == ("paragator", 30, 30)
    expected = table(fake_evaluation(0.1, seed=1))
    assert run["evaluations"]["eval_after"]["rounds"] == json.loads(json.dumps(expected.to_dict()["rounds"]))
    assert [sheet["cells"] for sheet in run["evaluations"]["eval_after"]["sheets"]] == [
        s.cells() for s in expected.sheets()
    ]
    assert run["sources"]["eval_after"]["total"] == 12 == len(run["sources"]["eval_after"]["rows"])
    assert run["metrics"] == fake_metrics() and "incomplete" not in {one["name"] for one in run["warnings"]}
    assert write_report(tmp_path / "quick").read_text(encoding="utf-8") == text
    assert [one.name for one in (tmp_path / "quick").iterdir() if one.name.startswith(".")] == []


def test_a_page_samples_and_says_how_many_there_are(tmp_path: Path) -> None:
    (run,) = held(write_report(make_run(tmp_path / "much", problems=300)))
    found = run["sources"]["eval_after"]
    assert found["total"] == 300 and len(found["rows"]) == len(found["details"]) == TRACES
    assert {row["n"] for row in found["rows"]} == {int(n) for n in found["details"]}
    everything = list(map(list_row, read_json_lines(tmp_path / "much" / "eval_after.jsonl")))
    for i, _ in enumerate(KINDS):
        if any(row.kinds >> i & 1 for row in everything):
            assert any(row["kinds"] >> i & 1 for row in found["rows"])


def test_however_early_a_run_stopped_there_is_a_page(tmp_path: Path) -> None:
    (run,) = held(write_report(tmp_path))
    assert run["evaluations"] == {} and run["metrics"] == []
    assert {"name": "incomplete", "text": run["warnings"][0]["text"]} == run["warnings"][0]
    path = make_run(tmp_path / "cut")
    (path / "eval_after.jsonl").unlink()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "generate/rew')
    (run,) = held(write_report(path))
    assert "no eval_after.jsonl (yet)" in run["warnings"][0]["text"] and len(run["metrics"]) == 30


def test_broken_files_become_warnings(tmp_path: Path) -> None:
    path = make_run(tmp_path / "broken")
    (path / "config.json").write_text("{")
    (path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    (path / "eval_before.jsonl").write_text('{"version": 1}\n')
    (path / "eval_after.jsonl").write_text('{"version": 99}\n')
    (run,) = held(write_report(path))
    text = "\n".join(one["text"] for one in run["warnings"] if one["name"] == "unreadable")
    assert "config.json: not JSON" in text and "metrics.jsonl:2: not a JSON object" in text
    assert "eval_after.jsonl:1: record version 99" in text and "eval_before.jsonl:1: " in text
    assert run["sources"]["traces"]["total"] == 2


def test_hostile_text_stays_data(tmp_path: Path) -> None:
    group = Group(Prompt(HOSTILE), (Completion(HOSTILE), Failure(HOSTILE)), reductions=(HOSTILE,))
    later = Group(Prompt(HOSTILE), (Completion(HOSTILE, "length", thinking=HOSTILE),), pool=(0,), reductions=(HOSTILE,))
    trace = Trace(Problem(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}), Plan.method(1, 1), 0, ((group,), (later,)), HOSTILE)
    grade = Grade("incorrect", HOSTILE, HOSTILE)
    append(tmp_path / "eval_after.jsonl", [Graded(trace, (((grade, None),), ((grade,),)))])
    (tmp_path / "config.json").write_text(json.dumps({"name": HOSTILE, "method": {"name": HOSTILE}}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert text.count("<script") == built().count("<script") and text.count("<!--") == built().count("<!--")
    (run,) = held(tmp_path / "report.html")
    card = run["sources"]["eval_after"]["details"]["0"]["rounds"][1][0]["outputs"][0]
    assert card["text"] == HOSTILE.replace("\ud800", "\\ud800") == run["name"]


def test_long_texts_of_a_file_lose_their_middle() -> None:
    group = Group(Prompt("p"), (Completion("head" + "x" * 9000 + "tail"),))
    record = encode(Graded(Trace(Problem("p", "p"), Plan.sampling(1), 0, ((group,),)), (((Grade("incorrect"),),),)))
    shown = detail(record, limit=100)["rounds"][0][0]["outputs"][0]["text"]
    assert "8,908 characters left out" in shown and shown.startswith("head") and shown.endswith("tail")
    assert detail(record)["rounds"][0][0]["outputs"][0]["text"] == group.completions[0].text


def test_several_runs_need_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    with pytest.raises(UsageError, match="--output"):
        report([str(tmp_path)])
    with pytest.raises(UsageError, match="not a folder"):
        report([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run directory"):
        report([str(tmp_path / "empty")])
    assert report([str(tmp_path), "--output", str(tmp_path / "both.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "both.html")}
    assert [run["key"] for run in held(tmp_path / "both.html")] == ["a", "b"]


def test_runs_below_a_folder_are_found_by_names_of_their_own(tmp_path: Path) -> None:
    for place in ("x/train", "y/train", "one", "deep/one"):
        make_run(tmp_path / place)
    assert sorted(find_runs([tmp_path, tmp_path / "one"])) == ["one", "one #2", "x/train", "y/train"]


# ---- rows and cards ----------------------------------------------------------------------------------------------------


def test_kinds_of_traces() -> None:
    assert kinds_of("rrw", "wwr") == {"right_to_wrong", "disagreement"}
    assert kinds_of("rww", "rrr") == {"wrong_to_right"}
    assert kinds_of("www", "rrw") == {"wrong_to_right", "recovered", "disagreement"}
    assert kinds_of("rww", "www") == {"lost"}
    assert kinds_of("wwf", "rrr") == {"wrong_to_right", "failed"}, "a failed candidate is not known to be wrong"
    assert kinds_of("rr", "wu") == {"right_to_wrong", "unscored"}, "an unscored solution may be right: nothing is lost"
    assert kinds_of("rw", "rw") == {"disagreement"} and kinds_of("rr") == set() and kinds_of("") == set()


def test_a_row_is_what_the_record_says() -> None:
    for record in fake_evaluation(0.1):
        row = list_row(encode(record))
        right = [sum(x == 1 for x in record.right(t)) for t in range(record.num_rounds)]
        assert [part.count("r") for part in row.marks.split("/")] == right
        assert (row.first, row.last) == (right[0] / 4, right[-1] / 4)
        assert row.tokens == sum(c.length or 0 for t in range(3) for c in record.trace.population(t))


def test_credit_on_the_cards_is_the_trainings() -> None:
    from paragator.config import Config
    from paragator.training.credited import credits
    from paragator.training.recipe import Crediting

    config = Config.model_validate({"method": {"k": 2}, "rollout": {"candidates": 4, "pool_size": 4}})
    given = crediting(json.loads(config.model_dump_json()))
    assert given is not None and crediting({"method": {"name": "none such"}}) is None
    for record in fake_evaluation(0.1):
        shown = detail(encode(record), given)["rounds"]
        for round_, group, credit in credits(record, Crediting.from_config(config)):
            at = record.trace.rounds[round_].index(group)
            assert [card["credit"] for card in shown[round_][at]["outputs"]] == list(credit)


def test_every_warning_has_a_meaning() -> None:
    bad = {"generate/truncated": 0.5, "aggregate/zero_credit": 0.9, "generate/unscored": 0.1, "aggregate/failed": 0.1}
    rows = [{"step": i, "grad_norm": 1.0 if i < 30 else 1000.0, "mismatch_kl": 0.01, **bad} for i in range(40)]
    found = [one.name for one in of_training([*rows, {"step": 40, "refused": 1}])]
    assert found == ["truncation", "no signal", "unscored", "failures", "mismatch", "refused updates", "gradient"]
    assert set(found) <= set(MEANINGS)
    assert list(of_training(fake_metrics())) == []


# ---- the index ---------------------------------------------------------------------------------------------------------


def test_the_index_is_what_reading_all_gives(tmp_path: Path) -> None:
    """Appended piece by piece, with a torn line between, then replaced and removed."""
    path, index = tmp_path / "eval.jsonl", TraceIndex(tmp_path / "index.sqlite")
    records = fake_evaluation(0.1, problems=40)
    for start in range(0, 40, 9):
        append(path, records[start : start + 9])
        with path.open("a") as file:
            file.write('{"version": 1, "torn')
        index.update(path)
        assert index.counts(path) == (min(40, start + 9), 0)
    index.close()
    index = TraceIndex(tmp_path / "index.sqlite")
    assert not index.update(path)
    expected = [{"n": n, **asdict(list_row(encode(one)))} for n, one in enumerate(records)]
    assert index.rows(path, Query()) == (40, expected)
    for i, kind in enumerate(KINDS):
        wanted = [row["n"] for row in expected if row["kinds"] >> i & 1]
        assert [row["n"] for row in index.rows(path, Query(kind=kind))[1]] == wanted
    some = index.rows(path, Query(sort="tokens", descending=True, offset=3, limit=5))[1]
    assert [row["n"] for row in some] == [r["n"] for r in sorted(expected, key=lambda r: (-r["tokens"], r["n"]))[3:8]]
    assert [row["problem"] for row in index.rows(path, Query(text="PROBLEM 17"))[1]] == ["p17"]
    assert index.find(path, "p17", 0) == 17 and index.find(path, "p99", 0) is None
    assert index.record(path, 17) == json.loads(json.dumps(encode(records[17])))
    path.unlink()
    append(path, records[:3])
    with path.open("a") as file:
        file.write('{"version": 1}\nnonsense\n')
    assert index.update(path) and index.counts(path) == (3, 2)
    path.unlink()
    index.update(path)
    assert index.counts(path) == (0, 0)
    with pytest.raises(DataError, match="no trace 1"):
        index.record(path, 1)


# ---- the server --------------------------------------------------------------------------------------------------------


def ask(app: Any, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of an answer."""
    sent: list[dict[str, Any]] = []
    given = {"host": "localhost:8765", **{name.replace("_", "-"): value for name, value in headers.items()}}
    where, _, query = path.partition("?")
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": where, "raw_path": where.encode(), "query_string": query.encode(), "root_path": "",
             "headers": [(k.encode(), v.encode()) for k, v in given.items()], "client": None, "server": None}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body.decode(), {k.decode(): v.decode() for k, v in sent[0]["headers"]}


@pytest.fixture
def viewer(tmp_path: Path) -> Viewer:
    make_run(tmp_path / "runs" / "a")
    found = Viewer([tmp_path / "runs"], TraceIndex())
    found.follow()
    return found


def test_the_server_answers_with_what_the_file_would_hold(viewer: Viewer, tmp_path: Path) -> None:
    append(tmp_path / "runs" / "a" / "strategies" / "agree-n=4.jsonl", fake_evaluation(0.1, problems=3))
    app, (run,) = application(viewer), held(write_report(tmp_path / "runs" / "a"))
    viewer.follow()
    (head,) = json.loads(ask(app, "/api/runs")[1])
    counts = {"eval_after": 12, "eval_before": 12, "traces": 2, "strategies/agree-n=4": 3}
    assert head["key"] == "a" and head["files"] == counts == {n: s["total"] for n, s in run["sources"].items()}
    rows = json.loads(ask(app, "/api/problems?run=a&file=strategies/agree-n%3D4&limit=50")[1])["rows"]
    assert rows == run["sources"]["strategies/agree-n=4"]["rows"]
    found = json.loads(ask(app, "/api/run?run=a&epoch=-1")[1])
    assert all(found[name] == run[name] for name in ("metrics", "evaluations", "warnings", "config", "steps"))
    rows = json.loads(ask(app, "/api/problems?run=a&file=eval_after&limit=50")[1])["rows"]
    assert rows == run["sources"]["eval_after"]["rows"]
    (trace,) = json.loads(ask(app, "/api/traces?run=a&file=eval_after&n=3")[1])
    assert trace == {"n": 3, **run["sources"]["eval_after"]["details"]["3"]}
    assert json.loads(ask(app, "/api/find?run=a&file=eval_before&problem=p4")[1]) == 4
    status, body, headers = ask(app, "/")
    assert status == 200 and '"live":true' in body and "connect-src 'self'" in body
    assert headers["content-security-policy"] == "frame-ancestors 'none'" and "set-cookie" not in headers


def test_the_server_refuses_other_hosts_origins_and_paths(viewer: Viewer, tmp_path: Path) -> None:
    app = application(viewer)
    for path in ("/", "/api/runs"):
        for host in ("evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
            assert ask(app, path, host=host)[0] == 403, host
        for origin in ("http://evil.example", "null", "http://localhost:1", "https://localhost:8765"):
            assert ask(app, path, origin=origin)[0] == 403, origin
        assert ask(app, path, sec_fetch_site="cross-site")[0] == 403
        assert ask(app, path, "POST")[0] == ask(app, path, "OPTIONS")[0] == 403
        for host in ("localhost", "127.0.0.1:9", "[::1]:8765"):
            assert ask(app, path, host=host, origin=f"http://{host}")[0] == 200, host
    secret = tmp_path / "secret.jsonl"
    append(secret, fake_evaluation(0.0))
    (tmp_path / "runs" / "a" / "eval.jsonl").symlink_to(secret)
    (tmp_path / "runs" / "a" / "strategies").mkdir()
    (tmp_path / "runs" / "a" / "strategies" / "secret.jsonl").symlink_to(secret)
    viewer.follow()
    for file in (
        "eval",
        "../../secret",
        "strategies/secret",
        "strategies/../traces",
        "strategies/none",
        "config",
        "",
        "/etc/passwd",
        "eval_after.jsonl",
    ):
        for what in ("problems?", "traces?n=0&", "find?problem=p0&"):
            assert ask(app, f"/api/{what}run=a&file={file}")[0] == 404, (what, file)
    assert ask(app, "/api/run?run=../a")[0] == ask(app, "/report.html")[0] == 404
    assert ask(app, "/api/traces?run=a&file=eval_after&n=x")[0] == 400


def test_runs_that_are_resumed_or_deleted_are_followed(viewer: Viewer, tmp_path: Path) -> None:
    app, path = application(viewer), tmp_path / "runs" / "a"
    stamp = json.loads(ask(app, "/api/runs")[1])[0]["stamp"]
    first = json.loads(ask(app, "/api/run?run=a&epoch=-1")[1])
    append_json_lines(path / "metrics.jsonl", [{"step": 30, "generate/reward": 9.0}, {"step": 31}])
    append(path / "traces.jsonl", fake_evaluation(0.1, problems=1))
    viewer.follow()
    (head,) = json.loads(ask(app, "/api/runs")[1])
    assert head["stamp"] != stamp and head["steps"] == 31 and head["files"]["traces"] == 3
    found = json.loads(ask(app, f"/api/run?run=a&epoch={first['epoch']}&known=30")[1])
    assert found["first"] == 30 and [row["step"] for row in found["metrics"]] == [30, 31]
    (path / "metrics.jsonl").unlink()
    append_json_lines(path / "metrics.jsonl", [{"step": 1}])
    viewer.follow()
    found = json.loads(ask(app, f"/api/run?run=a&epoch={found['epoch']}&known=32")[1])
    assert found["first"] == 0 and found["metrics"] == [{"step": 1}]
    shutil.rmtree(path)
    viewer.follow()
    assert json.loads(ask(app, "/api/runs")[1]) == [] and ask(app, "/api/run?run=a")[0] == 404
    make_run(path)
    viewer.follow()
    assert json.loads(ask(app, "/api/runs")[1])[0]["steps"] == 30


def test_an_evaluation_that_goes_on_is_named_live_as_in_the_file(viewer: Viewer, tmp_path: Path) -> None:
    path = make_run(tmp_path / "runs" / "b")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "eval": {"k": 4, "repeats": 2}}))
    (path / "manifest.json").write_text('{"held_out": 12}')
    with (path / "eval_before.jsonl").open("a") as file:
        file.write("nonsense\n")
    viewer.follow()
    viewer.follow()
    (run,) = held(write_report(path))
    found = json.loads(ask(application(viewer), "/api/run?run=b&epoch=-1")[1])["warnings"]
    assert found == run["warnings"]
    assert "eval_after.jsonl: only 12 of 24 traces" in found[-1]["text"] + found[0]["text"]
    assert {one["name"] for one in found} >= {"incomplete", "unreadable"}


def test_a_page_without_runs_is_a_page() -> None:
    assert page({"live": True}, live=True).rstrip().endswith("</html>")
