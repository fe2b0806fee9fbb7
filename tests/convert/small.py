"""A small Llama and its folder, for the tests of this package."""

import json

import torch

from herder.convert import save
from herder.model import Llama, LlamaConfig

TOKENS = torch.arange(40)[None]


def model_of(tok, **more):
    config = LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=128, **more)
    return Llama(config).init_weights(0).eval()


def saved(tok, folder, without_checksums=True):
    save(model_of(tok), tok, folder)
    if without_checksums:
        (folder / "checksums.json").unlink()
    return folder


def edit(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
