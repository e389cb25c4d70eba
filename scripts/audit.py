"""Security checks of `make check`: bandit over our code, pip-audit over what is installed. Exit code 1 where either finds something.

Findings that stand are explained where they are excepted: [tool.bandit] in pyproject.toml, and EXPLAINED here. Where no
vulnerability service can be reached, pip-audit has audited nothing; that is said and does not fail the check.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

FOLDERS = ("src", "scripts", "benchmarks", "examples")
LIMIT_S = 180
EXPLAINED: Mapping[str, str] = {}
"""Id of a known vulnerability -> why it does not concern us."""


def bandit() -> bool:
    """Whether bandit finds nothing that is not excepted."""
    command = [sys.executable, "-m", "bandit", "-q", "-r", "-c", "pyproject.toml", "-f", "custom"]
    command += ["--msg-template", "{relpath}:{line}: {test_id} {msg}", *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout + done.stderr if done.returncode else "bandit: nothing found", flush=True)
    return done.returncode == 0


def pip_audit() -> bool:
    """Whether pip-audit finds no unexplained vulnerability among the packages that it could look up."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return unreachable(f"no end after {LIMIT_S} s")
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return unreachable(lines[-1] if lines else f"exit code {done.returncode}")
    return judged(rows)


def judged(rows: list[dict[str, Any]]) -> bool:
    """Say what pip-audit's rows hold; False where one has a vulnerability that is not explained."""
    skipped = [row["name"] for row in rows if "skip_reason" in row]
    if len(skipped) == len(rows):
        return unreachable("it knows none of the packages")
    found = {f"{row['name']} {row['version']}: {one['id']}" for row in rows for one in row.get("vulns", ())}
    open_ = sorted(line for line in found if line.split(": ")[1] not in EXPLAINED)
    print(f"pip-audit: {len(rows) - len(skipped)} packages audited, {len(skipped)} not known to the service")
    print("\n".join(open_ or [f"pip-audit: {len(found)} known vulnerabilities, all explained"]), flush=True)
    return not open_


def unreachable(why: str) -> bool:
    """Nothing was audited, which is no failure of this code."""
    print(f"pip-audit: the vulnerability service cannot be reached ({why}); NOTHING was audited", flush=True)
    return True


if __name__ == "__main__":
    results = [bandit(), pip_audit()]
    sys.exit(0 if all(results) else 1)
