"""Plans and runs a study's remaining processes: the phases that each run still needs, a few runs at a time."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from paragator.core.errors import UsageError
from paragator.runs.folder import LOCK, check_same, write_whole
from paragator.settings import to_json
from paragator.stats.runs import read_json
from paragator.study.cells import NO_EVALUATION, Study, Unit, digest, to_toml, training
from paragator.study.finished import CONFIG, FINISHED, finished

State = Literal["finished", "begun", "missing"]
LOG = "process.log"
POLL_S = 0.5
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Phase:
    """One process of a run, `paragator` with these words: "candidates", "train", "eval" and further evaluations."""

    name: str
    words: tuple[str, ...]
    target: Path
    """The folder that it works in; of candidates, the file that it writes."""
    digest: str
    count: int = 0
    """candidates: how many records the file holds once it is finished."""


def phases(unit: Unit, study: Study) -> list[Phase]:
    """What a run takes, in order: recorded candidates where it trains on such, training, and its evaluations."""
    out: list[Phase] = []
    toml, file = str(unit.folder / CONFIG), unit.recorded
    if file:
        words = ("sample", toml, "--output", str(file), "--count", str(unit.recorded_count))
        out.append(Phase("candidates", words, file, "", unit.recorded_count))
    if unit.trained:
        out.append(Phase("train", ("train", toml, f"--eval={NO_EVALUATION}"), unit.folder / "train", digest(unit)))
    own = unit.config.generate.temperature
    out.append(evaluation(unit, "eval"))
    for t in dict.fromkeys(study.evaluation.temperatures):
        if t != own:
            rounds = f"--eval.rounds={study.primary.round}"
            out.append(evaluation(unit, f"eval-t{t:g}", f"--generate.temperature={t!r}", rounds))
    return out


def evaluation(unit: Unit, name: str, *more: str) -> Phase:
    """`paragator eval` of what the run trained, or of the base model."""
    words = ["eval", str(unit.folder / CONFIG), f"--name={name}", *more]
    if unit.config.engine.kind == "vllm":
        words.append("--engine.kind=transformers")
    if unit.trained:
        words += [f"--model.path={unit.folder / 'train' / 'model'}", "--model.lora_rank=0"]
    return Phase(name, tuple(words), unit.folder / name, digest(unit, name, more))


# ---- what is there ----


def state(phase: Phase, unit: Unit) -> State:
    """finished: as the study asks for it now; begun: unfinished, or with other settings."""
    if phase.name == "candidates":
        lines = count_lines(phase.target)
        return "finished" if lines >= phase.count else "begun" if lines else "missing"
    if not (phase.target / "config.json").is_file():
        return "missing"
    return "finished" if finished(unit.folder).get(phase.name) == phase.digest else "begun"


def count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def left(unit: Unit, study: Study) -> list[Phase]:
    """What a run still needs; candidates only as long as it has to train."""
    todo = [phase for phase in phases(unit, study) if state(phase, unit) != "finished"]
    trains = any(phase.name == "train" for phase in todo)
    return [phase for phase in todo if trains or phase.name != "candidates"]


def check_trained(unit: Unit) -> None:
    """Refuse to resume a training that began with other settings; one that is finished as asked for is ignored."""
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
    own = [phase for phase in todo if phase.name != "candidates"]  # others may have recorded those
    begun = (unit.folder / FINISHED).is_file() or any(state(phase, unit) == "begun" for phase in own)
    return "begun" if begun else "missing"


# ---- running ----


@dataclass
class Job:
    """A run in progress: its status, and the phase that it is in."""

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
    """Runs jobs, `at_once` of them; `changed(job)` is called with each change. `stop()` interrupts all processes."""

    study: Study
    jobs: Sequence[Job]
    at_once: int
    changed: Callable[[Job], None]
    live: dict[int, tuple[asyncio.subprocess.Process, Phase]] = field(default_factory=dict)
    stopping: bool = False

    async def run(self) -> None:
        """All jobs, in their order; when one fails, the others go on."""
        slots = asyncio.Semaphore(self.at_once)

        async def one(job: Job) -> None:
            async with slots:
                if not self.stopping:
                    await self.job(job)

        await asyncio.gather(*map(one, self.jobs))

    async def job(self, job: Job) -> None:
        """What a run still needs, one process after another; its folder is locked, so that no two studies work in it."""
        folder = job.unit.folder
        folder.mkdir(parents=True, exist_ok=True)
        job.status, job.started, job.doing = "running", time.monotonic(), "waiting for another process that works here"
        with (folder / LOCK).open("ab") as lock, job.log.open("ab") as log:
            code = 0 if await self.locked(lock) else INTERRUPTED
            todo = [] if code else left(job.unit, self.study)
            write_whole(folder / CONFIG, to_toml(job.unit.config.model_dump(mode="json", exclude_unset=True)))
            for phase in todo:
                job.doing = phase.name
                self.changed(job)
                if code := await self.phase(phase, job.unit, log, lock) or (INTERRUPTED if self.stopping else 0):
                    break
        job.seconds = time.monotonic() - job.started
        done = not left(job.unit, self.study)
        job.status = "finished" if done else "interrupted" if self.stopping or code == INTERRUPTED else "failed"
        self.changed(job)

    async def phase(self, phase: Phase, unit: Unit, log: IO[bytes], lock: IO[bytes]) -> int:
        """One process from start to end, and the note that it is finished; returns its exit code."""
        if phase.name == "candidates":
            return await self.candidates(phase, unit, log, lock)
        begin(phase, unit)
        start = time.monotonic()
        code = await self.process(phase, unit, log, lock.fileno())
        if code == 0:
            note(phase, unit, {"seconds": round(time.monotonic() - start, 1)})
        return code

    async def candidates(self, phase: Phase, unit: Unit, log: IO[bytes], lock: IO[bytes]) -> int:
        """Sample a file that several runs may read, once."""
        with phase.target.with_suffix(".lock").open("ab") as shared:
            if not await self.locked(shared):
                return INTERRUPTED
            if count_lines(phase.target) >= phase.count:
                return 0
            return await self.process(phase, unit, log, lock.fileno(), shared.fileno())

    async def process(self, phase: Phase, unit: Unit, log: IO[bytes], *locks: int) -> int:
        """Start and await it. It keeps the locks should this process die, and gets Ctrl-C only from here."""
        resume = ["--resume"] if phase.name != "candidates" and (phase.target / "config.json").is_file() else []
        words = [*phase.words, *resume]
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
        self.live[process.pid] = (process, phase)
        try:
            if self.stopping:  # asked while it was being started
                interrupt(process, phase)
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
        for process, phase in list(self.live.values()):
            interrupt(process, phase, signal.SIGKILL if again else None)


def interrupt(process: asyncio.subprocess.Process, phase: Phase, kind: signal.Signals | None = None) -> None:
    """Send a signal, by default the one after which it can be resumed; a process that has just ended is ignored."""
    with suppress(ProcessLookupError):
        process.send_signal(kind or (signal.SIGTERM if phase.name == "candidates" else signal.SIGINT))


def begin(phase: Phase, unit: Unit) -> None:
    """Note with what settings a phase begins; an evaluation that began with others starts again."""
    began = read_json(unit.folder / FINISHED).get(phase.name, {}).get("digest")
    if began != phase.digest and phase.name != "train":
        shutil.rmtree(phase.target, ignore_errors=True)
    note(phase, unit, {})


def note(phase: Phase, unit: Unit, more: dict[str, float]) -> None:
    """A phase's entry in finished.json: the digest of its settings, and its seconds once it is finished."""
    entry = {phase.name: {"digest": phase.digest, **more}}
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
