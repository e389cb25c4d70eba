"""Weights on their way to vLLM: whole or not there, untied, between requests only; and, where vLLM is at hand, for real."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragator.config import Config, ModelConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Prompt
from paragator.engines.http.openai import Limits, OpenAI
from paragator.engines.http.vllm import VllmEngine, ended, environment, served, written
from paragator.engines.http.weights import Adapter, Weights
from paragator.engines.local.loading import add_lora, load_model
from paragator.engines.sampling import Sampling
from paragator.runs.connect import training_engine
from paragator.runs.resolve import resolve
from paragator.settings import validate
from servers import Call, Server, VllmServer, running

ROOT = Path(__file__).parents[2]
PYTHON, MODEL = ROOT / ".venv-vllm" / "bin" / "python", ROOT / "models" / "smollm2-135m"
SAMPLING = {"generate": Sampling(1.0, 8), "aggregate": Sampling(1.0, 8)}


def exported(folder: Path, *, tied: bool = True, scale: float = 1.0) -> None:
    save_file({"model.embed_tokens.weight": torch.full((3, 2), scale)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied, "hidden_size": 2}))


OLD = ("/collective_rpc", "/reset_prefix_cache")
"""The routes of a vLLM that neither pauses nor knows versions."""


@contextmanager
def fleet(*servers: VllmServer, folder: Path, kind: type[Weights] = Weights) -> Iterator[VllmEngine]:
    """An engine over some servers that run until the block ends; `told(engine)` is what it said of them."""
    with ExitStack() as stack:
        urls = [stack.enter_context(running(server)).url for server in servers]
        engine = VllmEngine(OpenAI(urls, "policy", sampling=SAMPLING, limits=Limits(wait_s=0)), folder, kind)
        engine.engine.fleet.tell = TOLD.append
        TOLD.clear()
        yield engine


TOLD: list[str] = []


def published(engine: VllmEngine, version: int) -> None:
    """Publish, then end what runs beside it."""

    async def publish() -> None:
        try:
            await engine.publish(exported, version)
        finally:
            await engine.close()

    asyncio.run(publish())


def test_a_version_is_written_whole_and_untied(tmp_path: Path) -> None:
    target = written(exported, tmp_path / "weights", 3)
    assert [p.name for p in target.parent.iterdir()] == ["version_3"]
    tensors = load_file(target / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_model_of_two_matrices_is_left_alone(tmp_path: Path) -> None:
    target = written(lambda folder: exported(folder, tied=False), tmp_path, 0)
    assert list(load_file(target / "model.safetensors")) == ["model.embed_tokens.weight"]


def test_an_export_that_fails_leaves_no_version(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        written(broken, tmp_path, 1)
    assert not list(tmp_path.glob("version_*"))


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_publishing_reloads_forgets_prefixes_names_the_version_and_keeps_one(tmp_path: Path) -> None:
    server = VllmServer()
    with fleet(server, folder=tmp_path) as engine:
        for version in (0, 1):
            published(engine, version)
    assert engine.version == 1 and [p.name for p in tmp_path.iterdir()] == ["version_1"]
    assert server.weights == server.label == str(tmp_path / "version_1") and not server.paused
    assert server.told[:5] == [*server.routes[:4], "/resume"] and server.told[5] == "/weight_info"
    assert len(server.told) == 6 + 7  # the second time it is looked at before, too


def test_all_servers_get_a_version_at_once_and_the_step_waits_for_the_last(tmp_path: Path) -> None:
    slow = VllmServer(latency_s=0.2)
    servers = [VllmServer(), slow, VllmServer()]
    with fleet(*servers, folder=tmp_path) as engine:
        published(engine, 4)
        assert {server.label for server in servers} == {str(tmp_path / "version_4")}
        published(engine, 4)
    assert [len(server.told) for server in servers] == [6, 6, 6]  # what they have is not sent again


def test_a_server_that_reports_another_version_is_not_used(tmp_path: Path) -> None:
    good, deaf = VllmServer(), VllmServer(deaf=True)
    with fleet(good, deaf, folder=tmp_path) as engine:
        published(engine, 1)
    assert engine.engine.fleet.left == engine.engine.servers[:1] and engine.version == 1
    (line,) = TOLD
    assert line.startswith(
        f"engine.url = {deaf.url}: the server is lost (it reports weights 'default' where it was given "
    )
    assert line.endswith("; 1 of 2 servers take over")


def test_none_that_takes_the_weights_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with (
        fleet(deaf := VllmServer(deaf=True), folder=tmp_path) as engine,
        pytest.raises(
            RunError,
            match=r"^engine.url: no server is left, for 0 s \(http.*: it reports weights 'default' .*version_1",
        ),
    ):
        published(engine, 1)
    assert engine.version is None and deaf.label == "default"


def test_a_server_restarted_between_two_steps_gets_the_weights_like_any_other(tmp_path: Path) -> None:
    server = VllmServer()
    with fleet(server, folder=tmp_path) as engine:
        published(engine, 1)
        server.label = server.weights = "default"
        published(engine, 2)
    assert server.weights == server.label == str(tmp_path / "version_2") and TOLD == []


def test_a_server_that_another_run_publishes_to_is_not_used(tmp_path: Path) -> None:
    server = VllmServer()
    with fleet(server, VllmServer(), folder=tmp_path) as engine:
        published(engine, 1)
        server.label = "/elsewhere/weights/version_9"
        published(engine, 2)
    assert "another run publishes to it; give the run its own" in TOLD[0]
    assert server.label == "/elsewhere/weights/version_9"


def test_an_answer_of_a_server_that_was_restarted_unseen_is_asked_again(tmp_path: Path) -> None:
    """It answers as ever, but of the weights that it was started with: only its version tells."""
    restarted, other = VllmServer(), VllmServer()
    with fleet(restarted, other, folder=tmp_path) as engine:
        published(engine, 1)
        restarted.label = "default"

        async def ask() -> None:
            group = await engine(Prompt("x"), 2, stage="generate", seed=1)
            assert len(group.completions) == 2
            await engine.close()

        asyncio.run(ask())
    assert [len(prompts_of(server)) for server in (restarted, other)] == [1, 1]
    assert "it reports weights 'default'" in TOLD[0]


def test_an_older_vllm_is_told_of_once_and_goes_on(tmp_path: Path) -> None:
    server = VllmServer(routes=OLD)
    with fleet(server, folder=tmp_path) as engine, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for version in (0, 1, 2):
            published(engine, version)
    assert sum("mismatch_kl alone" in str(w.message) for w in caught) == 1
    assert server.weights == str(tmp_path / "version_2") and server.told == [*OLD] * 3


def test_a_server_without_weight_routes_says_how_to_start_it(tmp_path: Path) -> None:
    with (
        fleet(VllmServer(routes=()), folder=tmp_path) as engine,
        pytest.raises(UsageError, match="VLLM_SERVER_DEV_MODE=1"),
    ):
        published(engine, 0)


def test_a_reload_that_fails_is_one_line_and_the_server_goes_on(tmp_path: Path) -> None:
    server = VllmServer(refused=(500, "collective_rpc method failed"))
    with fleet(server, folder=tmp_path) as engine, pytest.raises(RunError) as caught:
        published(engine, 0)
    assert str(caught.value) == (
        f"engine.url: no server is left, for 0 s ({server.url}: /collective_rpc failed "
        "(http 500: collective_rpc method failed)); start one and --resume"
    )
    assert not server.paused and server.told[-1] == "/resume"


def test_a_server_that_is_gone_when_weights_come(tmp_path: Path) -> None:
    with fleet(VllmServer(), folder=tmp_path) as engine:
        pass
    with pytest.raises(
        RunError, match=r"no server is left, for 0 s \(http://.*: /pause.* failed \(connection refused\)\)"
    ):
        published(engine, 0)


def test_no_rollout_spans_two_versions(tmp_path: Path) -> None:
    with fleet(VllmServer(), folder=tmp_path) as engine:
        engine.engine.servers[0].in_flight = 1
        with pytest.raises(RunError, match="1 rollouts are under way"):
            published(engine, 1)
        engine.engine.servers[0].in_flight, engine.publishing = 0, True
        with pytest.raises(RunError, match="two versions"):
            asyncio.run(engine(Prompt("x"), 1, stage="generate", seed=0))


# ---- adapters alone --------------------------------------------------------------------------------------------------


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": 12}')


def lora_server() -> VllmServer:
    return VllmServer(model="policy", max_lora_rank=16)


def asked_after(engine: VllmEngine, *versions: int, forget: VllmServer | None = None) -> None:
    """Publish adapters, have a server forget them, and sample."""

    async def ask() -> None:
        try:
            for version in versions:
                await engine.publish(adapter, version)
            if forget is not None:
                forget.adapters.clear()
            group = await engine(Prompt("x"), 2, stage="generate", seed=1)
            assert len(group.completions) == 2
        finally:
            await engine.close()

    asyncio.run(ask())


def test_an_adapter_is_loaded_under_its_version_and_asked_for_and_the_older_one_is_unloaded(tmp_path: Path) -> None:
    server = lora_server()
    server.adapters["version_1-of-others"] = "/elsewhere/weights/version_1"
    server.adapters["version_0-before-it-was-resumed"] = str(tmp_path / "version_0")
    with fleet(server, folder=tmp_path, kind=Adapter) as engine:
        asked_after(engine, 0, 1)
    assert list(server.adapters.values()) == ["/elsewhere/weights/version_1", str(tmp_path / "version_1")]
    assert [path.name for path in tmp_path.iterdir()] == ["version_1"] and not server.told and not TOLD
    (body,) = (call.body for call in server.calls if call.path == "/v1/completions")
    assert body["model"] == list(server.adapters)[1] and body["model"].startswith("version_1-")


def test_what_a_server_without_its_adapter_was_asked_is_asked_elsewhere(tmp_path: Path) -> None:
    """It says 404, as for a wrong URL, and that before any good answer."""
    restarted, other = lora_server(), lora_server()
    with fleet(restarted, other, folder=tmp_path, kind=Adapter) as engine:
        asked_after(engine, 3, forget=restarted)
    assert [len(prompts_of(server)) for server in (restarted, other)] == [1, 1]
    (line,) = TOLD
    assert "the server is lost (it has no adapter 'version_3-" in line


def test_an_answer_of_anything_but_the_adapter_does_not_count(tmp_path: Path) -> None:
    class Base(VllmServer):
        def refusal(self, call: Call) -> tuple[int, str] | None:
            return None if call.path == "/v1/completions" else super().refusal(call)

    base = Base(model="policy", max_lora_rank=16)
    with fleet(base, lora_server(), folder=tmp_path, kind=Adapter) as engine:
        asked_after(engine, 1, forget=base)
    assert "(it answers as 'policy' where 'version_1-" in TOLD[0]


@pytest.mark.parametrize(
    ("most", "said"),
    [(None, r"http 404: no such path: /v1/load_lora_adapter"), (8, r"http 500: LoRA rank 12 is greater than.*")],
)
def test_a_server_that_takes_no_adapters_says_how_to_start_it(tmp_path: Path, most: int | None, said: str) -> None:
    with (
        fleet(VllmServer(model="policy", max_lora_rank=most), folder=tmp_path, kind=Adapter) as engine,
        pytest.raises(
            UsageError,
            match=rf"^engine.url = \S+: the server loads no adapter \({said}\); start vLLM with "
            r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank 16, where it can read .*version_0$",
        ),
    ):
        asked_after(engine, 0)


# ---- several servers -------------------------------------------------------------------------------------------------


def prompts_of(server: VllmServer) -> list[str]:
    return [call.body["prompt"] for call in server.calls if call.path == "/v1/completions"]


def test_prompts_are_spread_and_siblings_stay_together(tmp_path: Path) -> None:
    servers = [VllmServer(latency_s=0.05) for _ in range(3)]
    with fleet(*servers, folder=tmp_path) as engine:

        async def ask() -> None:
            parts = [engine(Prompt(f"p{i}"), 4, stage="generate", seed=i) for i in range(9)]
            siblings = [engine(Prompt(f"p{i}"), 1, stage="generate", seed=100 + i) for i in range(9)]
            groups = await asyncio.gather(*parts, *siblings)
            assert all(len(g.completions) == len(g.outputs) for g in groups)

        asyncio.run(ask())
    assert [sorted(set(prompts_of(server))) for server in servers] == [
        [f"p{i + 3 * j}" for j in range(3)] for i in range(3)
    ]
    assert [len(prompts_of(server)) for server in servers] == [6, 6, 6]
    assert [server.in_flight for server in engine.engine.servers] == [0, 0, 0]
    assert engine.engine.usage.calls == 18


def test_a_busy_server_gets_less(tmp_path: Path) -> None:
    servers = [VllmServer(), VllmServer()]
    with fleet(*servers, folder=tmp_path) as engine:
        engine.engine.servers[0].in_flight = 9

        async def ask() -> None:
            await asyncio.gather(*(engine(Prompt(f"p{i}"), 4, stage="generate", seed=i) for i in range(4)))

        asyncio.run(ask())
    assert [len(prompts_of(server)) for server in servers] == [1, 3]


def test_the_memory_of_homes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paragator.engines.http.fleet.MOST_HOMES", 3)
    fleet = OpenAI("http://a/v1").fleet
    for i in range(9):
        fleet.home(i)
    assert len(fleet.homes) == 3


def test_one_server_named_twice_and_servers_of_two_models() -> None:
    with pytest.raises(UsageError, match="names http://a/v1 twice"):
        OpenAI(["http://a/v1", "http://a/v1/"])
    with pytest.raises(UsageError, match="names no server"):
        OpenAI([])
    with ExitStack() as stack:
        engine = OpenAI([stack.enter_context(running(Server(model=name))).url for name in "ab"])
        with pytest.raises(UsageError, match=r"serve a, b; set engine\.model"):
            asyncio.run(engine.connect())


# ---- a server of one's own -------------------------------------------------------------------------------------------

FAKE = """\
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def do_POST(self):
        print("RuntimeError: out of memory\\n", flush=True)
        import os; os._exit(7)
    def log_message(self, *words): pass

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_server_of_ones_own_that_dies_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fake" / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    async def trial() -> None:
        async with served(sys.executable, tmp_path, tmp_path / "vllm.log") as url:
            engine = OpenAI(url, "policy", sampling=SAMPLING, limits=Limits(backoff_s=0.01, wait_s=0.2))
            await engine.connect()
            try:
                await engine(Prompt("x"), 1, stage="generate", seed=0)
            finally:
                await engine.close()

    with pytest.raises(RunError) as caught:
        asyncio.run(trial())
    assert str(caught.value) == (
        f"vLLM ended with code 7 (RuntimeError: out of memory); see {tmp_path / 'vllm.log'}; then --resume"
    )


