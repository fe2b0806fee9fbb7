"""The two collectives that tensor and context parallelism are made of, over the first dimension."""

from __future__ import annotations

import torch
import torch.distributed as dist

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_gather(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(...) on each rank -> (ranks, ...) on all."""
    x = x.contiguous()
    out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    _gather(out, x, group=group)
    return out.view(group.size(), *x.shape)


def reduce_scatter(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(ranks, ...), terms of a sum, on each rank -> the sum's own (...) on each."""
    x = x.contiguous()
    out = torch.empty_like(x[0])
    _scatter(out, x.flatten(0, 1), group=group)
    return out
