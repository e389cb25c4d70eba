"""`paragator compare RUN...`: runs side by side, as tables and pictures."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from paragator.cli.main import parse, parser_for, wide
from paragator.core.errors import UsageError
from paragator.results import WIDTH

if TYPE_CHECKING:
    from paragator.stats.compare import Comparison
    from paragator.study.results import Results

EPILOG = """\
A run directory holds one evaluation of one task. Runs of one task are a benchmark, and must be on the same problems;
runs of one method (or --label) are a row, and its runs of one benchmark are seeds, which are averaged.

  paragator compare runs/base-aime runs/base-hmmt runs/para-aime runs/para-hmmt
  paragator compare a-0 a-1 b-0 b-1 --label a --label a --label b --label b --format latex > table.tex

A folder that `paragator study` left is compared as a study: its primary outcome, tables, metrics and pictures go to
--output (by default where the study puts them); several are studies of the same cells on different tasks. With --table
or --format a table is printed, and nothing is written without --output.

--figures DIR draws the figures of a paper from runs, from a study, or from the folder of a study's results alone: each as
PDF and PNG with its data as CSV, and the main table as LaTeX. A figure without data is left out, and a line says why.

tables: main (initial pass@1 and pass@k, pass@1 of each aggregation round), rounds (every measure by round), bars
(initial, majority, aggregation), temperature (by generate.temperature), differences (each row minus the first);
without --table, main and the differences in pass@1."""


def main(arguments: list[str]) -> int:
    parser = parser_for("compare")
    parser.epilog = EPILOG
    parser.add_argument("runs", nargs="+", help="run directories; differences are to the first row")
    parser.add_argument("--label", action="append", default=[], help="a run's row, once a run in their order")
    parser.add_argument("--k", type=int, help="k of pass@k and maj@k (default 4)")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), help="of the tables (default text)")
    tables = ("main", "rounds", "bars", "temperature", "differences")
    parser.add_argument("--table", choices=tables, default="", help="one table instead of main and differences")
    parser.add_argument("--output", default="", help="folder for the pictures (default ./comparison)")
    parser.add_argument("--figures", default="", metavar="DIR", help="write a paper's figures there, and nothing else")
    parser.add_argument(
        "--style", choices=("column", "wide"), help="of the figures: one column or two (default column)"
    )
    flags, rest = parse(wide(parser), arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator compare --help")
    if flags.json and (flags.table or flags.format):
        raise UsageError("--json prints all tables as numbers; leave --table and --format out, or --json")
    from paragator.core.text import printable
    from paragator.report.compare import check_folder, draw
    from paragator.stats.compare import compare
    from paragator.study.finished import is_study

    paths = [Path(run) for run in flags.runs]
    if flags.figures or flags.style:
        return figures(paths, flags)
    if any(map(is_study, paths)):
        return compare_studies(paths, flags)
    only_text = bool(flags.table or flags.format) and not flags.output
    if not only_text:
        check_folder(Path(flags.output or "comparison"))
    found = compare(paths, 4 if flags.k is None else flags.k, flags.label)
    text = "" if flags.json else as_text(found, flags)
    if only_text:
        print(printable(text))
        return 0
    drawn, missing = draw(found, Path(flags.output or "comparison"))
    if flags.json:
        print(json.dumps({**found.to_dict(), "pictures": [str(path) for path in drawn], "not_drawn": missing}))
        return 0
    print(printable(text))
    print("pictures: " + (", ".join(map(str, drawn)) or "none"), file=sys.stderr)
    for name, why in missing.items():
        print(f"not drawn: {name} ({why})", file=sys.stderr)
    return 0


def figures(paths: list[Path], flags: Namespace) -> int:
    """Write a paper's figures from what the paths hold."""
    from paragator.report.compare import check_folder
    from paragator.report.figures import FigureData, write_figures
    from paragator.stats.compare import compare
    from paragator.stats.written import is_written
    from paragator.study.finished import is_study
    from paragator.study.results import Results

    if not flags.figures:
        raise UsageError("--style is of --figures; name a folder for them, or leave it out")
    if odd := next((name for name in ("table", "format", "output") if getattr(flags, name)), ""):
        raise UsageError(f"--{odd} is for tables; leave it or --figures out")
    check_folder(Path(flags.figures))
    if all(map(is_study, paths)):
        found = Results(paths)
        numbers = FigureData.of(found.whole, found.temperatures(), found.trained())
    elif len(paths) == 1 and is_written(paths[0]):
        numbers = FigureData.read(paths[0])
    else:
        numbers = FigureData.of(compare(paths, 4 if flags.k is None else flags.k, flags.label))
    written, missing = write_figures(numbers, Path(flags.figures), flags.style or "column")
    if flags.json:
        print(json.dumps({"figures": [str(path) for path in written], "not_drawn": missing}))
        return 0
    print(f"figures: {', '.join(path.name for path in written)} in {flags.figures}")
    for name, needs in missing.items():
        print(f"left out: {name}, which needs {needs}", file=sys.stderr)
    return 0


def as_text(found: Comparison, flags: Namespace) -> str:
    """Tables in the form that is wanted; text within 80 columns, or --wide."""
    if flags.format in (None, "text"):
        return found.text(flags.table, None if flags.wide else WIDTH)
    return str(getattr(found, flags.format)(flags.table))


def study_as_text(found: Results, flags: Namespace) -> str:
    """The same of a study: its primary outcome, or one table of all its cells."""
    from paragator.stats.sheet import to_csv

    width = None if flags.wide else WIDTH
    if not flags.table and flags.format in (None, "text"):
        return found.primary_text(width)
    sheets, form = found.whole.sheets(flags.table) if flags.table else found.primary_sheets(), flags.format
    if form == "csv":
        return to_csv(sheets).rstrip("\n")
    if form == "latex":
        return "\n\n".join([*(f"% {note}" for note in found.notes()), *(sheet.latex() for sheet in sheets)])
    notes = " ".join(found.notes())
    if form == "markdown":
        return "\n\n".join([*(sheet.markdown() for sheet in sheets), notes])
    return "\n\n".join([*(sheet.folded(width) for sheet in sheets), fill(notes, WIDTH)])


def compare_studies(paths: list[Path], flags: Namespace) -> int:
    """Write the results of one study, or of several with their average."""
    from paragator.core.text import printable
    from paragator.stats.runs import read_json
    from paragator.study.finished import NOTE, is_study
    from paragator.study.output import write_results
    from paragator.study.results import Results

    if other := next((path for path in paths if not is_study(path)), None):
        raise UsageError(
            f"{other} is not a study, {next(filter(is_study, paths))} is; compare runs or studies, not both"
        )
    if odd := "--label" if flags.label else "--k" if flags.k is not None else "":
        raise UsageError(f"{odd} is for runs; a study names its cells and its k")
    if (flags.table or flags.format) and not flags.output:
        print(printable(study_as_text(Results(paths), flags)))
        return 0
    own = read_json(paths[0] / NOTE).get("results") if len(paths) == 1 else "comparison"
    output = Path(flags.output or own or paths[0] / "results")
    found = write_results(paths, output)
    if flags.json:
        print(json.dumps({"results": str(output), "primary": found.primary_rows()}))
        return 0
    print(printable(study_as_text(found, flags)))
    print(f"results: {output}", file=sys.stderr)
    return 0
