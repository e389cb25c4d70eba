"""The processes of a study: what each run still needs by what its folder holds, and running that a few at a time."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from paragator.cli.cells import Study, Unit, digest, to_toml
from paragator.cli.compose import write_whole

State = Literal["finished", "begun", "missing"]
FINISHED, LOG, LOCK, CONFIG = "finished.json", "process.log", "lock", "config.toml"
POLL_S = 0.5
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Work:
    """One process of a run: `paragator` with these words; in `folder`, or for pools into that file."""

    name: str
    words: tuple[str, ...]
    folder: Path
    digest: str
    count: int = 0
    """pools: how many records make it whole."""


def works(unit: Unit, study: Study) -> list[Work]:
    """What a run takes, in order: pools where it trains on recorded ones, training, and its evaluations."""
    out, toml = [], str(unit.folder / CONFIG)
    if unit.pools:
        words = ("sample", toml, "--output", str(unit.pools), "--count", str(unit.pools_count))
        out.append(Work("pools", words, unit.pools, "", unit.pools_count))
    if unit.trained:
        out.append(Work("train", ("train", toml), unit.folder / "train", digest(unit)))
    own = unit.config.generate.temperature
    out.append(evaluation(unit, "eval"))
    for t in dict.fromkeys(study.evaluation.temperatures):
        if t != own:
            more = (f"--generate.temperature={t!r}", f"--eval.rounds={study.primary.round}")
            out.append(evaluation(unit, f"eval-t{t:g}", *more))
    return out


def evaluation(unit: Unit, name: str, *more: str) -> Work:
    """`paragator eval` of what the run trained, or of the base model."""
    words = ["eval", str(unit.folder / CONFIG), f"--name={name}", *more]
    if unit.config.engine.rollout == "vllm":
        words.append("--engine.rollout=transformers")
    if unit.trained:
        words += [f"--model.path={unit.folder / 'train' / 'model'}", "--model.lora_rank=0"]
    return Work(name, tuple(words), unit.folder / name, digest(unit, name, more))


# ---- what is there ----


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """What a run's folder says is finished: work -> its digest and seconds."""
    try:
        found = json.loads((folder / FINISHED).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def state(work: Work, unit: Unit) -> State:
    """finished: as the study asks for it now; begun: there is something to go on from, or of another meaning."""
    if work.name == "pools":
        lines = count_lines(work.folder)
        return "finished" if lines >= work.count else "begun" if lines else "missing"
    if finished(unit.folder).get(work.name, {}).get("digest") == work.digest:
        return "finished"
    return "begun" if (work.folder / "config.json").is_file() else "missing"


def count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def left(unit: Unit, study: Study) -> list[Work]:
    """What a run still needs: what follows a training that is not finished was of older weights, so all of that too."""
    found = works(unit, study)
    states = {work.name: state(work, unit) for work in found}
    if unit.trained and states["train"] != "finished":
        return [work for work in found if work.name != "pools" or states["pools"] != "finished"]
    return [work for work in found if work.name != "pools" and states[work.name] != "finished"]


def state_of(unit: Unit, study: Study) -> State:
    """A run as a whole."""
    todo = left(unit, study)
    if not todo:
        return "finished"
    begun = finished(unit.folder) or any(state(work, unit) == "begun" for work in todo if work.name != "pools")
    return "begun" if begun else "missing"


# ---- running ----


@dataclass
class Job:
    """A run under way, as it is shown."""

    unit: Unit
    status: Literal["waiting", "running", "finished", "failed", "interrupted"] = "waiting"
    doing: str = ""
    started: float = 0.0
    seconds: float = 0.0

    @property
    def log(self) -> Path:
        return self.unit.folder / LOG

    def last_line(self) -> str:
        """The last line that its process wrote."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def line(self) -> str:
        """How far it is, in one line."""
        if self.status == "running":
            now = time.monotonic() - self.started
            return f"{self.unit.name}: {self.doing}, {now:,.0f} s: {self.last_line()}"
        if self.status == "failed":
            return f"{self.unit.name}: {self.doing} failed: {self.last_line()} (all of it: {self.log})"
        return f"{self.unit.name}: {self.status}" + (f", {self.seconds:,.0f} s" if self.seconds else "")


@dataclass
class Pool:
    """Runs jobs, `at_once` of them; `say(job)` hears of every change. `stop()` interrupts all that are under way."""

    study: Study
    at_once: int
    say: Callable[[Job], None]
    live: dict[int, tuple[asyncio.subprocess.Process, Work]] = field(default_factory=dict)
    stopping: bool = False

    async def run(self, jobs: Sequence[Job]) -> None:
        """All jobs, in their order; one that fails leaves the others alone."""
        slots = asyncio.Semaphore(self.at_once)

        async def one(job: Job) -> None:
            async with slots:
                if not self.stopping:
                    await self.job(job)

        await asyncio.gather(*map(one, jobs))

    async def job(self, job: Job) -> None:
        """What a run still needs, one process after another; its folder is locked, so that no two studies work in it."""
        folder = job.unit.folder
        folder.mkdir(parents=True, exist_ok=True)
        job.status, job.started, job.doing = "running", time.monotonic(), "waiting for another process that works here"
        with (folder / LOCK).open("ab") as lock, job.log.open("ab") as log:
            code = 0 if await self.locked(lock) else INTERRUPTED
            todo = [] if code else left(job.unit, self.study)
            write_whole(folder / CONFIG, to_toml(job.unit.config.model_dump(mode="json", exclude_unset=True)))
            for work in todo:
                job.doing = work.name
                self.say(job)
                if code := await self.work(work, job.unit, log, lock) or (INTERRUPTED if self.stopping else 0):
                    break
        job.seconds = time.monotonic() - job.started
        done = not left(job.unit, self.study)
        job.status = "finished" if done else "interrupted" if self.stopping or code == INTERRUPTED else "failed"
        self.say(job)

    async def work(self, work: Work, unit: Unit, log: IO[bytes], lock: IO[bytes]) -> int:
        """One process from start to end, and the note that it is finished; returns its exit code."""
        if work.name == "pools":
            return await self.pools(work, unit, log, lock)
        if work.name == "train":
            forget_evaluations(unit)
        start = time.monotonic()
        code = await self.process(work, unit, log, lock.fileno())
        if code == 0:
            entry = {"digest": work.digest, "seconds": round(time.monotonic() - start, 1)}
            write_whole(
                unit.folder / FINISHED, json.dumps({**finished(unit.folder), work.name: entry}, indent=2) + "\n"
            )
        return code

    async def pools(self, work: Work, unit: Unit, log: IO[bytes], lock: IO[bytes]) -> int:
        """Sample a file that several runs may read, once."""
        with work.folder.with_suffix(".lock").open("ab") as shared:
            if not await self.locked(shared):
                return INTERRUPTED
            if count_lines(work.folder) >= work.count:
                return 0
            return await self.process(work, unit, log, lock.fileno(), shared.fileno())

    async def process(self, work: Work, unit: Unit, log: IO[bytes], *locks: int) -> int:
        """Start and await it. It keeps the locks should this process die, and hears of Ctrl-C from here only."""
        resume = ["--resume"] if work.name != "pools" and (work.folder / "config.json").is_file() else []
        words = [*work.words, *resume]
        log.write(f"$ paragator {' '.join(words)}\n".encode())
        log.flush()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "paragator", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(unit.config.train.threads or 1),
            start_new_session=True,
            pass_fds=locks,
        )
        self.live[process.pid] = (process, work)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            del self.live[process.pid]

    async def locked(self, file: IO[bytes]) -> bool:
        """Take a lock, however long another process holds it; False when asked to stop before."""
        import fcntl

        while not self.stopping:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(POLL_S)
            else:
                return True
        return False

    def stop(self) -> None:
        """Ask every process to stop; asked again, end them."""
        for process, work in list(self.live.values()):
            if self.stopping:
                process.kill()
            else:
                process.send_signal(signal.SIGTERM if work.name == "pools" else signal.SIGINT)
        self.stopping = True


def forget_evaluations(unit: Unit) -> None:
    """Training goes on, so what was measured of its earlier weights is void."""
    (unit.folder / FINISHED).unlink(missing_ok=True)
    for path in unit.folder.glob("eval*/config.json"):
        shutil.rmtree(path.parent)


def environment(threads: int) -> dict[str, str]:
    """This process's environment with as many threads as the run may use, and arithmetic that load does not change."""
    out = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        out[name] = str(threads)
    out.setdefault("MKL_DYNAMIC", "FALSE")
    if platform.machine().lower() in ("x86_64", "amd64"):
        out.setdefault("MKL_CBWR", "AVX2")
    return out


def default_jobs(threads: int) -> int:
    """Runs at once that the processor cores carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)


@contextmanager
def interruptible(pool: Pool) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the pool while inside."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def ask() -> None:
        more = "; Ctrl-C again ends them at once" if not pool.stopping else ""
        print(f"stopping {len(pool.live)} processes{more}", file=sys.stderr)
        pool.stop()

    for one in signals:
        loop.add_signal_handler(one, ask)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)
