"""The endpoint engine against fake servers: what it sends, what it makes of answers, and what it does about faults."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import random
import resource
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any

import pytest

from paragator.config import EngineConfig
from paragator.core.errors import ParagatorError, RunError, UsageError
from paragator.core.types import Completion, Failure, Group, Prompt
from paragator.engines.http.client import Broken, Client, Secret, Unreachable
from paragator.engines.http.endpoint import Endpoint
from paragator.engines.http.gate import STARTS_A_PASS, Gate
from paragator.engines.http.openai import JudgeEngine, Limits, OpenAI, Prices
from paragator.engines.http.replies import retry_after
from paragator.engines.http.server import seed_of
from paragator.engines.journal import Journal, Stopped
from paragator.engines.sampling import Sampling
from paragator.runs.servers import environment_key, read_key
from servers import FAULTS, Server, boxed_digit, running

KEY = "sk-very-secret-123"
CHAT, TEXT = Prompt("one two three", chat=True), Prompt("one two three")
ONCE = Sampling(temperature=0.7, max_tokens=50)
EVALUATED = [1190158984, 781881029, 451748915]
DIRECT = [1767340615, 1767340615, 1077829842, 1658672349]
"""What a server gets for seed 12345: of three siblings in an evaluation; of three at once, then of each on its own."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a fake server with these settings."""
    started: list[Any] = []

    def start(**settings: Any) -> Server:
        context = running(Server(**settings))
        started.append(context)
        return context.__enter__()

    yield start
    for context in reversed(started):
        context.__exit__(None, None, None)


def engine_of(server: Server, *, tokenizer: Any = None, takes_n: bool = True, **settings: Any) -> OpenAI:
    """An engine of the fake server; fields of Limits may be given by name."""
    both = {"generate": ONCE, "aggregate": Sampling(max_tokens=9, top_p=0.9, top_k=3)}
    limits = {"backoff_s": 0.01, "request_timeout_s": 5.0, "total_timeout_s": 20.0}
    limits |= {name: settings.pop(name) for name in Limits.__slots__ if name in settings}
    engine = OpenAI(
        server.url, **{"model": "fake", "sampling": both, "key": "", "limits": Limits(**limits), **settings}
    )
    engine.tokenizer = tokenizer
    engine.servers[0].takes_n = takes_n
    return engine


def ask(engine: OpenAI, prompt: Prompt = CHAT, n: int = 1, *, stage: Any = "generate", seed: int = 1) -> Group:
    """One call in an event loop of its own."""
    return gathered(engine, lambda: engine(prompt, n, stage=stage, seed=seed))[0]


