"""Bytes on the fullest rank, by part, before a run starts (paper 3.3.2: its memory estimator).

The one design decision: everything is a count from the shape and the layout, nothing is fitted. As the paper trains,
parameters stay gathered after the forward pass and gradients are summed in fp32 over the micro-batches, so only the
optimizer's state is divided by the ranks that FSDP shards over; `reshard_after_forward` divides parameters and sums too.
"""

from __future__ import annotations

import math

from herder.model import LlamaConfig
from herder.plan.layout import shards, slots
from herder.train import Layout

OVERHEAD = 3e9
"""Bytes for the CUDA context, collective buffers and fragmentation: an assumption, no published figure."""


def memory_per_rank(config: LlamaConfig, layout: Layout, seq_len: int, n_micro: int) -> dict[str, float]:
    """Bytes by part on the first or the last pipeline rank, whichever holds more; `layout` has its chunks and recompute."""
    ranks = [_rank(config, layout, seq_len, n_micro, last) for last in ({False, True} if layout.pp > 1 else {True})]
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


def kept_per_token(config: LlamaConfig, recompute: str) -> float:
    """Bytes of activations one block keeps for one token, all TP ranks together (bf16)."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    inputs, projections = 2 * c.dim, q + 2 * kv + 2 * c.ffn_dim  # of both norms; of q, k, v and both FFN inputs
    elements = {
        "none": inputs + 2 * c.dim + projections + q + c.ffn_dim,  # + both norms' results, attention's, the product
        "elementwise": inputs + projections + q,
        "alternate": inputs + projections / 2 + q,
        "full": c.dim,
    }[recompute]
    return 2.0 * elements


def _rank(config: LlamaConfig, layout: Layout, seq_len: int, n_micro: int, last: bool) -> dict[str, float]:
    parameters, ranks = rank_parameters(config, layout, last), shards(layout)
    tokens = layout.micro_batch * seq_len / layout.cp
    layers = layers_of_rank(config, layout) - (1 if layout.pp > 1 else 0)
    block = kept_per_token(config, layout.recompute) * tokens / layout.tp
    held = layers * _in_flight(layout, n_micro, last)
    activations = held * block
    if layout.recompute == "full":
        activations += kept_per_token(config, "none") * tokens / layout.tp  # the block that is being computed again
    head = tokens * config.vocab_size * (2 + 4) / layout.tp if last else 0.0
    whole = parameters
    if layout.reshard_after_forward:  # this block and the next one, and what lies outside the blocks
        outside = parameters - layers * layer_parameters(config) / layout.tp
        whole = min(parameters, parameters / ranks + outside + 2 * layer_parameters(config) / layout.tp)
    scattered = n_micro == 1 or layout.reshard_after_forward
    return {
        "weights, bf16": 2.0 * whole,
        "gradient sums, fp32": 4.0 * parameters / (ranks if scattered else 1),
        "optimizer and master weights, fp32": 12.0 * parameters / ranks,
        "activations": activations,
        "logits, bf16 and fp32": head,
        "overhead": OVERHEAD,
    }


def _in_flight(layout: Layout, n_micro: int, last: bool) -> float:
    """Micro-batches whose activations a rank holds at once, in whole-rank units: interleaved 1F1B warms up with
    (chunks - 1) x pp + 2 (pp - 1 - rank) chunk passes, plain 1F1B with pp - rank."""
    rank = layout.pp - 1 if last else 0
    if layout.chunks <= 1:
        return min(n_micro, layout.pp - rank)
    passes = (layout.chunks - 1) * layout.pp + 2 * (layout.pp - 1 - rank) + 1
    return min(n_micro, passes / layout.chunks)
