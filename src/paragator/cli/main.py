"""The command line: one verb a file, imported when it is used. Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 130 interrupted."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import NoReturn

import paragator
from paragator.core.errors import ParagatorError, UsageError
from paragator.core.text import printable

PARTIAL, INTERRUPTED = 3, 130
"""Exit codes of what ended with some failures, and of what was stopped."""
VERBS = {
    "train": "train a model by a config, with an evaluation before and after and a report",
    "eval": "run iterated aggregation on held-out problems and print accuracy by round",
    "solve": "one problem, its rounds on screen, over any engine",
    "serve": "an OpenAI-compatible server that answers by rounds over any engine",
    "grade": "the verdict on one answer, or on every row of a JSONL file",
    "study": "methods by seeds, each run in a process of its own, and their comparison",
    "compare": "runs side by side: table and pictures",
    "sample": "write candidates of the initial model for offline_aggregation",
    "warmup": "make the embedded model from nothing by supervised learning",
    "report": "write a run's report.html again, or one page of several runs",
    "view": "the page, live: what runs do, with their rollouts, in the browser",
    "data": "list, check and show benchmarks and training sets",
    "plan": "tokens, seconds and cost of training on GPUs that are not here, by a stated model",
    "doctor": "what this machine and installation can do",
}


class Parser(ArgumentParser):
    """Errors as UsageError, so that they look like every other one."""

    def flags(self) -> set[str]:
        return {flag for action in self._actions for flag in action.option_strings}

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see paragator {' '.join(self.prog.split()[1:])} --help".replace("  ", " "))


def parser_for(verb: str) -> Parser:
    """A verb's parser with the flags that all share."""
    parser = Parser(prog=f"paragator {verb}", description=VERBS[verb], formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--debug", action="store_true", help="a traceback instead of one line")
    return parser


def run_parser(verb: str) -> Parser:
    """The parser of a verb that works in a run directory."""
    parser = parser_for(verb)
    parser.add_argument("config", nargs="?", help="a TOML file; without one, the defaults")
    parser.add_argument(
        "--dry-run", action="store_true", help="check config, data, functions and packages; load no weights"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the run directory")
    parser.add_argument("--overwrite", action="store_true", help="delete the run directory first")
    return parser


def wide(parser: Parser) -> Parser:
    """The same of a verb that prints tables."""
    parser.add_argument("--wide", action="store_true", help="all tables with all columns, beyond 80")
    return parser


def help_text() -> str:
    verbs = "\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())
    return (
        f"paragator {paragator.__version__}: one language model that generates solutions and aggregates them\n\n"
        f"usage: paragator VERB ... [--section.key VALUE ...]\n\n{verbs}\n\n"
        "`paragator VERB --help` tells more. Config keys are set by dotted overrides, e.g. --optimizer.lr 1e-5."
    )


def run(arguments: list[str]) -> int:
    """Run one verb; returns its exit code, raises ParagatorError."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(paragator.__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        raise UsageError(f"unknown verb {verb!r}; {f'did you mean {close[0]}?' if close else 'see paragator --help'}")
    code: int = importlib.import_module(f"paragator.cli.{verb}").main(rest)
    return code


def main() -> NoReturn:
    """Entry point: one line for a deliberate error, a traceback only with --debug."""
    arguments = sys.argv[1:]
    if "--debug" not in arguments:
        warnings.formatwarning = one_line
    try:
        code = run(arguments)
    except ParagatorError as error:
        if "--debug" in arguments:
            raise
        complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
    except OSError as error:
        if "--debug" in arguments:
            raise
        complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        code = 1
    compute = sys.modules.get("paragator.engines.local.compute")  # not imported where nothing was computed
    if code == INTERRUPTED and compute and compute.busy():
        sys.stdout.flush()
        os._exit(code)  # an exit would wait for the computing thread; all else has been closed by now
    sys.exit(code)


def complain(text: str) -> None:
    """An error in one line without control characters: it may quote a data file."""
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)


def one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning in one line, without the place in the source, which says nothing to a user."""
    return f"warning: {printable(' '.join(str(message).split()))}\n"


def parse(parser: Parser, arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Known flags, and the rest as config overrides. An override takes the word after it, so no flag ever sees that."""
    known: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in parser.flags():
            known.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    return parser.parse_args(known), overrides
