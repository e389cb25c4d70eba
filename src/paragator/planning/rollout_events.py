"""Discrete-event simulation of rollouts: replicas with continuous batching sample groups until every problem is done.

Two ways to order a step. Pipelined: a problem's aggregations start when its own N candidates have ended. Barrier: when all are.
Times are seconds since the step began. Deterministic: lengths are given, nothing is drawn here.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from paragator.core.types import Stage
from paragator.planning.estimate import pass_flops
from paragator.planning.hardware import Cost


@dataclass(slots=True, eq=False)
class GroupRequest:
    """One group to sample: `lengths` tokens of each sibling after a shared prompt of `prompt` tokens."""

    problem: int
    stage: Stage
    prompt: int
    lengths: Sequence[int]
    signal: bool = True
    """Whether any credit of the group is not zero."""
    left: int = 0
    """Siblings that have not finished."""
    admitted: int = 0

    def __post_init__(self) -> None:
        self.left = len(self.lengths)


@dataclass(frozen=True, slots=True)
class Batching:
    """What an engine holds at once.

    capacity    tokens of cache of one replica; a shared prompt counts once
    rows        rows of one replica
    continuous  rows join while others run; else a batch runs to its end (the in-process engine)
    leave_at    finished rows leave once fewer than this share of the batch runs; 1 is at once
    shared      siblings share one prefill of their prompt
    """

    capacity: float = math.inf
    rows: int = 256
    continuous: bool = True
    leave_at: float = 1.0
    shared: bool = True


@dataclass(slots=True)
class Replica:
    """One engine: its clock, what waits and what runs. A row of L tokens is one prefill and L - 1 decode steps."""

    cost: Cost
    batching: Batching
    now: float = 0.0
    busy_s: float = 0.0
    steps: int = 0
    prefilled: int = 0
    generated: int = 0
    flop: float = 0.0
    waiting: deque[GroupRequest] = field(default_factory=deque)
    running: list[tuple[int, int, int, GroupRequest]] = field(default_factory=list)
    """A heap of (step at which the row ends, number, its prompt and completion in tokens, its request)."""
    held: int = 0
    """Rows that are paid for, finished ones that have not left included."""
    kv_tokens: float = 0.0
    """Tokens of cache that a decode step reads now, over the rows that are held."""
    used: float = 0.0
    """Tokens of cache that are reserved."""
    gone: float = 0.0
    """Tokens of cache of rows that finished and have not left."""
    number: int = 0

    @property
    def load(self) -> float:
        """Tokens of cache that its rows read now, those of waiting prompts included: what a router can know."""
        waiting = sum((len(r.lengths) - r.admitted) * r.prompt for r in self.waiting)
        return self.kv_tokens - self.gone + waiting

    def admit(self) -> None:
        """Start what fits: prefill its prompt (once for all siblings), reserve its cache."""
        if self.running and not self.batching.continuous:
            return
        flop, prompts = 0.0, 0
        while self.waiting and (not self.running or len(self.running) < self.batching.rows):
            request = self.waiting[0]
            first = request.admitted == 0 or not self.batching.shared
            length = request.lengths[request.admitted]
            needed = length + (request.prompt if first else 0)
            if self.running and self.used + needed > self.batching.capacity:
                break
            self.used += needed
            if first:
                flop += self.cost.prefill_flop(request.prompt)
                self.prefilled += request.prompt
                prompts += 1
            request.admitted += 1
            self.number += 1
            self.held += 1
            self.kv_tokens += request.prompt
            self.generated += length
            heapq.heappush(self.running, (self.steps + length - 1, self.number, request.prompt + length, request))
            if request.admitted == len(request.lengths):
                self.waiting.popleft()
        if prompts:
            self.flop += flop
            self.spend(flop / self.cost.prefill_rate() + self.cost.efficiency.prefill_s)

    def spend(self, seconds: float) -> None:
        self.now += seconds
        self.busy_s += seconds

    def span(self, steps: int) -> float:
        """Seconds of the next decode steps, during which no row ends: the mean step is that at the middle."""
        if not steps:
            return 0.0
        return steps * self.cost.decode_step_s(self.held, self.kv_tokens + self.held * (steps - 1) / 2)

    def next_end(self) -> float:
        """When the next row ends; infinite when none runs."""
        return self.now + self.span(self.running[0][0] - self.steps) if self.running else math.inf

    def decode(self, steps: int) -> None:
        self.spend(self.span(steps))
        if (rows := len(self.running)) and steps:
            read = (self.kv_tokens - self.gone) / rows + (steps - 1) / 2  # by a row, at the middle
            self.flop += steps * pass_flops(self.cost.shape, rows, read, rows)
        self.steps += steps
        self.kv_tokens += self.held * steps
        self.gone += (self.held - rows) * steps

    def catch_up(self, time: float) -> None:
        """Decode until `time`, or idle to it; a step in progress then is finished first."""
        if not self.running:
            self.now = max(self.now, time)
            return
        low, high = 0, self.running[0][0] - self.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.now + self.span(middle) >= time else (middle + 1, high)
        self.decode(low)

    def finish(self) -> list[GroupRequest]:
        """Run to the next end of a row; the groups that are complete by it. Then admit what waits."""
        self.decode(self.running[0][0] - self.steps)
        done = []
        while self.running and self.running[0][0] == self.steps:
            _, _, tokens, request = heapq.heappop(self.running)
            request.left -= 1
            self.used -= tokens - (request.prompt if self.batching.shared else 0)
            self.gone += tokens - 1
            if request.left == 0:
                self.used -= request.prompt if self.batching.shared else 0
                done.append(request)
        if len(self.running) < self.batching.leave_at * self.held or not self.running:
            self.held = len(self.running)
            self.kv_tokens -= self.gone
            self.gone = 0.0
        self.admit()
        return done


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a step's rollouts took. `parts` are seconds by what was in flight; `ends` when each problem was complete."""

    seconds: float
    parts: dict[str, float]
    ends: list[float]
    busy_s: float
    """Replica-seconds in which something ran."""
    prefilled: int
    generated: int
    flop: float


