"""A run on Ray: which process is which rank, what reaches the caller, and what is refused; a stand-in for the module ray."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paragator.config import Config
from paragator.core.errors import RunError, UsageError
from paragator.results import TrainResult
from paragator.runs import launch, train
from paragator.runs.events import Events
from paragator.settings import validate

RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CONFIG = {"train": {"backend": "ray", "processes": 2}}


class Gone(Exception):
    """Stands for Ray's errors about processes that died."""


class Ray:
    """As much of Ray as is used, in this process: a task runs when it is started, and its place is written down."""

    def __init__(self, hosts: list[str], gpus: int = 0) -> None:
        self.hosts, self.gpus, self.placed, self.removed, self.cancelled = hosts, gpus, [], False, 0

    def init(self, address: str, logging_level: str) -> None:
        if not self.hosts:
            raise ConnectionError("Could not find any running Ray instance")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def group(self, bundles: list[Mapping[str, float]], strategy: str) -> Any:
        self.bundles = bundles
        return SimpleNamespace(wait=lambda seconds: True)

    def remove(self, group: Any) -> None:
        self.removed = True

    def remote(self, what: Any = None, **options: Any) -> Any:
        if what is None:
            return lambda kind: self.remote(kind, **options)
        if isinstance(what, type):
            return SimpleNamespace(remote=lambda: Actor(what()))
        return Task(self, what)

    def get(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.get(one) for one in value]
        if isinstance(value, Exception):
            raise value
        return value

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]  # the last rank first

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled += 1


class Task:
    def __init__(self, ray: Ray, function: Callable[..., Any], place: Any = None) -> None:
        self.ray, self.function, self.place = ray, function, place

    def options(self, scheduling_strategy: Any, num_cpus: float, num_gpus: float) -> Task:
        return Task(self.ray, self.function, (scheduling_strategy, num_gpus))

    def remote(self, *args: Any) -> Any:
        self.ray.placed.append((self.function.__name__, *self.place))
        if self.function.__name__ == "address":
            return self.ray.hosts[self.place[0] % len(self.ray.hosts)], 4321
        try:
            with ThreadPoolExecutor(1) as process:
                return process.submit(self.function, *args).result()
        except Gone as error:
            return error


class Actor:
    def __init__(self, of: Any) -> None:
        for name in ("put", "taken", "stop", "asked"):
            setattr(self, name, SimpleNamespace(remote=getattr(of, name)))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ray]:
    """Makes the stand-in the module ray."""
    for name in RANK:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def made(hosts: list[str], gpus: int = 0) -> Ray:
        ray = Ray(hosts, gpus)
        own = {name: getattr(ray, name) for name in ("init", "cluster_resources", "remote", "get", "wait", "cancel")}
        own |= {"is_initialized": lambda: False, "shutdown": lambda: None}
        kinds = {"TaskCancelledError": KeyError, "RayTaskError": LookupError, "RayError": Gone}
        util = {"placement_group": ray.group, "remove_placement_group": ray.remove}
        strategy = {
            "PlacementGroupSchedulingStrategy": lambda group, placement_group_bundle_index: placement_group_bundle_index
        }
        for name, values in (
            ("ray", own | {"exceptions": SimpleNamespace(**kinds)}),
            ("ray.util", util),
            ("ray.util.scheduling_strategies", strategy),
        ):
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
        return ray

    return made


def started(
    monkeypatch: pytest.MonkeyPatch, led: Callable[..., Any], events: Events | None = None, **more: Any
) -> TrainResult:
    """Train by CONFIG, with `led` as what each rank does."""
    real = train.train

    async def one(config: Config, **options: Any) -> TrainResult:
        return led(config, **options)

    monkeypatch.setattr(train, "train", one)
    try:
        return asyncio.run(real(validate(Config, CONFIG), events=events, **more))
    finally:
        monkeypatch.setattr(train, "train", real)


