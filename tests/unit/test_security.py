"""Bans by syntax: nothing that runs ships a deserialiser of code, runs text as code, trusts a hub's code or starts a shell."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "scripts", "benchmarks", "examples")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "jsonpickle"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def name_of(node: ast.expr) -> str:
    """The dotted name of what is called, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def aliases(tree: ast.Module) -> dict[str, str]:
    """What an imported name stands for: `import torch as t`, `from yaml import load as l`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def fault(call: ast.Call, names: dict[str, str]) -> str:
    """What is wrong with a call; "" if nothing."""
    head, dot, rest = name_of(call.func).partition(".")
    name = names.get(head, head) + dot + rest
    given = {word.arg: word.value for word in call.keywords}
    if name.removeprefix("builtins.") in RUNS_TEXT:
        return f"{name}() runs text as code"
    if name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
        return f"{name}() starts a shell"
    if "shell" in given and not (isinstance(given["shell"], ast.Constant) and not given["shell"].value):
        return "shell=True starts a shell"
    if name == "torch.load" and not is_true(given.get("weights_only")):
        return "torch.load() without weights_only=True unpickles"
    if name.startswith("yaml.") and "load" in name and not name.startswith("yaml.safe_load"):
        return f"{name}() builds any object; use yaml.safe_load"
    if name in ("numpy.load", "np.load") and "allow_pickle" in given:
        return "numpy.load(allow_pickle=...) unpickles"
    if is_true(given.get("trust_remote_code")):
        return "trust_remote_code=True runs a hub's code"
    host = given.get("host")
    if isinstance(host, ast.Constant) and isinstance(host.value, str) and host.value not in LOOPBACK:
        return f"host={host.value!r} is not this machine"
    return ""


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of everything in `source` that is banned."""
    tree = ast.parse(source)
    names = aliases(tree)
    for node in ast.walk(tree):
        for module in imported(node):
            if module.partition(".")[0] in UNPICKLERS:
                yield getattr(node, "lineno", 0), f"{module} runs code that a file holds"
        if isinstance(node, ast.Call) and (what := fault(node, names)):
            yield node.lineno, what
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and is_true(value):
                    yield node.lineno, "trust_remote_code: True runs a hub's code"
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield node.lineno, f"{node.value} listens to every network"


def test_nothing_banned_is_used() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 150 and all(list((ROOT / folder).rglob("*.py")) for folder in FOLDERS)
    found = [f"{p.relative_to(ROOT)}:{line}: {what}" for p in files for line, what in faults(p.read_text("utf-8"))]
    assert not found, "\n".join(found)


BANNED = """
import pickle
from marshal import loads
import dill.source
import shelve as s
def f(): from cloudpickle import dump
eval("1")
exec("1")
compile("1", "", "exec")
__import__("os")
import builtins; builtins.eval("1")
import torch; torch.load("f")
import torch as t; t.load("f", weights_only=False)
from torch import load; load("f", map_location="cpu")
import yaml; yaml.load("f", Loader=yaml.SafeLoader)
from yaml import unsafe_load as u; u("f")
import yaml; yaml.full_load("f")
model.from_pretrained("x", trust_remote_code=True)
options = {"trust_remote_code": True}
subprocess.run("ls", shell=True)
subprocess.Popen("ls", shell=flag)
from os import system; system("ls")
import os; os.popen("ls")
import subprocess; subprocess.getoutput("ls")
import numpy as np; np.load("f", allow_pickle=True)
serve(host="example.org")
address = "0.0.0.0"
""".strip().splitlines()
FINE = """
import re; re.compile("a")
model.eval()
torch.compile(f)
torch.load("f", weights_only=True)
yaml.safe_load("f")
f(trust_remote_code=config.trust_remote_code)
subprocess.run(["ls"], shell=False)
listen(host="127.0.0.1")
""".strip().splitlines()


@pytest.mark.parametrize("line", BANNED)
def test_every_ban_bites(line: str) -> None:
    assert list(faults(line))


@pytest.mark.parametrize("line", FINE)
def test_what_is_harmless_passes(line: str) -> None:
    assert not list(faults(line))


def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit_script", ROOT / "scripts" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_audit_fails_for_what_it_found_and_not_for_what_it_could_not_see(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = audit()
    fine, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
    bad = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1"}]}
    assert script.judged([fine, unknown]) and "1 packages audited, 1 not known" in capsys.readouterr().out
    assert not script.judged([fine, bad]) and "c 2: CVE-1" in capsys.readouterr().out
    monkeypatch.setattr(script, "EXPLAINED", {"CVE-1": "not used"})
    assert script.judged([fine, bad])
    assert script.judged([unknown]) and "NOTHING was audited" in capsys.readouterr().out