Requests = Sequence[GroupRequest]


def roll_out(
    first: Requests, then: Requests, cost: Cost, batching: Batching, replicas: int, *, barrier: bool
) -> Rollouts:
    """Sample `first[i]` for each problem, then its `then[i]` (empty: one stage). A group goes where the least cache is read."""
    engines = [Replica(cost, batching) for _ in range(replicas)]
    in_flight = {"generate": 0, "aggregate": 0}
    parts: dict[str, float] = {}
    last, ends = 0.0, [0.0] * len(first)
    due: list[tuple[float, int]] = []

    def send(requests: Requests, time: float) -> None:
        for request in requests:
            index = min(range(replicas), key=lambda i: engines[i].load)
            engines[index].waiting.append(request)
            in_flight[request.stage] += 1
            sent.add(index)
        for index in sorted(sent):
            engines[index].catch_up(time)
            engines[index].admit()
            heapq.heappush(due, (engines[index].next_end(), index))
        sent.clear()

    sent: set[int] = set()
    send(first, 0.0)
    pending = len(first)
    while due:
        time, index = heapq.heappop(due)
        engine = engines[index]
        if time != engine.next_end() or not engine.running:
            continue  # it was given more since
        time = max(time, last)
        for request in engine.finish():
            part = "both" if all(in_flight.values()) else max(in_flight, key=lambda s: in_flight[s])
            parts[part] = parts.get(part, 0.0) + time - last
            last = time
            in_flight[request.stage] -= 1
            ends[request.problem] = time
            pending -= request.stage == "generate"
            if then and request.stage == "generate":
                if not barrier:
                    send([then[request.problem]], time)
                elif pending == 0:
                    send(then, time)
        if engine.running:
            heapq.heappush(due, (engine.next_end(), index))
    busy, flop = sum(e.busy_s for e in engines), sum(e.flop for e in engines)
    prefilled, generated = sum(e.prefilled for e in engines), sum(e.generated for e in engines)
    return Rollouts(last, parts, ends, busy, prefilled, generated, flop)
