"""Runs command lines of paragator and python, each in a fork of this process, which has imported what takes seconds.

PYTHON tests/forked.py    one JSON object a line: words, folder, output (a file for both streams); answers: exit codes
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

IMPORTED = (
    "accelerate",
    "matplotlib.pyplot",
    "transformers.models.llama.modeling_llama",
    "paragator.aio",
    "paragator.cli.eval",
    "paragator.engines.local.proof",
    "paragator.report.page",
    "paragator.training.policy",
    "paragator.training.proof",
)


def main() -> None:
    sys.path[0] = str(Path(sys.executable).parent)  # where a command line's own path begins
    for name in IMPORTED:
        __import__(name)
    gc.freeze()
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            code = ended(json.loads(line))
            threading._shutdown()  # type: ignore[attr-defined]  # all that an exit does, but for taking the modules apart
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def ended(order: dict[str, Any]) -> int:
    """Be a command until it ends; its exit code."""
    try:
        become(order)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  (as any process that ends by one)
        traceback.print_exc()
        return 1
    return 0


def become(order: dict[str, Any]) -> None:
    """Be the command: its folder, its streams, its arguments."""
    os.chdir(order["folder"])
    out = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, stream in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
        os.dup2(source, stream)
    program, *words = order["words"]
    if program == "paragator":
        from paragator.cli.main import main as command

        sys.argv = [program, *words]
        command()
        return
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent) if words[0] != "-c" else ""
    if words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})  # noqa: S102  (our own pages)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
