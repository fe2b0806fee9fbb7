import pytest
import torch

from herder.engine import Engine
from herder.model import Llama, LlamaConfig


@pytest.fixture(scope="session")
def engine(tok):
    model = Llama(LlamaConfig(tok.n_vocab, 64, 2, 4, 2, 128, max_seq_len=96)).init_weights(0)
    with torch.no_grad():  # sharper than a fresh model, so that choices are no coin flips
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return Engine(model, tok)