def gathered(engine: OpenAI, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    async def together() -> list[Any]:
        try:
            return await asyncio.gather(*(call() for call in calls))
        finally:
            await engine.close()

    return asyncio.run(together())


def only(group: Group) -> Any:
    (output,) = group.outputs
    return output


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_a_chat_prompt_is_one_user_message_and_a_plain_one_is_text(serve):
    server = serve()
    engine = engine_of(server, extra_body={"min_p": 0.1}, key=KEY)
    ask(engine), ask(engine, TEXT, stage="aggregate", seed=2**63 - 1)
    chat, text = server.calls
    assert chat.path == "/v1/chat/completions" and text.path == "/v1/completions"
    assert chat.body == {
        "model": "fake",
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 50,
        "seed": seed_of(1, 0),
        "min_p": 0.1,
        "messages": [{"role": "user", "content": "one two three"}],
    }
    assert text.body["prompt"] == "one two three" and text.body["max_tokens"] == 9
    assert (text.body["top_p"], text.body["top_k"]) == (0.9, 3)
    assert 0 <= text.body["seed"] < 2**31
    assert chat.headers["authorization"] == f"Bearer {KEY}"


def test_siblings_come_from_one_request_or_each_from_its_own(serve):
    server = serve()
    together = ask(engine_of(server), n=4)
    assert [call.body.get("n") for call in server.calls] == [4]
    assert [o.text for o in together.outputs] == [boxed_digit("one two three", seed_of(1, 0), i) for i in range(4)]
    assert [o.num_tokens for o in together.outputs] == [None] * 4 and together.num_prompt_tokens == 3
    server.calls.clear()
    apart = ask(engine_of(server, takes_n=False), n=4)
    seeds = [random.Random(f"1:{i}").getrandbits(31) for i in range(4)]
    assert sorted(call.body["seed"] for call in server.calls) == sorted(seeds)
    assert all("n" not in call.body for call in server.calls)
    assert [o.text for o in apart.outputs] == [boxed_digit("one two three", seed, 0) for seed in seeds]
    assert [o.num_tokens for o in apart.outputs] == [7] * 4


def test_the_seeds_that_a_server_receives_are_pinned(serve, tmp_path):
    """Another seed is another answer: results of earlier runs would not come back."""

    async def journaled() -> None:
        journal = Journal(engine, tmp_path / "calls.jsonl", one_by_one=engine.one_by_one)
        await journal(CHAT, 3, stage="generate", seed=12345)
        await journal.close(wait=True)
        await engine.close()

    server = serve()
    engine = engine_of(server)
    asyncio.run(journaled())
    singles = [random.Random(f"12345:{i}").getrandbits(63) for i in range(3)]
    assert [call.body["seed"] for call in server.calls] == [seed_of(single, 0) for single in singles]
    assert [call.body["seed"] for call in server.calls] == EVALUATED
    server.calls.clear()
    ask(engine_of(server), n=3, seed=12345)
    ask(engine_of(server, takes_n=False), n=3, seed=12345)
    at_once, *alone = (call.body["seed"] for call in server.calls)
    assert [at_once, *alone] == [seed_of(12345, i) for i in (0, 0, 1, 2)] == DIRECT


@pytest.mark.parametrize(("settings", "first"), [({"max_n": 2}, 2), ({"max_n": 1, "refuse_n": True}, 1)])
def test_a_server_that_takes_no_n_is_asked_one_by_one_from_then_on(serve, settings, first):
    server = serve(**settings)
    engine = engine_of(server)
    outputs = ask(engine, n=4).outputs
    assert len(outputs) == 4 == len({o.text for o in outputs}) and not engine.servers[0].takes_n
    assert len(server.calls) == 1 + (4 - first if first > 1 else 4)
    server.calls.clear()
    assert len(ask(engine, n=3, seed=2).completions) == 3
    assert [call.body.get("n") for call in server.calls] == [None] * 3


def test_a_bad_request_is_not_taken_for_a_refused_n(serve):
    server = serve(script=[(400, "no such thing")] * 2)
    engine = engine_of(server)
    assert ask(engine, n=3).outputs == (Failure("http 400: no such thing"),) * 3
    assert engine.servers[0].takes_n and len(server.calls) == 2


def test_a_server_that_wants_max_completion_tokens_gets_them(serve):
    server = serve(script=[(400, "Unsupported parameter: use 'max_completion_tokens' instead.")])
    engine = engine_of(server)
    assert only(ask(engine)).text and only(ask(engine)).text
    assert [("max_tokens" in c.body, "max_completion_tokens" in c.body) for c in server.calls] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_siblings_under_way_get_max_completion_tokens_as_well():
    class New(Server):
        def choose(self, call):
            return (400, "use 'max_completion_tokens'") if "max_tokens" in call.body else super().choose(call)

    with running(New(latency_s=0.05)) as server:
        assert len(ask(engine_of(server, takes_n=False), n=8).completions) == 8


def test_fields_that_the_engine_sets_are_refused_in_extra_body(serve):
    with pytest.raises(UsageError, match="extra_body sets n, stream"):
        engine_of(serve(), extra_body={"stream": True, "n": 2})


def test_usage_counts_tokens_calls_retries_and_cost(serve):
    server = serve(script=["ok", "500"])
    engine = engine_of(server, prices=Prices(10.0, 100.0))
    ask(engine, n=2), ask(engine)
    usage = engine.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.calls, usage.retries) == (6, 21, 3, 1)
    assert usage.cost == pytest.approx((6 * 10 + 21 * 100) / 1e6)


# ---- what is made of an answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "a b", "finish_reason": "stop"}, Completion("a b", num_tokens=2)),
        ({"text": "a b", "finish_reason": "length"}, Completion("a b", "length", num_tokens=2)),
        ({"text": "a", "finish_reason": None}, Completion("a", num_tokens=1)),
        ({"text": "a", "finish_reason": "abort"}, Completion("a", "cancelled", num_tokens=1)),
        ({"text": ""}, Completion("", num_tokens=0)),
        ({"text": "a", "reasoning_content": "hm"}, Completion("a", num_tokens=1, thinking="hm")),
        ({"text": "a", "reasoning": "hm"}, Completion("a", num_tokens=1, thinking="hm")),
        (
            {"text": None, "reasoning": "hm", "finish_reason": "length"},
            Completion("", "length", num_tokens=0, thinking="hm"),
        ),
        ({"text": "half \ud800"}, Completion("half ?", num_tokens=2)),
        ({"content": [{"type": "text", "text": "x"}, {"text": "y"}, {"image": 1}]}, Completion("xy", num_tokens=0)),
    ],
)
def test_choices_become_completions(serve, fields, expected):
    assert only(ask(engine_of(serve(reply=lambda *_: fields)))) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "a", "finish_reason": "content_filter"}, "finish reason 'content_filter'"),
        ({"text": "a", "finish_reason": "tool_calls"}, "finish reason 'tool_calls'"),
        ({"text": "a", "finish_reason": ["x"]}, "finish reason"),
        ({"text": None, "refusal": "I\nwill \x1b[31mnot"}, "refusal: I will [31mnot"),
        ({"text": None}, "empty answer"),
    ],
)
def test_what_is_no_solution_is_a_failure(serve, fields, reason):
    assert only(ask(engine_of(serve(reply=lambda *_: fields)))).reason.startswith(reason)


def test_a_choice_may_bring_its_own_count(serve):
    class Counting(Server):
        def choice(self, body, prompt, index, chat):
            return {**super().choice(body, prompt, index, chat), "usage": {"completion_tokens": index + 5}}

    context = running(Counting())
    with context as server:
        assert [o.num_tokens for o in ask(engine_of(server), n=3).outputs] == [5, 6, 7]


# ---- token mode ------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer whose tokens are the words' lengths."""

    chat_template: str | None = "yes"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages: Any, **_: Any) -> list[int]:
        return [99, *self(messages[0]["content"])["input_ids"], 98]

    def decode(self, ids: list[int]) -> str:
        return " ".join("<think>" if id_ == 7 else "w" * id_ for id_ in ids)


