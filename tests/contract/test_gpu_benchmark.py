"""benchmarks/gpu.py at a tiny shape on a CPU: what a lent card is to run works, and every side's gradient is ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_script_for_a_card_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "works", lambda quick, real=gpu.works: real(quick)[2:])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--repeats", "1", "--output", str(output)])
    assert gpu.main() == 0
    found = json.loads(output.read_text())
    apart = {(case["name"], case["peer"]): case["gradient_distance"] for case in found if "gradient_distance" in case}
    (peer,) = {peer for _, peer in apart if peer.startswith("TRL ") and "default" not in peer}
    named = "two stages, heavy tail"
    sides = {(named, x) for x in (peer, f"{peer} as by default", "padded rows", gpu.SDPA)}
    assert sides | {(f"{named}, layers compiled", x) for x in (peer, gpu.PLAIN)} <= apart.keys()
    assert 0 < apart[named, peer] < gpu.AGREE and 0 < apart[named, "padded rows"] < gpu.AGREE
    whole, tail = (case["sampled_tokens"] for case in found if case["name"].startswith("rollout"))
    assert 64 < tail < whole == 64 * 16
