"""What the trainer computes for an objective: log-probabilities of targets and their sums over segments.

The head is evaluated only where something is predicted, in chunks, and its fp32 log-softmax never exists as a whole: the
logits are kept in the compute dtype and turned in place into their own gradient.
"""

from __future__ import annotations

import torch

from herder.model import Llama
from herder.model.attention import Packing, packed
from herder.train.objective import Output, Outputs, Rows

CHUNK_POSITIONS = 1024
"""Positions whose logits are widened to fp32 at a time: 16 MB at a vocabulary of 4,096, 512 MB at 128,256."""


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) from hidden states and the head's weight: (N, D), (V, D), (N,) -> (N,) fp32."""

    @staticmethod
    def forward(ctx, h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
        logits, log_z = [], []
        out = torch.empty(targets_n.shape[0], dtype=torch.float32, device=h_nd.device)
        for i in range(0, h_nd.shape[0], CHUNK_POSITIONS):
            chunk = h_nd[i : i + CHUNK_POSITIONS] @ weight_vd.T
            wide = chunk.float()
            z = wide.logsumexp(-1)
            out[i : i + CHUNK_POSITIONS] = wide.gather(1, targets_n[i : i + CHUNK_POSITIONS, None])[:, 0] - z
            logits.append(chunk)
            log_z.append(z)
        ctx.save_for_backward(h_nd, weight_vd, targets_n, *logits, *log_z)
        return out

    @staticmethod
    def backward(ctx, grad_n: torch.Tensor):
        h_nd, weight_vd, targets_n, *saved = ctx.saved_tensors
        half = len(saved) // 2
        grad_h = torch.empty_like(h_nd)
        grad_weight = torch.zeros(weight_vd.shape, dtype=torch.float32, device=weight_vd.device)
        for j, (chunk, z) in enumerate(zip(saved[:half], saved[half:], strict=True)):
            part = slice(j * CHUNK_POSITIONS, j * CHUNK_POSITIONS + chunk.shape[0])
            grad_logits = (chunk.float() - z[:, None]).exp_().neg_()
            grad_logits.scatter_add_(1, targets_n[part, None], torch.ones_like(z)[:, None])
            grad_logits = grad_logits.mul_(grad_n[part, None]).to(h_nd.dtype)
            torch.mm(grad_logits, weight_vd, out=grad_h[part])
            grad_weight += grad_logits.T @ h_nd[part]
        return grad_h, grad_weight.to(weight_vd.dtype), None


def token_log_probs(h_nd: torch.Tensor, weight_vd: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """Log-probability (N,) fp32 of each target under softmax(h @ weight.T), differentiable in h and weight."""
    return _TokenLogProbs.apply(h_nd, weight_vd, targets_n)


def compute(model: Llama, rows: Rows, packing: Packing, needs: frozenset[Output]) -> Outputs:
    """The outputs that an objective needs, for one micro-batch on the model's device."""
    select = rows.select
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
