"""How a run can be laid over GPUs, and why a layout is refused (paper 3.3.2).

The one design decision: a layout is the trainer's own `Layout`; what a user gives is a dictionary of some of its fields, and
the plan chooses the others. A refusal is a sentence, so that the search and a user's layout are judged by the same words.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from herder.config import parse
from herder.model import LlamaConfig
from herder.train import Layout
from herder.train.devices import Gpu
from herder.train.parallel import RECOMPUTE

MICRO_BATCHES = (1, 2, 4, 8)
AXES = ("tp", "cp", "pp", "dp", "micro_batch")
"""What makes two layouts different in kind; the other fields are chosen for each."""


def parse_layout(text: str) -> dict[str, Any]:
    """ "tp=8,cp=1,pp=16,dp=128" as {"tp": 8, ...}: the fields that are given. Raises ValueError naming the part that is wrong."""
    hints, given = typing.get_type_hints(Layout), {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or name not in hints or name in given:
            names = ", ".join(f.name for f in fields(Layout))
            raise ValueError(f"layout part {part!r} is not name=value, given once, with a name of {names}")
        given[name] = parse(value, hints[name], f"layout part {name}")
    return given


def given_fields(layout: Layout | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that are not left to the plan: all of a Layout, its dp where it is not 0; the entries of a mapping."""
    if isinstance(layout, Layout):
        layout = {f.name: getattr(layout, f.name) for f in fields(Layout)}
    return {name: value for name, value in (layout or {}).items() if (name, value) != ("dp", 0)}


def axes(layout: Layout) -> tuple[int, int, int, int]:
    return layout.tp, layout.cp, layout.pp, layout.dp


def micro_batches(layout: Layout, seq_len: int, tokens_per_batch: int) -> int:
    """Micro-batches that one pipeline runs in a step."""
    return tokens_per_batch // (seq_len * layout.dp * layout.micro_batch)


def shards(layout: Layout) -> int:
    """Ranks that FSDP divides one copy of parameters, gradients and moments over: `shard` (or all) of dp, and cp."""
    return (layout.shard or layout.dp) * layout.cp


def slots(config: LlamaConfig, layout: Layout) -> int:
    """Units that a pipeline deals out: the layers, and with PP also the embedding and the head (paper 3.3.2: one layer is
    taken from the first and one from the last stage)."""
    return config.n_layers + (2 if layout.pp > 1 else 0)


def refusal(
    config: LlamaConfig, layout: Layout, gpus: int, gpu: Gpu, seq_len: int, tokens_per_batch: int
) -> str | None:
    """Why this layout cannot run, leaving memory aside: one sentence, or None where it can."""
    lay = layout
    if seq_len > config.max_seq_len:
        return f"sequence length {seq_len} is beyond the model's context of {config.max_seq_len}"
    for name in ("tp", "cp", "pp", "dp", "micro_batch", "chunks"):
        if getattr(lay, name) < 1:
            return f"{name} is {getattr(lay, name)}; it must be at least 1"
    if lay.gpus != gpus:
        return f"tp x cp x pp x dp = {lay.tp} x {lay.cp} x {lay.pp} x {lay.dp} is {lay.gpus}, not {gpus} GPUs"
    try:
        lay.on(gpus)
    except ValueError as error:
        return str(error).removeprefix("the ").removeprefix("layout.")
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
    if lay.pp > 1 and config.tie_embeddings:
        return f"pp {lay.pp} puts the embedding and the head on two ranks, but the model ties them"
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


def candidates(
    config: LlamaConfig, gpus: int, gpu: Gpu, seq_len: int, given: Mapping[str, Any] | None = None
) -> Iterator[Layout]:
    """Layouts with the given fields that use all GPUs: TP within a server, CP by doubling while a rank keeps 1,024 tokens, PP
    up to the layers. Given numbers that do not fit are yielded too, to be refused with their reason."""
    given = given or {}
    rest = {name: value for name, value in given.items() if name not in AXES}
    for tp in _choices(given, "tp", divisors(gpus, gpu.per_node)):
        for cp in _choices(given, "cp", _doublings(gpus // max(tp, 1), seq_len // 1024)):
            for pp in _choices(given, "pp", divisors(gpus // max(tp * cp, 1), config.n_layers)):
                for dp in _choices(given, "dp", [max(1, gpus // max(tp * cp * pp, 1))]):
                    for micro in _choices(given, "micro_batch", MICRO_BATCHES):
                        yield Layout(tp, cp, pp, dp, micro, **rest)


def variants(config: LlamaConfig, layout: Layout, gpu: Gpu, given: Mapping[str, Any]) -> Iterator[Layout]:
    """The layout with each way to fill in what is not given: chunks that cut the pipeline evenly, recomputation, whether
    gathered parameters are kept, and one copy of the state over all DP ranks or one in each server (HSDP)."""
    units = -(-slots(config, layout) // layout.pp)
    even = divisors(units, units) if layout.pp > 1 and slots(config, layout) % layout.pp == 0 else [1]
    within = gpu.per_node // (layout.tp * layout.cp * layout.pp)
    copies = [0, within] if within > 1 and layout.dp > within and layout.dp % within == 0 else [0]
    for chunks in _choices(given, "chunks", even):
        for recompute in _choices(given, "recompute", RECOMPUTE):
            for reshard in _choices(given, "reshard_after_forward", (False, True) if shards(layout) > 1 else (False,)):
                for shard in _choices(given, "shard", copies):
                    more = {"chunks": chunks, "recompute": recompute, "reshard_after_forward": reshard, "shard": shard}
                    yield replace(layout, **more)


def divisors(n: int, most: int) -> list[int]:
    """Divisors of `n` up to `most`, ascending."""
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]


def _doublings(n: int, most: int) -> list[int]:
    return [d for d in divisors(n, max(1, most)) if d & (d - 1) == 0] or [1]


def _choices(given: Mapping[str, Any], name: str, searched: Any) -> Any:
    return [given[name]] if name in given else searched
