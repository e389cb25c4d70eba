"""Tokenisation of prompts with the model's tokenizer, and whether they fit its context."""

from __future__ import annotations

from typing import Any

from paragator.core.errors import UsageError
from paragator.core.types import Prompt


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Through the chat template, or as the tokenizer encodes plain text; UsageError where it has no template."""
    if not prompt.chat:
        return list(tokenizer(prompt.text)["input_ids"])
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            'the tokenizer has no chat template: set model.template = "compact", or use a tokenizer with a template'
        )
    message = [{"role": "user", "content": prompt.text}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))


def misfit(prompt_tokens: int, max_tokens: int, context: int | None) -> str | None:
    """Why a prompt of this length cannot be sampled in a context of so many tokens (None: unknown), or None."""
    if prompt_tokens == 0:
        return "the prompt has no tokens"
    if context is not None and prompt_tokens + max_tokens > context:
        return f"prompt of {prompt_tokens} tokens plus max_tokens {max_tokens} exceeds the context of {context}"
    return None
