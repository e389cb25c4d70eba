"""Servers that come and go under training: never a wrong version, no end while one lives, a resumable one when none does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mortal import HURRY, Learner, Mortal, Trial, trial
from paragator import records
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Completion, Group, Prompt
from paragator.engines.http.openai import Limits, OpenAI
from paragator.engines.http.vllm import VllmEngine
from paragator.engines.http.weights import Adapter
from paragator.engines.sampling import Sampling
from servers import Call, Server


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (module, seconds) in HURRY.items():
        monkeypatch.setattr(module, name, seconds)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_lives_as_long_as_one_server_and_is_trained_on_right_versions_alone(seed: int) -> None:
    found = asyncio.run(trial(seed))
    assert all(seen == {step - 1} for step, seen in found.learner.seen.items())


def test_adapters_are_as_robust() -> None:
    found = asyncio.run(trial(1, kind=Adapter))
    assert all(seen == {step - 1} for step, seen in found.learner.seen.items())


def test_without_the_look_at_names_a_run_is_trained_on_wrong_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers as whoever was asked for, although it has other weights."""

    def answer(self: Mortal, call: Call) -> dict[str, Any]:
        return {**plain(self, call), "model": call.body and call.body.get("model")}

    plain = Mortal.answer
    monkeypatch.setattr(Mortal, "answer", answer)
    monkeypatch.setattr(Trial, "some_die", restarted)
    with pytest.raises(AssertionError, match="99"):
        asyncio.run(trial(1, kind=Adapter))


async def restarted(self: Trial) -> None:
    """All servers but one forget their weights while they answer."""
    while True:
        await asyncio.sleep(0.01)
        for server in self.servers[1:]:
            if any(c.path == "/v1/completions" and c.outcome == "pending" for c in server.calls[-9:]):
                server.forget()


def test_without_the_look_at_versions_a_run_is_trained_on_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the trials can fail: servers restarted unseen answer as ever."""

    async def blind(self: VllmEngine, server: object) -> None: ...

    monkeypatch.setattr(VllmEngine, "confirm", blind)

    monkeypatch.setattr(Trial, "some_die", restarted)
    with pytest.raises(AssertionError, match="99"):
        asyncio.run(trial(1))


# ---- one step ahead ----


@pytest.mark.parametrize("seed", [3])
def test_one_step_ahead_is_one_version_behind_and_as_robust(seed: int) -> None:
    found = asyncio.run(trial(seed, ahead=1))
    assert found.learner.seen[4] == {2}  # trained on weights of step 3, sampled by those of step 2


async def ahead(folder: Path, learner: Learner) -> list[dict[str, Any]]:
    """The metrics of a run one step ahead on a server that lives."""
    found = Trial(0, ahead=1, servers=[Mortal(latency_s=0.02, model="policy")], learner=learner)
    await found.servers[0].start()
    try:
        await found.run(folder, nothing)
    finally:
        found.servers[0].end()
    return list(records.read_json_lines(folder / "metrics.jsonl"))


async def nothing() -> None: ...


def test_a_run_ahead_tells_its_staleness_and_saves_what_overlaps(tmp_path: Path) -> None:
    found = asyncio.run(ahead(tmp_path, learner := Learner()))
    assert [row["staleness"] for row in found] == [0, 1, 1, 1]
    assert learner.seen == {1: {0}, 2: {0}, 3: {1}, 4: {2}}
    for row in found:
        parts = sum(seconds for name, seconds in row.items() if name.startswith("seconds/"))
        assert row["seconds"] == pytest.approx(parts - row["overlap"])
    assert found[0]["overlap"] == pytest.approx(0, abs=1e-3) and all(row["overlap"] > 0 for row in found[1:])
    assert len({row["step"] for row in found}) == 4


def test_a_run_killed_with_a_batch_under_way_samples_it_again_from_the_newest_weights(tmp_path: Path) -> None:
    """The third update fails while the fourth step's batch is sampled; what was under way leaves no trace."""

    class Failing(Learner):
        def update(self, trees: Any, step: int, kl_constants: Any) -> dict[str, float]:
            if step == 3:
                raise RunError("the power failed")
            return super().update(trees, step, kl_constants)

    with pytest.raises(RunError, match="the power failed"):
        asyncio.run(ahead(tmp_path, Failing()))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_2"]
    found = asyncio.run(ahead(tmp_path, learner := Learner()))
    assert [(row["step"], row["staleness"]) for row in found] == [(1, 0), (2, 1), (3, 0), (4, 1)]
    assert learner.seen == {3: {2}, 4: {2}}  # on-policy again, then one behind
    assert [row["extra"]["step"] for row in records.read_json_lines(tmp_path / "traces.jsonl")] == [
        step for step in (1, 2, 3, 4) for _ in range(4)
    ]


# ---- evaluation over several servers ----


async def evaluated(*servers: Mortal, dead: int = 0) -> tuple[list[Group], list[str]]:
    """Groups of twenty prompts over some servers, the last `dead` of which were never there, and what was said of them."""
    for server in servers:
        await server.start()
    for server in servers[len(servers) - dead :]:
        server.end()
    limits, told = Limits(backoff_s=0.01, wait_s=0.2), list[str]()
    engine = OpenAI([s.url for s in servers], sampling=Sampling(1.0, 9), key="", limits=limits)
    engine.fleet.tell = told.append
    try:
        await engine.connect()
        jobs = (engine(Prompt(f"p{i}", chat=True), 1, stage="generate", seed=i) for i in range(20))
        return list(await asyncio.gather(*jobs)), told
    finally:
        await engine.close()
        for server in servers:
            server.end()


class Chatty(Mortal):
    """Answers in texts."""

    choice = Server.choice


def test_an_evaluation_goes_on_with_the_servers_that_are_left() -> None:
    whole, nothing = asyncio.run(evaluated(Chatty()))
    assert not nothing and all(isinstance(o, Completion) for group in whole for o in group.outputs)
    groups, told = asyncio.run(evaluated(Chatty(die_at=3), Chatty()))
    assert groups == whole and len(told) == 1 and "1 of 2 servers take over" in told[0]
    groups, told = asyncio.run(evaluated(Chatty(), Chatty(), dead=1))
    assert groups == whole and len(told) == 1 and "the server is lost (connection refused)" in told[0]


def test_an_evaluation_without_a_server_left_ends_in_one_line() -> None:
    with pytest.raises(
        RunError, match=r"^engine.url: no server is left, for 0.2 s \(http[^;]*: .*; http.*\); start one and"
    ):
        asyncio.run(evaluated(Chatty(die_at=3), Chatty(die_at=5)))
    with pytest.raises(UsageError, match="no server answers there"):
        asyncio.run(evaluated(Chatty(), Chatty(), dead=2))


def test_a_request_that_kills_every_server_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that die of every request and come back at once: else a run would never end."""

    async def trial() -> str:
        servers = [Chatty(script=["stall"] * 99), Chatty(script=["stall"] * 99)]
        for server in servers:
            await server.start()
        limits = Limits(request_timeout_s=0.05, backoff_s=0.01, wait_s=5)
        engine = OpenAI([s.url for s in servers], "fake", sampling=Sampling(1.0, 9), key="", limits=limits)
        engine.fleet.tell, engine.fleet.trial = (lambda text: None), alive
        try:
            (output,) = (await engine(Prompt("x"), 1, stage="generate", seed=1)).outputs
        finally:
            await engine.close()
        assert not isinstance(output, Completion)
        return output.reason

    async def alive(server: object) -> None: ...

    assert asyncio.run(trial()).startswith(
        "8 servers were lost while they were asked, the last one: nothing but failures"
    )