def test_token_mode_sends_ids_and_returns_what_was_sampled(serve):
    server = serve()
    engine = engine_of(server, tokenizer=Words())
    chat, text = ask(engine, n=3), ask(engine, TEXT)
    assert chat.prompt_ids == (99, 3, 3, 5, 98) and text.prompt_ids == (3, 3, 5)
    assert [call.path for call in server.calls] == ["/v1/completions"] * 2
    body = server.calls[0].body
    assert body["prompt"] == [99, 3, 3, 5, 98] and body["return_token_ids"] is True and body["logprobs"] == 0
    neutral = {name: body[name] for name in ("top_k", "min_p", "repetition_penalty", "presence_penalty")}
    assert neutral == {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    for output in [*chat.outputs, *text.outputs]:
        assert len(output.token_ids) == len(output.logprobs) == output.length == 7
        assert all(value <= 0 for value in output.logprobs) and output.text.startswith("Thinking")


def test_a_completion_of_a_prompt_that_opens_thinking_begins_with_its_marker(serve):
    output = ask(engine_of(serve(), tokenizer=Words()), replace(TEXT, text="one two <think>")).outputs[0]
    assert output.text.startswith("<think>Thinking")


def test_a_prompt_that_does_not_fit_is_not_sent(serve):
    class Small(Server):
        def answer(self, call):
            found = super().answer(call)
            return {"data": [{"id": "fake", "max_model_len": 54}]} if call.path == "/v1/models" else found

    with running(Small()) as server:
        engine = engine_of(server, tokenizer=Words(), model=None)
        assert (
            ask(engine, n=2).outputs
            == (Failure("prompt of 5 tokens plus max_tokens 50 exceeds the context of 54"),) * 2
        )
        assert engine.count(CHAT) == 5 and len(ask(engine, TEXT).completions) == 1


def test_token_mode_wants_a_chat_template_and_a_server_that_returns_ids(serve):
    class Bare(Words):
        chat_template = None

    with pytest.raises(UsageError, match="no chat template"):
        ask(engine_of(serve(), tokenizer=Bare()))

    class Plain(Server):
        def choice(self, body, prompt, index, chat):
            return super().choice({**body, "return_token_ids": False}, prompt, index, chat)

    with running(Plain()) as server, pytest.raises(UsageError, match="returns no token ids"):
        ask(engine_of(server, tokenizer=Words()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logprobs": None}, "7 tokens came with 0 log-probabilities"),
        ({"logprobs": {"token_logprobs": [float("nan")] * 7}}, "no finite number"),
        ({"prompt_token_ids": [1]}, "changed the prompt"),
        ({"logprobs": [-0.5] * 7}, "garbage"),
        ({"logprobs": {"token_logprobs": 7}}, "garbage"),
        ({"prompt_token_ids": 5}, "garbage"),
    ],
)
def test_tokens_that_training_could_not_use_are_failures(change, reason):
    class Wrong(Server):
        def choice(self, body, prompt, index, chat):
            return {**super().choice(body, prompt, index, chat), **change}

    with running(Wrong()) as server:
        assert reason in only(ask(engine_of(server, tokenizer=Words()))).reason


# ---- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*FAULTS, (408, "slow"), (409, "busy"), (425, "early"), (502, "<html>")])
def test_a_fault_that_may_pass_is_tried_again(serve, fault):
    server = serve(script=[fault])
    engine = engine_of(server, request_timeout_s=0.3)
    assert only(ask(engine)).text == boxed_digit("one two three", seed_of(1, 0), 0)
    assert (engine.usage.calls, engine.usage.retries) == (2, 1)
    assert server.calls[0].body == server.calls[1].body


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, "bad\n\tvalue \x00\x1b[0m", "http 400: bad value [0m"),
        (404, "no such model", "http 404: no such model"),
        (422, "x" * 1000, "http 422: xxx"),
        (400, "This model's maximum context length is 10 tokens, you asked for 20", "context length: This model's"),
        (413, "prompt is too long", "context length: prompt is too long"),
    ],
)
def test_what_cannot_pass_fails_at_once_with_a_clean_reason(serve, status, text, reason):
    server = serve(script=["ok", (status, text)])
    engine = engine_of(server)
    ask(engine)
    failure = only(ask(engine))
    assert isinstance(failure, Failure) and failure.reason.startswith(reason)
    assert len(failure.reason) <= 300 and failure.reason.isprintable() and len(server.calls) == 2


@pytest.mark.parametrize(("status", "what"), [(401, "refuses the key"), (403, "refuses the key"), (402, "no credit")])
def test_what_every_call_would_meet_ends_the_run(serve, status, what):
    server = serve(script=[(status, f"your key {KEY} is wrong")] * 9)
    with pytest.raises(RunError, match=what) as caught:
        ask(engine_of(server, key=KEY, takes_n=False), n=4)
    assert KEY not in str(caught.value) and "***" in str(caught.value)


def test_a_first_answer_of_404_is_the_callers_mistake(serve):
    with pytest.raises(UsageError, match=r"http 404: no model 'fake'; correct the URL or engine\.model"):
        ask(engine_of(serve(script=[(404, "no model 'fake'")])))


