"""Separates what a model thinks from what it answers, in every form in which models mark their thinking.

    tags      <think>...</think>, <thought>, <reason>, <reasoning>, <seed:think>, [THINK] (Magistral), Kimi's triangles, ...
    channels  <|channel|>analysis<|message|>...<|end|> (gpt-oss), and "analysis...assistantfinal...", which is left of them where
              a decoder dropped special tokens

A marker in quotes or backticks is prose about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

NAMES = (
    *("think", "thinking", "thought", "thoughts", "reason", "reasoning", "scratchpad"),
    *("seed:think", "longcat_think", "antthinking", "internal_thought"),
)
PAIRS = (
    *((f"<{name}>", f"</{name}>") for name in NAMES),
    ("[think]", "[/think]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|start_thinking|>", "<|end_thinking|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
)
"""Opening and closing markers, in lower case; models write them in either."""
OPENING = dict(PAIRS)
CLOSING = {closing: opening for opening, closing in PAIRS}
MARKER = re.compile("|".join(re.escape(marker) for pair in PAIRS for marker in pair), re.IGNORECASE)
QUOTES = {"`": "`", '"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u300c": "\u300d"}
HARMONY = re.compile(r"<\|(channel|message|start|end|return|call|constrain)\|>")
"""gpt-oss writes <|start|>role<|channel|>name<|message|>text<|end|>."""
LEFT_OF_HARMONY = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z0-9\"'\\$(*])")
FINAL = "assistantfinal"
BOX = r"\boxed"
END_TOKEN = re.compile(r"<[|\uff5c][^<>]{1,40}[|\uff5c]>|</[a-z:_]{1,40}>|<eos>|<end_of_turn>|\s+", re.IGNORECASE)
"""What a text may end with that says nothing: end tokens, closing tags and white space."""


def strip_thinking(text: str) -> str:
    """`text` without its thinking; "" when thinking never ends.

    Some chat templates open thinking in the prompt, so a lone closing marker ends thinking that began before the text. It
    is a stray one and only left out where nothing follows, or where thinking has closed and what follows is no answer.
    """
    if "<|channel|>" in text:
        return final_channel(text)
    if FINAL in text:
        return text.rpartition(FINAL)[2].strip()
    return "" if LEFT_OF_HARMONY.match(text) else without_tags(text)


def without_tags(text: str) -> str:
    """As `strip_thinking`, of text that marks thinking with tags."""
    shown: list[str] = []
    at, closed, skipped = 0, False, -1
    last_box = text.rfind(BOX)
    last_digit = max(map(text.rfind, "0123456789"))
    markers = list(unquoted(text))
    for index, (start, end, marker) in enumerate(markers):
        if index <= skipped:
            continue
        if marker in OPENING:
            last = block_end(markers, index)
            if last is None:
                return ""
            shown.append(text[at:start])
            at, skipped = markers[last][1], last
        elif not closed and END_TOKEN.sub("", text[end:]):
            shown, at = [], end
        elif closed and (last_box >= end or (last_digit >= end and BOX not in text[at:start])):
            shown, at = [], end  # an answer follows this one too, and the only box is not before it
        else:
            shown.append(text[at:start].rstrip() + "\n\n")
            at = end
        closed = True
    shown.append(text[at:])
    return (shown[0] + "".join(part.lstrip() for part in shown[1:])).strip()


def block_end(markers: Sequence[tuple[int, int, str]], first: int) -> int | None:
    """Which marker ends the thinking that `first` opens; None where it never ends.

    Thinking may mention or repeat its own opening marker: then the last closing one ends it.
    """
    opening, depth, last = markers[first][2], 0, None
    for index in range(first, len(markers)):
        marker = markers[index][2]
        if marker == opening:
            depth += 1
        elif marker == OPENING[opening]:
            depth, last = depth - 1, index
            if depth == 0:
                return index
    unfinished = last is None or any(marker == opening for _, _, marker in markers[last:])
    return None if unfinished else last


def unquoted(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, marker in lower case) of each marker that does not stand in quotes."""
    for match in MARKER.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if not before or QUOTES.get(before) != after:
            yield match.start(), match.end(), match[0].lower()


def final_channel(text: str) -> str:
    """The last message of gpt-oss's final channel; "" without one."""
    role, said = "", {"final": ""}
    parts = HARMONY.split(text)  # text before the first marker, name, text, name, text, ...
    for name, content in zip(parts[1::2], parts[2::2], strict=True):
        if name == "channel":
            role = content.split()[0] if content.split() else ""
        elif name == "message":
            said[role or "final"] = content
        elif name == "start":
            role = ""
    return said["final"].strip()


def opened_by(prompt: str) -> str:
    """The opening marker with which a rendered prompt ends, as it stands there; "" where thinking is not open."""
    end = prompt.rstrip()
    for opening in OPENING:
        if end[-len(opening) :].lower() == opening:
            return end[-len(opening) :]
    return ""


def marks_thinking(token: str) -> bool:
    """Whether a token is a marker, which has to survive decoding though it may be a special token."""
    return token.lower() in OPENING | CLOSING or HARMONY.fullmatch(token) is not None or token == "<|channel>"
