"""What an import costs: heavy libraries load when they are used, never before; core needs the standard library only."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import paragator

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "numpy", "matplotlib"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # import name -> name of the distribution, where they differ


def loaded_by(code: str) -> set[str]:
    """Top-level modules that `code` adds to those of a fresh interpreter."""
    script = (
        "import json, sys; before = set(sys.modules)\n"
        f"{code}\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print('\\n' + json.dumps(sorted(new)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import paragator") & HEAVY


def test_help_loads_nothing_heavy() -> None:
    code = """
import contextlib, runpy
sys.argv = ["paragator", "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module("paragator", run_name="__main__", alter_sys=True)
"""
    loaded = loaded_by(code)
    assert "paragator" in loaded
    assert not loaded & HEAVY


def test_a_run_without_a_server_loads_no_http_client() -> None:
    """Neither what trains and evaluates in process, nor an engine of a server before its first request."""
    code = "import paragator.runs.connect, paragator.cli.train, paragator.cli.eval"
    code += "; from paragator.engines.http.openai import OpenAI; OpenAI('http://localhost:8000/v1')"
    loaded = loaded_by(code)
    assert "paragator" in loaded and not loaded & {"aiohttp", "torch"}


def test_core_needs_only_the_standard_library() -> None:
    names = [f"paragator.core.{path.stem}" for path in (ROOT / "src/paragator/core").glob("[a-z]*.py")]
    assert "paragator.core.scaffold" in names
    foreign = loaded_by("import " + ", ".join(names)) - set(sys.stdlib_module_names)
    assert foreign == {"paragator"}


def test_unit_tests_import_no_torch() -> None:
    code = """
import pytest

import paragator
assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/unit"]) == 0
"""
    loaded = loaded_by(code)
    assert "pytest" in loaded
    assert "torch" not in loaded


def test_test_files_of_one_name_are_collected_together(tmp_path: Path) -> None:
    """As tests/unit/test_study.py and tests/e2e/test_study.py are by a plain `pytest`."""
    for folder in ("unit", "e2e"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_same.py").write_text(f"def test_{folder}(): pass\n")
    command = (
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        ROOT / "pyproject.toml",
    )
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and "test_unit" in done.stdout and "test_e2e" in done.stdout, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_every_import_is_declared(path: Path) -> None:
    """A third-party import is in pyproject's dependencies, or in the extra that its feature needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {
        normal(re.split(r"[\s<>=!~;\[]", line)[0])
        for line in project["dependencies"] + [line for name in extras if name != "dev" for line in extras[name]]
    }
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"paragator"}
    assert {normal(DISTRIBUTIONS.get(name, name)) for name in third_party} <= declared


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_public_name_is_not_a_module_as_well() -> None:
    """Importing `paragator.x` binds the module to the package's `x`, over whatever it was before."""
    modules = {path.stem for path in (ROOT / "src/paragator").iterdir()}
    assert "training" in modules and set(paragator.__all__) & modules == {"aio"}  # which is a module to its users too


def test_every_source_file_is_linted() -> None:
    """No pattern of pyproject that leaves run directories out leaves code out."""
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "src"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    seen = {Path(line).resolve() for line in done.stdout.splitlines()}
    assert {path.resolve() for path in (ROOT / "src").rglob("*.py")} <= seen
