"""Many processes compute what one does: gradients, updates, statistics; and how rows are shared out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launched import start
from paragator.training.rows import pack
from paragator.training.sharded import cost, share
from sharded_cases import CASES, outcome, trees_of

LIMIT_S = 600


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A folder of results for each number of processes."""
    out = {}
    for size in (2, 3, 4):
        out[size] = tmp_path_factory.mktemp(f"ranks{size}")
        processes = start(size, ["-m", "sharded_cases", str(out[size])])
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, errors[-3000:]
    return out


@cache
def alone(name: str) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(replace(CASES[name], replicas=1))


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative L2 of all that is no statistic."""
    names = [name for name in expected if not name.startswith("stats/")]
    assert {name for name in found if not name.startswith("stats/")} == set(names)
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in names)
    return float((difference / sum(float(expected[n].double().square().sum()) for n in names)) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.broken])
def test_gradients_and_updates_are_those_of_one_process(computed: dict[int, Path], name: str, size: int) -> None:
    path = computed[size] / f"{name}.safetensors"
    assert path.exists() == CASES[name].runs_on(size)
    if not path.exists():
        return
    found, expected = load_file(path), alone(name)
    limit = 1e-14 if CASES[name].double else 5e-3 if CASES[name].precision == "bfloat16" else 1e-6
    assert distance(found, expected) < limit
    for key in (key for key in expected if key.startswith("stats/")):
        assert torch.allclose(found[key], expected[key], rtol=1e-2 if limit > 1e-4 else 1e-5, atol=1e-7), key


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_what_is_not_finite_in_one_process_is_refused_in_all(computed: dict[int, Path], size: int) -> None:
    found, expected = load_file(computed[size] / "NaN in one row.safetensors"), alone("NaN in one row")
    assert found["stats/refused"] == 1.0
    assert distance(found, expected) == 0.0  # no weight moved


def test_layouts_differ_by_rounding_only() -> None:
    names = ("plain", "small rows", "one row", "another order", "another order, small rows")
    assert all(distance(alone(name), alone("plain")) < 1e-5 for name in names)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_rows_are_shared_out_once_and_evenly(size: int) -> None:
    rows = pack(trees_of(replace(CASES["plain"], trees=30)), 200)
    shared = share(rows, size, hidden=64)
    real = [row for mine in shared for row in mine if not row.idle]
    assert sorted(map(repr, real)) == sorted(map(repr, rows))
    assert len({len(mine) for mine in shared}) == 1
    spent = [sum(cost(row, 64) for row in mine if not row.idle) for mine in shared]
    assert max(spent) - min(spent) <= max(cost(row, 64) for row in rows)
