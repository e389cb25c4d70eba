"""What is thinking and what is answer, in every form in which models mark it; and markers that reach a text or must not vanish."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from paragator.config import EngineConfig
from paragator.core.thinking import PAIRS, opened_by, strip_thinking
from paragator.core.types import Prompt, Stage
from paragator.engines.encoding import decode, encode, open_thinking
from paragator.engines.sampling import Sampling
from paragator.grading.decide import decide
from paragator.runs.servers import servers_of

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" plain ", "plain"),
        ("<think>a\nb</think>\n\nanswer", "answer"),
        ("<think>a</think>x<think>b</think>y", "xy"),
        ("<think>never ends, boxed 5", ""),
        ("<think>a</think>4 <think>or is it", ""),
        ("opened in the prompt</think> answer", "answer"),
        ("<think></think>", ""),
        ("", ""),
        ("</think>", ""),
        ("<THINK>a</Think>b", "b"),
        ("<think>a <think>b</think> c</think>d", "d"),
        ("<think>a <think> again b</think>d", "d"),
        ("<think>a <think>b</think> c <think> d", ""),
        ("<thought>a</thought>b", "b"),
        ("<thinking>a</think>b</thinking>c", "c"),
        ("<seed:think>a</think>b", ""),
        ("[THINK]a[/THINK]b", "b"),
        ("[THINK]a", ""),
        ("a[/THINK]b", "b"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7b", "b"),
        ("\u25c1think\u25b7a", ""),
        ("<|START_THINKING|>a<|END_THINKING|>b", "b"),
        ("<|channel>thought\na<channel|>b", "b"),
        (f"{ANALYSIS}a<|end|><|start|>assistant{FINAL}b<|return|>", "b"),
        (f"{ANALYSIS}a<|end|><|start|>assistant{FINAL}b", "b"),
        (f"{ANALYSIS}a", ""),
        (f"{ANALYSIS}a<|end|>", ""),
        (f"a<|end|><|start|>assistant{FINAL}b", "b"),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary to=x <|constrain|>json<|message|>c<|call|>", ""),
        (
            f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|><|start|>assistant{FINAL}b",
            "b",
        ),
        ("analysisWe have 5.assistantfinalIt is 6.", "It is 6."),
        ("analysisWe have 5 so", ""),
        ("analysis of the problem gives 5", "analysis of the problem gives 5"),
        ("The answer is 5<|end|>", "The answer is 5<|end|>"),
        # stray closing markers
        ("so 5.</think>", "so 5."),
        ("so 5. </think>\n<|im_end|>", "so 5.\n\n<|im_end|>"),
        ("<think>a</think>so 5.</think>", "so 5."),
        ("<think>a</think>so 5.</think> Thanks.", "so 5.\n\nThanks."),
        ("a</think>so 5.</think>", "so 5."),
        ("<think>a</think>so \\boxed{5}.</think> See page 3.", "so \\boxed{5}.\n\nSee page 3."),
        ("<think>a</think> 9 F none </think> 9 * 4 = 36", "9 * 4 = 36"),
        ("<think>a</think>\\boxed{4}?</think>\\boxed{5}", "\\boxed{5}"),
        ("[THINK]a[/THINK]so 5.[/THINK]", "so 5."),
        # prose about a marker
        ("Write `<think>` before it: 5", "Write `<think>` before it: 5"),
        ('The tag "</think>" ends it: 5', 'The tag "</think>" ends it: 5'),
        ("<think>a `</think>` b</think>c", "c"),
        ("I think <b>5</b> [1]", "I think <b>5</b> [1]"),
    ],
)
def test_strip_thinking(text: str, shown: str) -> None:
    assert strip_thinking(text) == shown


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_the_answer_stands_outside_every_kind_of_thinking(opening: str, closing: str) -> None:
    thought = f"{opening}first \\boxed{{5}}, no"
    assert decide(f"{thought}{closing}\\boxed{{6}}", "6").verdict == "correct"
    assert decide(f"{thought}{closing}\\boxed{{6}}{closing}", "6").verdict == "correct"
    assert decide(f"{thought}{closing}\\boxed{{6}}", "5").verdict == "incorrect"
    assert decide(thought, "5").verdict == "incorrect"
    assert decide(f"{thought}{closing}", "5").verdict == "incorrect"
    assert decide(f"{thought[len(opening) :]}{closing}\\boxed{{6}}", "6").verdict == "correct"
    assert opened_by(f"<user>q<assistant>{opening}\n") == opening
    assert not opened_by(f"<assistant>{opening}\n\n{closing}\n\n")


@pytest.mark.parametrize(
    "flood", ["<think>", "</think>", "<think>a</think>", "<|channel|>", "[/THINK]`</think>`", "assistantfinal"]
)
def test_floods_take_one_pass(flood: str) -> None:
    assert len(strip_thinking(flood * 20_000)) <= 20_000 * len(flood)


class Tokenizer:
    """A token a character of "abc", with special tokens."""

    added_tokens_decoder: ClassVar = {
        7: SimpleNamespace(content="[THINK]", special=True),
        8: SimpleNamespace(content="[/THINK]", special=True),
        9: SimpleNamespace(content="</s>", special=True),
    }
    all_special_ids = (9,)
    chat_template = "yes"

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        shown = [i for i in ids if not skip_special_tokens or i not in self.added_tokens_decoder]
        return "".join(
            self.added_tokens_decoder[i].content if i in self.added_tokens_decoder else "abc"[i] for i in shown
        )

    def apply_chat_template(self, message: Any, enable_thinking: bool = True, **settings: Any) -> list[int]:
        assert settings == {"add_generation_prompt": True, "return_dict": False}
        return [0, 7] if enable_thinking else [0, 7, 8]


def test_markers_that_are_special_tokens_survive_decoding_and_other_special_tokens_do_not() -> None:
    assert decode(Tokenizer(), [7, 0, 8, 1, 9]) == "[THINK]a[/THINK]b"
    assert decode(Tokenizer(), [0, 1, 9]) == "ab"


def test_template_arguments_reach_the_template_and_open_thinking_is_seen() -> None:
    prompt, tokenizer = Prompt("q", chat=True), Tokenizer()
    assert open_thinking(tokenizer, encode(tokenizer, prompt)) == "[THINK]"
    assert open_thinking(tokenizer, encode(tokenizer, prompt, {"enable_thinking": False})) == ""


def test_servers_get_the_template_arguments_and_extra_body_has_the_last_word() -> None:
    sampling: dict[Stage, Sampling] = {"generate": Sampling(), "aggregate": Sampling()}
    config = EngineConfig(kind="openai", url="http://localhost:1/v1")
    assert servers_of(config, sampling, {"enable_thinking": False}).servers[0].extra_body == {
        "chat_template_kwargs": {"enable_thinking": False}
    }
    own = config.model_copy(update={"extra_body": {"chat_template_kwargs": {}, "x": 1}})
    assert servers_of(own, sampling, {"enable_thinking": False}).servers[0].extra_body == own.extra_body
    assert servers_of(config, sampling).servers[0].extra_body == {}
