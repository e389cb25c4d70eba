"""The computing thread: who chooses its number of threads, and that the way they wait changes no result."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from paragator.engines.local import compute
from paragator.engines.local.compute import computed_now, set_threads
from paragator.engines.local.threads import SleepingThreads, gnu_openmp, threads_time

linux = pytest.mark.skipif(threads_time() is None, reason="only Linux tells how long threads wait")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*compute.SET_BY_USER["threads"], *compute.SET_BY_USER["waiting"]):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    set_threads(2)
    yield
    set_threads(before)


class Works:
    """In place of the watch: whether it was woken."""

    def __init__(self) -> None:
        self.woken = False
        self.work = SimpleNamespace(set=lambda: setattr(self, "woken", True))


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    made = Works()
    monkeypatch.setattr(compute, "watch", lambda: made)
    return made


@pytest.mark.usefixtures("two_threads")
def test_work_on_several_threads_is_watched(works: Works) -> None:
    computed_now(int)
    assert works.woken


@pytest.mark.usefixtures("two_threads")
def test_a_single_thread_waits_for_nobody_and_is_not_watched(works: Works) -> None:
    set_threads(1)
    works.woken = False
    computed_now(int)
    assert not works.woken


@pytest.mark.parametrize("name", compute.SET_BY_USER["waiting"])
@pytest.mark.usefixtures("two_threads")
def test_a_users_own_way_of_waiting_wins(name: str, works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    works.woken = False
    monkeypatch.setenv(name, "1")
    computed_now(int)
    assert not works.woken


@pytest.mark.usefixtures("two_threads")
def test_without_a_number_threads_are_at_most_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "usable_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_threads(None)
    assert computed_now(torch.get_num_threads) == 2  # the user's own
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(None)
    assert computed_now(torch.get_num_threads) == torch.get_num_threads() == 1
    monkeypatch.setattr(compute, "usable_cores", lambda: 64)
    set_threads(None)
    assert computed_now(torch.get_num_threads) == 1  # never more than torch has


def count() -> int:
    return len(os.listdir("/proc/self/task"))


@linux
@pytest.mark.usefixtures("two_threads")
def test_sleeping_threads_outnumber_the_cores_and_end_without_changing_a_digit() -> None:
    def products() -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        a, b = (torch.randn(300, 300, generator=rng) for _ in range(2))
        return (a @ b).softmax(-1).cumsum(0).sum(0)

    libraries = gnu_openmp()
    if not libraries:
        pytest.skip("torch has another OpenMP here")
    spinning, before = computed_now(products), count()
    sleeping = SleepingThreads(libraries)
    assert count() >= before + sum(library.omp_get_num_procs() for library in libraries)
    assert torch.equal(computed_now(products), spinning)
    sleeping.end()
    ends = time.monotonic() + 60
    while count() > before and time.monotonic() < ends:  # the last of them may still be on their way out
        time.sleep(0.01)
    assert count() <= before
    assert torch.equal(computed_now(products), spinning)
