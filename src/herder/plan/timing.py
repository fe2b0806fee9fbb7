"""Seconds a training step takes, from FLOPs, bandwidths, overlap and the pipeline's bubble (paper 3.3.2, table 4).

FLOP convention: two per weight and token and pass, three passes, the output head counted and the embedding look-up not,
attention causal (a token sees half the sequence on average), recomputation not counted; MFU is against the dense bf16 peak.

The one design decision: one constant is fitted, `KERNEL_EFFICIENCY`, on row 1 of the paper's table 4 alone. Everything else
is a data-sheet figure, a count, or an assumption named here. Tensor and context parallel collectives stand in the way of the
kernels that need their result; pipeline sends and all but the first and last FSDP collective run beside compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from herder.model import LlamaConfig
from herder.plan.layout import micro_batches, shards
from herder.plan.memory import layer_parameters, layers_of_rank, rank_parameters
from herder.train import Layout
from herder.train.devices import Gpu

KERNEL_EFFICIENCY = 0.5512
"""Share of the peak that matrix products and attention reach. Fitted on row 1 of table 4 (8,192 H100, 430 TFLOP/s)."""

BANDWIDTH_EFFICIENCY = 0.8
"""Share of data-sheet memory, NVLink and network bandwidth that streaming kernels and large collectives reach: an assumption
(NCCL's own tests reach 80 to 95%)."""

ATTENTION_PASSES = 3.5
"""What fused attention computes in forward and backward, in forward passes: 2 matrix products forward, 5 backward, where the
scores are computed again. The FLOP convention counts 3."""

FLASH_2 = 0.35
"""Share of an H100's peak FlashAttention-2 reaches, the kernel of PyTorch's own attention (abstract of the FlashAttention-3
paper)."""


@dataclass(frozen=True)
class Software:
    """What the training code does that the layout does not say.

    `precision` is of the blocks' matrix products ("bf16" or "fp8"; head and attention stay bf16). The efficiencies are shares
    of the peak.
    """

    precision: str = "bf16"
    kernels: float = KERNEL_EFFICIENCY
    attention: float = 0.0
    """0 means as `kernels`."""
    fused: bool = True
    """Elementwise kernels are fused, as the paper's code and compilation have them, and activations stay divided over TP; False
    is herder's trainer uncompiled, whose memory is measured (`benchmarks/memory.py`)."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one step by part; they sum to `step`."""

    parts: dict[str, float]
    flops: float
    """Of the whole step, in the convention above."""

    @property
    def step(self) -> float:
        return sum(self.parts.values())

    def mfu(self, gpus: int, gpu: Gpu) -> float:
        """Share of the dense bf16 peak of all GPUs, whatever the precision."""
        return self.flops / (self.step * gpus * gpu.bf16)


def time_step(
    config: LlamaConfig, layout: Layout, gpu: Gpu, seq_len: int, tokens_per_batch: int, software: Software | None = None
) -> Timing:
    """Time of one optimizer step; `layout` has passed `refusal` and has its chunks and recompute."""
    software = software or Software()
    n_micro = micro_batches(layout, seq_len, tokens_per_batch)
    block = _block(config, layout, gpu, seq_len, software)
    head = _head(config, layout, gpu, seq_len, software)
    units = layers_of_rank(config, layout)
    if layout.pp == 1:
        stage = {**{k: v * units for k, v in block.items()}, "output head": head}
    elif head > sum(block.values()):  # the last rank, which holds the head in place of a layer, is the slowest
        stage = {**{k: v * (units - 1) for k, v in block.items()}, "output head": head}
    else:
        stage = {k: v * units for k, v in block.items()}
    whole = sum(stage.values())
    parts = {name: n_micro * seconds for name, seconds in stage.items()}
    parts["pipeline bubble"] = whole * _bubble(n_micro, layout.pp, max(1, layout.chunks))
    parts["FSDP, exposed"] = _fsdp(config, layout, gpu, whole, n_micro)
    shard = rank_parameters(config, layout) / shards(layout)
    parts["optimizer"] = 30 * shard / (gpu.memory_bandwidth * BANDWIDTH_EFFICIENCY)  # 16 bytes read, 14 written
    flops = tokens_per_batch * config.flops_per_token((seq_len + 1) / 2)
    return Timing(parts, flops)


def _bubble(n_micro: int, pp: int, chunks: int) -> float:
    """Idle time in micro-batches: (pp - 1) / chunks; with fewer micro-batches than stages each round of the chunks also waits
    until the first one is back."""
    return max(0, pp - n_micro) + (min(n_micro, pp) - 1) / chunks


def _block(config: LlamaConfig, layout: Layout, gpu: Gpu, seq_len: int, software: Software) -> dict[str, float]:
    """Seconds of one block for one micro-batch, forward and backward, on one rank."""
    c, tp = config, layout.tp
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    tokens = layout.micro_batch * seq_len / layout.cp
    peak = gpu.fp8 if software.precision == "fp8" else gpu.bf16
    matrices = 2 * (layer_parameters(c) - 2 * c.dim) * tokens / tp / (peak * software.kernels)
    attention = 4 * q * tokens * (seq_len + 1) / 2 / tp / (gpu.bf16 * (software.attention or software.kernels))
    # norms read and write a row each, the residuals read two and write one, RoPE q and k, SwiGLU reads two and writes one
    moved = 2 * (10 * c.dim + 2 * (q + kv) + 3 * c.ffn_dim) * tokens / tp
    if not software.fused:  # norms in nine passes, seven of them in fp32, RoPE in four kernels, SwiGLU in two
        moved = (2 * 36 * c.dim + 12 * c.dim + 18 * (q + kv) + 10 * c.ffn_dim) * tokens / tp
    elementwise = moved / (gpu.memory_bandwidth * BANDWIDTH_EFFICIENCY)
    # with sequence parallelism, attention and feed-forward each gather their input and scatter their result
    tensor = 4 * (tp - 1) / tp * tokens * c.dim * 2 / (gpu.nvlink * BANDWIDTH_EFFICIENCY)
    gathered = layout.micro_batch * seq_len * (layout.cp - 1) / layout.cp * 2 * kv / tp * 2
    context = gathered / _bandwidth(gpu, layout.cp, tp)
    again = {"none": (0, 0), "elementwise": (0, 1), "alternate": (0.5, 1), "full": (1, 1)}[layout.recompute]
    whole = 1 if layout.recompute == "full" else 0
    regather = 0.0 if software.fused or whole else 0.5  # both inputs, once more in the backward pass
    return {
        "matrix products": (3 + again[0]) * matrices,
        "attention": (ATTENTION_PASSES + whole) * attention,
        "norms and activations": (3 + again[1]) * elementwise,
        "tensor parallel": (2 + whole + regather) * tensor,
        # K and V gathered in the forward and again in the backward pass, their gradients scattered
        "context parallel": (3 + whole) * context,
    }


def _head(config: LlamaConfig, layout: Layout, gpu: Gpu, seq_len: int, software: Software) -> float:
    """Seconds of head and loss for one micro-batch, forward and backward."""
    tokens = layout.micro_batch * seq_len / layout.cp
    product = 3 * 2 * config.vocab_size * config.dim * tokens / layout.tp / (gpu.bf16 * software.kernels)
    # logits: bf16 written and read, fp32 written, read twice for the loss, its gradient written and read in bf16
    moved = tokens * config.vocab_size / layout.tp * (2 + 2 + 4 + 2 * 4 + 2 + 2 * 2)
    return product + moved / (gpu.memory_bandwidth * BANDWIDTH_EFFICIENCY)


def _fsdp(config: LlamaConfig, layout: Layout, gpu: Gpu, stage: float, n_micro: int) -> float:
    """Seconds of FSDP traffic not hidden: the first block's gather and the last one's reduction, and what is left of the rest
    beside the compute of the micro-batches that it runs with (`stage` is one's).

    Kept parameters are gathered once a step in bf16 and the sums scattered once in fp32, within one micro-batch's time; those
    freed after the forward pass are gathered twice and their gradients scattered for each micro-batch. Copies of the state
    (HSDP) add up the sums of their shards once a step. Latency is not counted.
    """
    ranks, copies = shards(layout), layout.dp // (layout.shard or layout.dp)
    parameters, units = rank_parameters(config, layout), layers_of_rank(config, layout)
    traffic = parameters * (ranks - 1) / ranks / _bandwidth(gpu, ranks, layout.tp * layout.pp)
    between = 2 * parameters / ranks * (copies - 1) / copies / _bandwidth(gpu, copies, layout.gpus // copies)
    times, gathers = (n_micro, 2) if layout.reshard_after_forward else (1, 1)
    edge = (2 * traffic + 4 * (traffic + between)) / units
    return edge + max(0.0, (2 * gathers + 4) * traffic * times + 4 * between - edge - stage * times)


def _bandwidth(gpu: Gpu, ranks: int, stride: int) -> float:
    """Bytes/s a rank sends in a ring of `ranks`, every `stride`-th: NVLink within a server; else the network ports of the
    members that share a server, together."""
    if ranks * stride <= gpu.per_node:
        return gpu.nvlink * BANDWIDTH_EFFICIENCY
    return min(gpu.nvlink, gpu.network * max(1, gpu.per_node // stride)) * BANDWIDTH_EFFICIENCY
