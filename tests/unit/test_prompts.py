"""A template is data: only its own fields are filled, once, and text that goes in is never read again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragator.core.errors import UsageError
from paragator.core.prompts import BUILTIN, CHAT, COMPACT, Templates, fill
from paragator.core.types import Problem, Prompt

FIELDS = st.sampled_from(["{problem}", "{attempts}", "{attempt}", "{label}", "{number}", "{", "}", "{{x}}", "%s", "\\"])
hostile = st.lists(st.one_of(FIELDS, st.text("ab {}é\n", max_size=4)), max_size=8).map("".join)


def test_the_order_of_attempts_is_kept_and_they_are_labelled() -> None:
    assert COMPACT.for_aggregation(Problem("p", "1+1"), ["x", "y"]) == Prompt("1+1\nA x\nB y\nreview:")
    assert COMPACT.for_candidate(Problem("p", "1+1")) == Prompt("1+1\nsolve:")
    numbered = Templates("{problem}", "{problem}|{attempts}", "{number}={attempt};")
    assert numbered.for_aggregation(Problem("p", "P"), ["x", "y"]).text == "P|1=x;2=y;"


def test_chat_templates_make_chat_prompts() -> None:
    assert CHAT.for_candidate(Problem("p", "P")).chat
    prompt = CHAT.for_aggregation(Problem("p", "P"), ["x"])
    assert prompt.chat
    assert "<attempt>\nx\n</attempt>" in prompt.text
    assert "{" not in prompt.text.replace("\\boxed{}", "")


@settings(deadline=None, max_examples=100)
@given(hostile, st.lists(hostile, min_size=1, max_size=4))
def test_inserted_text_is_never_interpreted(problem: str, attempts: list[str]) -> None:
    for templates in BUILTIN.values():
        before, after = templates.candidate.split("{problem}")
        assert templates.for_candidate(Problem("p", problem)).text == before + problem + after
    plain = Templates("{problem}", "<{problem}|{attempts}>", "({attempt})")
    expected = f"<{problem}|{''.join(f'({a})' for a in attempts)}>"
    assert plain.for_aggregation(Problem("p", problem), attempts).text == expected


def test_fill_replaces_known_fields_wherever_they_stand() -> None:
    assert fill("{a}{b}{a}-{c}-{", {"a": "{b}", "b": "{a}"}) == "{b}{a}{b}-{c}-{"
    assert fill("", {"a": "x"}) == ""
    assert fill("{0} {a.b} {a!r} {{a}}", {"a": "x"}) == "{0} {a.b} {a!r} {x}"


@pytest.mark.parametrize(
    ("templates", "says"),
    [
        (("no", "{problem}{attempts}", "{attempt}"), "'candidate' has no {problem}"),
        (("{problem}", "{attempts}", "{attempt}"), "'aggregation' has no {problem}"),
        (("{problem}", "{problem}", "{attempt}"), "'aggregation' has no {attempts}"),
        (("{problem}", "{problem}{attempts}", "no"), "'attempt' has no {attempt}"),
    ],
)
def test_a_template_without_its_fields_is_refused(templates: tuple[str, str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Templates(*templates)
    assert says in str(caught.value)
