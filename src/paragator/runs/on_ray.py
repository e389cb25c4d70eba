"""Training on a Ray cluster: Ray places the processes and tells each its rank; they then do what torchrun's do.

This process only waits: rank 0 runs on the cluster as well, and what it says comes here through an actor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from paragator.config import Config
from paragator.core.errors import ParagatorError, RunError, UsageError
from paragator.records import Graded
from paragator.results import TrainResult
from paragator.runs.backends import check_ray
from paragator.runs.events import Events, Progress

POLL_S = 0.5
"""Seconds between looks at what rank 0 says, and at whether the run shall stop."""
PLACES_S = 600.0
"""How long to wait for room on the cluster, which may have to start machines."""
LAST_WORDS_S = 30.0
"""How long rank 0 may take, beyond train.process_timeout_s, to say why another rank ended."""


async def train_on_ray(config: Config, events: Events, *, resume: bool, overwrite: bool) -> TrainResult:
    """Train in `train.processes` processes of the cluster that is running; its machines share the run directory's disk."""
    check_ray(config)
    import ray

    with connected_to(ray), placed(ray, config, events) as places:
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        asked = (config.model_dump(mode="json"), resume, overwrite, os.getcwd())
        ranks = [place.task(ray, work).remote(asked, place.environment, mailbox) for place in places]
        try:
            finished = await waited(ray, ranks, mailbox, events, config.train.process_timeout_s + LAST_WORDS_S)
        finally:
            for rank in ranks:
                ray.cancel(rank, force=True)  # those that ended stay what they are
    return TrainResult.read(config.run_dir, config.eval.k, finished=finished)


@contextmanager
def connected_to(ray: Any) -> Iterator[None]:
    """A connection to the cluster that runs here or at RAY_ADDRESS; one that the caller made is left as it is."""
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address="auto", logging_level="warning")
        except ConnectionError:
            raise UsageError("no Ray cluster was found: start one by `ray start --head`, or set RAY_ADDRESS") from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


# ---- places ----


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank runs: a bundle of a placement group, and the environment that makes its process that rank."""

    group: Any
    index: int
    resources: Mapping[str, float]
    environment: Mapping[str, str]

    def task(self, ray: Any, function: Any) -> Any:
        """`function` as a task of this place, in a process that ends with it."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        there = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.index)
        made = ray.remote(max_calls=1, max_retries=0)(function)
        cpus, gpus = self.resources["CPU"], self.resources.get("GPU", 0)
        return made.options(scheduling_strategy=there, num_cpus=cpus, num_gpus=gpus)


@contextmanager
def placed(ray: Any, config: Config, events: Events) -> Iterator[list[Place]]:
    """A place for each rank, as few machines as hold them; given back at the end."""
    from ray.util import placement_group, remove_placement_group

    count, resources = config.train.processes or 1, {"CPU": float(config.train.threads or 1)}
    has = ray.cluster_resources()
    if config.model.device != "cpu" and (has.get("GPU") or config.model.device.startswith("cuda")):
        resources["GPU"] = 1.0
    asked = " and ".join(f"{count * amount:g} {name}" for name, amount in resources.items())
    events.say(f"asking the Ray cluster for {asked}")
    group = placement_group([resources] * count, strategy="PACK")
    try:
        until = time.monotonic() + PLACES_S
        while not group.wait(POLL_S):
            there = ", ".join(f"{has.get(name, 0):g} {name}" for name in resources)
            if time.monotonic() > until:
                raise UsageError(
                    f"train.processes = {count}: no room on the Ray cluster ({there}) for {PLACES_S:g} s; lower it"
                )
            if events.should_stop():
                raise RunError(f"stopped before the Ray cluster ({there}) had room; nothing was begun")
        found = [Place(group, index, resources, {}) for index in range(count)]
        addresses = ray.get([place.task(ray, address).remote() for place in found])
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": addresses[0][0], "MASTER_PORT": str(addresses[0][1])}
        if len({host for host, _ in addresses}) == 1:
            common |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(count)}
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(count)]  # it sees its own card only
        yield [Place(group, rank, resources, ranks[rank]) for rank in range(count)]
    finally:
        remove_placement_group(group)


