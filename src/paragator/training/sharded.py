"""One policy in many processes: weights, gradients and moments are sharded (FSDP2), packed rows are shared out.

Rank 0 runs the step as ever; its learner passes each update on. All processes plan the same rows, and each computes its
share of them; gradients are summed, as the loss is a sum. Rank 0 also keeps the whole model, from which an engine in that
process samples and which is exported. Replicas (HSDP) are groups of processes that each hold all shards. With tensor
parallelism (split.py) neighbours compute the same rows together.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from paragator.config import Config
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Stage
from paragator.engines.local.branching import text_config
from paragator.engines.local.loading import load_model
from paragator.training import checkpoint, packed
from paragator.training.policy import FIXES, IDLE, NotFinite, Policy, budget_on, pick_precision
from paragator.training.recipe import PolicySettings
from paragator.training.rows import Branch, PackedRow, Tree, pack
from paragator.training.split import check_alike, plan_of, split, told
from paragator.training.team import Team

Whole = dict[str, torch.Tensor]
"""Whole tensors by parameter name."""
Kind = TypeVar("Kind", bound="Shard")


@dataclass(frozen=True, slots=True)
class Grid:
    """How processes share the work: `replicas` that each hold all shards, and neighbours that compute `parts` of each product."""

    replicas: int = 1
    parts: int = 1

    def mesh(self, device: str, processes: int) -> Any:
        """All processes along the dimensions that are in use."""
        sizes = {"replicate": self.replicas, "shard": processes // self.replicas // self.parts, "part": self.parts}
        used = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
        return init_device_mesh(device, tuple(used.values()), mesh_dim_names=tuple(used))


class Shard(Policy):
    """A process's part of the policy. Every process calls the same methods at the same time."""

    def __init__(self, model: Any, tokenizer: Any, settings: PolicySettings, team: Team, grid: Grid = Grid()) -> None:
        self.team, self.grid = team, grid
        super().__init__(model, tokenizer, settings)

    def placed(self, model: Any, reference: Any) -> tuple[Any, Any]:
        """Both models sharded; `raw` is the whole model on rank 0."""
        check_same_weights(model, self.team)
        self.raw = copy.deepcopy(model) if self.team.rank == 0 else None
        mesh = self.grid.mesh(model.device.type, self.team.size)
        with self.accelerator.autocast():
            for one in (model, reference):
                if one is not None:
                    packed.has_plain_head(one)  # tried on the whole model
        parts, groups = self.grid.parts, self.team.size // self.grid.parts
        expected = told(model) if parts > 1 else None
        for one in (model, reference):
            if one is not None:
                if parts > 1:
                    split(one, mesh["part"])
                shard(one, mesh if parts == 1 else mesh["shard"])
        check_sharded(model)
        if expected is not None:
            check_alike(model, told(model, groups), expected)
        return model, reference

    def rows(self, trees: Sequence[Tree]) -> list[PackedRow]:
        """This process's rows; as many as any other's, the last of which may not count."""
        plan = pack(trees, self.batch_tokens)
        parts = self.grid.parts
        return share(plan, self.team.size // parts, text_config(self.model).hidden_size)[self.team.rank // parts]

    def accumulate(
        self, rows: Sequence[PackedRow], old: Sequence[torch.Tensor | None], kl_constants: Mapping[Stage, float]
    ) -> tuple[float, dict[str, float], list[torch.Tensor | None]]:
        """As in one process, with loss and statistics of all processes; NotFinite in all of them where it is in one."""
        self.found: NotFinite | None = None
        total, stats, kept = super().accumulate(rows, old, kl_constants)
        names = [name for name in stats if name != "tokens"]
        tokens = stats["tokens"]
        sums = self.sums([total, tokens, *(stats[name] * tokens for name in names)])
        causes = list(FIXES)
        first = int(self.team.least(causes.index(self.found.args[0]) if self.found else len(causes)))
        if first < len(causes):
            raise NotFinite(causes[first], FIXES[causes[first]])
        means = {name: value / max(1.0, sums[1]) for name, value in zip(names, sums[2:], strict=True)}
        return sums[0], {**means, "tokens": sums[1]}, kept

    def summed(self, number: float) -> float:
        return self.sums([number])[0]

    def sums(self, values: list[float]) -> list[float]:
        """Sums over all rows, of which neighbours compute the same ones."""
        return [total / self.grid.parts for total in self.team.summed(values)]

    def checked(self, problem: NotFinite | None) -> None:
        """Keep it until all processes are here: the others wait for this one's part of the backward pass."""
        self.found = self.found or problem

    def gathered(self, moments: bool) -> tuple[Whole, dict[str, Whole]]:
        """Whole weights, and the optimiser's moments where asked for, on the CPU of rank 0; empty elsewhere."""
        weights: Whole = {}
        state: dict[str, Whole] = {}
        mine = self.team.rank == 0
        for name, parameter in self.tensors().items():
            found = whole(parameter)
            if mine:
                weights[name] = found.cpu()
            if moments and parameter in self.optimizer.state:
                kinds = {kind: whole(value) for kind, value in self.optimizer.state[parameter].items()}
                if mine:
                    state[name] = {kind: value.cpu() for kind, value in kinds.items()}
        return weights, state

    def load(self, kinds: Mapping[str, Sequence[str]], weights: Whole, moments: Mapping[str, Whole]) -> None:
        """Take what rank 0 read: `kinds` names the moments of each parameter; the tensors are empty elsewhere."""
        state: dict[str, Whole] = {}
        parameters = self.tensors()
        for name, parameter in parameters.items():
            with torch.no_grad():
                parameter.copy_(scattered(weights.get(name), parameter))
            for kind in kinds.get(name, ()):
                value = moments.get(name, {}).get(kind)
                if kind == "step":
                    number = torch.zeros(()) if value is None else value.float().reshape(())
                    dist.broadcast(number, src=0)
                    state.setdefault(name, {})[kind] = number.to(parameter.device)
                else:
                    state.setdefault(name, {})[kind] = scattered(value, parameter)
        checkpoint.set_moments(self.optimizer, parameters, state)

    def obey(self, order: Mapping[str, Any]) -> None:
        """This process's part of an order of rank 0."""
        if order["name"] == "update":
            trees = [tree_of(values) for values in order["trees"]]
            with warnings.catch_warnings(), suppress(RunError):  # the same in all processes, and said by rank 0
                warnings.simplefilter("ignore")
                self.update(trees, order["step"], order["constants"])
        elif order["name"] == "measure":
            self.measure(*([tree_of(values) for values in order[name]] for name in ("trees", "others")))
        elif order["name"] == "gather":
            self.gathered(order["moments"])
        elif order["name"] == "load":
            self.updates, self.refused, self.factor = order["updates"], order["refused"], order["balance"]
            self.load(order["kinds"], {}, {})
        else:
            raise RuntimeError(f"no such order: {order['name']}")


class Sharded(Shard):
    """The learner of rank 0: what it does, the other processes do with it."""

    kind = "sharded"

    def update(self, trees: Sequence[Tree], step: int, kl_constants: Mapping[Stage, float]) -> dict[str, float]:
        if not trees:
            return dict(IDLE)
        with self.team.order(
            "update", trees=[values_of(tree) for tree in trees], step=step, constants=dict(kl_constants)
        ):
            return super().update(trees, step, kl_constants)

    def measure(self, trees: Sequence[Tree], others: Sequence[Tree]) -> dict[str, float]:
        with self.team.order("measure", trees=list(map(values_of, trees)), others=list(map(values_of, others))):
            return super().measure(trees, others)

    def state(self) -> tuple[Whole, dict[str, Whole]]:
        with self.team.order("gather", moments=True):
            return self.gathered(moments=True)

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        super().save(folder, {**meta, "processes": self.team.size})

    def restore(self, folder: Path) -> dict[str, Any]:
        weights, moments, meta = checkpoint.read(folder)
        checkpoint.check_shapes(folder, weights, self.tensors())
        kinds = {name: list(found) for name, found in moments.items()}
        self.updates, self.refused, self.factor = meta["updates"], meta["refused"], meta.get("balance")
        counts = {"updates": self.updates, "refused": self.refused, "balance": self.factor}
        with self.team.order("load", kinds=kinds, **counts):
            self.load(kinds, weights, moments)
        return meta

    def publish(self) -> None:
        with self.team.order("gather", moments=False):
            weights, _ = self.gathered(moments=False)
        self.take(weights)

    def close(self) -> None:
        self.team.close()


# ---- beginning ----


def lead(team: Team, model: Any, tokenizer: Any, config: Config) -> Sharded:
    """The learner of rank 0; the other processes load the same model."""
    if config.train.tensor_parallel > 1:
        plan_of(model, config.train.tensor_parallel)
    if team.size % config.train.replicas:
        raise UsageError(
            f"train.replicas = {config.train.replicas} does not divide the {team.size} processes of this run"
        )
    precision = pick_precision(config.train.precision, str(model.device))  # one for all
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    with team.order("begin", config=config.model_dump(mode="json")):
        return joined(Sharded, team, model, tokenizer, config)


def follow(team: Team) -> None:
    """Do what rank 0 says until it lets go."""
    shard: Shard | None = None
    try:
        while (order := team.next_order()) is not None:
            if order["name"] == "begin":
                config = Config.model_validate(order["config"])
                shard = joined(Shard, team, *load_model(config.model, config.seed), config)
            elif shard is not None:
                shard.obey(order)
    except BaseException as error:
        team.failed(error)
        raise


def joined(kind: type[Kind], team: Team, model: Any, tokenizer: Any, config: Config) -> Kind:
    """A process's part of the policy of a config, its passes as large as the least memory of any allows."""
    team.ready("loaded")
    grid = Grid(config.train.replicas, config.train.tensor_parallel)
    part = kind(model, tokenizer, PolicySettings.from_config(config), team, grid)
    room = budget_on(part.accelerator.device, model.config, config, part.precision == "bfloat16")
    part.batch_tokens = int(team.least(room))
    if part.raw is not None and config.engine.kind != "transformers":
        part.raw.cpu()  # nobody samples from it here
    return part


# ---- parts ----


def shard(model: Any, mesh: Any) -> None:
    """Shard every decoder layer and the rest, in place; gradients are summed over processes, not averaged."""
    for layer in [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it reduces
    model.hidden_states = MethodType(packed.hidden_states, model)
    register_fsdp_forward_method(model, "hidden_states")


def check_sharded(model: Any) -> None:
    """RunError unless each process holds a part of every large tensor only; where all are neighbours, a plan may leave some whole."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and parameter.device_mesh.shape[0] == 1:
            continue
        if not isinstance(parameter, DTensor) or parameter.to_local().numel() == parameter.numel() > parameter.shape[0]:
            raise RunError(
                f"{name} is not sharded: this version of torch does something else than fully_shard promises"
            )


def check_same_weights(model: Any, team: Team) -> None:
    """RunError where processes loaded different weights."""
    sums = torch.stack([p.detach().double().sum().cpu() for p in model.parameters()])
    found = [torch.empty_like(sums) for _ in range(team.size)]
    dist.all_gather(found, sums)
    for rank, other in enumerate(found):
        if not torch.equal(other, found[0]):
            raise RunError(f"rank {rank} loaded other weights than rank 0: put the same model on all machines")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every process."""
    own: Any = tensor.detach()
    found: torch.Tensor = own.full_tensor() if isinstance(own, DTensor) else own
    return found


def scattered(value: torch.Tensor | None, like: Any) -> torch.Tensor:
    """Rank 0's whole tensor, sharded as `like` is; the others have None."""
    empty = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    full = empty if value is None else value.to(like.device, like.dtype)
    return distribute_tensor(full, like.device_mesh, like.placements)


def share(rows: Sequence[PackedRow], processes: int, hidden: int) -> list[list[PackedRow]]:
    """Rows for each process, the most expensive first to whoever has least; equally many, the cheapest repeated as idle ones."""
    order = sorted(rows, key=lambda row: cost(row, hidden), reverse=True)
    out: list[list[PackedRow]] = [[] for _ in range(processes)]
    spent = [0.0] * processes
    for row in order:
        least = spent.index(min(spent))
        out[least].append(row)
        spent[least] += cost(row, hidden)
    most = max(map(len, out))
    idle = replace(order[-1], idle=True)
    return [mine + [idle] * (most - len(mine)) for mine in out]


def cost(row: PackedRow, hidden: int) -> float:
    """About what a row takes, in tokens: its products, and attention at 1 / (6 hidden) of a token for each pair."""
    pairs = 0.0
    for piece in row.pieces:
        prompt = len(piece.tree.prompt_ids)
        pairs += prompt**2 / 2
        pairs += sum(len(b.token_ids) * (prompt + len(b.token_ids) / 2) for b in piece.tree.branches)
    return row.num_tokens + pairs / (6 * hidden)


def values_of(tree: Tree) -> list[Any]:
    """A tree as JSON values, whose texts are what the other processes compute from."""
    return [tree.stage, tree.prompt_ids, [[b.token_ids, b.logprobs, b.credit] for b in tree.branches]]


def tree_of(values: Sequence[Any]) -> Tree:
    """The inverse of `values_of`, after JSON."""
    stage, prompt, branches = values
    return Tree(stage, tuple(prompt), tuple(Branch(tuple(ids), tuple(logs), credit) for ids, logs, credit in branches))
