"""What the trainer computes for an objective: log-probabilities of targets and their sums over segments.

The head is evaluated only where something is predicted, in chunks, and its fp32 log-softmax never exists as a whole: the
logits are kept in the compute dtype and turned in place into their own gradient.
"""

from __future__ import annotations

import torch

from herder.model import Llama
from herder.model.attention import Packing, packed
from herder.train.objective import Output, Outputs, Rows

CHUNK_LOGITS = 2**20
"""Logits widened to fp32 at a time: 4 MB, which stays in a CPU's cache."""


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) from hidden states and the head's weight: (N, D), (V, D), (N,) -> (N,) fp32."""

    @staticmethod
    def forward(ctx, h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
        logits, log_z = [], []
        out = torch.empty(targets_n.shape[0], dtype=_wide(h_nd.dtype), device=h_nd.device)
        rows = _chunk_rows(h_nd, weight_vd)
        for h, targets, part in zip(h_nd.split(rows), targets_n.split(rows), out.split(rows), strict=True):
            chunk = h @ weight_vd.T
            wide = _widen(chunk)
            at_target = wide.gather(1, targets[:, None])[:, 0]
            top = wide.amax(-1)
            z = wide.sub_(top[:, None]).exp_().sum(-1).log_().add_(top)
            torch.sub(at_target, z, out=part)
            logits.append(chunk)
            log_z.append(z)
        ctx.save_for_backward(h_nd, weight_vd, targets_n, *logits, *log_z)
        return out

    @staticmethod
    def backward(ctx, grad_n: torch.Tensor):
        h_nd, weight_vd, targets_n, *saved = ctx.saved_tensors
        half = len(saved) // 2
        grad_h = torch.empty_like(h_nd)
        head = ctx.needs_input_grad[1]  # a frozen head is spared a product as large as its forward
        shape = weight_vd.shape if head else ()
        grad_weight = torch.zeros(shape, dtype=_wide(weight_vd.dtype), device=weight_vd.device)
        rows = _chunk_rows(h_nd, weight_vd)
        parts = zip(h_nd.split(rows), grad_h.split(rows), targets_n.split(rows), grad_n.split(rows), strict=True)
        for (h, grad, targets, g), chunk, z in zip(parts, saved[:half], saved[half:], strict=True):
            wide = _widen(chunk).sub_(z[:, None]).exp_()
            wide.scatter_add_(1, targets[:, None], -torch.ones_like(z)[:, None])
            narrow = chunk.copy_(wide.mul_(-g[:, None]))  # the logits are not needed any more
            torch.mm(narrow, weight_vd, out=grad)
            if head:
                grad_weight += narrow.T @ h
        return grad_h, grad_weight.to(weight_vd.dtype) if head else None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least fp32: where losses and softmaxes are computed."""
    return torch.promote_types(dtype, torch.float32)


def _widen(x: torch.Tensor) -> torch.Tensor:
    """A wide copy, even where the dtype is already wide: callers change it in place."""
    return x.to(_wide(x.dtype), copy=True)


def _chunk_rows(h_nd: torch.Tensor, weight_vd: torch.Tensor) -> int:
    rows = CHUNK_LOGITS // weight_vd.shape[0]
    return max(1, rows) if h_nd.device.type == "cpu" else max(4096, rows)


def token_log_probs(h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """Log-probability (N,) fp32 of each target under softmax(h @ weight.T), differentiable in h and weight."""
    return _TokenLogProbs.apply(h_nd, weight_vd, targets_n)


def compute(model: Llama, rows: Rows, packing: Packing, needs: frozenset[Output]) -> Outputs:
    """The outputs that an objective needs, for one micro-batch on the model's device."""
    packing, select = packing.to(rows.tokens.device), rows.select
    h = model.hidden(rows.tokens, positions=packing.positions(len(rows)), attend=packed(packing), select=select)
    log_probs = token_log_probs(h, model.lm_head.weight, rows.targets.flatten()[select])
    sums = segment_sums(log_probs, rows, select) if "segment_sums" in needs else None
    return Outputs(log_probs, sums)


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
