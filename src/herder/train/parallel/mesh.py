"""How ranks are laid out (paper 3.3.2): axes ordered [TP, CP, PP, DP], innermost first, so that the axes that talk most lie
on neighbouring GPUs.

The one design decision: a layout is a value of plain literals, runtime and never identity; the same training step under
another layout is the same step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch.distributed.device_mesh import DeviceMesh

Recompute = Literal["none", "elementwise", "alternate", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "elementwise", "alternate", "full")
"""What the backward pass computes again: nothing; norms and activation products, whose inputs are kept; also every second
matrix product (torchtitan's selective checkpointing); whole blocks."""


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis, sequences a micro-batch, how the pipeline is cut and what is kept in memory.

    dp = 0 takes what the number of processes leaves. `shard` of the dp ranks hold one copy of parameters, gradients and
    moments between them (FSDP); fewer than dp makes dp / shard copies of it (HSDP), 1 keeps whole copies; 0 shards over all.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 0
    micro_batch: int = 1
    """Sequences a micro-batch."""
    shard: int = 0
    chunks: int = 1
    """Virtual stages a pipeline rank holds (V); 1 is plain 1F1B."""
    contiguous: int = 0
    """Micro-batches in a row of one virtual stage (the paper's N): pp is depth-first, all of them breadth-first; 0 is pp."""
    recompute: Recompute = "none"
    reshard_after_forward: bool = False
    """The paper keeps gathered parameters between forward and backward; True frees them and gathers twice."""
    compile: bool = False

    @property
    def gpus(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def __str__(self) -> str:
        default = Layout()
        axes = {"tp", "cp", "pp", "dp", "micro_batch"}
        shown = [f.name for f in fields(self) if f.name in axes or getattr(self, f.name) != getattr(default, f.name)]
        return ",".join(f"{name}={getattr(self, name)}" for name in shown)

    def on(self, world: int) -> Layout:
        """This layout with dp and shard filled in for `world` ranks. Raises ValueError where it does not divide them."""
        for name in ("tp", "cp", "pp", "micro_batch", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("dp", "shard", "contiguous"):
            if getattr(self, name) < 0:
                raise ValueError(f"layout.{name} is {getattr(self, name)}; it must be at least 0")
        if self.compile and self.recompute in ("elementwise", "alternate"):
            raise ValueError(
                f"layout.compile chooses by itself what a backward pass keeps, so recompute={self.recompute} has no say; "
                "use none or full"
            )
        inner = self.tp * self.cp * self.pp
        dp = self.dp or world // inner
        if inner * dp != world or dp == 0:
            asked = f"tp x cp x pp = {self.tp} x {self.cp} x {self.pp}" + (f" x dp = {dp}" if self.dp else "")
            raise ValueError(
                f"the layout's {asked} does not divide the {world} processes; change layout or the number of processes"
            )
        shard = self.shard or dp
        if dp % shard:
            raise ValueError(f"layout.shard {shard} does not divide dp {dp}; choose a divisor of {dp}")
        return replace(self, dp=dp, shard=shard)

    @property
    def plain(self) -> bool:
        """Whole copies of the model on every rank, each on its own rows: nothing to be cut (of a layout from `on`)."""
        return self.tp == self.cp == self.pp == self.shard == 1


AXES = ("replicate", "shard", "pp", "cp", "tp")
"""Mesh axes, outermost first: the paper's [TP, CP, PP, DP] read backwards, with DP as copies x shards."""


class Meshes:
    """The groups of ranks that a layout (from `Layout.on`) needs, over all ranks of the process group.

    axes: every axis by itself. parameters: the mesh that parameters live on, with shard and cp as one axis, since each position's
    gradient is a term of the same sum; `fsdp` is its part that FSDP cuts over. over: ranks that share cp and tp coordinates,
    which between them hold each row once.
    """

    def __init__(self, layout: Layout, device_type: str):
        self.sizes = (layout.dp // layout.shard, layout.shard, layout.pp, layout.cp, layout.tp)
        copies, shard, pp, cp, tp = self.sizes
        ranks = torch.arange(layout.gpus).view(self.sizes)
        self.axes = DeviceMesh(device_type, ranks, mesh_dim_names=AXES)
        together = ranks.permute(0, 1, 3, 2, 4).reshape(copies, shard * cp, pp, tp)
        self.parameters = DeviceMesh(device_type, together, mesh_dim_names=("replicate", "shard_cp", "pp", "tp"))
        self.fsdp = self.parameters["replicate", "shard_cp"] if copies > 1 else self.parameters["shard_cp"]
        each = DeviceMesh(device_type, ranks.view(copies * shard * pp, cp * tp), mesh_dim_names=("over", "inside"))
        self.over = each["over"].get_group()
        self.dp_rank = self.axes.get_local_rank("replicate") * shard + self.axes.get_local_rank("shard")
