"""Bytes on the fullest rank, by part, before a run starts (paper 3.3.2: its memory estimator).

The one design decision: everything is a count, nothing is fitted, and what herder's own trainer holds is counted from its code:
`benchmarks/memory.py` measures it. `fused` says of which code activations are: the paper's, whose elementwise kernels are fused
(as compilation does it); or herder's uncompiled. Either keeps activations divided over TP, but for herder's recomputation, which
keeps products as they come, some of them whole. As the paper trains, parameters stay gathered after the forward pass and
gradients are summed in fp32 before FSDP divides them, so with more than one micro-batch only the optimizer's state is divided.
"""

from __future__ import annotations

import math

from herder.model import LlamaConfig
from herder.plan.layout import shards, slots
from herder.train import Layout

OVERHEAD = 3e9
"""Bytes for the CUDA context, collective buffers and fragmentation: an assumption, no published figure."""

HEAD_ROWS, HEAD_LOGITS = 4096, 2**20
"""What the trainer widens to fp32 at once of the logits: rows on CUDA, numbers on a CPU."""


def memory_per_rank(
    config: LlamaConfig, layout: Layout, seq_len: int, n_micro: int, *, fused: bool = True, cpu: bool = False
) -> dict[str, float]:
    """Bytes by part on the first or the last pipeline rank, whichever holds more. cpu: in fp32 and without `OVERHEAD`."""
    lasts = {False, True} if layout.pp > 1 else {True}
    ranks = [_rank(config, layout, seq_len, n_micro, last, fused, cpu) for last in lasts]
    return max(ranks, key=lambda parts: sum(parts.values()))


def layers_of_rank(config: LlamaConfig, layout: Layout) -> int:
    """Most units (layers, or embedding or head where there is a pipeline) that a rank holds."""
    return math.ceil(slots(config, layout) / layout.pp)


def layer_parameters(config: LlamaConfig) -> int:
    """Parameters of one block."""
    attention = config.dim * config.head_dim * 2 * (config.n_heads + config.n_kv_heads)
    return attention + 3 * config.dim * config.ffn_dim + 2 * config.dim


def rank_parameters(config: LlamaConfig, layout: Layout, last: bool = True) -> float:
    """Parameters of a pipeline rank's tensor-parallel shard, before FSDP divides them. Without a pipeline, all of them."""
    if layout.pp == 1:
        return config.n_params / layout.tp
    table = config.vocab_size * config.dim + (config.dim if last else 0)
    return ((layers_of_rank(config, layout) - 1) * layer_parameters(config) + table) / layout.tp


def kept_per_token(config: LlamaConfig, recompute: str, tp: int = 1, fused: bool = True) -> float:
    """Numbers that one block keeps for one token on one TP rank, for the backward pass."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    if fused:
        inputs, projections = 2 * c.dim, q + 2 * kv + 2 * c.ffn_dim  # of both norms; of q, k, v and both FFN inputs
        return {
            "none": inputs + 2 * c.dim + projections + q + c.ffn_dim,  # + both norms' results, attention's, the product
            "elementwise": inputs + projections + q,
            "alternate": inputs + projections / 2 + q,
            "full": c.dim,
        }[recompute] / tp
    whole, divided = {
        # both norms' results, to be gathered again; both normalised, q, k, v rotated, attention's result twice, four FFN rows
        "none": (0, 4 * c.dim + 3 * q + 2 * kv + 4 * c.ffn_dim),
        # both products that are still to be added over TP; the block's input, the other products, attention's result
        "elementwise": (2 * c.dim, c.dim + 2 * q + 2 * kv + 2 * c.ffn_dim),
        "alternate": (c.dim, c.dim + 2 * q + kv + c.ffn_dim),  # of seven products the first, third, fifth and seventh
        "full": (0, c.dim),
    }[recompute]
    return whole + divided / tp


def _rank(
    config: LlamaConfig, layout: Layout, seq_len: int, n_micro: int, last: bool, fused: bool, cpu: bool
) -> dict[str, float]:
    element, tp = (4.0 if cpu else 2.0), layout.tp
    parameters, ranks = rank_parameters(config, layout, last), shards(layout)
    tokens = layout.micro_batch * seq_len / layout.cp
    layers = layers_of_rank(config, layout) - (1 if layout.pp > 1 else 0)
    kept = element * kept_per_token(config, layout.recompute, tp, fused)
    statistics = (
        4.0 * (config.n_heads / tp + 2) if layout.recompute == "none" else 0.0
    )  # log-sum-exp, inverse roots: fp32
    activations = layers * _in_flight(layout, n_micro, last) * tokens * (kept + statistics)
    # with its gradients in flight, of three FFN rows and the block's result, and with both gathered inputs whole
    again = element * (kept_per_token(config, "none", tp, fused) + (3 * config.ffn_dim + config.dim) / tp) - kept
    again += 0.0 if fused else element * 2 * config.dim * (1 - 1 / tp)
    plain = layout.tp == layout.cp == layout.pp == (layout.shard or layout.dp) == 1
    if plain or n_micro > 1:
        sums, late = 4.0 * parameters, (element if plain else 4.0 / ranks) * parameters
    else:
        sums, late = 0.0, 4.0 * parameters / ranks
    gathered = parameters
    if layout.reshard_after_forward and ranks > 1:  # freed after the forward pass, all there again at its end
        outside = parameters - layers * layer_parameters(config) / tp
        gathered = min(parameters, outside + 2 * layer_parameters(config) / tp)
        if n_micro > 1:
            late += element * (parameters - gathered)
    # A backward pass begins with the head, computes blocks again, and ends with activations gone and what waited for that.
    moments = {
        "head and logits": _head(config, layout, tokens, element, cpu) if last else 0.0,
        "block computed again": tokens * again if layout.recompute != "none" else 0.0,
        "end of the backward pass": late - activations,
    }
    worst = max(moments, key=moments.__getitem__)
    return {
        "weights, fp32" if cpu else "weights, bf16": element * gathered,
        "gradient sums, fp32": sums,
        "optimizer and master weights, fp32": 12.0 * parameters / ranks,
        "activations": activations,
        worst: max(0.0, moments[worst]),
        "overhead": 0.0 if cpu else OVERHEAD,
    }


def _head(config: LlamaConfig, layout: Layout, tokens: float, element: float, cpu: bool) -> float:
    """The last norm's rows, the logits, what of them is widened to fp32 at once, and the gradient of the head's weight."""
    part = config.vocab_size / layout.tp
    wide = min(tokens, HEAD_LOGITS / config.vocab_size if cpu else HEAD_ROWS) * part
    return element * tokens * (2 * config.dim + part) + 4.0 * (wide + part * config.dim)


def _in_flight(layout: Layout, n_micro: int, last: bool) -> float:
    """Micro-batches whose activations a rank holds at once, in whole-rank units: interleaved 1F1B warms up with
    (chunks - 1) x pp + 2 (pp - 1 - rank) chunk passes, plain 1F1B with pp - rank."""
    rank = layout.pp - 1 if last else 0
    if layout.chunks <= 1:
        return min(n_micro, layout.pp - rank)
    passes = (layout.chunks - 1) * layout.pp + 2 * (layout.pp - 1 - rank) + 1
    return min(n_micro, passes / layout.chunks)
