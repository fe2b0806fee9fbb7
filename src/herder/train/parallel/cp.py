"""Context parallelism as in the paper (3.3.2): the sequence in 2 x CP chunks, rank i takes chunks i and 2 x CP - 1 - i, K and V
are gathered from all ranks before attention.

The one design decision: everything hides behind the model's `attend`. What a rank's queries may see is worked out once per
batch as pieces: a stretch of one document inside one chunk, and the keys of that document up to the stretch's end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from herder.model.attention import Attend, Packing, causal, varlen
from herder.train.parallel import comm


def chunks(rank: int, cp: int, seq_len: int) -> list[tuple[int, int]]:
    """[start, end) of the two chunks that this rank holds; every rank has the same share of causal attention."""
    size = seq_len // (2 * cp)
    return [(i * size, (i + 1) * size) for i in (rank, 2 * cp - 1 - rank)]


def indices(rank: int, cp: int, seq_len: int) -> torch.Tensor:
    """(seq_len / cp,) positions of the row that this rank holds, in its order."""
    return torch.cat([torch.arange(*chunk) for chunk in chunks(rank, cp, seq_len)])


def order(cp: int, seq_len: int) -> torch.Tensor:
    """(seq_len,) where each position of the row lies once all ranks' parts are put one after the other."""
    return torch.cat([indices(rank, cp, seq_len) for rank in range(cp)]).argsort()


@dataclass(frozen=True)
class Pieces:
    """Stretches of queries with the keys they see, for all rows of a micro-batch.

    queries and keys: (row, start, end) in local and in whole-row positions; the last query sees the last key.
    """

    queries: list[tuple[int, int, int]]
    keys: list[tuple[int, int, int]]

    @classmethod
    def of(cls, packing: Packing, rows: int, seq_len: int, rank: int, cp: int) -> Pieces:
        queries, keys, begin = [], [], 0
        for length in packing.lengths:
            row, start = divmod(begin, seq_len)
            end, begin, offset = start + length, begin + length, 0
            for low, high in chunks(rank, cp, seq_len):
                q0, q1 = max(start, low), min(end, high)
                if q0 < q1:
                    queries.append((row, offset + q0 - low, offset + q1 - low))
                    keys.append((row, start, q1))
                offset += high - low
        order = sorted(range(len(queries)), key=queries.__getitem__)
        return cls([queries[i] for i in order], [keys[i] for i in order])


def context_parallel(pieces: Pieces, seq_len: int, group: dist.ProcessGroup) -> Attend:
    """The `attend` of a rank that holds its chunks of every row."""
    where = order(group.size(), seq_len)

    def attend(layer: int, q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor) -> torch.Tensor:
        k, v = _GatherKV.apply(torch.stack((k_bthd, v_bthd)), where.to(k_bthd.device), group)
        if q_bthd.is_cuda:
            return _on_cuda(q_bthd, k, v, pieces)
        parts = [
            causal(q_bthd[row, None, q0:q1], k[row, None, k0:k1], v[row, None, k0:k1])[0]
            for (row, q0, q1), (_, k0, k1) in zip(pieces.queries, pieces.keys, strict=True)
        ]
        return torch.cat(parts).view_as(q_bthd)  # pieces lie in the order of the queries

    return attend


def _on_cuda(q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    seq_len = k_bthd.shape[1]
    spans = [torch.arange(row * seq_len + start, row * seq_len + end) for row, start, end in pieces.keys]
    index = torch.cat(spans).to(q_bthd.device)
    k, v = (x.flatten(0, 1)[index] for x in (k_bthd, v_bthd))
    lengths = ([end - start for _, start, end in side] for side in (pieces.queries, pieces.keys))
    return varlen(q_bthd.flatten(0, 1), k, v, *lengths).view_as(q_bthd)


class _GatherKV(torch.autograd.Function):
    """(2, B, T / cp, G, d) -> (2, B, T, G, d) in the row's order; gradients of all ranks are added where the keys came from."""

    @staticmethod
    def forward(ctx, kv: torch.Tensor, where: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        ctx.save_for_backward(where)
        return comm.all_gather(kv, group).movedim(0, 2).flatten(2, 3)[:, :, where]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (where,) = ctx.saved_tensors
        back = torch.empty_like(grad)
        back[:, :, where] = grad
        return comm.reduce_scatter(back.unflatten(2, (ctx.group.size(), -1)).movedim(2, 0), ctx.group), None, None


class GatherRow(torch.autograd.Function):
    """(B, T / cp) on each rank -> (B, T) on all, in the row's order. What follows is computed alike on every rank, so each
    takes its own part of the gradient and nothing is added."""

    @staticmethod
    def forward(ctx, x_bt: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        n, t = group.size(), x_bt.shape[1]
        ctx.mine = indices(group.rank(), n, n * t)
        return comm.all_gather(x_bt, group).movedim(0, 1).flatten(1, 2)[:, order(n, n * t)]

    @staticmethod
    def backward(ctx, grad_bt: torch.Tensor):
        return grad_bt[:, ctx.mine].contiguous(), None
