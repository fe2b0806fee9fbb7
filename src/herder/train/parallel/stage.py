"""A part of the model on one rank: some layers of the same Llama, with the embedding or the head where it is first or last.

The one design decision: a stage is the plain model with parts left out, so parameter names, checkpoints and exports never know
of it. Built on the meta device; parameters come one by one, cut over tp as they come, so no rank holds the whole model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from herder.model import Llama, LlamaConfig
from herder.model.attention import Attend
from herder.train.objective import Rows
from herder.train.outputs import token_log_probs
from herder.train.parallel import cp, tp
from herder.train.parallel.float8 import float8
from herder.train.parallel.mesh import Layout, Meshes


@dataclass(frozen=True)
class Micro:
    """A micro-batch as one rank sees it. `rows` is whole (B, T); the rest belongs to this rank's T / cp positions."""

    rows: Rows
    counted: bool
    """False for one that only keeps ranks in step."""
    tokens: torch.Tensor
    targets: torch.Tensor
    select: torch.Tensor
    """Flat indices into this rank's (B, T / cp) positions where something is predicted."""
    attend: Attend
    cos: torch.Tensor
    sin: torch.Tensor
    pairs: int


def partition(n_layers: int, stages: int) -> list[list[int]]:
    """Slots of each stage: -1 is the embedding, n_layers the head. Both count as a layer (paper 3.3.2: one layer fewer on the
    first and on the last stage). What does not divide goes to the middle; the first stage, which keeps most micro-batches,
    gets it last."""
    slots = n_layers + 2
    if slots < stages:
        raise ValueError(
            f"layout.pp x layout.chunks = {stages} stages need as many slots, and {n_layers} layers with embedding and head "
            f"are {slots}; choose fewer stages"
        )
    sizes, extra = [slots // stages] * stages, slots % stages
    for i in sorted(range(stages), key=lambda i: (abs(i - (stages - 1) / 2), -i))[:extra]:
        sizes[i] += 1
    bounds = [-1]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds)]


class Stage(nn.Module):
    """forward(x, micro): x is None on the first stage; the last gives log-probabilities of the targets, (B, T) of whole rows."""

    def __init__(self, config: LlamaConfig, slots: list[int], meshes: Meshes, recompute: str = "none"):
        super().__init__()
        with torch.device("meta"):
            self.model = Llama(config)
        decoder = self.model.model
        for i in range(config.n_layers):
            if i not in slots:
                decoder.layers[i] = None
        if -1 not in slots:
            decoder.embed_tokens = None
        self.first, self.last = -1 in slots, config.n_layers in slots
        if not self.last:
            decoder.norm = self.model.lm_head = None
        self.tp, self.cp = (
            meshes.axes[axis].get_group() if meshes.axes[axis].size() > 1 else None for axis in ("tp", "cp")
        )
        self._mesh = meshes.parameters["tp"]
        if self.tp is not None:
            tp.apply(self.model, self._mesh, keep=recompute != "none")

    @property
    def blocks(self) -> list[nn.Module]:
        return [layer for layer in self.model.model.layers if layer is not None]

    def named(self) -> dict[str, nn.Parameter]:
        """Parameters under the model's own names."""
        return {name.removeprefix("model."): p for name, p in self.named_parameters()}

    def materialise(self, part: nn.Module, weights: Callable[[str], torch.Tensor], device: torch.device) -> None:
        """Gives the meta parameters of `part` their values: `weights(name)` is a whole tensor, of which this rank keeps its
        part."""
        names = {id(p): name for name, p in self.named().items()}
        made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # for tied ones; not kept, or whole parameters would be
        for module in part.modules():
            for attribute, p in list(module.named_parameters(recurse=False)):
                if not p.is_meta:
                    continue
                name = names.get(id(p))
                if id(p) not in made:
                    whole = weights(name).detach().to(device)
                    if self.tp is not None:
                        whole = tp.distribute(name, whole, self._mesh)
                    made[id(p)] = (p, nn.Parameter(whole.clone()))
                setattr(module, attribute, made[id(p)][1])

    def forward(self, x: torch.Tensor | None, micro: Micro) -> torch.Tensor:
        h = self.model.model(micro.tokens if self.first else x, micro.attend, micro.cos, micro.sin)
        if not self.last:
            return h
        if self.tp is not None:
            h = tp.gather_sequence(h, self.tp)
        h_nd = self.model.model.norm(h.flatten(0, 1)[micro.select])
        targets = micro.targets.flatten()[micro.select]
        found = token_log_probs(h_nd, tp.local(self.model.lm_head.weight), targets, self.tp)
        dense = found.new_zeros(micro.targets.numel()).index_copy(0, micro.select, found).view_as(micro.targets)
        return dense.clone() if self.cp is None else cp.GatherRow.apply(dense, self.cp)  # FSDP's hooks want no view


def apply_locally(model: Llama, layout: Layout, fp8: bool = False, device: str | torch.device = "cpu") -> None:
    """What is asked of each block by itself, in this order: FP8 products, compilation, recomputation in the backward pass."""
    if fp8:
        float8(model, device)
    outside = _Outside() if layout.compile else None
    for block in model.model.layers:
        if block is None:
            continue
        if outside is not None:
            block.forward = functools.partial(outside.run, torch.compile(block.forward))
        if layout.recompute != "none":
            keep = {"context_fn": functools.partial(_keep_products, layout.recompute == "alternate")}
            more = {} if layout.recompute == "full" else keep
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **more)


class _Outside:
    """Keeps attention out of compiled blocks: documents differ from batch to batch, and what was traced of their lengths would be
    compiled anew each time. One function stands in for every batch's `attend`, since compiled code asks for the same one."""

    def __init__(self):
        self.attend: Attend | None = None
        self.stand_in = torch.compiler.disable(lambda *args: self.attend(*args))

    def run(self, compiled: Callable, h: torch.Tensor, layer: int, attend: Attend, *rotation: torch.Tensor):
        self.attend = attend
        return compiled(h, layer, self.stand_in, *rotation)


def _keep_products(alternate: bool):
    """Contexts that keep the results of matrix products and attention, or of every second product, and of nothing else."""
    counts = {False: 0, True: 0}
    ops = torch.ops.aten

    def policy(context, op, *args, **kwargs) -> CheckpointPolicy:
        name = op.name()
        if "scaled_dot_product" in name or "flash_attn" in name or "varlen" in name:
            return CheckpointPolicy.MUST_SAVE
        if op not in (ops.mm.default, ops.addmm.default, ops.bmm.default, ops._scaled_mm.default):
            return CheckpointPolicy.PREFER_RECOMPUTE
        counts[context.is_recompute] += 1
        return (
            CheckpointPolicy.PREFER_RECOMPUTE
            if alternate and counts[context.is_recompute] % 2 == 0
            else CheckpointPolicy.MUST_SAVE
        )

    return create_selective_checkpoint_contexts(policy)
