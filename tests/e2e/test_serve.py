"""`paragator serve` over a fake upstream: openai's own client, curl, who is let in, limits, clients that leave, many at once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from multidict import CIMultiDict

from paragator.core.errors import UsageError
from paragator.runs.defaults import solve_config
from paragator.serve.listen import listening
from paragator.serve.settings import Preset, ServeSettings, key_of
from paragator.settings import nested
from paragator.strategies import STRATEGIES, Sizes, strategy_named

TESTS = Path(__file__).parents[1]
KEY = "a-key-of-twenty-chars"
ASK = [{"role": "user", "content": "What is 2 + 2?"}]
pytestmark = pytest.mark.e2e
Start = Callable[..., Any]


def agreeing(prompt: str, seed: int, index: int) -> str:
    return r"Add them: \boxed{4.0}" if seed % 4 else r"Hm: \boxed{5}"


@contextmanager
def served(upstream: str, settings: ServeSettings, **config: Any) -> Iterator[str]:
    """The base URL of a server in a thread of its own, over an upstream."""
    values = {"engine.kind": "openai", "engine.url": upstream, "engine.total_timeout_s": 20, **config}
    loop, ready, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def serve() -> None:
        try:
            async with listening(solve_config(nested(values)), settings) as (url, _):
                found.append(url)
                ready.set()
                await end.wait()
        except BaseException as error:  # noqa: BLE001  (not hidden: raised in the test's thread)
            found.append(error)
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        if isinstance(found[0], BaseException):
            raise found[0]
        yield found[0]
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        assert not thread.is_alive() and len(found) == 1, found
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts upstream servers of tests/servers.py."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("fake_servers", TESTS / "servers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(module.running(module.Server(**settings)))


@pytest.fixture
def start(fake: Start) -> Iterator[Start]:
    """Starts an upstream and our server over it; returns both."""
    with ExitStack() as stack:

        def begin(upstream: Any = None, config: dict[str, Any] | None = None, **settings: Any) -> tuple[str, Any]:
            upstream = upstream or fake(reply=agreeing)
            options = ServeSettings(port=0, **settings)
            return stack.enter_context(served(upstream.url, options, **(config or {}))), upstream

        yield begin


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)


def upstream_usage(upstream: Any) -> tuple[int, int]:
    """What the fake server counted over its good answers."""
    used = [upstream.answer(call)["usage"] for call in upstream.settled().calls if call.outcome == "ok" and call.body]
    return sum(u["prompt_tokens"] for u in used), sum(u["completion_tokens"] for u in used)


# ---- openai's client ----


def test_openais_client_gets_an_answer_and_the_tokens_of_all_rounds(start: Start) -> None:
    url, upstream = start()
    got = client(url).chat.completions.create(model="fake@aggregate_vote:n=6,k=3,rounds=2", messages=ASK, seed=1)
    extra = got.model_dump()["paragator"]
    texts = {"4": r"Add them: \boxed{4.0}", "5": r"Hm: \boxed{5}"}
    assert got.choices[0].message.content == texts[extra["answer"]] and got.choices[0].finish_reason == "stop"
    assert len([call for call in upstream.calls if call.path.endswith("completions")]) == 18
    assert got.usage and (got.usage.prompt_tokens, got.usage.completion_tokens) == upstream_usage(upstream)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens > 0
    assert extra["answer"] == max(extra["votes"], key=extra["votes"].get) and [r["done"] for r in extra["rounds"]] == [
        6,
        6,
        6,
    ]
    text = client(url).completions.create(model="fake@majority:n=5", prompt="2 + 2", seed=1)
    assert text.choices[0].text in texts.values() and text.object == "text_completion"


def test_a_stream_tells_of_rounds_and_then_answers(start: Start) -> None:
    url, upstream = start()
    wanted = {"model": "fake@aggregate:n=4,rounds=1", "messages": ASK, "stream": True}
    chunks = list(client(url).chat.completions.create(**wanted, stream_options={"include_usage": True}))
    thoughts = [getattr(c.choices[0].delta, "reasoning_content", None) for c in chunks if c.choices]
    assert "round 0: 4 of 4\n" in thoughts and "round 1: 4 of 4\n" in thoughts
    answer = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert r"\boxed" in answer and chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == upstream_usage(upstream)
    pieces = client(url).completions.create(model="fake@majority:n=1", prompt="2 + 2", stream=True)
    assert r"\boxed" in "".join(piece.choices[0].text for piece in pieces)


def test_models_presets_and_sampling(start: Start) -> None:
    presets = {"careful": Preset(strategy="majority:n=3", temperature=0.25, max_tokens=77)}
    url, upstream = start(presets=presets)
    assert [model.id for model in client(url).models.list()] == ["fake", "careful"]
    client(url).chat.completions.create(model="careful", messages=ASK, max_completion_tokens=55)
    bodies = [call.body for call in upstream.calls if call.body]
    assert len(bodies) == 3 and {(b["temperature"], b["max_tokens"]) for b in bodies} == {(0.25, 55)}
    client(url).chat.completions.create(model="fake", messages=ASK, temperature=0)
    assert len([call for call in upstream.calls if call.body]) == 3 + 16 and upstream.calls[-1].body["temperature"] == 0


def test_a_seed_repeats_an_answer_and_a_talk_is_one_problem(start: Start) -> None:
    url, upstream = start()
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    for _ in range(2):
        client(url).chat.completions.create(model="fake@majority:n=2", messages=talk, seed=7)
    seeds = [call.body["seed"] for call in upstream.calls if call.body]
    assert sorted(seeds[:2]) == sorted(seeds[2:])
    shown = next(call.body["messages"][0]["content"] for call in upstream.calls if call.body)
    assert "Be brief.\n\nUser: 2 + 2?\n\nAssistant: 4\n\nUser: And 3 + 3?" in shown


@pytest.mark.parametrize(
    ("fields", "kind", "what"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model 'other'; known: fake"),
        ({"model": "fake@nothing"}, openai.BadRequestError, "strategy 'nothing' is not known; known: majority"),
        ({"model": "fake@"}, openai.BadRequestError, "strategy '' is not known"),
        ({"model": "fake@antigravity:main"}, openai.BadRequestError, "strategy 'antigravity' is not known"),
        ({"model": "fake@majority:main"}, openai.BadRequestError, "'main' is no setting"),
        ({"model": "fake@aggregate:m=2"}, openai.BadRequestError, "m is no setting of it; it has n, k, rounds, vote"),
        ({"model": "fake@majority:n=1,n=2"}, openai.BadRequestError, "n is given twice"),
        ({"model": "fake@majority:n=257"}, openai.BadRequestError, "257 completions"),
        ({"model": "fake@genselect:n=1000000000"}, openai.BadRequestError, "1000000000 completions"),
        ({"model": "fake@aggregate:rounds=1000000000"}, openai.BadRequestError, "4000000004 completions"),
        ({"model": "fake@pairwise:degree=inf"}, openai.BadRequestError, "not of its type"),
        ({"model": "fake@pairwise:budget=inf"}, openai.BadRequestError, "budget = inf; use 0 or more"),
        ({"model": "fake@genselect:window=1"}, openai.BadRequestError, "window = 1; show 2"),
        ({"model": "fake@majority:n=-1"}, openai.BadRequestError, "n = -1; use 1 or more"),
        ({"model": "fake@self_certainty"}, openai.BadRequestError, "needs the whole vocabulary's probabilities"),
        ({"n": 2}, openai.BadRequestError, "n is not supported"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools is not supported",
        ),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, openai.BadRequestError, "must be the user's"),
        ({"messages": [{"role": "user", "content": "  "}]}, openai.BadRequestError, "the problem is empty"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**7}, openai.BadRequestError, "at most"),
        ({"messages": [{"role": "user", "content": "x" * 1_000_001}]}, openai.APIStatusError, "longer than 1000000"),
    ],
)
def test_what_cannot_be_answered_is_a_typed_error(
    start: Start, fields: dict[str, Any], kind: type[openai.APIStatusError], what: str
) -> None:
    url, upstream = start()
    with pytest.raises(kind, match=what) as caught:
        client(url).chat.completions.create(**{"model": "fake", "messages": ASK, **fields})
    assert caught.value.type == ("not_found_error" if kind is openai.NotFoundError else "invalid_request_error")
    assert not [call for call in upstream.calls if call.body]


def test_an_upstream_that_fails_is_a_typed_error_also_in_a_stream(start: Start, fake: Start) -> None:
    url, _ = start(fake(reply=agreeing, script=[(400, "out of order")] * 8))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="no solution: http 400: out of order") as caught:
            client(url).chat.completions.create(model="fake@majority:n=4", messages=ASK, stream=stream)
        assert caught.value.status_code == 502 and caught.value.code == "upstream_error"


def test_curl(start: Start) -> None:
    if not (curl := shutil.which("curl")):
        pytest.skip("curl is not installed")
    url, _ = start()
    body = json.dumps({"model": "fake@majority:n=3", "messages": ASK, "stream": True})
    head = ["-H", "Content-Type: application/json"]
    command = [curl, "-sSN", "--max-time", "60", f"{url}/chat/completions", *head, "-d", body]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "round 0: 3 of 3" in out and r"\\boxed" in out and out.endswith("data: [DONE]\n\n")


# ---- who is let in ----


def attempts() -> list[tuple[list[tuple[str, str]], str]]:
    """Two hundred requests, as (headers, query), none with the key where it belongs."""
    near = [KEY[:end] for end in range(len(KEY))] + [KEY[start:] for start in range(1, len(KEY))]
    near += [KEY[:i] + KEY[i].swapcase() + KEY[i + 1 :] for i in range(len(KEY)) if KEY[i].isalpha()]
    near += [
        KEY.upper(),
        KEY + "x",
        "x" + KEY,
        f'"{KEY}"',
        f"{KEY} {KEY}",
        f"{KEY},",
        f"Bearer {KEY}",
        "",
        "none",
        "*",
        "%00",
    ]
    found: list[tuple[Any, str]] = [([("Authorization", f"Bearer {word}")], "") for word in near]
    good = ("Authorization", f"Bearer {KEY}")
    found += [
        ([good, good], ""),
        ([good, ("authorization", "Bearer x")], ""),
        ([("Authorization", "Bearer x"), good], ""),
    ]
    found += [([], f"?{name}={KEY}") for name in ("key", "api_key", "token", "access_token", "authorization")]
    found += [
        ([(name, KEY)], "") for name in ("X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization", "X-Authorization")
    ]
    found += [
        ([("Authorization", f"{scheme}{KEY}")], "") for scheme in ("Basic ", "", "Token ", "Bearer", "Bearer  ", "B ")
    ]
    found.append(([], ""))
    return [*found, *([([("Authorization", f"Bearer {KEY[:-1]}{n}")], "") for n in range(200 - len(found))])]


def test_none_of_two_hundred_tries_without_the_key_is_answered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAGATOR_SERVE_KEY", KEY)
    url, upstream = start()
    tries = attempts()
    assert len(tries) == 200

    async def ask() -> list[int]:
        found = []
        async with aiohttp.ClientSession() as session:
            for number, (headers, query) in enumerate(tries):
                path = ("/chat/completions", "/models", "/completions")[number % 3]
                method = "GET" if path == "/models" else "POST"
                body = None if method == "GET" else {"model": "fake", "messages": ASK}
                sent = CIMultiDict(headers)
                async with session.request(method, url + path + query, json=body, headers=sent) as answer:
                    error = (await answer.json())["error"]
                    assert error["type"] == "authentication_error" and KEY not in json.dumps(error)
                    found.append(answer.status)
        return found

    assert set(asyncio.run(ask())) == {401}
    assert not [call for call in upstream.calls if call.body]
    with pytest.raises(openai.AuthenticationError):
        client(url, "wrong").models.list()
    got = client(url, KEY).chat.completions.create(model="fake@majority:n=1", messages=ASK)
    assert got.choices[0].message.content
    assert client(url.removesuffix("/v1"), "wrong").get("/health", cast_to=object) == {"status": "ok"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("localhost:1", 200),
        ("[::1]", 200),
    ],
)
def test_a_foreign_host_header_is_refused_on_this_machine(start: Start, host: str, status: int) -> None:
    url, _ = start()

    async def ask() -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/models", headers={"Host": host}) as answer:
            return answer.status

    assert asyncio.run(ask()) == status


def test_what_a_page_can_send_is_refused(start: Start) -> None:
    url, upstream = start()

    async def ask() -> int:
        body = json.dumps({"model": "fake", "messages": ASK})
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/chat/completions", data=body, headers={"Content-Type": "text/plain"}) as answer,
        ):
            return answer.status

    assert asyncio.run(ask()) == 415 and not [call for call in upstream.calls if call.body]


def test_another_host_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PARAGATOR_SERVE_KEY", raising=False)
    assert key_of(ServeSettings()) is None
    with pytest.raises(UsageError, match="a key is needed: set PARAGATOR_SERVE_KEY"):
        key_of(ServeSettings(host="0.0.0.0"))
    for text, what in (("short", "others could guess"), ("", "is empty"), ("two words", "more than a key")):
        (tmp_path / "key").write_text(text)
        with pytest.raises(UsageError, match=what):
            key_of(ServeSettings(host="192.0.2.1", key_file=str(tmp_path / "key")))
    (tmp_path / "key").write_text(KEY + "\n")
    key = key_of(ServeSettings(host="192.0.2.1", key_file=str(tmp_path / "key")))
    assert key == KEY and KEY not in repr(key)


# ---- limits, and clients that leave ----


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work_upstream(start: Start, fake: Start, stream: bool) -> None:
    url, upstream = start(fake(reply=agreeing, latency_s=60))

    async def leave() -> None:
        async with aiohttp.ClientSession() as session:
            body = {"model": "fake@majority:n=8", "messages": ASK, "stream": stream}
            asking = asyncio.ensure_future(session.post(f"{url}/chat/completions", json=body))
            while upstream.in_flight < 8:
                await asyncio.sleep(0.01)
            asking.cancel()
        begun = time.monotonic()
        while upstream.in_flight:
            await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 1.0 + 20.0, "still at work upstream"

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert upstream.outcomes["cancelled"] == 8
    assert 'requests_total{status="499"} 1' in metrics(url)


def metrics(url: str) -> str:
    async def get() -> str:
        async with aiohttp.ClientSession() as session, session.get(url.removesuffix("/v1") + "/metrics") as answer:
            return await answer.text()

    return asyncio.run(get())


def test_more_requests_than_allowed_get_429_and_when_to_try_again(start: Start, fake: Start) -> None:
    url, _ = start(fake(reply=agreeing, latency_s=0.5), max_requests=2)

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as many:
            asked = [many.chat.completions.create(model="fake@majority:n=1", messages=ASK) for _ in range(8)]
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    turned_away = [one for one in found if isinstance(one, openai.RateLimitError)]
    assert 0 < len(turned_away) == len([one for one in found if isinstance(one, Exception)]) <= 6
    assert all(one.response.headers["retry-after"] == "1" for one in turned_away)


def test_a_budget_of_tokens_ends_it(start: Start) -> None:
    url, _ = start(max_tokens_total=200)
    with pytest.raises(openai.RateLimitError, match="200 tokens are used up") as caught:
        for _ in range(50):
            client(url).chat.completions.create(model="fake@majority:n=1", messages=ASK)
    assert caught.value.type == "insufficient_quota"
    assert 200 <= float(next(x for x in metrics(url).splitlines() if x.startswith("paragator_tokens")).split()[1]) < 400


def test_unknown_paths_and_methods_are_typed_errors(start: Start) -> None:
    url, _ = start()
    with pytest.raises(openai.NotFoundError) as caught:
        client(url).post("/embeddings", cast_to=object, body={})
    assert caught.value.code == "not_found"


def test_many_clients_over_faults_all_get_an_answer_or_a_typed_error(start: Start, fake: Start) -> None:
    """The short form of benchmarks/serve.py."""
    patience = {"engine.request_timeout_s": 1, "engine.total_timeout_s": 60}
    upstream = fake(reply=agreeing, faults=0.3, keep=False)
    url, _ = start(upstream, patience, max_requests=60)

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=90) as many:
            asked = [
                many.chat.completions.create(model="fake@aggregate:n=3,k=3,rounds=1", messages=ASK) for _ in range(100)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    errors = [one for one in found if isinstance(one, Exception)]
    assert all(isinstance(one, openai.APIStatusError) and one.type for one in errors), errors
    assert len(found) - len(errors) >= 55
    assert all(r"\boxed" in one.choices[0].message.content for one in found if not isinstance(one, Exception))
    assert upstream.settled().in_flight == 0


# ---- strategies ----


def judging(prompt: str, seed: int, index: int) -> str:
    return (
        "Judgment: 2" if "Judgment" in prompt else "Score: 7" if "Score:" in prompt else agreeing(prompt, seed, index)
    )


def test_every_strategy_of_the_table_is_served(start: Start, fake: Start) -> None:
    """Also one whose tokens' confidence a server has to tell: it is asked for."""
    url, upstream = start(fake(reply=judging), {"eval.candidates": 5, "eval.pool_size": 2, "eval.rounds": 1})
    asked = used = 0
    for name in STRATEGIES.keys() - {"self_certainty"}:
        got = client(url).chat.completions.create(model=f"fake@{name}", messages=ASK, seed=3)
        assert r"\boxed" in (got.choices[0].message.content or "") and got.usage
        bodies = [call.body for call in upstream.settled().calls if call.body]
        new, asked, used = bodies[asked:], len(bodies), used + got.usage.total_tokens
        most = strategy_named(name).requests(Sizes(5, 2, 1))
        assert len(new) == most or (name == "agree" and most and len(new) < most)
        assert all(("logprobs" in body) == (name == "confidence") for body in new)
    assert used == sum(upstream_usage(upstream))


