"""Averages of models, tensor by tensor."""

from dataclasses import replace

import pytest
import torch

from herder.convert import Checkpoint, export, load, save
from herder.model import Llama, LlamaConfig
from herder.pretrain import average

SHAPE = LlamaConfig(2048, 16, 2, 2, 1, 24, max_seq_len=32)


@pytest.fixture(scope="module")
def folders(tok, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        save(Llama(SHAPE).init_weights(seed), tok, root / str(seed))
    return [root / str(seed) for seed in range(3)]


def expected(weights):
    models = [dict(Llama(SHAPE).init_weights(seed).named_parameters()) for seed in range(3)]
    return {n: sum(w * m[n].detach().double() for w, m in zip(weights, models, strict=True)) for n in models[0]}


@pytest.mark.parametrize(("decay", "weights"), [(1.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (1 / 7, 2 / 7, 4 / 7))])
def test_a_mean_is_the_mean_of_every_tensor(folders, decay, weights):
    model, _ = load(average(folders, decay))
    for name, wanted in expected(weights).items():
        assert torch.allclose(model.get_parameter(name).double(), wanted, atol=1e-7)


def test_an_average_is_written_like_any_model_and_read_back(folders, tmp_path):
    export(average(folders), tmp_path / "mean", dtype="f32")
    again, tokenizer = load(tmp_path / "mean")
    direct, _ = load(average(folders))
    assert tokenizer.n_vocab == 2048
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), direct.parameters(), strict=True))


def test_a_model_and_its_average_with_itself_are_the_same(folders):
    model, _ = load(average([folders[1]] * 2))
    alone, _ = load(folders[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_one_tensor_is_in_memory_at_a_time(folders):
    asked = []

    class Watched(Checkpoint):
        def __init__(self, path):
            self.inner, self.config, self.dtype = average([path]), SHAPE, torch.float32

        def names(self):
            return self.inner.names()

        def tensor(self, name):
            asked.append(name)
            return self.inner.tensor(name)

        def tokenizer(self):
            return self.inner.tokenizer()

    mean = average([Watched(f) for f in folders[:2]])
    assert asked == []
    mean.tensor("model.norm.weight")
    assert asked == ["model.norm.weight"] * 2


def test_models_of_other_shapes_are_refused_by_name(folders, tok, tmp_path):
    save(Llama(replace(SHAPE, n_layers=1)).init_weights(0), tok, tmp_path / "small")
    with pytest.raises(ValueError, match="model 1 has n_layers 1, model 0 has 2"):
        average([folders[0], tmp_path / "small"])
    with pytest.raises(ValueError, match="nothing to average"):
        average([])
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        average(folders, 1.5)
