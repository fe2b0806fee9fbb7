"""The victim: a tiny model trained by `herder.train` on numbers that follow a rule, as one rank of a launch.

The faults that come from within, a flipped bit, are injected here by the objective's `batch`, which the loop calls at the
start of a step; the loop itself knows nothing of the drill.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from herder import launch, supervise
from herder.model import Llama, LlamaConfig
from herder.train import Layout, NextToken, OptimConfig, Rows, TrainConfig, train
from herder.train.data import data_step
from herder.train.faults import FaultConfig

SHAPE = LlamaConfig(vocab_size=128, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=64)
ROWS, LENGTH = 8, 32


class Rule(NextToken):
    """Rows of x, x + d, x + 2d ... modulo the vocabulary: a pure function of the seed and the step."""

    def __init__(self, steps: int, seed: int, flips: list[dict], out: Path):
        self._steps, self.seed, self.flips, self.out, self.skips = steps, seed, flips, out, ()

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def skips(self):
        return self._skips

    @skips.setter
    def skips(self, skips) -> None:
        self._skips = tuple(skips)

    def batch(self, step: int) -> list[tuple[int, int]]:
        for flip in self.flips:
            if step == flip["step"] and launch.rank() == flip["rank"]:
                flip_bit(self.out, flip)
        rng = random.Random(f"{self.seed} {data_step(step, self.skips)}")
        return [(rng.randrange(SHAPE.vocab_size), rng.randrange(1, 8)) for _ in range(ROWS)]

    def rows(self, items) -> Rows:
        start, stride = (torch.tensor([item[i] for item in items])[:, None] for i in (0, 1))
        numbers = (start + stride * torch.arange(LENGTH + 1)) % SHAPE.vocab_size
        tokens, targets = numbers[:, :-1].contiguous(), numbers[:, 1:].contiguous()
        return Rows(tokens, targets, torch.ones(tokens.shape), torch.zeros_like(tokens))


def flip_bit(out: Path, flip: dict) -> None:
    """Flips one bit, once, of one parameter or moment that this rank holds: where and which follow from the seed."""
    done = out / f"flipped-{flip['step']}"
    if done.exists():
        return
    done.write_text("")
    holder = next(o for o in gc.get_objects() if type(o).__name__ in ("Replica", "Sharded") and hasattr(o, "masters"))
    rng = random.Random(f"{flip['seed']} flip")
    state = {n: t.to_local() if isinstance(t, DTensor) else t for n, t in holder.state().items()}
    name = rng.choice(sorted(n for n, t in state.items() if t.numel() > 1))
    words = state[name].view(torch.int32).flatten()
    place, bit = rng.randrange(words.numel()), rng.randrange(31)
    words[place] ^= 1 << bit
    supervise.begin().event("injected", fault="flip", ranks=[flip["rank"]], tensor=name, bit=bit, at=time.monotonic())


def main(spec: dict) -> None:
    out = Path(spec["out"])
    with launch.group(out):
        objective = Rule(spec["steps"], spec["seed"], spec["flips"], out)
        config = TrainConfig(
            optim=OptimConfig(lr=1e-3, warmup_steps=10),
            dtype="float32",
            device="cpu",
            layout=Layout(**spec["layout"]),
            checkpoint_seconds=spec["checkpoint_seconds"],
            faults=FaultConfig(rerun_every=spec["rerun_every"], replicas_every=spec["replicas_every"]),
        )
        train(Llama(SHAPE).init_weights(spec["seed"]), objective, config, out)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