def test_a_config_and_a_preset_name_a_strategy_of_ones_own(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_strategy.py").write_text(
        "async def two(asking):\n    return asking.selected(await asking.candidates(2), None)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    url, upstream = start(
        None, {"eval.strategies": ["majority:n=3"]}, presets={"pair": {"strategy": "own_strategy:two"}}
    )
    for model, calls in (("fake", 3), ("pair", 5)):
        assert client(url).chat.completions.create(model=model, messages=ASK).choices[0].message.content
        assert len([call for call in upstream.settled().calls if call.body]) == calls
    with pytest.raises(openai.BadRequestError, match="is not known"):
        client(url).chat.completions.create(model="fake@own_strategy:two", messages=ASK)


def test_the_command_starts_a_server(monkeypatch: pytest.MonkeyPatch, fake: Start, tmp_path: Path) -> None:
    from paragator.cli import serve

    found: list[Any] = []

    async def begun(config: Any, settings: ServeSettings) -> None:
        found.append((config, settings))

    monkeypatch.setattr(serve, "serve", begun)
    assert serve.main(["--url", "http://localhost:1/v1", "--port", "0", "--strategy", "agree:n=8"]) == 0
    config, settings = found[0]
    assert config.engine.url == "http://localhost:1/v1" and config.eval.strategies == ["agree:n=8"]
    assert settings.port == 0
