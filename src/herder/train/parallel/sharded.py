"""One model over many ranks: all axes together, behind the same names as `replica.Replica` (paper 3.3.2).

The order in which parallelism is applied to a stage: cut over tp, recomputation, compilation, then FSDP over dp x cp with the
values filled in block by block. A step runs as a pipeline's program, of one stage where pp is 1.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from herder.model import LlamaConfig
from herder.model.attention import Packing, packed
from herder.train.faults import fingerprint
from herder.train.objective import Objective, Output, Outputs, Rows
from herder.train.optim import OptimConfig, Optimizer
from herder.train.outputs import outputs_of
from herder.train.parallel import cp, fsdp, pp, tp
from herder.train.parallel.mesh import Layout, Meshes
from herder.train.parallel.stage import Micro, Stage, apply_locally, partition


class Sharded(nn.Module):
    """This rank's part of a Llama under a layout. Every rank of the process group builds and calls it.

    weights(name) gives a parameter whole; it is asked only for what this rank holds a part of, one at a time.
    Raises ValueError where the layout does not fit the shape or the number of ranks.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layout: Layout,
        weights: Callable[[str], torch.Tensor],
        optim: OptimConfig,
        dtype: torch.dtype,
        device: str = "cpu",
        fp8: bool = False,
    ):
        super().__init__()
        self.config, self.layout, self.clip, self.dtype = config, layout.on(dist.get_world_size()), optim.clip, dtype
        check(config, self.layout, optim)
        if fp8 and self.layout.tp > 1:
            raise ValueError(
                "float8 is for layouts with tp=1: the layers that tensor parallelism cuts are not converted"
            )
        self.device = torch.device(device)
        lay = self.layout
        self.meshes = Meshes(lay, self.device.type)
        mesh, self.over, self.dp_rank = self.meshes.axes, self.meshes.over, self.meshes.dp_rank
        self.pp = mesh["pp"].get_group() if lay.pp > 1 else None
        self.n_stages, rank = lay.pp * lay.chunks, mesh.get_local_rank("pp")
        cut = partition(config.n_layers, self.n_stages)
        self.stages = nn.ModuleDict(
            {str(s): Stage(config, cut[s], self.meshes, lay.recompute) for s in range(rank, self.n_stages, lay.pp)}
        )
        wide = torch.promote_types(dtype, torch.float32)

        def whole(name: str) -> torch.Tensor:
            value = weights(name)
            return value.to(torch.promote_types(value.dtype, wide))

        for stage in self.stages.values():
            apply_locally(stage.model, lay, fp8, self.device)
            fsdp.apply(
                stage,
                self.meshes.fsdp,
                dtype,
                lay.reshard_after_forward,
                functools.partial(stage.materialise, weights=whole, device=self.device),
            )
        self.masters = {name: p for stage in self.stages.values() for name, p in stage.named().items()}
        self.optimizer = Optimizer(self.masters, optim)
        self.pipeline = pp.Pipeline(lay.pp, self.pp, dtype, self.device)
        self.waiting = lambda what: contextlib.nullcontext()
        self.own: list[int] | None = None  # as Replica's

    @property
    def model(self) -> nn.Module:
        """What held-out measures are given: itself, whose `outputs` every rank must call."""
        return self

    def gradients(self, objective: Objective, items: Sequence) -> list[float]:
        """Leaves the gradient of a step's `items` over all ranks in the parameters, divided by the global weight.

        Returns sums over all ranks, the same on each: weight, loss, positions, pairs of positions that see each other, the
        objective's metrics.
        """
        mine = items[self.dp_rank :: self.layout.dp]
        with self.waiting("data"):
            rows = objective.rows(mine if len(mine) else items[:1])
        micros = [self._micro(part) for part in rows.micro_batches(self.layout.micro_batch)] if len(mine) else []
        count = torch.tensor(len(micros), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX, group=self.over)
        if len(micros) < count:  # every rank runs as many, or collectives would not meet
            idle = rows.map(lambda t: t[:1])
            micros += [self._micro(idle, counted=False)] * (int(count) - len(micros))
        sums = torch.zeros(4 + len(objective.metrics), dtype=torch.float64, device=self.device)

        def loss(log_probs_bt: torch.Tensor, index: int) -> torch.Tensor:
            micro = micros[index]
            if not micro.counted:
                return log_probs_bt.sum() * 0.0
            selected = log_probs_bt.flatten()[micro.rows.select]
            found = objective.loss(outputs_of(selected, micro.rows, objective.needs), micro.rows)
            sums.add_(found.sums(micro.rows.tokens.numel(), micro.pairs, objective.metrics))
            return found.sum

        backwards = dict.fromkeys(map(int, self.stages), 0)

        def before_backward(stage: int, micro: int) -> None:
            backwards[stage] += 1
            fsdp.last_backward(self.stages[str(stage)], backwards[stage] == len(micros))

        self._run(micros, loss, before_backward)
        if self.own is not None:
            self.own = fingerprint([sums])
        dist.all_reduce(sums, group=self.over)
        dist.broadcast(sums, 0)  # decisions follow these numbers: they must be the same to the last bit
        torch._foreach_div_(self._local_grads(), float(sums[0]))
        return sums.tolist()

    @torch.no_grad()
    def outputs(self, rows: Rows, needs: frozenset[Output]) -> Outputs:
        """Outputs for rows that every rank gives alike, without gradients; every rank gets them all."""
        micro = self._micro(rows)
        found = torch.zeros(rows.tokens.shape, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)

        self._run([micro], None, keep=lambda out: found.copy_(out))
        if self.pp is not None:
            last = dist.get_global_rank(self.pp, (self.n_stages - 1) % self.layout.pp)
            dist.broadcast(found, last, group=self.pp)
        for stage in self.stages.values():
            fsdp.reshard(stage)
        return outputs_of(found.flatten()[micro.rows.select], micro.rows, needs)

    def _run(self, micros: list[Micro], loss, before_backward=None, keep=None) -> None:
        lay = self.layout
        program = _program(lay.pp, lay.chunks, len(micros), lay.contiguous, loss is not None)[self.pipeline.rank]

        def forward(stage: int, x: torch.Tensor | None, index: int) -> torch.Tensor:
            out = self.stages[str(stage)](x, micros[index])
            if keep is not None and stage == self.n_stages - 1:
                keep(out)
            return out

        def shape(index: int) -> tuple[int, ...]:
            b, t = micros[index].tokens.shape
            return b, t // lay.tp, self.config.dim

        self.pipeline.run(program, self.n_stages, shape, forward, loss, before_backward)

    def _micro(self, rows: Rows, counted: bool = True) -> Micro:
        """A micro-batch as this rank sees it. Raises ValueError where the row length does not divide."""
        lay, (b, t) = self.layout, rows.tokens.shape
        for parts, what in ((2 * lay.cp if lay.cp > 1 else 1, "2 x cp"), (lay.cp * lay.tp, "cp x tp")):
            if t % parts:
                raise ValueError(
                    f"rows of {t} tokens are not divisible by {what} = {parts} of the layout; change seq_len or the layout"
                )
        packing = Packing.of(rows.doc_ids)
        positions = packing.positions(b)
        rows = rows.to(self.device)
        targets, weights, tokens = rows.targets, rows.weights, rows.tokens
        if lay.cp > 1:
            rank = self.meshes.axes.get_local_rank("cp")
            mine = cp.indices(rank, lay.cp, t)
            positions, tokens, targets, weights = (x[:, mine] for x in (positions, tokens, targets, weights))
            pieces = cp.Pieces.of(packing, b, t, rank, lay.cp)
            attend = cp.context_parallel(pieces, t, self.meshes.axes["cp"].get_group())
        else:
            attend = packed(packing.to(self.device))
        select = (
            weights.flatten().nonzero().flatten() if counted else torch.zeros(0, dtype=torch.int64, device=self.device)
        )
        stage = next(iter(self.stages.values()))
        cos, sin = stage.model.rotation(positions.to(self.device))
        return Micro(rows, counted, tokens, targets, select, attend, cos, sin, packing.pairs)

    def _local_grads(self) -> list[torch.Tensor]:
        return [p.grad.to_local() for p in self.masters.values()]

    def grad_norm(self) -> float:
        """Norm of the whole gradient, the same on every rank."""
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        norms = torch._foreach_norm(self._local_grads())
        for norm, p in zip(norms, self.masters.values(), strict=True):
            twice = self.layout.tp if isinstance(p, DTensor) and p.placements[-1].is_replicate() else 1
            squares += norm.double().square() / (twice * self.layout.dp // self.layout.shard)
        dist.all_reduce(squares)
        return math.sqrt(squares) if math.isfinite(squares) else math.nan

    def step(self, scale: float, grad_norm: float) -> None:
        """Clips, updates the parameters at `scale` of the peak learning rates, drops the gradients."""
        if grad_norm > self.clip:
            torch._foreach_mul_(self._local_grads(), self.clip / grad_norm)
        self.optimizer.step(scale)
        self.clear()

    def clear(self) -> None:
        for p in self.masters.values():
            p.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """See `Optimizer.state`: DTensors, of this rank's stages. After writing into it, `restored` must be called."""
        return self.optimizer.state()

    def restored(self) -> None:
        for stage in self.stages.values():
            fsdp.reshard(stage)
        self.clear()

    def finish(self) -> None:
        """Nothing: the parameters are the masters."""


@functools.lru_cache(maxsize=64)
def _program(pipeline: int, chunks: int, micros: int, contiguous: int, training: bool) -> list[list[pp.Action]]:
    orders = [
        pp.compute_order(rank, pipeline, chunks, micros, contiguous)
        if training
        else pp.forward_order(rank, pipeline, chunks, micros)
        for rank in range(pipeline)
    ]
    return pp.with_transfers(orders)


def check(config: LlamaConfig, layout: Layout, optim: OptimConfig) -> None:
    """Raises ValueError, with the mend, where a layout cannot run this model."""
    tp.check(config, layout.tp)
    partition(config.n_layers, layout.pp * layout.chunks)
    if layout.pp == 1 and layout.chunks > 1:
        raise ValueError(
            f"layout.chunks {layout.chunks} needs a pipeline, but layout.pp is 1; set layout.pp or chunks=1"
        )
    if layout.pp > 1 and config.tie_embeddings:
        raise ValueError(
            "layout.pp above 1 puts the embedding and the head on two ranks, but the model ties them; use pp=1"
        )
    if layout.compile and layout.tp > 1:
        raise ValueError("layout.compile with tp above 1 gives wrong gradients in torch 2.13; choose one of the two")
    if optim.kind == "muon":
        raise ValueError(
            "optim.kind muon needs whole matrices; use kind=adamw, or a layout of whole copies (tp=cp=pp=1, shard=1)"
        )
