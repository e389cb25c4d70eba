"""Compiled decoder layers give the same update. They are traced here, not translated, so no compiler is needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo import lookup_backend

transformers = pytest.importorskip("transformers")

from paragator.config import Config  # noqa: E402
from paragator.core.errors import UsageError  # noqa: E402
from paragator.engines.local.loading import add_lora  # noqa: E402
from paragator.settings import load  # noqa: E402
from paragator.training import compiled  # noqa: E402
from paragator.training.policy import Policy  # noqa: E402
from paragator.training.rows import Branch, Tree  # noqa: E402

VOCAB = 97
WORK = [
    [Tree("generate", (5, 6, 7), tuple(Branch((8 + i, 9, 10), (-1.0,) * 3, i - 1.0) for i in range(n)))]
    for n in (3, 4, 6)
]


def toy(kind: str = "Qwen3") -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
    more = {"initializer_range": 0.2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**(sizes | heads | more))
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def configured(*flags: str) -> Config:
    return load(Config, None, ["--optimizer.warmup_steps=0", "--optimizer.lr=0.01", *flags])


def traced(monkeypatch: pytest.MonkeyPatch, translated: Callable[[Any, Any], Any]) -> Iterator[list[Any]]:
    """The graphs that are found while the test runs; what is `translated` from one is run in its place."""
    found: list[Any] = []

    def backend(graph: Any, examples: Any) -> Any:
        assert all(x.dim() for x in examples if isinstance(x, torch.Tensor)), (
            "a constant that would be computed on the CPU"
        )
        found.append(graph)
        return translated(graph, examples)

    real = torch.compile
    torch._dynamo.reset()
    compiled.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda call, **more: real(call, backend=backend, **more))
    yield found
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Each graph as it is."""
    yield from traced(monkeypatch, lambda graph, examples: graph.forward)


@pytest.fixture
def joint_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Each with its backward pass as the compiler makes it, and what that keeps of the forward one."""
    yield from traced(monkeypatch, lookup_backend("aot_eager_decomp_partition"))


def updated(model: Any, *flags: str, graphs: list[Any] | None = None) -> tuple[Any, list[dict[str, float]]]:
    """The policy and its statistics after a step on each of WORK; further `graphs` are found in the first one only."""
    policy = Policy.from_config(model, None, configured(*flags))
    told = [policy.update(WORK[0], 1, {})]
    before = list(graphs or ())
    told += [policy.update(trees, step, {}) for step, trees in enumerate(WORK[1:], 2)]
    assert before == list(graphs or ())
    return policy, told


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
@pytest.mark.parametrize("more", [(), ("--model.gradient_checkpointing=true",), ("--train.kl=0.1",)])
def test_updates_are_the_same(graphs: list[Any], kind: str, precision: str, more: tuple[str, ...]) -> None:
    flags = (f"--train.precision={precision}", *more)
    plain, want = updated(toy(kind), *flags)
    assert not graphs
    fast, found = updated(toy(kind), "--train.compile=true", *flags, graphs=graphs)
    assert found == want and found[0]["grad_norm"] > 0
    assert all(torch.equal(p, plain.tensors()[name]) for name, p in fast.tensors().items())
    passes = 2 if "--train.kl=0.1" in more else 1  # the reference's is without gradients
    assert len(graphs) == 1 + 4 * passes  # the trial, and one layer's


def test_with_adapters(graphs: list[Any]) -> None:
    pytest.importorskip("peft")
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(add_lora(toy(), 2))
    flags = ("--model.lora_rank=2", "--train.precision=bfloat16", "--train.kl=0.1")
    plain, want = updated(models[0], *flags)
    fast, found = updated(models[1], "--train.compile=true", *flags, graphs=graphs)
    assert (
        len(graphs) > 1 + 4 and found == want
    )  # the trial, one layer's, and what the first layer or the reference needs
    assert all(torch.equal(p, plain.tensors()[name]) for name, p in fast.tensors().items())


def test_sampling_is_not_compiled(graphs: list[Any]) -> None:
    model = toy()
    ids = torch.arange(4, 9)[None]
    want = model(ids).logits
    compiled.compile_layers(model)
    assert torch.equal(model(ids).logits, want) and len(graphs) == 1  # the trial


@pytest.mark.parametrize("more", [(), ("--model.gradient_checkpointing=true",), ("--model.lora_rank=2",)])
def test_the_compilers_backward_pass(joint_graphs: list[Any], more: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(add_lora(toy(), 2) if "lora" in "".join(more) else toy())
    plain, want = updated(models[0], "--train.precision=float32", *more)
    fast, found = updated(models[1], "--train.precision=float32", "--train.compile=true", *more, graphs=joint_graphs)
    assert len(joint_graphs) > 4
    assert [told["grad_norm"] for told in found] == pytest.approx([told["grad_norm"] for told in want], rel=1e-4)
    for name, p in fast.tensors().items():
        torch.testing.assert_close(p, plain.tensors()[name], rtol=1e-3, atol=1e-4)


def test_the_reference_is_compiled_as_the_policy_is(graphs: list[Any]) -> None:
    policy = Policy.from_config(toy(), None, configured("--train.kl=0.1", "--train.compile=true"))
    for model in (policy.raw, policy.reference):
        assert all(compiled.is_ours(layer) for layer in model.model.layers)


def test_a_copy_of_the_model_has_layers_of_its_own(graphs: list[Any]) -> None:
    model = toy()
    compiled.compile_layers(model)
    other = copy.deepcopy(model)
    assert all(layer.forward.__self__ is layer for layer in other.model.layers)


def test_nothing_is_compiled_unasked(graphs: list[Any]) -> None:
    policy = Policy.from_config(toy(), None, configured())
    assert not any(compiled.is_ours(layer) for layer in policy.raw.model.layers) and not graphs


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: Any, **more: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UsageError, match=r"train.compile = true: no C\+\+ compiler: install a C\+\+ compiler, or set it to false$"
    ):
        Policy.from_config(toy(), None, configured("--train.compile=true"))


def test_without_layers(graphs: list[Any]) -> None:
    with pytest.raises(UsageError, match="Linear has no layer that allows it"):
        model = torch.nn.Linear(2, 2)
        model.device = torch.device("cpu")  # type: ignore[assignment]
        compiled.compile_layers(model)