def test_retry_after_is_honoured(serve):
    server = serve(script=["429-after"], retry_after="0.4")
    before = time.monotonic()
    assert only(ask(engine_of(server))).text
    assert time.monotonic() - before >= 0.4


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "3"}, 3, 3),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25, 0.25),
        ({"retry-after": formatdate(time.time() + 1000, usegmt=True)}, 100, 1001),
    ],
)
def test_retry_after_in_its_forms(headers, low, high):
    assert low <= retry_after(headers) <= high


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "0", "0.0", "-1", "-1e9", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
def test_a_retry_after_that_says_nothing(value):
    assert retry_after({"retry-after": value}) is retry_after({"retry-after-ms": value}) is retry_after({}) is None


def test_a_request_ends_after_its_total_time(serve):
    server = serve(faults=1.0, kinds=["500", "garbage", "reset"])
    engine = engine_of(server, total_timeout_s=1.5)
    before = time.monotonic()
    reason = only(ask(engine)).reason
    assert reason.startswith("timeout after 1.5 s: ") and "attempts, the last: " in reason
    assert time.monotonic() - before < 5
    assert len(server.calls) >= 2


def test_a_pause_beyond_the_total_time_is_not_waited_for(serve):
    server = serve(faults=1.0, kinds=["429-after"], retry_after="3600")
    before = time.monotonic()
    assert only(ask(engine_of(server))).reason == (
        "no further attempt within 20 s: 1 attempt, the last: http 429: fault 429-after; the server asks to wait 3600 s"
    )
    assert time.monotonic() - before < 10


def test_garbage_of_every_kind_is_no_answer(serve):
    class Odd(Server):
        bodies: Any = iter([b"", b"[" * 100_000, b"\xff\xfe", b'"text"', b'{"choices": []}', b'{"choices": [1]}'])

        def answer(self, call):
            return next(self.bodies, None) or super().answer(call)

    with running(Odd()) as server:
        engine = engine_of(server)
        assert only(ask(engine)).text and engine.usage.retries == 0
        assert only(ask(engine)).text and engine.usage.retries == 5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>\n<b>Wel\x07come</b>" + b"x" * 9999, "garbage instead of JSON: <html> <b>Welcome</b>xxx"),
        (
            b'{"error": {"message": "no model\\nhere"}}',
            "an error in an answer with http 200: no model here; correct the URL",
        ),
        (b'{"status": "up"}', 'garbage: no choices: {"status": "up"}; correct the URL or engine.model'),
    ],
)
def test_a_server_that_never_gives_an_answer_is_the_callers_mistake(body, said):
    class Other(Server):
        def answer(self, call):
            return body

    with running(Other()) as server, pytest.raises(UsageError) as caught:
        ask(engine_of(server))
    text = str(caught.value)
    assert text.startswith(f"engine.url = {server.url}: {said}") and text.isprintable() and len(text) < 400
    assert len(server.calls) == 3


@dataclass
class Overtaking(Server):
    """The first two requests are answered slowly and well, the next `quick` at once with an error."""

    status: int = 200
    quick: int = 10
    asked: int = 0

    def choose(self, call):
        self.asked += 1
        overtakes = 2 < self.asked <= 2 + self.quick
        self.latency_s = 0.0 if overtakes else 0.3
        return (self.status, "who knows") if overtakes else super().choose(call)


@pytest.mark.parametrize("status", [200, 403, 404, 405, 301])
def test_quick_errors_never_end_a_run_whose_other_answers_are_coming(status):
    with running(Overtaking(status=status)) as server:
        engine = engine_of(server)
        found = [only(g) for g in gathered(engine, *[lambda: engine(CHAT, 1, stage="generate", seed=1)] * 12)]
    lost = [output.reason for output in found if isinstance(output, Failure)]
    assert len(lost) == (0 if status == 200 else 10) and all(r.startswith(f"http {status}: who knows") for r in lost)


@pytest.mark.parametrize("status", [200, 403, 404, 405, 301])
def test_errors_alone_end_it(status):
    with running(Overtaking(status=status, asked=2, quick=9999)) as server:
        engine = engine_of(server, total_timeout_s=5.0)
        with pytest.raises(ParagatorError, match=r"who knows.*(correct the URL|engine\.key_env)"):
            gathered(engine, *[lambda: engine(CHAT, 1, stage="generate", seed=1)] * 12)
    assert server.settled().asked < 100


def test_siblings_under_way_leave_out_what_is_refused_and_it_is_said_once():
    class Strict(Server):
        def choose(self, call):
            odd = sorted({"seed", "top_p"} & call.body.keys())
            return (422, f"unknown field '{odd[0]}'") if odd else super().choose(call)

    with running(Strict(latency_s=0.05)) as server:
        engine = engine_of(server, takes_n=False)
        with pytest.warns(UserWarning, match="the server refuses") as told:
            assert len(ask(engine, n=8).completions) == 8
        said = [warning for warning in told if "the server refuses" in str(warning.message)]
        assert len(said) == 2 == len(engine.remarks()) and len(server.calls) == 24
        assert len(ask(engine, n=8, seed=2).completions) == 8 and len(server.calls) == 32


def test_training_never_leaves_out_what_changes_its_sampling(serve):
    server = serve(script=[(422, "unknown field 'top_p'"), (422, "unknown field 'seed'")])
    engine = engine_of(server, tokenizer=Words())
    assert only(ask(engine)).reason == "http 422: unknown field 'top_p'" and len(server.calls) == 1
    with pytest.warns(UserWarning, match="the server refuses seed"):
        assert only(ask(engine)).token_ids


