"""Tasks: a name to problems and a grader. `load(config)` is the only door."""

from paragator.tasks.base import Task, grade_trace, load

__all__ = ["Task", "grade_trace", "load"]
