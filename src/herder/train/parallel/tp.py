"""Tensor parallelism with sequence parallelism, by hand on local tensors (paper 3.3.2; Megatron-LM's cut).

Weights are DTensors on the `tp` axis, so that checkpoints, clipping and FSDP know their whole shape; every product is computed
on the local part. Between the blocks' products the sequence is cut over the same ranks: gathered before a column-cut product,
summed and cut again after a row-cut one. What was gathered is gathered again in the backward pass instead of kept, as in the
paper's code. Where a layer computes the same on every rank (norms) its weight's gradient is partial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from herder.model import Llama, LlamaConfig
from herder.model.norm import normalise
from herder.train.parallel import comm

COLUMN, ROW, WHOLE = Shard(0), Shard(1), Replicate()
_CUT = {"q_proj": COLUMN, "k_proj": COLUMN, "v_proj": COLUMN, "gate_proj": COLUMN, "up_proj": COLUMN}
_CUT |= {"o_proj": ROW, "down_proj": ROW, "embed_tokens": COLUMN, "lm_head": COLUMN}


def placement(name: str) -> Placement:
    """How the parameter of this name is cut over tp."""
    return _CUT.get(name.split(".")[-2], WHOLE)


def check(config: LlamaConfig, tp: int) -> None:
    """Raises ValueError where a dimension does not divide."""
    for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        if getattr(config, name) % tp:
            raise ValueError(f"layout.tp {tp} does not divide {name} {getattr(config, name)}; choose a divisor of it")


def distribute(name: str, whole: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """This rank's part of a parameter that every rank holds whole; nothing is sent."""
    return distribute_tensor(whole, mesh, [placement(name)], src_data_rank=None)


def apply(model: Llama, mesh: DeviceMesh, keep: bool = False) -> None:
    """Puts layers that compute on their rank's part in the place of the plain ones; parameter names stay.

    keep: leaves to others what of the gathered inputs is kept for the backward pass (recomputation decides that itself).
    """
    decoder, group = model.model, mesh.get_group()
    if decoder.embed_tokens is not None:
        decoder.embed_tokens = _Embedding(decoder.embed_tokens, group)
    for block in decoder.layers:
        if block is None:
            continue
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                setattr(parent, name, (_RowLinear if _CUT[name] is ROW else _ColumnLinear)(linear, group))
            parent.forward = functools.partial(_gathered, parent.forward, group, keep)
        block.input_layernorm = _Norm(block.input_layernorm)
        block.post_attention_layernorm = _Norm(block.post_attention_layernorm)
    if decoder.norm is not None:
        decoder.norm = _Norm(decoder.norm)


def _gathered(forward: Callable, group: dist.ProcessGroup, keep: bool, x_btd: torch.Tensor, *args) -> torch.Tensor:
    """A module's forward pass on the whole sequence, of which this rank has a part: one gather serves all its products."""
    whole = gather_sequence(x_btd, group)
    if keep or not torch.is_grad_enabled():
        return forward(whole, *args)
    again = _GatherAgain(x_btd.detach(), whole, group)
    with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
        return forward(whole, *args)


class _GatherAgain:
    """Stands in the graph for a gathered tensor: the rank's own part is kept, and the rest fetched when the first of the
    products that read it wants it back. All ranks of the group go backward in the same order."""

    def __init__(self, part: torch.Tensor, whole: torch.Tensor, group: dist.ProcessGroup):
        self.part, self.group, self.whole = part, group, None
        self.place, self.size = whole.data_ptr(), whole.numel()
        self.readers = self.left = 0

    def pack(self, saved: torch.Tensor) -> torch.Tensor | torch.Size:
        if saved.data_ptr() != self.place or saved.numel() != self.size:
            return saved.detach()
        self.readers += 1
        return saved.shape

    def unpack(self, packed: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if self.whole is None:
            self.whole, self.left = _all_gather(self.part, self.group), self.readers
        whole, self.left = self.whole, self.left - 1
        if not self.left:
            self.whole = None
        return whole.view(packed)


def local(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this rank computes with; the weight itself where it is not cut."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class _Layer(nn.Module):
    def __init__(self, plain: nn.Module, group: dist.ProcessGroup | None = None):
        super().__init__()
        self.weight, self.group = plain.weight, group


class _ColumnLinear(_Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, local(self.weight))


class _RowLinear(_Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scatter_sequence(F.linear(x, local(self.weight)), self.group)


class _Embedding(_Layer):
    """Rows of the vocabulary that other ranks hold come out as zeros and are added in the sum."""

    def forward(self, tokens_bt: torch.Tensor) -> torch.Tensor:
        weight = local(self.weight)
        mine = tokens_bt - self.group.rank() * weight.shape[0]
        inside = (mine >= 0) & (mine < weight.shape[0])
        found = F.embedding(mine.clamp(0, weight.shape[0] - 1), weight)
        return scatter_sequence(found * inside[..., None].to(found.dtype), self.group)


class _Norm(nn.Module):
    def __init__(self, plain: nn.Module):
        super().__init__()
        self.weight, self.eps = plain.weight, plain.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Each rank sees its part of the sequence: the gradients of the weight are terms of a sum.
        return self.weight.to_local(grad_placements=(Partial(),)) * normalise(x, self.eps)


def gather_sequence(x_btd: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, T / tp, D) on each rank -> (B, T, D) on all; its gradients are terms of a sum and go back where they came from."""
    return _Gather.apply(x_btd, group)


def scatter_sequence(x_btd: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, T, D), terms of a sum on each rank -> the sum's (B, T / tp, D) part."""
    return _Scatter.apply(x_btd, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return _reduce_scatter(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return _all_gather(grad, ctx.group), None


def _all_gather(x_btd: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return comm.all_gather(x_btd, group).movedim(0, 1).flatten(1, 2)


def _reduce_scatter(x_btd: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return comm.reduce_scatter(x_btd.unflatten(1, (group.size(), -1)).movedim(1, 0), group)