def test_a_server_that_ends_at_once_says_where_to_look(tmp_path: Path) -> None:
    async def start() -> None:
        async with served(sys.executable, tmp_path, tmp_path / "vllm.log"):
            pass

    with pytest.raises(RunError, match=r"vLLM ended with code \d+ before it was ready \(.+\); see .*vllm.log"):
        asyncio.run(start())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_and_its_workers_end_with_the_run(tmp_path: Path, sign: signal.Signals) -> None:
    """However the run ends, and although the worker ignores what asks it politely."""
    python, worker, pids = tmp_path / "python", tmp_path / "worker", tmp_path / "pids"
    worker.write_text(f"trap '' TERM INT HUP\necho $$ >> {pids}\nwhile true; do sleep 1; done\n")
    python.write_text(f"#!/bin/sh\nsh {worker} &\necho $$ >> {pids}\nwait\n")
    python.chmod(0o755)
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom paragator.engines.http.vllm import served\n"
        "async def main():\n    async with served(sys.argv[1], Path('m'), Path(sys.argv[2])):\n        pass\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(python), str(tmp_path / "log")], stderr=subprocess.DEVNULL)
    try:
        started = wait_for(lambda: pids.is_file() and len(pids.read_text().split()) == 2 and pids.read_text().split())
        assert all(alive(int(pid)) for pid in started)
        run.send_signal(sign)
        run.wait(120)
        wait_for(lambda: not any(alive(int(pid)) for pid in started))
    finally:
        run.kill()


