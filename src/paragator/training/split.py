"""Tensor parallelism by the plan that transformers has of a model: each process of a group computes a part of every product.

All processes of a group compute the same rows: each its heads, its part of the MLPs, and its part of the vocabulary, whose
logits are gathered. Parameters without a rule (norms) are whole in all of them. All become DTensors on one mesh, so that
clipping, the optimiser and checkpoints treat them alike; `fully_shard` then shards each further.
"""

from __future__ import annotations

import logging
import re
import warnings
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Replicate, distribute_tensor
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from paragator.core.errors import UsageError
from paragator.engines.local.branching import text_config

BY_HEAD = "replicated_with_grad_allreduce"
SPLIT = {
    "colwise": "out_features",
    "colwise_gather_output": "out_features",
    "rowwise": "in_features",
    "embedding_rowwise": "num_embeddings",
}
"""What of a module a rule of transformers splits. With BY_HEAD, for norms of single heads, all rules that are followed here."""
PROOF_TOKENS, TOLERANCE = 8, 1e-3


def plan_of(model: Any, size: int) -> dict[str, str]:
    """The rule of each module that has one; UsageError for a model that cannot be split into `size` parts.

    The vocabulary stays whole where `size` does not divide it, or where embeddings are tied to a head without a rule.
    """
    name, wanted = type(model).__name__, f"train.tensor_parallel = {size}"
    rules = getattr(model, "tp_plan", None)
    if not rules:
        raise UsageError(f"{wanted}: transformers has no tensor parallel plan of {name}; set it to 1")
    modules = dict(model.named_modules())
    plan = {found: rules[rule] for found in modules if (rule := any_layer(found)) in rules}
    strange = set(plan.values()) - {*SPLIT, BY_HEAD} | {any_layer(p) for p, _ in model.named_parameters()} & set(rules)
    if strange:
        raise UsageError(f"{wanted}: the plan of {name} has {min(strange)!r}, which is not supported; set it to 1")
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    names = {found for found, module in modules.items() if module in ends}
    tied = ends[0].weight is ends[1].weight
    if any(len(end.weight) % size for end in ends) or (tied and not names <= set(plan)):
        plan = {found: rule for found, rule in plan.items() if found not in names}
    counts = {what: getattr(text_config(model), what, 0) for what in ("num_attention_heads", "num_key_value_heads")}
    for found, rule in plan.items():
        if rule in SPLIT:
            counts[f"{SPLIT[rule]} of {found}"] = getattr(modules[found], SPLIT[rule])
    for what, count in counts.items():
        if count % size:
            raise UsageError(f"{wanted} does not divide {what} = {count} of {name}; use a divisor of it, or 1")
    return plan


def any_layer(name: str) -> str:
    """A module's name as rules have it: with a star for the number of the layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def split(model: Any, mesh: DeviceMesh) -> None:
    """Keep this process's part of the model, by its plan, in place."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # it only says what is slow
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing changes logits in place
    plan = plan_of(model, mesh.size())
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embeddings.weight is head.weight
    for name, module in model.named_modules():
        style = ALL_PARALLEL_STYLES[plan[name]] if plan.get(name) in SPLIT else None
        for own, parameter in list(module.named_parameters(recurse=False)):
            if style:
                style.shard_param(module, own, mesh)
            else:
                whole = distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None)
                module._parameters[own] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        if style:
            style.install_forward(module, mesh)
        elif module._parameters:
            module.placements = [Partial() if plan.get(name) == BY_HEAD else Replicate()]
            module.forward = MethodType(whole_forward, module)
    if tied:
        head.weight = embeddings.weight


def whole_forward(module: Any, *inputs: Any, **more: Any) -> Any:
    """The forward of a module whose parameters are whole in each process, as plain tensors.

    `placements` are those of their gradients: a norm of single heads has seen those of this process only.
    """
    kept = dict(module._parameters)
    plain = {k: None if p is None else p.to_local(grad_placements=module.placements) for k, p in kept.items()}
    module._parameters.update(plain)
    try:
        return type(module).forward(module, *inputs, **more)
    finally:
        module._parameters.update(kept)


def told(model: Any, groups: int | None = None) -> Tensor:
    """What a model makes of a few tokens: their logits, and the gradients of all vectors (norms, biases), in one vector.

    Of a split and sharded model, in all processes at once, with the number of `groups`, whose gradients are summed.
    """
    vectors = [p for p in model.parameters() if p.ndim == 1 and p.requires_grad]
    logits = model(input_ids=torch.arange(PROOF_TOKENS, device=model.device)[None], use_cache=False).logits
    loss = logits.logsumexp(-1).sum() / (groups or 1)
    loss.backward(inputs=None if groups else vectors)
    gradients = [p.grad if groups is None else p.grad.full_tensor() for p in vectors if p.grad is not None]
    found = torch.cat([part.detach().float().flatten() for part in (logits, *gradients)])
    model.zero_grad()
    return found


def check_alike(model: Any, found: Tensor, expected: Tensor) -> None:
    """UsageError where a split model does not compute what the whole one did."""
    off = float((found - expected).norm() / expected.norm()) if found.shape == expected.shape else float("inf")
    if not off <= TOLERANCE:
        raise UsageError(
            f"train.tensor_parallel: {type(model).__name__}, split by transformers' plan, computes other gradients than whole "
            f"({off:.1e} apart); set it to 1"
        )
