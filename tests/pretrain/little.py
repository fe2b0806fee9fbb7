"""A corpus of long documents (modules of the standard library), its shards, and a base model that has learned a little."""

import argparse
import csv
import inspect
import json
import logging
import random
import shlex
import string
import textwrap

from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig, pretrain
from herder.tokenizer import train as train_bpe
from herder.train import Layout, OptimConfig, Stage, TrainConfig, write_shards

MIX = {"code": 0.7, "more": 0.3}
HELDOUT = 10_000
SHAPE = LlamaConfig(512, 48, 2, 4, 2, 96, max_seq_len=64)
OPTIM = OptimConfig(kind="muon", lr=1e-2, lr_muon=2e-2, warmup_steps=5, lr_final=0.3)
FLAT = OptimConfig(kind="muon", lr=3e-3, lr_muon=6e-3, warmup_steps=0, lr_final=1.0, decay="linear")
TO_ZERO = OptimConfig(kind="muon", lr=3e-3, lr_muon=6e-3, warmup_steps=0, lr_final=0.0, decay="linear")


def settings(optim, **more):
    return TrainConfig(optim, device="cpu", layout=Layout(micro_batch=8), checkpoint_seconds=1e9, **more)


def pieces(modules, size=1500):
    text = "\n".join(inspect.getsource(module) for module in modules)
    return [text[i : i + size] for i in range(0, len(text) - size, size)]


def make_tokens(root, heldout_size=1500):
    """`root/bpe` and `root/tokens`, sources "code" and "more", documents of some 600 tokens."""
    train, held = pieces([argparse, logging, csv]), pieces([shlex, string, textwrap], heldout_size)
    random.Random(0).shuffle(train)
    tokenizer = train_bpe(iter(train), 512, n_special=16)
    tokenizer.save(root / "bpe")
    cut = len(train) * 2 // 3
    pairs = [*(("code", t) for t in train[:cut]), *(("more", t) for t in train[cut:])]
    write_shards(pairs, tokenizer, root / "tokens" / "train")
    write_shards([("code", text) for text in held], tokenizer, root / "tokens" / "heldout")
    return tokenizer


def make_base(root, steps=60, optim=OPTIM):
    """`root/base`: the model in rows of 64 tokens."""
    inputs = {"tokens": root / "tokens", "tokenizer": root / "bpe"}
    (root / "base").mkdir(exist_ok=True)
    stages = (Stage(steps // 3, 8, 32, MIX), Stage(steps - steps // 3, 8, 64, MIX))
    config = PretrainConfig(SHAPE, settings(optim), stages, heldout_tokens=HELDOUT)
    return pretrain(config, inputs, root / "base")


def consumed(folder):
    return json.loads((folder / "consumed.json").read_text())["tokens"]