def test_garbage_between_other_faults_may_pass(serve):
    engine = engine_of(serve(script=["garbage", "garbage", "500", "garbage", "garbage"]))
    assert only(ask(engine)).text and engine.usage.retries == 5


def test_why_an_attempt_was_last_in_vain_can_be_read(serve):
    engine = engine_of(serve(script=["garbage", "500"]))
    assert engine.endpoint.last_reason is None and engine.trouble() == ""
    assert only(ask(engine)).text and engine.endpoint.retries == 2
    assert engine.endpoint.last_reason == "http 500: fault 500"
    assert engine.trouble() == "2 retries, the last: http 500: fault 500"


def test_three_hundred_problems_against_a_server_that_fails_in_every_way(serve):
    server = serve(faults=0.3)
    engine = engine_of(server, request_timeout_s=0.25, max_in_flight=32)
    prompts = [Prompt(f"problem {i}", chat=True) for i in range(300)]
    calls = [lambda p=p: engine(p, 1, stage="generate", seed=7) for p in prompts]
    groups = gathered(engine, *calls)
    texts = [only(group).text for group in groups]
    assert texts == [boxed_digit(prompt.text, seed_of(7, 0), 0) for prompt in prompts]
    faults = sum(number for name, number in server.settled().outcomes.items() if name != "ok")
    assert server.outcomes["ok"] == 300 and faults > 60 and len(server.outcomes) >= 8
    assert engine.usage.calls == 300 + faults  # no call but one an answer and one a fault
    assert all("fault" not in json.dumps(call.body) for call in server.calls)


# ---- cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancelled_call_reaches_the_server_within_a_second(serve):
    server = serve(latency_s=60)
    engine = engine_of(server, takes_n=False)

    async def cancel() -> float:
        task = asyncio.create_task(engine(CHAT, 3, stage="generate", seed=1))
        while server.in_flight < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        before = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        while server.outcomes["cancelled"] < 3:
            await asyncio.sleep(0.01)
        return time.monotonic() - before

    assert asyncio.run(cancel()) < 1
    assert engine.endpoint.gate.inside == 0


def test_a_refused_key_cancels_the_siblings(serve):
    class Mixed(Server):
        def choose(self, call):
            return (401, "no") if call.body["seed"] == seed_of(1, 2) else "stall"

    with running(Mixed()) as server:
        with pytest.raises(RunError):
            ask(engine_of(server, takes_n=False), n=4)
        assert server.settled().in_flight == 0


# ---- the server's address --------------------------------------------------------------------------------------------


def test_the_first_listed_model_is_taken_once(serve):
    server = serve(model="some/model", latency_s=0.01)
    engine = engine_of(server, model=None)
    gathered(engine, *[lambda: engine(CHAT, 1, stage="generate", seed=1)] * 5)
    assert [call.path for call in server.calls].count("/v1/models") == 1
    assert server.calls[-1].body["model"] == "some/model" == engine.model
    named = engine_of(server, model="mine")
    assert gathered(named, named.servers[0].first_model) == ["some/model"] and named.model == "mine"


@pytest.mark.parametrize("name", ["mine", "./absent model?"])
def test_a_model_that_the_server_does_not_list_is_refused_in_one_line(serve, name):
    server = serve(model="some/model")
    engine = engine_of(server, model=name)
    with pytest.raises(UsageError) as caught:
        gathered(engine, engine.connect)
    expected = f"no model {name!r} there; it serves some/model; correct engine.model"
    assert str(caught.value) == f"engine.url = {server.url}: {expected}"
    assert len(server.calls) == 2 and server.calls[0].path == "/v1/models"


@pytest.mark.parametrize(
    ("listing", "name"),
    [
        ({"data": [{"id": "qwen3:latest"}]}, "qwen3"),
        ({"data": [{"id": "models/gemini"}]}, "gemini"),
        ({"data": [{"id": "openai/*"}]}, "openai/any"),
        ({"data": [{"id": str(i)} for i in range(33)]}, "my-deployment"),
        ({"data": []}, "mine"),
        ({"error": "not implemented"}, "mine"),
        ({"data": [{"id": "large-20250514"}]}, "alias"),
    ],
)
def test_a_model_that_a_server_may_have_is_not_refused(listing, name):
    class Listing(Server):
        def choose(self, call):
            return "ok" if call.path in ("/v1/models", "/v1/models/alias") else (404, "no such path")

        def answer(self, call):
            return listing

    with running(Listing()) as server:
        engine = engine_of(server, model=name)
        gathered(engine, engine.connect)
        assert engine.model == name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("model", [None, "fake"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_server_is_one_clear_line(host, model):
    url = f"http://{host}:{free_port()}/v1"
    engine = OpenAI(url, model, sampling={"generate": ONCE})
    with pytest.raises(UsageError) as caught:
        ask(engine)
    expected = f"engine.url = {url}: no server answers there (connection refused); start it or correct the URL"
    assert str(caught.value) == expected


def test_a_server_that_ends_is_waited_for_and_then_ends_the_run(serve):
    with running(Server()) as server:
        engine = engine_of(server, total_timeout_s=2.0)
        assert only(ask(engine)).text
    assert only(ask(engine)).reason.endswith("the last: connection refused")
    engine = engine_of(server, wait_s=0.0)
    engine.endpoint.heard = 0.0
    with pytest.raises(RunError, match=r"the server is gone \(for 0 s: connection refused\)"):
        ask(engine)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("localhost:8000/v1", "write http://localhost:8000/v1"),
        ("", "write http://localhost:8000/v1"),
        ("ftp://a/v1", "must begin with http"),
        ("http://a:x/v1", "as http://localhost:8000/v1"),
        ("http://a/v1/chat/completions", "write http://a/v1"),
        ("https://user:pass@a/v1", "remove it"),
        ("http://a/v1?x=1", "only scheme"),
        ("http://a/v 1", "only scheme"),
    ],
)
def test_an_address_that_cannot_work_gets_a_hint(url, hint):
    with pytest.raises(UsageError) as caught:
        OpenAI(url)
    assert hint in str(caught.value) and "pass@" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_forgotten_v1_is_found(serve):
    server = serve()
    engine = OpenAI(server.url.removesuffix("/v1"))
    with pytest.raises(UsageError, match=f"the path is wrong; write {server.url}"):
        gathered(engine, engine.connect)
    engine = OpenAI(server.url.removesuffix("/v1") + "/other/v1")
    with pytest.raises(UsageError, match=r"lists no models \(http 404 for /models: no such path: "):
        gathered(engine, engine.connect)


