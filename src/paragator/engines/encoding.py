"""Tokenisation of prompts with the model's tokenizer, and whether they fit its context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paragator.core.errors import UsageError
from paragator.core.thinking import marks_thinking, opened_by
from paragator.core.types import Prompt

LAST_TOKENS = 16
"""Where a rendered prompt is searched for an opening marker of thinking."""


def encode(tokenizer: Any, prompt: Prompt, arguments: Mapping[str, Any] | None = None) -> list[int]:
    """Through the chat template with these arguments, or as plain text; UsageError where the tokenizer has no template."""
    if not prompt.chat:
        ids, end = list(tokenizer(prompt.text)["input_ids"]), getattr(tokenizer, "eos_token_id", None)
        appended = len(ids) > 1 and ids[-1] == end and not prompt.text.endswith(str(tokenizer.eos_token))
        return ids[:-1] if appended else ids  # nothing follows an end token: some tokenizers add one to every text
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            'the tokenizer has no chat template: set model.template = "compact", or use a tokenizer with a template'
        )
    message = [{"role": "user", "content": prompt.text}]
    settings = {"add_generation_prompt": True, **(arguments or {}), "return_dict": False}
    try:
        return list(tokenizer.apply_chat_template(message, **settings))
    except Exception as error:  # noqa: BLE001  (a template is a program of the model's: it may raise anything)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"the tokenizer's chat template fails: {reason}; correct it, or use another") from None


def open_thinking(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """The opening marker with which a prompt ends: a completion of it begins inside thinking. "" in most."""
    return opened_by(tokenizer.decode(list(prompt_ids[-LAST_TOKENS:])))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled tokens without special tokens, except those that mark thinking."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {id_ for id_ in set(ids) & added.keys() if added[id_].special}
    if not any(marks_thinking(added[id_].content) for id_ in special):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    special |= {*tokenizer.all_special_ids}
    kept = [id_ for id_ in ids if id_ not in special or (id_ in added and marks_thinking(added[id_].content))]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def misfit(prompt_tokens: int, max_tokens: int, context: int | None) -> str | None:
    """Why a prompt of this length cannot be sampled in a context of so many tokens (None: unknown), or None."""
    if prompt_tokens == 0:
        return "the prompt has no tokens"
    if context is not None and prompt_tokens + max_tokens > context:
        return f"prompt of {prompt_tokens} tokens plus max_tokens {max_tokens} exceeds the context of {context}"
    return None
