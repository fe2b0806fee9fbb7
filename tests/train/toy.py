"""A tiny corpus of token shards, a tiny model, and one training run of them, for tests."""

from pathlib import Path

import numpy as np
import torch

from herder.model import Llama, LlamaConfig
from herder.train import Layout, Mixture, NextToken, OptimConfig, Stage, TokenShards, TrainConfig, train

TINY = LlamaConfig(64, 16, 2, 2, 1, 32, max_seq_len=64)
MIX = {"a": 0.6, "b": 0.3, "c": 0.1}


class Words:
    """Stands where a tokenizer does: one id a character."""

    document_ids = (62, 63)

    def encode_batch(self, texts, threads=1):
        return [[ord(c) % 60 for c in text] for text in texts]


def documents(seed=0, count=60):
    rng = np.random.default_rng(seed)
    for number in range(count):
        source = "abc"[number % 3]
        yield source, "".join(chr(97 + int(i)) for i in rng.integers(0, 20, rng.integers(3, 60)))


def shards(folder: Path) -> TokenShards:
    from herder.train import write_shards

    if not (folder / "ledger.json").exists():
        write_shards(documents(), Words(), folder, threads=1)
    return TokenShards(folder)


def mixture(folder: Path, steps=12, rows=4, seq_len=32, seed=0) -> Mixture:
    return Mixture(shards(folder), [Stage(steps, rows, seq_len, MIX)], seed)


def run(folder: Path, out: Path, steps=12, kind="muon", dtype="bfloat16", objective=None, **more):
    """Trains and returns (final weights, headline numbers)."""
    torch.manual_seed(0)
    model = Llama(TINY).init_weights(0)
    config = TrainConfig(
        OptimConfig(kind=kind, lr=1e-2, warmup_steps=2),
        dtype=dtype,
        layout=Layout(micro_batch=2, shard=1),
        device="cpu",
        **more,
    )
    out.mkdir(parents=True, exist_ok=True)
    numbers = train(model, objective or NextToken(mixture(folder, steps)), config, out)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, numbers
