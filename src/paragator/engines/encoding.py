"""A prompt's token ids, as the model's own tokenizer makes them."""

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
