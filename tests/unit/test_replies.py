"""What servers say, in the words of many: errors, prompts that are too long, refused fields, finish reasons, counts, models."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure
from paragator.engines.http.choices import completion_of, usage_of, why_lost
from paragator.engines.http.client import Answer, unzipped
from paragator.engines.http.endpoint import Again, Endpoint, Limits, Refused
from paragator.engines.http.openai import OpenAI
from paragator.engines.http.replies import Trouble, held_in, trouble_in
from paragator.engines.http.server import listed, refused_field
from paragator.runs.resolve import check_engine
from paragator.runs.servers import servers_of
from paragator.settings import validate


def trouble_of(status: int, body: Any) -> Trouble | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return trouble_in(Answer(status, {}, data), held_in(data))


def meaning(status: int, body: Any) -> Exception:
    data = json.dumps(body).encode()
    trouble = trouble_of(status, body)
    assert trouble is not None
    endpoint = Endpoint("http://a/v1")
    endpoint.good = 1
    return endpoint.meaning(trouble, Answer(status, {}, data))


# ---- errors in bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected", "said"),
    [
        (200, {"error": {"message": "slow", "code": 429}}, 429, "slow"),
        (200, {"error": {"message": "slow", "code": "429"}}, 429, "slow"),
        (200, {"error": {"message": "slow", "type": "rate_limit_error"}}, 429, "slow"),
        (200, {"error": {"message": "x", "code": "insufficient_quota"}}, 429, "x"),
        (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}, 503, "Overloaded"),
        (200, {"error": {"message": "x", "status": "RESOURCE_EXHAUSTED"}}, 429, "x"),
        (200, {"error": {"message": "x", "status": "UNAVAILABLE"}}, 503, "x"),
        (200, {"error": "Too Many Requests"}, 429, "Too Many Requests"),
        (200, {"error": "Model is loading, try again"}, 503, "Model is loading, try again"),
        (200, {"error": {"message": "Internal server error"}}, 500, "Internal server error"),
        (200, {"error": {"message": "upstream timed out", "code": None}}, 503, "upstream timed out"),
        (200, {"error": {"message": "model 'x' not found"}}, 404, "model 'x' not found"),
        (200, {"error": {"message": "invalid request"}}, 400, "invalid request"),
        (200, {"error": {"message": "Invalid API key"}}, 401, "Invalid API key"),
        (200, {"error": True, "message": "busy"}, 503, "busy"),
        (200, {"errors": [{"message": "throttled"}]}, 429, "throttled"),
        (200, [{"error": {"code": 503, "message": "later"}}], 503, "later"),
        (200, {"object": "error", "message": "too short", "code": 400}, 400, "too short"),
        (200, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 503, "Overloaded"),
        (200, {"code": 20012, "message": "Model does not exist.", "data": None}, 404, "Model does not exist."),
        (200, {"code": "Throttling.RateQuota", "message": "x", "request_id": "r"}, 429, "x"),
        (200, {"choices": [{"text": "a"}], "error": {"code": 502, "message": "died"}}, 502, "died"),
        (200, {"error": {"message": "who knows"}}, 200, "who knows"),
        (500, {"error": {"message": "bad", "code": 400}}, 400, "bad"),
        (400, {"error": {"message": "slow", "code": 429}}, 429, "slow"),
        (400, {"error": {"message": "bad", "code": "rate_limit_exceeded"}}, 400, "bad"),
        (404, {"detail": "Not Found"}, 404, "Not Found"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "too large"}]}, 422, "body.n: too large"),
        (502, b"<html>Bad gateway", 502, "<html>Bad gateway"),
        (503, b"", 503, ""),
        (
            400,
            {"error": {"message": "Provider returned error", "metadata": {"raw": "the key"}}},
            400,
            "Provider returned error: the key",
        ),
    ],
)
def test_an_error_in_a_body_decides(status: int, body: Any, expected: int, said: str) -> None:
    trouble = trouble_of(status, body)
    assert trouble is not None
    assert (trouble.status, trouble.http, trouble.said) == (expected, status, said)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "an error"}]},
        {"choices": [{"text": "a"}], "error": None},
        {"choices": [{"text": "a"}], "error": {}},
        {"choices": [{"text": "a"}], "code": 0, "message": "ok"},
        {"choices": [{"text": "a"}], "error": "", "errors": []},
        {"status": "up"},
        "text",
        [],
        5,
        b"",
        b"not JSON",
        None,
    ],
)
def test_a_body_without_an_error_is_none(body: Any) -> None:
    assert trouble_of(200, body) is None


# ---- prompts that are too long ---------------------------------------------------------------------------------------

TOO_LONG = [
    (400, "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it"),
    (500, "Context size has been exceeded."),
    (500, "the prompt is too long for the context"),
    (400, "Invalid request: Your request exceeded model token limit: 131072"),
    (400, "Range of input length should be [1, 98304]"),
    (400, "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."),
    (400, "Please reduce the length of the messages or completion."),
    (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000"),
    (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1500 `inputs` tokens"),
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
    (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
    (400, "'max_tokens' is too large: 9000. This model's maximum context length is 8192 tokens"),
    (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
    (400, "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens)."),
    (400, "Requested token count exceeds the model's maximum context length of 4096 tokens."),
    (400, "The number of tokens to keep from the initial prompt is greater than the context length."),
    (400, "Reached context length of 4096 tokens with this model"),
    (400, "prompt is too long: 210000 tokens > 200000 maximum"),
    (400, "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
    (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
    (400, "too many tokens: total number of tokens in the prompt cannot exceed 4081"),
    (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    (400, "Input is too long for requested model."),
    (400, "Prompt exceeds max length"),
    (400, "context window exceeds limit"),
    (400, "prompt token count of 200000 exceeds the limit of 128000"),
    (413, "Request too large: the prompt is too large"),
    (200, "This endpoint's maximum context length is 4096 tokens."),
]


@pytest.mark.parametrize(("status", "text"), TOO_LONG)
def test_a_prompt_that_is_too_long_is_told_in_many_words(status: int, text: str) -> None:
    found = meaning(status, {"error": {"message": text}})
    assert isinstance(found, Refused) and str(found) == f"context length: {text}"


def test_a_code_may_say_that_a_prompt_is_too_long() -> None:
    for fields in ({"code": "context_length_exceeded"}, {"type": "exceed_context_size_error"}):
        assert str(meaning(400, {"error": {"message": "No.", **fields}})) == "context length: No."


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "max_tokens must be at least 1"),
        (400, "max_tokens is too large: 100000. This model supports at most 4096 completion tokens"),
        (400, "stop must hold at most 4 sequences"),
        (400, "temperature must be at most 2"),
        (400, "Unknown field: seed"),
        (422, "prompt must be a string"),
        (400, "the model does not support logprobs"),
        (400, "n is too large"),
        (400, "Invalid value for 'messages': expected a list"),
        (413, "Request Entity Too Large"),
    ],
)
def test_other_refusals_are_not_about_length(status: int, text: str) -> None:
    assert str(meaning(status, {"error": {"message": text}})) == f"http {status}: {text}"


def test_a_limit_of_tokens_a_minute_is_tried_again() -> None:
    assert isinstance(meaning(429, {"error": {"message": "too many tokens per minute; context limit"}}), Again)


# ---- pauses ----------------------------------------------------------------------------------------------------------


def test_no_pause_is_a_busy_loop() -> None:
    endpoint = Endpoint("http://a/v1", limits=Limits(backoff_s=0.5))
    random.seed(1)
    for after in (1e-9, 0.001, 0.2):
        pauses = [endpoint.pause(Again("x", after=after), attempt) for attempt in range(1, 9)]
        assert min(pauses) >= 0.25 and all(pause == 1.0 for pause in pauses[3:])
    assert 7 <= endpoint.pause(Again("x", after=7.0), 1) <= 7.7
    assert sum(endpoint.pause(Again("x"), attempt) for attempt in range(1, 9)) >= 30


# ---- refused fields --------------------------------------------------------------------------------------------------

SENT = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "top_k")


@pytest.mark.parametrize(
    ("said", "named", "field"),
    [
        ("body.seed: Extra inputs are not permitted", ("seed",), "seed"),
        ("Extra parameters ['seed'] are not allowed when extra-parameters is 'error'", (), "seed"),
        ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', (), "seed"),
        ("property 'top_k' is unsupported", (), "top_k"),
        ("unexpected keyword argument 'top_k'", (), "top_k"),
        ("Unrecognized request argument supplied: top_k", (), "top_k"),
        ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", (), "top_p"),
        ("Unsupported parameter: 'top_p' is not supported with this model.", ("top_p",), "top_p"),
        (
            "'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
            (),
            "temperature",
        ),
        ("invalid temperature: only 1 is allowed for this model", (), "temperature"),
        ("`temperature` may only be set to 1 when thinking is enabled.", (), "temperature"),
        ("`temperature` is deprecated for this model.", (), "temperature"),
        ("Unsupported parameter: 'max_tokens' is not supported.", (), "max_tokens"),
        ("This model does not support seed; remove it", (), "seed"),
        ("additional properties are not allowed: 'seed' was unexpected", (), "seed"),
        ("temperature must be at most 1", (), None),
        ("Invalid parameter: seed must be between 0 and 2147483647", ("seed",), None),
        ("Unsupported: max_tokens is out of range", (), None),
        ("the model is not supported", (), None),
        ("unknown field 'logprobs'", ("logprobs",), None),
        ("unsupported seeds", (), None),
        ("bad request", ("seed",), None),
    ],
)
def test_a_refused_field_is_found_and_a_refused_value_is_not(
    said: str, named: tuple[str, ...], field: str | None
) -> None:
    assert refused_field(said, named, SENT) == field
    assert refused_field(said, named, ("model", "messages")) is None


def test_fields_are_left_out_from_the_start() -> None:
    values = {"engine": {"kind": "openai", "url": "http://a/v1", "omit": ["seed", "top_p", "n", "max_tokens"]}}
    engine = servers_of(validate(Config, values).engine, {})
    (server,) = engine.servers
    assert server.without == {"seed", "top_p", "n", "max_tokens"} and not server.takes_n and server.extra_body == {}
    with pytest.raises(UsageError, match=r"engine\.omit"):
        validate(Config, {"engine": {"omit": ["messages"]}})
    with pytest.raises(UsageError, match="extra_body sets n:"):
        OpenAI("http://a/v1", extra_body={"n": 2})


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_tokens"])
def test_training_leaves_out_nothing_that_changes_what_is_sampled(name: str) -> None:
    values = {"engine": {"kind": "vllm", "url": "http://a/v1", "omit": ["seed", name]}}
    with pytest.raises(UsageError, match=f"engine.omit leaves out {name}: training needs"):
        check_engine(validate(Config, values), training=True)
    values["engine"]["omit"] = ["seed", "n"]
    check_engine(validate(Config, values), training=True)


# ---- choices ---------------------------------------------------------------------------------------------------------


def completed(choice: dict[str, Any]) -> Completion | Failure:
    return completion_of({"message": {"content": "4"}, **choice}, None, None, str)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((word, "stop") for word in ("stop", "STOP", "Stop", "COMPLETE", "completed", "", None, "eos", "EOS_TOKEN")),
        *(
            (word, "stop")
            for word in ("end_turn", "END_TURN", "stop_sequence", "FINISH_REASON_STOP", "FinishReason.STOP")
        ),
        *(
            (word, "stop")
            for word in ("eos-token", " stop ", "<|endoftext|>", "finished", {"type": "stop", "matched": 2})
        ),
        *(
            (word, "length")
            for word in ("length", "LENGTH", "MAX_TOKENS", "max_output_tokens", "model_length", "max_new_tokens")
        ),
        *(
            (word, "length")
            for word in ("max_length", "Max Tokens", "MAX_TOKEN", "token_limit", "FINISH_REASON_MAX_TOKENS")
        ),
        *((word, "cancelled") for word in ("abort", "ABORTED", "canceled", "cancelled")),
    ],
)
def test_finish_reasons_in_every_spelling(reason: Any, finish: str) -> None:
    assert completed({"finish_reason": reason}) == Completion("4", finish)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reason",
    ["content_filter", "SAFETY", "RECITATION", "tool_calls", "function_call", "PROHIBITED_CONTENT", ["stop"], 7],
)
def test_other_finish_reasons_are_failures(reason: Any) -> None:
    found = completed({"finish_reason": reason})
    assert isinstance(found, Failure) and "the server ended this completion, not the model" in found.reason


@pytest.mark.parametrize(
    "reason", ["error", "ERROR", "network_error", "insufficient_system_resource", "server_error", "timeout"]
)
def test_lost_completions_are_asked_again_unless_a_sibling_came(reason: str) -> None:
    lost = {"finish_reason": reason, "message": {"content": ""}}
    assert why_lost({"choices": [lost]}) == f"finish reason {reason.lower()!r}: the server lost this completion"
    assert why_lost({"choices": [lost, {"finish_reason": "stop"}]}) is None
    found = completed(lost)
    assert isinstance(found, Failure) and "lost" in found.reason


@pytest.mark.parametrize(
    ("error", "again"),
    [
        ({"code": 502}, True),
        ({"code": 429}, True),
        ({"message": "overloaded"}, True),
        ({"code": 400}, False),
        ("bad", False),
    ],
)
def test_an_error_in_place_of_a_choice(error: Any, again: bool) -> None:
    choice = {"error": error, "finish_reason": "error" if again else "stop", "message": {"content": "4"}}
    assert (why_lost({"choices": [choice]}) is not None) == again
    assert isinstance(completed(choice), Failure)


THINK = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}]


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": None, "reasoning_content": "so 4"}, "stop", Completion("so 4")),
        ({"content": "", "reasoning": "so 4"}, "STOP", Completion("so 4")),
        ({"content": "\n\n", "reasoning_content": "so 4"}, None, Completion("so 4")),
        ({"content": [], "reasoning_content": "so 4"}, "stop", Completion("so 4")),
        ({"reasoning_content": "so 4"}, "stop", Completion("so 4")),
        (
            {"content": None, "reasoning_details": [{"type": "reasoning.text", "text": "so 4"}]},
            "stop",
            Completion("so 4"),
        ),
        ({"content": None, "reasoning_content": "so"}, "length", Completion("", "length", thinking="so")),
        ({"content": "", "reasoning_content": "so"}, "abort", Completion("", "cancelled", thinking="so")),
        ({"content": "4", "reasoning_content": "so"}, "stop", Completion("4", thinking="so")),
        ({"content": "4", "reasoning_content": ""}, "stop", Completion("4")),
        ({"content": THINK}, "stop", Completion("4", thinking="hm")),
        ({"content": THINK[:1]}, "length", Completion("", "length", thinking="hm")),
        ({"content": THINK[:1]}, "stop", Completion("hm")),
        ({"content": ["a", {"text": "b"}]}, "stop", Completion("ab")),
        ({"content": {"type": "text", "text": "4"}}, "stop", Completion("4")),
        ({"content": ""}, "stop", Completion("")),
    ],
)
def test_text_and_thinking_wherever_they_are(message: dict[str, Any], finish: Any, expected: Completion) -> None:
    assert completed({"message": message, "finish_reason": finish}) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 7}, (10, 7)),
        ({"prompt_tokens": 10.0, "completion_tokens": "7"}, (10, 7)),
        ({"prompt_tokens": " 10 ", "completion_tokens": 0}, (10, 0)),
        ({"input_tokens": 10, "output_tokens": "7"}, (10, 7)),
        ({"prompt_tokens": None, "completion_tokens": 7}, (None, 7)),
        ({"prompt_tokens": -1, "completion_tokens": 7.5}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": "many"}, (None, None)),
        ({"prompt_tokens": [10], "completion_tokens": {}}, (None, None)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, (None, None)),
        ({"prompt_tokens": "²", "completion_tokens": "1e3"}, (None, None)),
        *((odd, (None, None)) for odd in ({}, None, [], "10", 7)),
    ],
)
def test_usage_in_every_form(usage: Any, expected: tuple[int | None, int | None]) -> None:
    assert usage_of({"usage": usage}) == expected == usage_of({"usage": usage, "choices": []})
    assert usage_of({}) == (None, None)


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ([{"id": "a"}, {"id": "b"}], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ({"data": ["a"]}, ["a"]),
        ({"models": [{"name": "a"}]}, ["a"]),
        ({"models": [{"model": "a", "details": {}}]}, ["a"]),
        ({"models": ["a"]}, ["a"]),
        ({"data": {"a": {}, "b": {"id": "c"}}}, ["a", "c"]),
        ({"data": [{"id": ""}, {"id": None}, {"x": 1}, None, 0, {"id": "a"}]}, ["a"]),
        *((odd, []) for odd in ({}, [], None, "a", 5, {"data": None}, {"data": 5}, {"error": "x"}, [[1]])),
    ],
)
def test_models_listed_in_every_form(body: Any, ids: list[str]) -> None:
    assert [row["id"] for row in listed(json.dumps(body).encode())] == ids


@pytest.mark.parametrize("body", [b"{}", b"", b"\x1f\x8b", b"\x1f\x8bnot zipped at all"])
def test_what_is_not_zipped_stays_as_it_is(body: bytes) -> None:
    assert unzipped(body) in (body, b"")
