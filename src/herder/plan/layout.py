"""How a run is laid over GPUs: TP, CP, PP, DP and micro-batch, and why a layout is refused (paper 3.3.2).

The one design decision: a layout is a value and a refusal is a sentence, so that the search and a user's own layout are
judged by the same words. Ranks are ordered [TP, CP, PP, DP], innermost first, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from herder.model import LlamaConfig
from herder.plan.hardware import Gpu

RECOMPUTE = ("none", "elementwise", "alternate", "full")
"""What the backward pass computes again: nothing; norms and activation products, whose inputs are kept; also every second
matrix product (torchtitan's selective checkpointing); whole blocks."""

MICRO_BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis, sequences a micro-batch, and how the stages are cut.

    `chunks` is the number of virtual stages a rank holds (interleaved schedule); 0 leaves it and `recompute` "" leaves what is
    recomputed to the plan, which takes the fastest that fits.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1
    micro_batch: int = 1
    chunks: int = 0
    recompute: str = ""

    @property
    def gpus(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def __str__(self) -> str:
        text = f"tp={self.tp},cp={self.cp},pp={self.pp},dp={self.dp},micro_batch={self.micro_batch}"
        text += f",chunks={self.chunks}" if self.chunks else ""
        return text + (f",recompute={self.recompute}" if self.recompute else "")


def parse_layout(text: str) -> Layout:
    """ "tp=8,cp=1,pp=16,dp=128" as a Layout; axes left out are 1. Raises ValueError naming the part that is wrong."""
    known = {f.name for f in fields(Layout)}
    values: dict = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or name not in known or name in values:
            raise ValueError(f"layout part {part!r} is not one of {', '.join(sorted(known))} given once as name=value")
        if name == "recompute":
            values[name] = value
        elif value.isascii() and value.isdigit() and len(value) < 10:
            values[name] = int(value)
        else:
            raise ValueError(f"layout part {part!r}: {name} must be a whole number")
    return Layout(**values)


def micro_batches(layout: Layout, seq_len: int, tokens_per_batch: int) -> int:
    """Micro-batches that one pipeline runs in a step."""
    return tokens_per_batch // (seq_len * layout.dp * layout.micro_batch)


def slots(config: LlamaConfig, layout: Layout) -> int:
    """Units that a pipeline deals out: the layers, and with PP also the embedding and the head (paper 3.3.2: one layer is
    taken from the first and one from the last stage)."""
    return config.n_layers + (2 if layout.pp > 1 else 0)


def refusal(
    config: LlamaConfig, layout: Layout, gpus: int, gpu: Gpu, seq_len: int, tokens_per_batch: int
) -> str | None:
    """Why this layout cannot run, leaving memory aside: one sentence, or None where it can."""
    lay = layout
    for f in fields(Layout):
        value = getattr(lay, f.name)
        if f.name != "recompute" and value < (0 if f.name == "chunks" else 1):
            return f"{f.name} is {value}; it must be at least 1"
    if lay.recompute not in ("", *RECOMPUTE):
        return f"recompute is {lay.recompute!r}; it must be one of {', '.join(RECOMPUTE)}"
    if lay.gpus != gpus:
        return f"tp x cp x pp x dp = {lay.tp} x {lay.cp} x {lay.pp} x {lay.dp} is {lay.gpus}, not {gpus} GPUs"
    if lay.tp > gpu.per_node:
        return f"tp {lay.tp} leaves the server of {gpu.per_node} GPUs; tensor parallelism needs NVLink between all its ranks"
    if gpus > gpu.per_node and gpu.per_node % lay.tp:
        return f"tp {lay.tp} does not divide the {gpu.per_node} GPUs of a server, so a group would span two servers"
    for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        if getattr(config, name) % lay.tp:
            return f"{name} {getattr(config, name)} is not divisible by tp {lay.tp}"
    if lay.cp > 1 and seq_len % (2 * lay.cp):
        return f"sequence length {seq_len} is not divisible by 2 x cp = {2 * lay.cp}"
    if seq_len % (lay.cp * lay.tp):
        return f"sequence length {seq_len} is not divisible by cp x tp = {lay.cp * lay.tp}"
    if lay.pp > config.n_layers:
        return f"{config.n_layers} layers are fewer than the pp = {lay.pp} stages"
    if lay.pp == 1 and lay.chunks > 1:
        return f"chunks {lay.chunks} needs a pipeline, but pp is 1"
    if lay.pp * lay.chunks > slots(config, lay):
        return f"{slots(config, lay)} layers with embedding and head are fewer than pp x chunks = {lay.pp * lay.chunks}"
    if tokens_per_batch % seq_len:
        return f"{tokens_per_batch} tokens a batch are not divisible by the sequence length {seq_len}"
    sequences = tokens_per_batch // seq_len
    if sequences % (lay.dp * lay.micro_batch):
        return f"{sequences} sequences a batch are not divisible by dp x micro_batch = {lay.dp} x {lay.micro_batch}"
    return None


def candidates(config: LlamaConfig, gpus: int, gpu: Gpu, seq_len: int) -> Iterator[Layout]:
    """Layouts that use all GPUs: TP within a server, CP by doubling while a rank keeps 1,024 tokens, PP up to the layers."""
    for tp in divisors(gpus, gpu.per_node):
        for cp in (c for c in divisors(gpus // tp, max(1, seq_len // 1024)) if c & (c - 1) == 0):
            for pp in divisors(gpus // tp // cp, config.n_layers):
                for micro in MICRO_BATCHES:
                    yield Layout(tp, cp, pp, gpus // tp // cp // pp, micro)


def variants(config: LlamaConfig, layout: Layout) -> Iterator[Layout]:
    """The layout with what it leaves open filled in: chunks that cut the pipeline evenly, and each way to recompute."""
    units = -(-slots(config, layout) // layout.pp)
    even = divisors(units, units) if layout.pp > 1 and slots(config, layout) % layout.pp == 0 else [1]
    for chunks in [layout.chunks] if layout.chunks else even:
        for recompute in [layout.recompute] if layout.recompute else RECOMPUTE:
            yield replace(layout, chunks=chunks, recompute=recompute)


def divisors(n: int, most: int) -> list[int]:
    """Divisors of `n` up to `most`, ascending."""
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]