def wait_for(found: Callable[[], Any]) -> Any:
    """What `found` gives once it is true; fails after two minutes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("waited two minutes")


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_compiler_is_off_below_a_folder_with_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler writes the path into a command line that it splits at spaces."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    assert environment("/some folder/bin/python")["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in environment("/folder/bin/python")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    assert environment("/some folder/bin/python")["TORCHDYNAMO_DISABLE"] == "0"


def test_the_last_error_tells_more_than_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("RuntimeError: the first\nsmall.module.OtherError: the cause\n  warnings.warn('leaked: 1')\n")
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    server.wait()
    assert "ended with code 3 (small.module.OtherError: the cause)" in ended(server, log)
    log.write_text("ready\n")
    assert "(ready)" in ended(server, log)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    async def start() -> None:
        async with served("/no/such/python", tmp_path, tmp_path / "vllm.log"):
            pass

    with pytest.raises(UsageError, match="run `make vllm`"):
        asyncio.run(start())


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("kind", [Weights, Adapter])
def test_real_vllm_samples_from_the_published_weights(tmp_path: Path, kind: type[Weights]) -> None:
    """After a publish its log-probabilities are those of the new weights (a tied output layer would keep the old ones)."""
    if not PYTHON.is_file() or not (MODEL / "config.json").is_file():
        pytest.skip("needs `make vllm` and `make weights`")
    base, tokenizer = load_model(ModelConfig(path=str(MODEL), device="cpu"))
    model = base if kind is Weights else add_lora(base, 8)
    arguments = ["--enforce-eager", "--distributed-executor-backend", "uni", "--dtype", "float32"]
    arguments += ["--max-model-len", "512", "--gpu-memory-utilization", "0.2"]
    arguments += [] if kind is Weights else ["--enable-lora", "--max-lora-rank", "8"]

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    async def trial() -> float:
        first = MODEL if kind is Adapter else written(export, tmp_path / "weights", 0)
        async with served(str(PYTHON), first, tmp_path / "vllm.log", arguments) as url:
            server = OpenAI(url, "policy", sampling=SAMPLING)
            server.tokenizer = tokenizer
            await server.connect()
            engine = VllmEngine(server, tmp_path / "weights", kind)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if kind is Weights:
                        parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
                    elif "lora_B" in name:  # 0 as they begin
                        parameter.copy_(0.05 * torch.randn_like(parameter))
            await engine.publish(export, 1)
            group = await engine(Prompt("What is 3 + 4?", True), 4, stage="generate", seed=1)
            await engine.close()
        worst = 0.0
        for output in group.completions:
            ids = torch.tensor([[*(group.prompt_ids or ()), *(output.token_ids or ())]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(group.prompt_ids or ()) - 1 : -1]
            expected = torch.log_softmax(logits, -1)[range(len(output.token_ids or ())), list(output.token_ids or ())]
            worst = max(worst, float((expected - torch.tensor(output.logprobs)).abs().max()))
        assert len(group.completions) == 4
        return worst

    assert asyncio.run(trial()) < 1e-3
    shutil.rmtree(tmp_path / "weights")


def test_a_server_of_ones_own_needs_no_url() -> None:
    engine = {"kind": "vllm", "launch": True, "vllm_python": sys.executable}
    assert resolve(validate(Config, {"engine": engine, "method": {"k": 2}}), training=True).engine is None
    with pytest.raises(UsageError, match="not both"):
        resolve(validate(Config, {"engine": {**engine, "url": "http://a/v1"}}), training=True)


@pytest.mark.parametrize(
    ("given", "dtype", "rank"),
    [([], "bfloat16", 0), (["--dtype=float32"], None, 0), (["--dtype", "half"], None, 0), ([], "bfloat16", 12)],
)
def test_a_server_of_ones_own_has_the_trainers_precision_and_room_for_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], dtype: str | None, rank: int
) -> None:
    """Unless its arguments say another precision."""
    seen: list[str] = []

    @asynccontextmanager
    async def stop_here(python: str, model: Path, log: Path, arguments: Sequence[str]) -> AsyncIterator[str]:
        seen.extend(arguments)
        raise RunError("seen")
        yield ""

    class Stub:
        precision = "bfloat16"
        export = staticmethod(exported)

    async def begin() -> None:
        engine = {"kind": "vllm", "launch": True, "vllm_arguments": given, "sync": "adapter" if rank else "folder"}
        config = validate(Config, {"engine": engine, "model": {"lora_rank": rank}})
        async with training_engine(config, Stub(), tmp_path, lambda line: None):  # type: ignore[arg-type]
            pass

    monkeypatch.setattr("paragator.engines.http.vllm.served", stop_here)
    with pytest.raises(RunError, match="seen"):
        asyncio.run(begin())
    room = ["--enable-lora", "--max-lora-rank", "16"] if rank else []
    assert seen == room + given + (["--dtype", dtype] if dtype else [])
