"""Startup time: our import and commands, each in a new process, against importing TRL's GRPOTrainer.

python benchmarks/startup.py [--repeats 5]
"""

from __future__ import annotations

import os
import subprocess
import sys

import common

PEER = ("-c", "from trl import GRPOConfig, GRPOTrainer")
OURS = {
    "import paragator": ("-c", "import paragator"),
    "paragator --help": ("-m", "paragator", "--help"),
    "paragator train --dry-run": (
        "-m",
        "paragator",
        "train",
        str(common.ROOT / "configs" / "quickstart.toml"),
        "--dry-run",
    ),
}
HELD = "machine, interpreter and environment, files in the page cache; each a new process, until it ends"


def start(*words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first start compiles files for the others
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")


def main() -> int:
    flags = common.parser(__doc__).parse_args()
    sides = {name: lambda words=words: start(*words) for name, words in {**OURS, "peer": PEER}.items()}
    seconds = common.interleaved(sides, flags.repeats, within_s=flags.within)
    peer = f"import TRL {common.installed('trl')}'s GRPOTrainer"
    common.finish(flags, "startup", [common.case(name, seconds[name], peer, seconds["peer"], HELD) for name in OURS])
    return 0


if __name__ == "__main__":
    sys.exit(main())
