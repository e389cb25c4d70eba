"""Counts of a server, as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Metrics:
    """inside: requests being answered; statuses: of those that ended (499: the client left); seconds: all of them took."""

    inside: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    solutions: int = 0
    failed: int = 0

    def text(self, tokens: int) -> str:
        rows: list[tuple[str, str, str, dict[str, float]]] = [
            ("requests_in_flight", "gauge", "Requests being answered.", {"": self.inside}),
            ("requests_total", "counter", "Requests by status; 499 is a client that left.", self.labelled()),
            ("request_seconds_total", "counter", "Seconds that requests took.", {"": round(self.seconds, 3)}),
            ("solutions_total", "counter", "Solutions that arrived.", {"": self.solutions}),
            ("solutions_failed_total", "counter", "Solutions that failed for good.", {"": self.failed}),
            ("tokens_total", "counter", "Tokens of prompts and completions.", {"": tokens}),
        ]
        lines = []
        for name, kind, about, values in rows:
            lines += [f"# HELP paragator_{name} {about}", f"# TYPE paragator_{name} {kind}"]
            lines += [f"paragator_{name}{label} {value}" for label, value in values.items()]
        return "\n".join(lines) + "\n"

    def labelled(self) -> dict[str, float]:
        return {f'{{status="{status}"}}': count for status, count in sorted(self.statuses.items())}