@pytest.mark.parametrize(("scheme", "what"), [("http", "broken answer"), ("https", "try http://")])
def test_a_server_that_speaks_something_else_is_a_usage_error(scheme, what):
    async def talk() -> None:
        async def babble(reader, writer):
            writer.write(b"220 mail.example ESMTP\r\n")
            await reader.read(10)
            writer.close()

        async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            engine = OpenAI(f"{scheme}://127.0.0.1:{port}/v1")
            try:
                await engine.connect()
            finally:
                await engine.close()

    with pytest.raises(UsageError, match=what):
        asyncio.run(talk())


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text(f"  {KEY}\n")
    monkeypatch.setenv("SOME_KEY", "from-env")
    assert read_key(EngineConfig(key_env="SOME_KEY", key_file=str(path))) == KEY
    assert read_key(EngineConfig(key_env="SOME_KEY")) == "from-env"
    assert read_key(EngineConfig(key_env="NO_SUCH_KEY")) == environment_key("NO_SUCH_KEY") == ""
    for wrong in ("", "two words", "schlüssel"):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="key_file") as caught:
            read_key(EngineConfig(key_file=str(path)))
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(EngineConfig(key_file=str(tmp_path / "absent")))


def test_a_key_that_is_not_given_is_the_environments(serve, monkeypatch):
    server = serve()
    for given, sent in ((None, "Bearer from-env"), ("", None), ("mine", "Bearer mine")):
        monkeypatch.setenv("OPENAI_API_KEY", " from-env\n")
        engine = OpenAI(server.url, key=given)
        monkeypatch.delenv("OPENAI_API_KEY")
        ask(engine)
        assert server.calls[-1].headers.get("authorization") == sent
    ask(OpenAI(server.url))
    assert "authorization" not in server.calls[-1].headers


def test_messages_name_the_section_of_the_config(serve):
    def judge(url: str) -> JudgeEngine:
        return JudgeEngine(url, sampling=ONCE, key="")

    with pytest.raises(
        RunError, match=r"^judge\.url = .*http 401: .* wants a key, and none is set: see judge\.key_env$"
    ):
        ask(judge(serve(key=KEY).url))
    with pytest.raises(UsageError, match=r"^judge\.url = .* lists no models .*set judge\.model$"):
        ask(judge(serve().url + "/other/v1"))
    with pytest.raises(UsageError, match=r"^judge\.url = ftp://a"):
        judge("ftp://a")


