"""The public functions: those of `paragator.aio`, waited for, also where an event loop runs already, as in a notebook."""

from __future__ import annotations

from paragator import aio
from paragator.runs.loop import blocking

aggregate = blocking(aio.aggregate)
evaluate = blocking(aio.evaluate)
grade = blocking(aio.grade)
solve = blocking(aio.solve)
train = blocking(aio.train)
