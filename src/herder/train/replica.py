"""A whole copy of the model on every rank, each on its own rows, and the mixed precision around it (paper 3.3.2: FP32
gradient accumulation and reduction).

The model computes in bf16 from a copy of its weights; fp32 master weights and fp32 gradient sums live here. Gradients of all
micro-batches and ranks are added as sums and divided once by the global weight, so unequal counts of valid tokens per rank
or micro-batch do not bend the mean. `parallel.sharded.Sharded` answers to the same names under every other layout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import nn

from herder import launch
from herder.model import Llama
from herder.model.attention import Packing
from herder.train.faults import fingerprint
from herder.train.objective import Objective, Rows
from herder.train.optim import OptimConfig, Optimizer
from herder.train.outputs import compute


class Replica:
    """Master weights, gradient sums and the update for the trainable parameters of one model, which may compute in bf16 or
    fp32. Frozen parameters are cast with it and have no master: who needs them unrounded keeps them elsewhere."""

    def __init__(self, model: Llama, config: OptimConfig, dtype: torch.dtype, micro_batch: int = 8):
        self.model, self.clip, self.micro_batch = model, config.clip, micro_batch
        self.names = list(trainable(model))
        masters = [
            p.detach().clone().to(torch.promote_types(p.dtype, torch.float32)) for p in trainable(model).values()
        ]
        model.to(dtype)
        self.params = list(trainable(model).values())
        self.masters = {name: nn.Parameter(m) for name, m in zip(self.names, masters, strict=True)}
        sizes = [m.numel() for m in masters]
        self.flat = torch.zeros(sum(sizes), dtype=masters[0].dtype, device=masters[0].device)
        for master, piece in zip(self.masters.values(), self.flat.split(sizes), strict=True):
            master.grad = piece.view_as(master)
        self.optimizer = Optimizer(self.masters, config, launch.rank(), launch.world_size())
        self.waiting = lambda what: contextlib.nullcontext()
        self.own: list[int] | None = None
        """Where a list, the next step leaves sums over the bits of this rank's own numbers there, before they are added up."""

    def gradients(self, objective: Objective, items: Sequence) -> list[float]:
        """Leaves the gradient of a step's `items` over all ranks in `flat`, divided by the global weight.

        Returns sums over all ranks: weight, loss, positions, pairs of positions that see each other, the objective's metrics.
        """
        sums = torch.zeros(4 + len(objective.metrics), dtype=torch.float64, device=self.flat.device)
        mine = items[launch.rank() :: launch.world_size()]
        if len(mine):
            with self.waiting("data"):
                rows = objective.rows(mine)
            for micro in rows.micro_batches(self.micro_batch):
                sums += self._micro_batch(objective, micro)
        return self.reduce(sums).tolist()

    def _micro_batch(self, objective: Objective, micro: Rows) -> torch.Tensor:
        packing = Packing.of(micro.doc_ids)
        micro = micro.to(self.flat.device)
        loss = objective.loss(compute(self.model, micro, packing, objective.needs), micro)
        loss.sum.backward()
        self.accumulate()
        return loss.sums(micro.tokens.numel(), packing.pairs, objective.metrics)

    def accumulate(self) -> None:
        """Adds the model's gradients of one micro-batch to the fp32 sums and clears them."""
        for p, master in zip(self.params, self.masters.values(), strict=True):
            if p.grad is not None:
                master.grad.add_(p.grad)
                p.grad = None

    def reduce(self, sums: torch.Tensor) -> torch.Tensor:
        """Adds gradients and `sums` over ranks; sums[0] is the weight, by which the gradients are divided. Returns sums."""
        if self.own is not None:
            self.own = fingerprint((self.flat, sums))
        if launch.world_size() > 1:
            with self.waiting("communication"):
                torch.distributed.all_reduce(self.flat)
                torch.distributed.all_reduce(sums)
        self.flat.div_(sums[0])
        return sums

    def grad_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.flat))

    def step(self, scale: float, grad_norm: float) -> None:
        """Clips, updates the masters at `scale` of the peak learning rates, copies them to the model, clears the sums."""
        if grad_norm > self.clip:
            self.flat.mul_(self.clip / grad_norm)
        self.optimizer.step(scale)
        if self.optimizer.shared:
            with self.waiting("communication"), torch.no_grad():
                self._hand_out()
        self.restored()

    def _hand_out(self) -> None:
        """Every rank gets the masters that another has updated."""
        for owner, part in enumerate(self.optimizer.shared):
            if part:
                values = torch.cat([p.flatten() for p in part])
                torch.distributed.broadcast(values, owner)
                for p, value in zip(part, values.split([p.numel() for p in part]), strict=True):
                    p.copy_(value.view_as(p))

    def clear(self) -> None:
        self.flat.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """See `Optimizer.state`; after writing into it, `restored` must be called."""
        return self.optimizer.state()

    @torch.no_grad()
    def restored(self) -> None:
        """Brings the model's copy in line with the masters and clears the gradient sums."""
        for p, master in zip(self.params, self.masters.values(), strict=True):
            p.copy_(master)
        self.clear()

    def finish(self) -> None:
        """Gives the model its fp32 master weights; frozen ones keep what the compute dtype left of them."""
        self.model.float()
        self.params = list(trainable(self.model).values())
        self.restored()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained: those that ask for a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
