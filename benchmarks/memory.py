"""The plan's memory against what a small model's training holds here, rank by rank, for eight layouts and more.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--only 0 1] [--out memory.json]

Measured is the most that live tensors hold at any operation of a step, by the sizes of their storages (resident memory would
measure the allocator too); planned is `herder.plan.memory_per_rank`. In fp32: torch's
attention on a CPU is fp32 inside, whatever it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import weakref
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from gpu import RandomTokens
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from herder import launch
from herder.model import Llama, LlamaConfig
from herder.plan import memory_per_rank
from herder.steps import machine
from herder.train import Layout, OptimConfig, TrainConfig
from herder.train.loop import place

CONFIG = LlamaConfig(4096, 256, 10, 8, 4, 768, max_seq_len=512)
ROWS, SEQ_LEN = 16, 512

LAYOUTS = (
    Layout(dp=4, shard=1, micro_batch=2),
    Layout(dp=4, micro_batch=2),
    Layout(dp=4, micro_batch=2, reshard_after_forward=True),
    Layout(dp=4, shard=2, micro_batch=4, recompute="full"),
    Layout(tp=2, dp=2, micro_batch=2),
    Layout(cp=2, dp=2, micro_batch=2, recompute="elementwise"),
    Layout(tp=2, cp=2, dp=1, micro_batch=2, recompute="alternate"),
    Layout(pp=2, dp=2, micro_batch=1),
    Layout(tp=2, pp=2, dp=1, micro_batch=1, chunks=2),
    Layout(pp=4, dp=1, micro_batch=2, recompute="full"),
)


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation hands out, until it is freed; `peak` is the most that they held together."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, weakref.ref] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, DTensor):
                leaf = leaf._local_tensor
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in self.storages:
                    self.storages[storage._cdata] = weakref.ref(
                        storage, lambda _, key=storage._cdata: self._forget(key)
                    )
        self.peak = max(self.peak, self.now())
        return out

    def _forget(self, key: int) -> None:
        self.storages.pop(key, None)

    def now(self) -> int:
        """Bytes at this moment; storages that FSDP has emptied count as what is left of them."""
        return sum(s.nbytes() for ref in list(self.storages.values()) if (s := ref()) is not None)


def measure(layout: Layout) -> list[int]:
    """Peak bytes of a step on each rank."""
    config = TrainConfig(OptimConfig(kind="adamw"), layout=layout, dtype="float32")
    objective = RandomTokens(CONFIG.vocab_size, ROWS, SEQ_LEN)
    with LiveBytes() as live:
        plain = layout.on(launch.world_size()).plain
        with torch.device("cpu" if plain else "meta"):
            model = Llama(CONFIG)
        sizes = {name: p.shape for name, p in model.named_parameters()}
        replica = place(model, config, "cpu", None if plain else lambda name: torch.full(sizes[name], 0.02))
        for step in range(2):
            live.peak = 0
            replica.gradients(objective, objective.batch(step))
            replica.step(1.0, replica.grad_norm())
    peaks = [None] * launch.world_size()
    dist.all_gather_object(peaks, live.peak)
    return peaks


def planned(layout: Layout) -> float:
    n_micro = ROWS // layout.dp // layout.micro_batch
    return sum(memory_per_rank(CONFIG, layout, SEQ_LEN, n_micro, fused=False, cpu=True).values())


def job(layouts: tuple[Layout, ...]) -> list[dict]:
    rows = []
    for layout in layouts:
        peaks = measure(layout)
        rows.append({"layout": str(layout), "measured": max(peaks), "planned": planned(layout)})
        if launch.rank() == 0:
            row = rows[-1]
            print(
                f"{row['layout']:<76}{row['planned'] / 2**20:>9.1f} MiB planned {row['measured'] / 2**20:>9.1f} measured "
                f"{100 * (row['planned'] / row['measured'] - 1):>+6.1f}%",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of layouts, from 0")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = LAYOUTS if options.only is None else tuple(LAYOUTS[i] for i in options.only)
    rows = launch.run_local(job, (chosen,), 4)
    if options.out:
        result = {"benchmark": "memory", "machine": machine(), "torch": torch.__version__, "layouts": rows}
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
