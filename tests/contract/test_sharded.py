"""Many processes compute what one does: gradients, updates, statistics; and how rows are shared out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from launched import start
from paragator.core.errors import UsageError
from paragator.training.rows import pack
from paragator.training.sharded import cost, share
from paragator.training.split import check_alike, plan_of, told
from sharded_cases import CASES, Case, model_of, outcome, trees_of

LIMIT_S = 600


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A folder of results for each number of processes."""
    out = {}
    for size in (2, 3, 4):
        out[size] = tmp_path_factory.mktemp(f"ranks{size}")
        processes = start(size, ["-m", "sharded_cases", str(out[size])])
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, errors[-3000:]
    return out


@cache
def alone(name: str) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(replace(CASES[name], replicas=1))


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative L2 of all that is no statistic."""
    names = [name for name in expected if not name.startswith("stats/")]
    assert {name for name in found if not name.startswith("stats/")} == set(names)
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in names)
    return float((difference / sum(float(expected[n].double().square().sum()) for n in names)) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not (case.broken or case.wrong)])
def test_gradients_and_updates_are_those_of_one_process(computed: dict[int, Path], name: str, size: int) -> None:
    path = computed[size] / f"{name}.safetensors"
    assert path.exists() == CASES[name].runs_on(size)
    if not path.exists():
        return
    found, expected = load_file(path), alone(name)
    limit = 1e-14 if CASES[name].double else 5e-3 if CASES[name].precision == "bfloat16" else 1e-6
    assert distance(found, expected) < limit
    for key in (key for key in expected if key.startswith("stats/")):
        assert torch.allclose(found[key], expected[key], rtol=1e-2 if limit > 1e-4 else 1e-5, atol=1e-7), key


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_what_is_not_finite_in_one_process_is_refused_in_all(computed: dict[int, Path], size: int) -> None:
    found, expected = load_file(computed[size] / "NaN in one row.safetensors"), alone("NaN in one row")
    assert found["stats/refused"] == 1.0
    assert distance(found, expected) == 0.0  # no weight moved


@pytest.mark.slow
def test_a_split_model_that_computes_other_gradients_is_refused(computed: dict[int, Path]) -> None:
    assert load_file(computed[2] / "split, wrongly.safetensors").keys() == {"refused"}


def test_what_a_split_model_must_compute() -> None:
    model, _ = model_of(Case(model="qwen3"))
    found = told(model)
    assert found.numel() == 8 * 32 + sum(p.numel() for p in model.parameters() if p.ndim == 1)
    check_alike(model, found * (1 + 1e-4), found)
    for wrong in (found * 1.01, found[:-1], found * float("nan")):
        with pytest.raises(UsageError, match="Qwen3ForCausalLM, split by transformers' plan, computes other gradients"):
            check_alike(model, wrong, found)


def test_plans_are_those_of_transformers_and_the_vocabulary_stays_whole_where_it_must() -> None:
    plan = plan_of(model_of(Case(model="qwen3"))[0], 2)
    assert plan["model.layers.1.self_attn.q_norm"] == "replicated_with_grad_allreduce"
    assert plan["model.layers.0.mlp.down_proj"] == "rowwise" and plan["lm_head"] == "colwise_gather_output"
    odd = plan_of(model_of(Case(model="llama, odd vocabulary"))[0], 2)
    assert not {"lm_head", "model.embed_tokens"} & set(odd) and len(odd) == 2 * 7
    tied = model_of(Case(model="qwen3"))[0]
    tied.tp_plan.pop("lm_head")
    assert "model.embed_tokens" not in plan_of(tied, 2)


def test_models_that_cannot_be_split_are_refused_in_one_line() -> None:
    mixture = {"num_experts": 2, "hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 1, "moe_intermediate_size": 8}
    mixture |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 8}
    narrow = {
        "hidden_size": 8,
        "vocab_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 9,
    }
    for family, sizes, size, said in (
        (
            "llama",
            narrow,
            3,
            "train.tensor_parallel = 3 does not divide num_attention_heads = 2 of LlamaForCausalLM; use",
        ),
        (
            "llama",
            narrow,
            2,
            "does not divide out_features of model.layers.0.mlp.gate_proj = 9 of LlamaForCausalLM; use",
        ),
        ("qwen3_moe", mixture, 2, "the plan of Qwen3MoeForCausalLM has '.*', which is not supported; set it to 1"),
        (
            "opt",
            {
                "hidden_size": 8,
                "word_embed_proj_dim": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "ffn_dim": 8,
            },
            2,
            "no tensor parallel plan of OPTForCausalLM; set it to 1",
        ),
    ):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
        with pytest.raises(UsageError, match=said):
            plan_of(model, size)


def test_layouts_differ_by_rounding_only() -> None:
    names = ("plain", "small rows", "one row", "another order", "another order, small rows")
    assert all(distance(alone(name), alone("plain")) < 1e-5 for name in names)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_rows_are_shared_out_once_and_evenly(size: int) -> None:
    rows = pack(trees_of(replace(CASES["plain"], trees=30)), 200)
    shared = share(rows, size, hidden=64)
    real = [row for mine in shared for row in mine if not row.idle]
    assert sorted(map(repr, real)) == sorted(map(repr, rows))
    assert len({len(mine) for mine in shared}) == 1
    spent = [sum(cost(row, 64) for row in mine if not row.idle) for mine in shared]
    assert max(spent) - min(spent) <= max(cost(row, 64) for row in rows)
