"""Finished requests on disk: what an engine answered once is never asked again, not even after kill -9.

A journal is a JSONL file, one finished request a line: {"key": "...", "outputs": [...], ...}. A line is with the
operating system before its group is used. That is enough to survive kill -9 of the process, so nothing waits for the
disk; a machine that loses its power may lose the last seconds of calls, and they are asked again.

    Journal(engine, path, one_by_one=True)      an endpoint: a request a completion, so a kill between siblings loses none
    Journal(engine, path)                       in-process: the siblings of a prompt stay together
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError, RunError, UsageError
from paragator.core.siblings import joined, sibling_seeds
from paragator.core.together import together
from paragator.core.types import Completion, Group, Prompt, Sample, Stage
from paragator.records import cut_torn_line

HEAD = len('{"key": "')
KEY_CHARS = 32


class Stopped(Exception):
    """The caller asked to stop, so a request was not made. Not an error: what is missing can be asked for later."""


def never() -> bool:
    """Nobody stops this."""
    return False


class Journal:
    """Satisfies `Sample`: answers a request from the file at `path`, else asks `sample` once and writes the answer down.

    settings    names what else decides an answer: the model and how it samples. Another text is another request
    one_by_one  ask n times for one completion instead of once for n
    stop        once it is true, nothing more is asked: a request that the file does not answer raises Stopped
    asked       requests that went to `sample` since this journal was opened, the failed ones included
    reused      requests answered from the file
    tokens      completion tokens of the asked ones, where the engine knows them; prompt_tokens those of their prompts

    The key of a request is a hash of settings, prompt, n, stage and seed. Equal requests at the same time share one
    call. A group with a Failure is used but not written down: a later attempt asks again. Log-probabilities are
    neither kept nor passed on, as records hold none. Memory holds 16 bytes of key and an offset a request, no text.
    One process at a time may have a journal open; UsageError for a second one.
    """

    def __init__(
        self,
        sample: Sample,
        path: Path,
        *,
        settings: str = "",
        one_by_one: bool = False,
        stop: Callable[[], bool] = never,
    ) -> None:
        self.sample = sample
        self.path = path
        self.settings = settings
        self.one_by_one = one_by_one
        self.stop = stop
        self.asked = self.reused = self.tokens = self.prompt_tokens = 0
        self.in_flight: dict[bytes, asyncio.Task[Group]] = {}
        self.file = open_alone(path)
        self.offsets = index(self.file)
        self.end = self.file.seek(0, 2)

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """The groups of an earlier attempt where there are any, else the engine's."""
        if not self.one_by_one:
            return await self.group(prompt, n, stage, seed)
        return joined(await together(*(self.group(prompt, 1, stage, each) for each in sibling_seeds(seed, n))))

    def group(self, prompt: Prompt, n: int, stage: Stage, seed: int) -> asyncio.Future[Group]:
        """One request: of the file, else under way. A paid call is written down even when its caller has gone."""
        key = self.key(prompt, n, stage, seed)
        if key in self.offsets:
            self.reused += 1
            found: asyncio.Future[Group] = asyncio.get_running_loop().create_future()
            found.set_result(self.find(key, prompt, stage))
            return found
        task = self.in_flight.get(key)
        if task is None:
            task = asyncio.ensure_future(self.ask(key, prompt, n, stage, seed))
            self.in_flight[key] = task
            task.add_done_callback(lambda done: self.forget(key, done))
        return asyncio.shield(task)

    def key(self, prompt: Prompt, n: int, stage: Stage, seed: int) -> bytes:
        text = json.dumps([self.settings, prompt.text, prompt.chat, n, stage, seed])
        return hashlib.sha256(text.encode()).digest()[: KEY_CHARS // 2]

    async def ask(self, key: bytes, prompt: Prompt, n: int, stage: Stage, seed: int) -> Group:
        if self.stop():
            raise Stopped
        self.asked += 1
        try:
            group = await self.sample(prompt, n, stage=stage, seed=seed)
        except Stopped:
            self.asked -= 1
            raise
        self.tokens += sum(completion.length or 0 for completion in group.completions)
        self.prompt_tokens += group.prompt_length or 0
        outputs = tuple(replace(o, logprobs=None) if isinstance(o, Completion) else o for o in group.outputs)
        group = replace(group, outputs=outputs)
        if len(group.completions) == len(outputs):
            self.write(key, group)
        return group

    def write(self, key: bytes, group: Group) -> None:
        """Append one line; a disk that takes only part of it gets that part cut off again, and RunError says so."""
        line = json.dumps({"key": key.hex(), **encode(group)}).encode() + b"\n"
        written = 0
        try:
            while written < len(line):
                written += self.file.write(line[written:]) or 0
        except OSError as error:
            self.file.truncate(self.end)
            raise RunError(f"{self.path} cannot be written ({error.strerror}); make room and --resume") from None
        self.offsets[key] = self.end
        self.end += len(line)

    def find(self, key: bytes, prompt: Prompt, stage: Stage) -> Group:
        self.file.seek(self.offsets[key])
        reader = io.BufferedReader(self.file)
        line = reader.readline()
        reader.detach()
        try:
            return decode(json.loads(line), prompt, stage)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: broken line at byte {self.offsets[key]} ({error!r}); remove it") from None

    def forget(self, key: bytes, done: asyncio.Task[Group]) -> None:
        del self.in_flight[key]
        if not done.cancelled():
            done.exception()  # looked at here, as the caller may have gone

    async def close(self, *, wait: bool) -> None:
        """Let calls under way finish and be written down (`wait`), or give them up; then close the file."""
        under_way = list(self.in_flight.values())
        if not wait:
            for task in under_way:
                task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self.file.close()


def open_alone(path: Path) -> io.FileIO:
    """The file, unbuffered, opened to append and to read and locked for this process; a torn last line is cut off."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(path, "a+")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    try:
        lock(file)
    except OSError:
        file.close()
        raise UsageError(f"{path} is in use by another process; wait for it, or choose another --name") from None
    cut_torn_line(file)
    return file


def lock(file: io.FileIO) -> None:
    """An advisory lock that ends with this process, however it ends, and that child processes do not inherit."""
    try:
        import fcntl
    except ImportError:  # not on this system: nothing keeps a second process away
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def index(file: io.FileIO) -> dict[bytes, int]:
    """Key -> where its line begins. Reads line by line and parses none of them."""
    offsets: dict[bytes, int] = {}
    at = file.seek(0)
    reader = io.BufferedReader(file)
    for line in reader:
        try:
            offsets[bytes.fromhex(line[HEAD : HEAD + KEY_CHARS].decode())] = at
        except ValueError:
            name = os.fsdecode(file.name)
            raise DataError(f"{name}: no journal's line at byte {at}; remove the line or the file") from None
        at += len(line)
    reader.detach()
    return offsets


def encode(group: Group) -> dict[str, Any]:
    """What a prompt does not tell of a group without failures, as JSON values; None is left out."""
    outputs = []
    for output in group.completions:
        names = ("text", "finish_reason", "token_ids", "num_tokens", "thinking", "confidences", "certainty")
        outputs.append({name: value for name in names if (value := getattr(output, name)) is not None})
    known = {"prompt_ids": group.prompt_ids, "num_prompt_tokens": group.num_prompt_tokens}
    return {"outputs": outputs} | {name: value for name, value in known.items() if value is not None}


def decode(row: dict[str, Any], prompt: Prompt, stage: Stage) -> Group:
    """The inverse of `encode` for a group of `prompt`."""
    outputs = []
    for fields in row["outputs"]:
        for name in ("token_ids", "confidences"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        outputs.append(Completion(**fields))
    prompt_ids = row.get("prompt_ids")
    ids = None if prompt_ids is None else tuple(prompt_ids)
    return Group(prompt, tuple(outputs), ids, stage, num_prompt_tokens=row.get("num_prompt_tokens"))
