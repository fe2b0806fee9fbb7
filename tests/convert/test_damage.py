"""Checkpoints with bytes changed, cut out and repeated at random: each loads, or ends in one sentence, and nothing else."""

import random
import shutil

import pytest
import torch

from herder.convert import load, save
from herder.convert.huggingface import write_hf
from herder.convert.transfer import InMemory
from herder.model import Llama, LlamaConfig

DAMAGES = 60
FILES = {
    "config": "config.json",
    "safetensors": "model.safetensors",
    "index": "model.safetensors.index.json",
    "zip": "pytorch_model.bin",
    "pickle": "pytorch_model.bin",
    "params": "params.json",
    "meta": "consolidated.00.pth",
}


def make(kind, tok, folder):
    model = Llama(LlamaConfig(tok.n_vocab, 16, 2, 2, 1, 24, max_seq_len=64)).init_weights(0)
    if kind in ("params", "meta"):
        save(model, tok, folder, format="meta")
    elif kind == "index":
        write_hf(InMemory(model, tok), folder, shard_bytes=100_000)
    else:
        save(model, tok, folder)
    if kind in ("zip", "pickle"):
        (folder / "model.safetensors").unlink()
        tensors = {name: p.detach() for name, p in model.named_parameters()}
        torch.save(tensors, folder / FILES[kind], _use_new_zipfile_serialization=kind == "zip")
    (folder / "checksums.json").unlink()
    return folder / FILES[kind]


def damaged(data, rng):
    """One to three changes, most of them in the first 3,000 bytes, where what describes the weights lies."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(min(len(out), 3000) if rng.random() < 0.8 else len(out))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                del out[at : at + rng.randrange(1, 20)]
            case 3:
                out[at:at] = bytes([out[at]]) * rng.randrange(1, 8)
    return bytes(out)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore")
def test_damage_costs_a_sentence_and_nothing_else(tok, tmp_path, kind):
    path, rng, sentences = make(kind, tok, tmp_path / "m"), random.Random(kind), 0
    whole = path.read_bytes()
    for _ in range(DAMAGES):
        path.write_bytes(damaged(whole, rng))
        try:
            load(tmp_path / "m")
        except ValueError:
            sentences += 1
    assert sentences > DAMAGES / 2
    shutil.rmtree(tmp_path / "m")
