"""The files of a study's analysis: tables, metrics, pictures, and the configs that run it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from paragator.report import bars, plots
from paragator.report.canvas import Picture
from paragator.report.compare import check_folder, draw
from paragator.stats.runs import read_json
from paragator.stats.sheet import to_csv
from paragator.study.finished import CONFIG, NOTE, metrics_csv, runs_csv
from paragator.study.results import Results

BANDS = ("reward_by_step", "reward_by_tokens", "dead_zone")
"""The pictures of training, one each a benchmark."""


def write_results(folders: Sequence[Path], out_dir: Path) -> Results:
    """Write tables.md, tables.csv, runs.csv, metrics.csv, the pictures and every run's config.

    What an earlier analysis wrote there is replaced, anything else is left alone. DataError without a run, UsageError
    where `out_dir` cannot be written.
    """
    check_folder(out_dir)
    found = Results(folders)
    out_dir.mkdir(parents=True, exist_ok=True)
    clear(out_dir)
    drawn, _ = draw(found.whole, out_dir)
    names = dict.fromkeys(path.name for path in drawn)
    for name, data in pictures(found).items():
        if data is not None:
            (out_dir / name).write_bytes(data.png())
            names[name] = None
    sheets = found.sheets()
    text = "\n\n".join(
        [
            f"# {', '.join(Path(folder).name for folder in folders)}",
            *found.notes(),
            *(sheet.markdown() for sheet in sheets),
            *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in names),
        ]
    )
    (out_dir / "tables.md").write_text(text + "\n", encoding="utf-8")
    (out_dir / "tables.csv").write_text(to_csv(sheets), encoding="utf-8")
    (out_dir / "runs.csv").write_text(runs_csv(found.entries), encoding="utf-8")
    (out_dir / "metrics.csv").write_text(metrics_csv(found.entries), encoding="utf-8")
    copy_configs(found, out_dir)
    return found


def pictures(found: Results) -> dict[str, Picture | None]:
    """By file name."""
    out: dict[str, Picture | None] = {}
    for place in found.whole.benchmarks:
        methods = {row.label: [m for m in found.metrics(place, row.label) if m] for row in found.whole.rows}
        end = f"_{place.replace('/', '-')}.png" if len(found.whole.benchmarks) > 1 else ".png"
        steps, tokens, dead = (name + end for name in BANDS)
        out[steps] = plots.curves(methods)
        out[tokens] = plots.curves(methods, against="tokens")
        out[dead] = plots.curves(methods, panels=plots.DEAD_ZONE, ylabel="Groups without credit")
    if warm := found.temperatures():
        out["temperature.png"] = bars.temperatures(warm.warmth(), f"round {found.round}")
    return out


def clear(out_dir: Path) -> None:
    """Remove the pictures and configs of an earlier analysis, whose cells and tasks may have had other names."""
    for name in BANDS:
        for path in (out_dir / f"{name}.png", *out_dir.glob(f"{name}_*.png")):
            path.unlink(missing_ok=True)
    for note in [*(out_dir / "configs").glob(NOTE), *(out_dir / "configs").glob(f"*/{NOTE}")]:
        for path in (note, *note.parent.glob("*-seed*.toml")):
            path.unlink()
        if not any(note.parent.iterdir()):
            note.parent.rmdir()


def copy_configs(found: Results, out_dir: Path) -> None:
    """Each run's config and each study's note: what runs it again."""
    for folder, (_, entries) in zip(found.folders, found.studies, strict=True):
        target = out_dir / "configs" if len(found.folders) == 1 else out_dir / "configs" / Path(folder).name
        target.mkdir(parents=True, exist_ok=True)
        (target / NOTE).write_text(json.dumps(read_json(Path(folder) / NOTE), indent=2) + "\n")
        for entry in entries:
            shutil.copyfile(entry.folder / CONFIG, target / f"{entry.folder.name}.toml")
