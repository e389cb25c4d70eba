"""Rewards that are tensors of PyTorch: one element is its number, several are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from paragator.core.errors import UsageError
from paragator.core.types import Grade, Problem
from paragator.tasks.rewards import graded_by


def grades(given: Any, count: int) -> list[Grade]:
    async def graded() -> list[Grade]:
        return await graded_by(lambda problem, texts: given, "mod:f")(Problem("p", "p"), ["text"] * count)

    return asyncio.run(graded())


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([0.5, 1.0]),
        torch.tensor([[0.5], [1.0]], requires_grad=True),
        [torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(True)],
        [torch.tensor([[0.5]]), torch.tensor(1)],
    ],
)
def test_one_element_is_its_number(given: Any) -> None:
    found = grades(given, 2)
    assert [(g.verdict, g.reward, type(g.reward)) for g in found] == [
        ("incorrect", 0.5, float),
        ("correct", 1.0, float),
    ]


@pytest.mark.parametrize(
    "bad", [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor(float("nan")), torch.tensor(1j)]
)
def test_others_are_refused_in_one_line(bad: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="return a finite number, or None") as error:
        grades([bad], 1)
    assert "\n" not in str(error.value)
