"""A newcomer follows the pages: from a wheel, in an empty environment, each page's commands in order.

In the pages, a fence of `console` holds commands after "$ " and lines that they print ("..." stands for anything, and an
exit code other than 0 is written [exit code 2]). `<!-- file: NAME -->` before a fence is a file to write, and `python` is a
script to run if a fence of `text`, what it prints, follows it. `<!-- not run: reason -->` leaves the next fence out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import Server, running

ROOT = Path(__file__).parents[2]
RUNS = re.compile(r"^```(console|text)$", re.MULTILINE)
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if RUNS.search(p.read_text()))]
BLOCK = re.compile(
    r"(?:<!-- (?P<order>file|not run): (?P<what>[^\n]*?) -->\n+)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$"
    r"(?:\n```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
URL = "http://localhost:8000/v1"


@dataclass(frozen=True)
class Newcomer:
    """An environment with the wheel, and the folder that they work in."""

    python: Path
    folder: Path
    url: str
    forking: subprocess.Popen[str]
    """tests/forked.py in the environment."""

    def words(self, command: str) -> list[str]:
        return shlex.split(command.replace("\\\n", " ").replace(URL, self.url))

    def type(self, command: str) -> tuple[int, str]:
        """Run a command line in a fork that has its imports; its exit code, and what it printed on both streams."""
        output = self.folder / "printed.txt"
        order = {"words": self.words(command), "folder": str(self.folder), "output": str(output)}
        assert self.forking.stdin and self.forking.stdout
        print(json.dumps(order), file=self.forking.stdin, flush=True)
        code = int(self.forking.stdout.readline())
        return code, output.read_text()

    def start(self, command: str) -> tuple[int, str]:
        """The same in a process of its own, through the script that the installation left."""
        program, *words = self.words(command)
        whole = [str(self.python.parent / program), *words]
        done = subprocess.run(
            whole, cwd=self.folder, env=clean(), capture_output=True, text=True, timeout=300, check=False
        )
        return done.returncode, done.stdout + done.stderr


def clean() -> dict[str, str]:
    """The environment without what belongs to this project."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PARAGATOR", "OPENAI"))}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def sums(prompt: str, seed: int, index: int) -> str:
    """A model that knows sums, but slips in one candidate of three."""
    a, b = (int(number) for number in re.findall(r"(\d+) \+ (\d+)", prompt)[0])
    return f"It is \\boxed{{{a + b + ('ttempt' not in prompt and (seed + index) % 3 == 0)}}}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("newcomer")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)  # the sdist, and the wheel from it
    venv.create(place / "env", with_pip=False, symlinks=True)
    python = place / "env" / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(place / "env"), "platbase": str(place / "env")})
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, "--ignore-installed", str(next(place.glob("*.whl")))], check=True, timeout=300)
    return python


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Server(reply=sums)) as server:
        yield server.url


@pytest.fixture(scope="module")
def forking(environment: Path) -> Iterator[subprocess.Popen[str]]:
    words, pipe = [str(environment), str(ROOT / "tests" / "forked.py")], subprocess.PIPE
    with subprocess.Popen(words, env=clean(), stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close() if process.stdin else None


@pytest.fixture
def newcomer(environment: Path, url: str, tmp_path: Path, forking: subprocess.Popen[str]) -> Newcomer:
    return Newcomer(environment, tmp_path, url, forking)


def commands(body: str) -> Iterator[tuple[str, int, list[str]]]:
    """Of a console: each command, its exit code, and the lines that it prints."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        lines = part.rstrip().split("\n")
        last = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        expected = lines[last + 1 :]
        code = re.fullmatch(r"\[exit code (\d+)\]", expected[-1]) if expected else None
        yield "\n".join(lines[: last + 1]), int(code[1]) if code else 0, expected[:-1] if code else expected


def missing(expected: list[str], printed: str) -> list[str]:
    """Expected lines that were not printed in this order; white space is counted once."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    lost = []
    for line in expected:
        pattern = ".*".join(re.escape(part) for part in " ".join(line.split()).split("..."))
        if not any(re.fullmatch(pattern, found) for found in lines):
            lost.append(line)
    return lost


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_followed(page: str, newcomer: Newcomer) -> None:
    for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        body = block["body"]
        if block["order"] == "file":
            (newcomer.folder / block["what"]).write_text(body)
        elif block["order"] == "not run":
            continue
        elif block["kind"] == "console":
            for command, code, expected in commands(body):
                found, printed = newcomer.type(command)
                assert (found, missing(expected, printed)) == (code, []), f"$ {command}\n{printed}"
        elif block["kind"] == "python" and block["printed"] is not None:
            (newcomer.folder / "script.py").write_text(body)
            found, printed = newcomer.type("python script.py")
            assert (found, missing(block["printed"].splitlines(), printed)) == (0, []), f"{body}\n{printed}"


def test_the_package_is_the_wheel_and_holds_its_recipes(newcomer: Newcomer) -> None:
    code, printed = newcomer.start("python -c 'import paragator; print(paragator.__file__)'")
    assert code == 0 and Path(printed.strip()).is_relative_to(newcomer.python.parents[1])
    code, printed = newcomer.start("paragator train quickstart --dry-run")
    assert code == 0 and '"name": "quickstart"' in printed
    assert "recipes" in newcomer.start("paragator train no-such-recipe")[1]
