"""Errors, by who can fix them.

    ParagatorError          anything this package raises on purpose; its text is one line: what, which value, what to do
    ├── UsageError          the caller can fix it: a flag, a config key, a file (exit code 2)
    ├── DataError           a file or a data set does not hold what it should (exit code 2)
    └── RunError            a run cannot continue, but what it wrote is intact (exit code 1)

Raise the class that says who can fix it; the command line prints the text and exits with `exit_code`.
"""

from __future__ import annotations


class ParagatorError(Exception):
    """Base of every deliberate error."""

    exit_code = 1


class UsageError(ParagatorError, ValueError):
    """A value the caller gave is wrong."""

    exit_code = 2


class DataError(ParagatorError, ValueError):
    """A file or data set does not hold what it should."""

    exit_code = 2


class RunError(ParagatorError, RuntimeError):
    """A run cannot continue; its directory is intact and can be resumed."""
