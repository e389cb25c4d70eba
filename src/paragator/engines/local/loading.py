"""Models by name: facts that need no weights, a fingerprint, and the model with its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragator.config import ModelConfig
from paragator.core.errors import UsageError
from paragator.core.hub import hub_reached

EMBEDDED = Path(__file__).parents[2] / "embedded" / "countdown"
HASHED_BYTES, HASHED_OF_TENSOR = 2**24, 2**14


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model without loading it; None where only the hub knows."""

    context: int | None
    has_chat_template: bool | None
    fingerprint: str


def folder_of(config: ModelConfig) -> Path | None:
    """The local folder of a model, or None for a hub id. UsageError for a path that does not exist."""
    if config.path == "embedded":
        return EMBEDDED
    path = Path(config.path).expanduser()
    if path.is_dir():
        return path
    if config.path.startswith((".", "/", "~")) or config.path.count("/") != 1:
        raise UsageError(
            f'model.path = {config.path!r}: no such folder; use "embedded", a model folder or a hub id owner/name'
        )
    return None


def shape(config: ModelConfig) -> tuple[int | None, bool | None]:
    """A model's context, and whether its tokenizer has a chat template; None where only the hub knows. Reads JSON alone."""
    folder = folder_of(config)
    if folder is None:
        return None, None
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model.path = {config.path!r} holds no config.json; point it at a folder that save_pretrained wrote"
        )
    settings, tokenizer = read_json(folder / "config.json"), folder / "tokenizer_config.json"
    has_template = (folder / "chat_template.jinja").is_file() or (
        tokenizer.is_file() and "chat_template" in read_json(tokenizer)
    )
    return settings.get("max_position_embeddings"), has_template


def facts(config: ModelConfig) -> Facts:
    """Context, chat template and fingerprint of a model; reads JSON and hashes weights, imports no torch."""
    folder, known = folder_of(config), shape(config)
    if folder is None:
        return Facts(*known, f"{config.path}@{config.revision or 'main'}")
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for part in telling(file):
            digest.update(part)
    return Facts(*known, digest.hexdigest()[:16])


def telling(file: Path) -> Iterator[bytes]:
    """Bytes that identify weights: all of a small file; of a large one its header and the beginning of each tensor."""
    with file.open("rb") as handle:
        if file.stat().st_size <= HASHED_BYTES:
            yield handle.read()
            return
        size = int.from_bytes(handle.read(8), "little")
        header = handle.read(min(size, HASHED_BYTES))
        yield header
        try:
            spans = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
            for begin, end in sorted(spans):
                handle.seek(8 + size + begin)
                yield handle.read(min(HASHED_OF_TENSOR, end - begin))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UsageError(f"{file} is not a safetensors file ({error}); copy the model again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not JSON ({error}); copy the model again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a JSON object; copy the model again")
    return found


def load_model(config: ModelConfig, seed: int = 0) -> tuple[Any, Any]:
    """(model, tokenizer) in float32 with sdpa attention, on the configured device; LoRA adapters, drawn from `seed`, if asked for."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = folder_of(config)
    source = config.path if folder is None else str(folder)
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    options["local_files_only"] = alone = folder is None and not hub_reached()
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        settings = AutoConfig.from_pretrained(source, **options)
        settings._attn_implementation = "sdpa"  # whatever a training framework left there
        options |= {"config": settings, "dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        try:
            model, info = load(source, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = load(source, attn_implementation="eager", **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        gone = "the hub does not answer, and no copy of it is kept here; name a model folder, or try again later"
        reason = gone if alone else str(error).splitlines()[0]
        raise UsageError(f"model.path = {config.path!r} cannot be loaded: {reason}") from None
    check_loaded(config.path, model, tokenizer, sorted(info["missing_keys"]))
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, seed)
    return placed(model, config.device, "model.device"), tokenizer


def check_loaded(path: str, model: Any, tokenizer: Any, missing: Sequence[str]) -> None:
    """UsageError for weights that are not there, tokens without an embedding, and a model that never ends a completion."""
    if missing:
        raise UsageError(
            f"model.path = {path!r}: {len(missing)} tensors are missing from its weights, such as {missing[0]}, and would be "
            "random; copy the model again, or correct its config.json"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    extra = getattr(
        tokenizer, "added_tokens_decoder", {}
    )  # those that no plain text becomes; prompts are checked for them
    last = max((i for i in tokenizer.get_vocab().values() if i not in extra), default=-1)
    if last >= rows:
        raise UsageError(
            f"model.path = {path!r}: the tokenizer has tokens up to {last}, the model embeddings for {rows}: "
            "use the tokenizer that belongs to the model"
        )
    if not end_tokens(model, tokenizer):
        raise UsageError(
            f"model.path = {path!r} names no end token, so no completion would ever end: set eos_token_id in its "
            "generation_config.json"
        )


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion, as the model's generation settings, its config and the tokenizer name them."""
    found: list[int] = []
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or ())
    return tuple(dict.fromkeys(found))


def placed(model: Any, wanted: str, name: str) -> Any:
    """The model on the device that setting `name` wants; UsageError for one that is unknown, missing or too small."""
    try:
        return model.to(pick_device(wanted))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f'{name} = {wanted!r}: {reason}; use "auto", "cpu" or "cuda"') from None


def add_lora(model: Any, rank: int, seed: int = 0) -> Any:
    """The model with trainable adapters on every linear layer, the same for the same seed; its own weights frozen."""
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError(f"model.lora_rank = {rank} needs peft: pip install 'paragator[lora]'") from None
    with torch.random.fork_rng(devices=[]):  # other draws of this process stay as they are
        torch.manual_seed(seed % 2**63)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def pick_device(name: str) -> str:
    """The device behind "auto": cuda, else cpu. (mps has no float64, in which draws and statistics are computed.)"""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
