"""What the trainer computes for an objective: log-probabilities of targets and their sums over segments.

The head is evaluated only where something is predicted, in chunks, and its fp32 log-softmax never exists as a whole: the
logits are kept in the compute dtype and turned in place into their own gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from herder.model import Llama
from herder.model.attention import Packing, packed
from herder.train.objective import Output, Outputs, Rows

CHUNK_LOGITS = 2**20
"""Logits widened to fp32 at a time: 4 MB, which stays in a CPU's cache."""


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) from hidden states and the head's weight: (N, D), (V, D), (N,) -> (N,) fp32.

    With a group, the vocabulary is cut over its ranks in their order and the weight is a rank's part of it.
    """

    @staticmethod
    def forward(ctx, h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor, group) -> torch.Tensor:
        logits, log_z = [], []
        out = torch.empty(targets_n.shape[0], dtype=_wide(h_nd.dtype), device=h_nd.device)
        here, elsewhere = _own(targets_n, weight_vd.shape[0], group)
        rows = _chunk_rows(h_nd, weight_vd)
        for h, targets, part in zip(h_nd.split(rows), here.split(rows), out.split(rows), strict=True):
            chunk = h @ weight_vd.T
            wide = _widen(chunk)
            torch.gather(wide, 1, targets[:, None], out=part[:, None])
            top = wide.amax(-1)
            logits.append(chunk)
            log_z.append(wide.sub_(top[:, None]).exp_().sum(-1).log_().add_(top))
        z = torch.cat(log_z) if log_z else out.clone()
        if group is not None:
            z = _log_sum_over_ranks(z, group)
            dist.all_reduce(out.masked_fill_(elsewhere, 0.0), group=group)
        ctx.group = group
        ctx.save_for_backward(h_nd, weight_vd, targets_n, z, *logits)
        return out.sub_(z)

    @staticmethod
    def backward(ctx, grad_n: torch.Tensor):
        h_nd, weight_vd, targets_n, z_n, *chunks = ctx.saved_tensors
        grad_h = torch.empty_like(h_nd)
        head = ctx.needs_input_grad[1]  # a frozen head is spared a product as large as its forward
        shape = weight_vd.shape if head else ()
        grad_weight = torch.zeros(shape, dtype=_wide(weight_vd.dtype), device=weight_vd.device)
        here, elsewhere = _own(targets_n, weight_vd.shape[0], ctx.group)
        owned = (~elsewhere).to(z_n.dtype).neg_()
        rows = _chunk_rows(h_nd, weight_vd)
        columns = (t.split(rows) for t in (h_nd, grad_h, here, owned, grad_n, z_n))
        for h, grad, targets, one, g, z, chunk in zip(*columns, chunks, strict=True):
            wide = _widen(chunk).sub_(z[:, None]).exp_()
            wide.scatter_add_(1, targets[:, None], one[:, None])
            narrow = chunk.copy_(wide.mul_(-g[:, None]))  # the logits are not needed any more
            torch.mm(narrow, weight_vd, out=grad)
            if head:
                grad_weight += narrow.T @ h
        return grad_h, grad_weight.to(weight_vd.dtype) if head else None, None, None


def _own(targets_n: torch.Tensor, n_vocab: int, group) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets as rows of this rank's part of the vocabulary, and which of them another rank holds."""
    if group is None:
        return targets_n, torch.zeros_like(targets_n, dtype=torch.bool)
    mine = targets_n - group.rank() * n_vocab
    here = mine.clamp(0, n_vocab - 1)
    return here, here != mine


def _log_sum_over_ranks(z_n: torch.Tensor, group) -> torch.Tensor:
    """log of the sum over ranks of exp(z)."""
    top = z_n.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    total = z_n.sub(top).exp_()
    dist.all_reduce(total, group=group)
    return total.log_().add_(top)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least fp32: where losses and softmaxes are computed."""
    return torch.promote_types(dtype, torch.float32)


def _widen(x: torch.Tensor) -> torch.Tensor:
    """A wide copy, even where the dtype is already wide: callers change it in place."""
    return x.to(_wide(x.dtype), copy=True)


def _chunk_rows(h_nd: torch.Tensor, weight_vd: torch.Tensor) -> int:
    rows = CHUNK_LOGITS // weight_vd.shape[0]
    return max(1, rows) if h_nd.device.type == "cpu" else max(4096, rows)


def token_log_probs(h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor, group=None) -> torch.Tensor:
    """Log-probability (N,) fp32 of each target under softmax(h @ weight.T), differentiable in h and weight.

    group: ranks that hold equal parts of the vocabulary's rows, in order; then gradients of h are terms of a sum over them.
    """
    return _TokenLogProbs.apply(h_nd, weight_vd, targets_n, group)


def compute(model: Llama, rows: Rows, packing: Packing, needs: frozenset[Output]) -> Outputs:
    """The outputs that an objective needs, for one micro-batch on the model's device. A model that is cut over ranks
    (`parallel.sharded`) computes them itself, and all its ranks must call."""
    if not isinstance(model, Llama):
        return model.outputs(rows, needs)
    packing, select = packing.to(rows.tokens.device), rows.select
    h = model.hidden(rows.tokens, positions=packing.positions(len(rows)), attend=packed(packing), select=select)
    log_probs = token_log_probs(h, model.lm_head.weight, rows.targets.flatten()[select])
    return outputs_of(log_probs, rows, needs)


def outputs_of(log_probs: torch.Tensor, rows: Rows, needs: frozenset[Output]) -> Outputs:
    """Outputs from the log-probabilities (selected,) of whole rows."""
    return Outputs(log_probs, segment_sums(log_probs, rows, rows.select) if "segment_sums" in needs else None)


def segment_sums(log_probs: torch.Tensor, rows: Rows, select: torch.Tensor) -> torch.Tensor:
    """(R, segments): weighted log-probabilities summed over each segment of each row."""
    if rows.segments is None:
        raise ValueError("the objective needs segment_sums, but its rows carry no segments")
    segments = rows.segments.flatten()[select]
    count = int(rows.segments.max()) + 1
    row = select // rows.tokens.shape[1]
    weighted = log_probs * rows.weights.flatten()[select]
    inside = segments >= 0
    flat = torch.zeros(len(rows) * count, dtype=log_probs.dtype, device=log_probs.device)
    return flat.index_add(0, (row * count + segments)[inside], weighted[inside]).view(len(rows), count)