def test_the_key_shows_nowhere(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(key="another", script=[])
    engine = engine_of(server, key=KEY)
    with pytest.raises(ParagatorError) as caught:
        ask(engine)
    shown = [
        str(caught.value),
        repr(engine),
        repr(engine.endpoint),
        repr(vars(engine)),
        repr(engine.endpoint.headers()),
    ]
    error: BaseException | None = caught.value
    while error is not None:
        shown += [repr(error), repr(error.args)]
        frame = error.__traceback__
        while frame is not None:
            shown.append(repr(frame.tb_frame.f_locals) if "paragator" in frame.tb_frame.f_code.co_filename else "")
            frame = frame.tb_next
        error = error.__cause__ or error.__context__
    assert KEY not in "".join(shown) + caplog.text
    with pytest.raises(UsageError, match="must be one word") as caught:
        Endpoint("http://a/v1", "two words")
    assert "two" not in str(caught.value)


# ---- the gate --------------------------------------------------------------------------------------------------------


def test_the_limit_halves_once_a_congestion_and_comes_back_by_one():
    with pytest.raises(UsageError, match="max_in_flight = 0"):
        Gate(0)

    async def play() -> None:
        gate = Gate(16)
        tickets = [await gate.enter() for _ in range(16)]
        for ticket in tickets[:8]:
            gate.leave(ticket, "pushed back")
        assert gate.limit == 8 and gate.inside == 8
        for ticket in tickets[8:]:
            gate.leave(ticket, "neither")
        for _ in range(32):
            gate.leave(await gate.enter(), "fine")
        assert gate.limit == 8
        for _ in range(8):
            gate.leave(await gate.enter(), "fine")
        assert 8.8 < gate.limit < 9.1
        for _ in range(20):
            gate.leave(await gate.enter(), "pushed back")
        assert gate.limit == 1
        for _ in range(500):
            gate.leave(await gate.enter(), "fine")
        assert gate.limit == 16 and gate.inside == 0

    asyncio.run(play())


def test_faults_that_do_not_depend_on_load_leave_the_limit_high_and_overload_does_not():
    """A clock of its own: each place answers once a tick, one in seven pushes back; or a server with room for four."""

    def play(pushes: Callable[[int, int], bool], monkeypatch: pytest.MonkeyPatch) -> Gate:
        now, random_ = [1.0], random.Random(3)
        monkeypatch.setattr("paragator.engines.http.gate.time.monotonic", lambda: now[0])

        async def ticks() -> Gate:
            gate = Gate(64)
            for _ in range(3000):
                tickets = [await gate.enter() for _ in range(int(gate.limit))]
                for place, ticket in enumerate(tickets):
                    gate.leave(ticket, "pushed back" if pushes(place, random_.randrange(7)) else "fine")
                    now[0] += 1 / len(tickets)
            return gate

        return asyncio.run(ticks())

    with pytest.MonkeyPatch.context() as patch:
        gate = play(lambda place, drawn: drawn == 0, patch)
        assert gate.limit > 32 and 0.05 < gate.usual < 0.3
        gate = play(lambda place, drawn: place >= 4, patch)
        assert gate.limit < 6 and gate.usual == 0


def test_the_gate_keeps_its_limit_its_order_and_starts_few_a_pass():
    async def play() -> None:
        gate, began = Gate(50), []

        async def go(name: str, lane: Any = "last") -> None:
            await gate.enter(lane)
            began.append(name)

        tasks = [asyncio.create_task(go(f"{i}")) for i in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(began) <= 2 * STARTS_A_PASS
        await asyncio.gather(*tasks)
        assert began == [f"{i}" for i in range(50)] and gate.inside == 50
        late, near, retry = (asyncio.create_task(go(lane, lane)) for lane in ("last", "next", "retry"))
        await asyncio.sleep(0.01)
        gate.leave(0, "neither")
        await retry
        assert not late.done() and not near.done()
        gate.leave(0, "neither")
        await near
        assert not late.done()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        for _ in range(50):
            gate.leave(0, "neither")
        await asyncio.sleep(0)
        assert gate.inside == 0 and late.cancelled()

    asyncio.run(play())


def test_a_busy_server_is_asked_less(serve):
    server = serve(script=["503"] * 30, latency_s=0.01)
    engine = engine_of(server, max_in_flight=32, takes_n=False)
    group = ask(engine, n=64)
    assert len(group.completions) == 64 and server.most_in_flight <= 32
    assert engine.endpoint.gate.limit < 32 and engine.endpoint.gate.inside == 0


def test_the_gate_alone_limits_what_is_in_flight(serve, tmp_path):
    server = serve(latency_s=0.01)
    engine = engine_of(server, max_in_flight=3)

    async def job() -> Group:
        journal = Journal(engine, tmp_path / "c.jsonl", one_by_one=True)
        group = await journal(CHAT, 20, stage="generate", seed=1)
        await journal.close(wait=True)
        await engine.close()
        return group

    assert len(asyncio.run(job()).completions) == 20 and engine.at_once == server.most_in_flight == 3


def test_after_stop_those_in_flight_finish_and_those_that_wait_are_not_sent(serve, tmp_path):
    server = serve(latency_s=0.1, script=["500", "ok"])  # one of the first two is asked again: it is under way
    engine = engine_of(server, max_in_flight=2)
    stopped = False

    async def job() -> int:
        nonlocal stopped
        engine.stop_when(lambda: stopped)
        journal = Journal(engine, tmp_path / "c.jsonl", one_by_one=True, stop=lambda: stopped)
        waiting = asyncio.ensure_future(journal(CHAT, 9, stage="generate", seed=1))
        while server.in_flight < 2:
            await asyncio.sleep(0.005)
        stopped = True
        with pytest.raises(Stopped):
            await waiting
        await journal.close(wait=True)
        await engine.close()
        return journal.asked

    assert asyncio.run(job()) == 2
    assert server.settled().outcomes == {"500": 1, "ok": 2} and engine.endpoint.gate.inside == 0
    assert (tmp_path / "c.jsonl").read_bytes().count(b"\n") == 2


# ---- the client --------------------------------------------------------------------------------------------------------


def test_connections_are_used_again_and_stale_ones_are_not(serve):
    async def play() -> None:
        made = []

        async def answer(reader, writer):
            made.append(writer)
            while await reader.readline():
                while (await reader.readline()).strip():
                    pass
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n yo\r\n0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            bodies = [(await client.send("GET", "/", [])).body for _ in range(3)]
            assert bodies == [b"hi yo"] * 3 and len(made) == 1
            made[0].close()
            await asyncio.sleep(0.05)
            assert (await client.send("GET", "/", [])).body == b"hi yo" and len(made) == 2
            await client.close()
            await asyncio.sleep(0.01)

    asyncio.run(play())


def test_an_engine_works_in_one_event_loop_after_another_and_nobody_complains(serve, caplog):
    async def several(seed: int) -> list[Group]:
        calls = [engines[0](Prompt(f"p{i}", chat=True), 1, stage="generate", seed=seed) for i in range(5)]
        return await asyncio.gather(*calls)

    engines = [engine_of(serve())]
    for seed in range(3):
        assert all(only(group).text for group in asyncio.run(several(seed)))
    assert len(engines[0].endpoint.client._sessions) == 1
    engines.clear()
    gc.collect()
    assert "Unclosed" not in caplog.text


Talk = Callable[[bytes], bytes]
"""What a server says to a request's head."""


def said(talk: Talk, job: Callable[[str], Awaitable[Any]]) -> Any:
    """The result of `job(host and port)` at a server that answers as `talk` says and then closes the connection."""

    async def play() -> Any:
        async def answer(reader, writer):
            writer.write(talk(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            return await job(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")

    return asyncio.run(play())


async def got(url: str, method: str = "GET", headers: Any = ()) -> Any:
    """The answer to one request, or the error's class and words."""
    client = Client(url)
    try:
        return await client.send(method, "/v1", headers)
    except (Broken, Unreachable) as error:
        assert error.__cause__ is error.__context__ is None  # aiohttp's error would hold the headers
        return type(error), str(error)
    finally:
        await client.close()


def test_a_zipped_body_is_read_and_a_redirect_is_not_followed():
    body = gzip.compress(b"hello")
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nX-Y: z\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    answer = said(lambda _: head + body, lambda at: got(f"http://{at}"))
    assert (answer.status, answer.body, answer.headers["x-y"]) == (200, b"hello", "z")
    moved = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    assert said(lambda _: moved, lambda at: got(f"http://{at}")).status == 302


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (b"", "the connection ended before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "the connection ended before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + b"x" * 99, "the answer is longer than 50 bytes"),
        (b"HTTP/1.1 two OK\r\n\r\n", "broken answer: "),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nhalf", "broken answer: "),
    ],
)
def test_what_is_no_whole_answer_is_broken(monkeypatch, talk, words):
    monkeypatch.setattr("paragator.engines.http.client.MOST_BYTES", 50)
    kind, text = said(lambda _: talk, lambda at: got(f"http://{at}", headers=[("authorization", Secret(KEY))]))
    assert kind is Broken and text.startswith(words) and KEY not in text and "\n" not in text


def test_too_many_open_files_is_said_so(serve):
    engine = engine_of(serve())
    ask(engine)

    async def job() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await engine(CHAT, 1, stage="generate", seed=1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await engine.close()

    with pytest.raises(UsageError, match=r"lower engine\.max_in_flight, or raise the limit with ulimit -n"):
        asyncio.run(job())


def test_a_proxy_of_the_environment_is_used_except_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:pass@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert Client("http://127.0.0.1:1/v1").proxy is None and Client("http://inside.example/v1").proxy is None
    assert Client("http://outside.example/v1").proxy.hostname == "proxy.example"
    assert Client("https://outside.example/v1").proxy is None
    monkeypatch.setenv("all_proxy", "proxy.example:1")
    assert Client("https://outside.example/v1").proxy.port == 1


def test_a_proxy_of_another_kind_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("https_proxy", "socks5://me:pass@127.0.0.1:9")
    with pytest.raises(
        UsageError, match=r"socks5:// proxy for outside\.example, .* set HTTPS_PROXY .* or add .* to NO_PROXY"
    ) as no:
        OpenAI("https://outside.example/v1")
    assert "pass@" not in str(no.value) and OpenAI("https://localhost/v1").endpoint.client.proxy is None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def play() -> Any:
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            writer.close()

        async with await asyncio.start_server(answer, "localhost", 0, ssl=context) as server:
            url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
            refused = await got(url)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            return refused, (await got(url)).body

    (kind, words), body = asyncio.run(play())
    assert kind is Unreachable and words.startswith("its certificate cannot be trusted: self") and body == b"ok"


def test_tls_goes_through_a_proxy_that_may_refuse(monkeypatch):
    heads: list[bytes] = []

    def refuse(head: bytes) -> bytes:
        heads.append(head)
        return b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"

    async def job(at: str) -> Any:
        monkeypatch.setenv("https_proxy", f"http://me:pass@{at}")
        return await got("https://outside.example/v1", headers=[("authorization", Secret(KEY))])

    assert said(refuse, job) == (Unreachable, "the proxy refused to connect (http 403)")
    assert heads[0].startswith(b"CONNECT outside.example:443 HTTP/1.1\r\n") and KEY.encode() not in heads[0]
    assert b"\r\nproxy-authorization: basic bwu6cgfzcw==\r\n" in heads[0].lower()


def test_a_request_through_a_proxy_names_its_server_in_full(monkeypatch):
    async def play() -> bytes:
        heads = []

        async def answer(reader, writer):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}")
            client = Client("http://outside.example:81/v1")
            assert (await client.send("GET", "/v1/models", [])).body == b"ok"
            await client.close()
        return heads[0]

    head = asyncio.run(play())
    assert head.startswith(b"GET http://outside.example:81/v1/models HTTP/1.1\r\n")
    assert b"\r\nproxy-authorization: basic bwu6cgfzcw==\r\n" in head.lower()
