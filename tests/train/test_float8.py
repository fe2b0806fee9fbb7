"""FP8 training: what is converted, that it still learns the same, and what is refused. Roundings are emulated on a CPU."""

import sys

import pytest
import torch

from herder.model import Llama, LlamaConfig
from herder.train.parallel.float8 import float8

CONFIG = LlamaConfig(256, 64, 2, 4, 2, 128, max_seq_len=64)


def gradients(model):
    tokens = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    return float(loss), {name: p.grad.float() for name, p in model.named_parameters()}


def test_the_blocks_products_are_rounded_and_nothing_else_is():
    pytest.importorskip("torchao")
    plain, rounded = (Llama(CONFIG).init_weights(0).bfloat16() for _ in range(2))
    names = [name for name, _ in rounded.named_parameters()]
    assert float8(rounded, emulate=True) is rounded
    assert [name for name, _ in rounded.named_parameters()] == names
    kinds = {name: type(m).__name__ for name, m in rounded.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {kind for name, kind in kinds.items() if "layers." in name} == {"Float8Linear"}
    assert kinds["lm_head"] == "Linear"
    (loss, grads), (loss_8, grads_8) = gradients(plain), gradients(rounded)
    assert loss != loss_8
    assert loss == pytest.approx(loss_8, abs=0.02)
    for name in names:
        error = (grads[name] - grads_8[name]).norm() / grads[name].norm()
        assert error < 0.2, (name, error)


def test_without_an_fp8_device_it_is_refused():
    with pytest.raises(ValueError, match="CUDA devices only, and the device is cpu"):
        float8(Llama(CONFIG), "cpu")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"pip install 'herder\[float8\]'"):
        float8(Llama(CONFIG), emulate=True)


def test_a_size_that_does_not_fit_is_named():
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj is 72 x 64"):
        float8(Llama(LlamaConfig(256, 64, 2, 4, 2, 72, max_seq_len=64)), emulate=True)