def address() -> tuple[str, int]:
    """This machine's address in the cluster, and a port that is free there."""
    from ray.util import get_node_ip_address

    with socket.socket() as free:
        free.bind(("", 0))
        return get_node_ip_address(), free.getsockname()[1]


# ---- on the cluster ----


def work(asked: tuple[dict[str, Any], bool, bool, str], environment: Mapping[str, str], mailbox: Any) -> dict[str, Any]:
    """One rank's process: `finished`, or the `error` and its exit code."""
    values, resume, overwrite, folder = asked
    os.environ.update(environment)
    events = Relayed(mailbox) if environment["RANK"] == "0" else None
    try:
        os.chdir(folder)
        from paragator.runs.train import train

        config = Config.model_validate(values)
        result = asyncio.run(train(config, resume=resume, overwrite=overwrite, events=events))
    except ParagatorError as error:
        return {"error": str(error), "code": error.exit_code}
    except FileNotFoundError as error:
        if error.filename != folder:
            raise
        return {
            "error": f"{folder} is not on {socket.gethostname()}: start from a disk that all machines share",
            "code": 2,
        }
    finally:
        if events:
            events.flush()
    return {"finished": result.finished}


class Mailbox:
    """An actor between rank 0 and whoever waits: what happened on the one side, a wish to stop on the other."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, tuple[Any, ...]]] = []
        self.stopping = False

    def put(self, name: str, values: tuple[Any, ...]) -> None:
        """Keep a call of `Events`."""
        self.letters.append((name, values))

    def taken(self) -> list[tuple[str, tuple[Any, ...]]]:
        """The calls since the last time."""
        found, self.letters = self.letters, []
        return found

    def stop(self) -> None:
        """Ask rank 0 to stop after its step."""
        self.stopping = True

    def asked(self) -> bool:
        """Whether it was asked."""
        return self.stopping


class Relayed(Events):
    """Rank 0's events, handed to whoever waits."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox, self.looked, self.stopping = mailbox, 0.0, False

    def say(self, line: str) -> None:
        self.mailbox.put.remote("say", (line,))

    def on_step(self, metrics: Mapping[str, float]) -> None:
        self.mailbox.put.remote("on_step", (dict(metrics),))

    def on_trace(self, record: Graded, progress: Progress) -> None:
        self.mailbox.put.remote("on_trace", (record, progress))

    def flush(self) -> None:
        """Wait until all has arrived: calls of one process come in order."""
        import ray

        self.stopping = bool(ray.get(self.mailbox.asked.remote()))

    def should_stop(self) -> bool:
        now = time.monotonic()
        if not self.stopping and now - self.looked > POLL_S:
            self.looked = now
            self.flush()
        return self.stopping


# ---- here ----


async def waited(ray: Any, ranks: list[Any], mailbox: Any, events: Events, patience_s: float) -> bool:
    """Whether rank 0 finished, once all ranks ended; its own error first, then the reason of whichever ended before."""
    left, reason, until, finished = list(ranks), "", float("inf"), False
    while left and time.monotonic() < until:
        done, left = await asyncio.to_thread(ray.wait, left, timeout=POLL_S)
        for name, values in ray.get(mailbox.taken.remote()):
            getattr(events, name)(*values)
        if events.should_stop():
            mailbox.stop.remote()
        for one in done:
            number = ranks.index(one)
            found = outcome(ray, one)
            if number == 0 and "error" in found:
                raise (UsageError if found["code"] == 2 else RunError)(found["error"])
            if "error" in found and not reason:
                reason, until = f"rank {number} ended: {found['error']}", time.monotonic() + patience_s
            finished = finished or (number == 0 and found.get("finished", False))
    if reason:
        raise RunError(reason if "--resume" in reason else f"{reason}; start again with --resume")
    return finished


def outcome(ray: Any, task: Any) -> dict[str, Any]:
    """What `work` returned; an `error` as well where its process was killed, or failed by a defect."""
    with suppress(ray.exceptions.TaskCancelledError):
        try:
            found: dict[str, Any] = ray.get(task)
            return found
        except ray.exceptions.RayTaskError as error:
            last = " ".join(str(error.cause).split())
            return {"error": f"{type(error.cause).__name__}: {last}", "code": 1}
        except ray.exceptions.RayError as error:
            return {"error": f"its process is gone ({type(error).__name__})", "code": 1}
    return {"error": "it was cancelled", "code": 1}
