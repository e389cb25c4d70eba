"""Tasks: a name to problems and a grader. `load_task(config)` is the only door."""

from paragator.tasks.base import Task, check_distinct, check_splits, grade_trace, load_task

__all__ = ["Task", "check_distinct", "check_splits", "grade_trace", "load_task"]
