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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from paragator.core.errors import UsageError
from paragator.report.runs import read_json
from paragator.runs.folder import LOCK, check_same, write_whole
from paragator.settings import to_json
from paragator.study.cells import NO_EVALUATION, Study, Unit, digest, to_toml, toml_value, training
from paragator.study.finished import CONFIG, FINISHED, finished

State = Literal["finished", "begun", "missing"]
LOG = "process.log"
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
    out: list[Work] = []
    toml = str(unit.folder / CONFIG)
    if unit.pools:
        words = ("sample", toml, "--output", str(unit.pools), "--count", str(unit.pools_count))
        out.append(Work("pools", words, unit.pools, "", unit.pools_count))
    if unit.trained:
        more = f"--eval={toml_value(NO_EVALUATION)}"
        out.append(Work("train", ("train", toml, more), unit.folder / "train", digest(unit)))
    own = unit.config.generate.temperature
    out.append(evaluation(unit, "eval"))
    for t in dict.fromkeys(study.evaluation.temperatures):
        if t != own:
            rounds = f"--eval.rounds={study.primary.round}"
            out.append(evaluation(unit, f"eval-t{t:g}", f"--generate.temperature={t!r}", rounds))
    return out


def evaluation(unit: Unit, name: str, *more: str) -> Work:
    """`paragator eval` of what the run trained, or of the base model."""
    words = ["eval", str(unit.folder / CONFIG), f"--name={name}", *more]
    if unit.config.engine.kind == "vllm":
        words.append("--engine.kind=transformers")
    if unit.trained:
        words += [f"--model.path={unit.folder / 'train' / 'model'}", "--model.lora_rank=0"]
    return Work(name, tuple(words), unit.folder / name, digest(unit, name, more))


# ---- what is there ----


def state(work: Work, unit: Unit) -> State:
    """finished: as the study asks for it now; begun: there is something to go on from, or of another meaning."""
    if work.name == "pools":
        lines = count_lines(work.folder)
        return "finished" if lines >= work.count else "begun" if lines else "missing"
    if not (work.folder / "config.json").is_file():
        return "missing"
    return "finished" if finished(unit.folder).get(work.name) == work.digest else "begun"


def count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def left(unit: Unit, study: Study) -> list[Work]:
    """What a run still needs; pools only as long as it has to train."""
    todo = [work for work in works(unit, study) if state(work, unit) != "finished"]
    return [work for work in todo if work.name != "pools" or any(other.name == "train" for other in todo)]


def check_trained(unit: Unit) -> None:
    """Refuse to go on from a training that began with other settings; one that is finished as asked for is no matter."""
    folder = unit.folder / "train"
    began = read_json(folder / "config.json")
    if not unit.trained or not began or finished(unit.folder).get("train") == digest(unit):
        return
    check_same(folder, to_json(training(unit.config)))
    before, now = began["train"]["steps"], unit.config.train.steps
    if before != now:
        raise UsageError(
            f"{folder} was run with another train.steps ({before} -> {now}); take it back, or use --overwrite or another --name"
        )


def state_of(unit: Unit, study: Study) -> State:
    """A run as a whole."""
    todo = left(unit, study)
    if not todo:
        return "finished"
    begun = (unit.folder / FINISHED).is_file() or any(
        state(work, unit) == "begun" for work in todo if work.name != "pools"
    )
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
class Runner:
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
        begin(work, unit)
        start = time.monotonic()
        code = await self.process(work, unit, log, lock.fileno())
        if code == 0:
            note(work, unit, {"seconds": round(time.monotonic() - start, 1)})
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
            if self.stopping:  # asked while it was being started
                interrupt(process, work)
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
        again, self.stopping = self.stopping, True
        for process, work in list(self.live.values()):
            interrupt(process, work, signal.SIGKILL if again else None)


def interrupt(process: asyncio.subprocess.Process, work: Work, kind: signal.Signals | None = None) -> None:
    """Send a signal, by default the one that lets it be resumed; one that has just ended is no matter."""
    with suppress(ProcessLookupError):
        process.send_signal(kind or (signal.SIGTERM if work.name == "pools" else signal.SIGINT))


def begin(work: Work, unit: Unit) -> None:
    """Note what a work is begun as; an evaluation that was begun as something else starts again."""
    began = read_json(unit.folder / FINISHED).get(work.name, {}).get("digest")
    if began != work.digest and work.name != "train":
        shutil.rmtree(work.folder, ignore_errors=True)
    note(work, unit, {})


def note(work: Work, unit: Unit, more: dict[str, float]) -> None:
    """A work's entry in finished.json: the digest of what was begun, with its seconds once it is finished."""
    entry = {work.name: {"digest": work.digest, **more}}
    write_whole(unit.folder / FINISHED, json.dumps(read_json(unit.folder / FINISHED) | entry, indent=2) + "\n")


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
def interruptible(pool: Runner) -> Iterator[None]:
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