@pytest.mark.parametrize(("hosts", "gpus"), [(["10.0.0.1"], 0), (["10.0.0.1", "10.0.0.2"], 8)])
def test_ray_says_who_is_which_rank_and_what_happens_is_heard_here(
    cluster: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch, hosts: list[str], gpus: int
) -> None:
    ray, seen, heard = cluster(hosts, gpus), [], []

    def led(config: Config, *, resume: bool, overwrite: bool, events: Events | None) -> TrainResult:
        seen.append({name: os.environ.get(name) for name in RANK})
        assert (launch.processes(), launch.rank()) == (2, len(seen) - 1) and resume and not overwrite
        assert config == validate(Config, CONFIG)
        if events is not None:
            events.say("hello")
            events.on_step({"step": 1.0})
        assert (events is None) == (os.environ["RANK"] == "1")
        return TrainResult(config.run_dir, finished=events is not None)

    class Heard(Events):
        def say(self, line: str) -> None:
            heard.append(line)

        def on_step(self, metrics: Mapping[str, float]) -> None:
            heard.append(dict(metrics))

    result = started(monkeypatch, led, Heard(), resume=True)
    assert result.finished and heard[1:] == ["hello", {"step": 1.0}]
    assert heard[0] == "asking the Ray cluster for 2 CPU" + (" and 2 GPU" if gpus else "")
    alone = len(hosts) == 1
    assert [one["RANK"] for one in seen] == ["0", "1"] and {one["WORLD_SIZE"] for one in seen} == {"2"}
    assert {one["MASTER_ADDR"] for one in seen} == {"127.0.0.1" if alone else "10.0.0.1"}
    assert {one["LOCAL_WORLD_SIZE"] for one in seen} == {"2" if alone else None}
    assert {(one["MASTER_PORT"], one["LOCAL_RANK"]) for one in seen} == {("4321", "0")}
    card = 1.0 if gpus else 0
    assert ray.placed == [(name, rank, card) for name in ("address", "work") for rank in (0, 1)]
    assert ray.removed and ray.cancelled == 2


def test_rank_0_has_the_first_word_on_why_a_run_ended(
    cluster: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(["a"])

    def refused(config: Config, **options: Any) -> TrainResult:
        raise UsageError("run exists") if os.environ["RANK"] == "0" else RunError("rank 0 is gone")

    with pytest.raises(UsageError, match=r"^run exists$"):
        started(monkeypatch, refused)


@pytest.mark.parametrize("error", [RunError("no memory"), Gone("killed")])
def test_a_rank_that_ends_is_told_and_the_run_can_be_resumed(
    cluster: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    cluster(["a"])

    def dies(config: Config, **options: Any) -> TrainResult:
        if os.environ["RANK"] == "1":
            raise error
        return TrainResult(config.run_dir)

    with pytest.raises(RunError, match=r"^rank 1 ended: .*(no memory|is gone \(Gone\)).*--resume"):
        started(monkeypatch, dies)


def test_a_wish_to_stop_reaches_rank_0(cluster: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch) -> None:
    from paragator.runs.on_ray import Mailbox, Relayed

    cluster(["a"])
    mailbox = Mailbox()
    relayed = Relayed(Actor(mailbox))
    assert not relayed.should_stop()
    mailbox.stop()
    relayed.looked = 0.0
    assert relayed.should_stop() and relayed.should_stop()


def test_what_cannot_be_placed_is_refused_in_one_line(
    cluster: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster([])
    with pytest.raises(UsageError, match="no Ray cluster was found"):
        started(monkeypatch, lambda config, **options: None)
    with pytest.raises(UsageError, match="no engine from Python"):
        started(monkeypatch, lambda config, **options: None, engine=SimpleNamespace())
    with pytest.raises(UsageError, match=r"needs train\.processes"):
        asyncio.run(train.train(validate(Config, {"train": {"backend": "ray"}})))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'paragator\[ray\]'"):
        started(monkeypatch, lambda config, **options: None)


def test_processes_that_do_not_match_the_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK:
        monkeypatch.delenv(name, raising=False)
    launch.check_processes(None)
    launch.check_processes(1)
    with pytest.raises(UsageError, match=r"train\.processes = 8, but 1 started: .*--nproc-per-node 8"):
        launch.check_processes(8)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_two_workers_of_a_real_cluster_train_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from safetensors.torch import load_file

    values: dict[str, Any] = {"runs": str(tmp_path), "name": "two", "eval": {"around_training": False}}
    values["train"] = {"steps": 2, "problems": 2, "precision": "float32", "threads": 1, "checkpoint_every": 1}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=80_000_000)
    try:
        two = asyncio.run(train.train(validate(Config, values | {"train": {**values["train"], **CONFIG["train"]}})))
    finally:
        ray.shutdown()
    one = asyncio.run(train.train(validate(Config, values | {"name": "one"})))
    assert two.finished and [row["generate/reward"] for row in two.metrics] == [
        row["generate/reward"] for row in one.metrics
    ]
    assert two.model is not None and one.model is not None
    a, b = (load_file(found / "model.safetensors") for found in (two.model, one.model))
    assert all((a[name] - b[name]).norm() < 1e-5 * b[name].norm() for name in b)
