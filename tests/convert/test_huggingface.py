"""Model folders: what is saved is what is loaded, here and in `transformers`."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from herder.convert import load, save
from herder.model import Llama, LlamaConfig, RopeScaling

TOKENS = torch.arange(40)[None]


def model_of(tok, **more):
    config = LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=128, **more)
    return Llama(config).init_weights(0).eval()


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": True}, {"rope_scaling": RopeScaling(original_max_seq_len=16)}])
def test_a_saved_model_loads_as_it_was_here_and_in_transformers(tok, tmp_path, more):
    model = model_of(tok, **more)
    save(model, tok, tmp_path / "model")
    loaded, tokenizer = load(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert tokenizer.encode("def f(x): return x") == tok.encode("def f(x): return x")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert (theirs(TOKENS).logits - model(TOKENS)).abs().max() < 1e-5


def test_a_step_folder_stands_for_its_model(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "step" / "model")
    assert load(tmp_path / "step")[0].config == model_of(tok).config


def test_a_flipped_byte_is_named(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks the tensor model.norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "holds the tensor extra"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight has shape \(3,\)"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(tok, tmp_path, change, says):
    save(model_of(tok), tok, tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "m")


def test_another_architecture_and_a_truncated_file_are_refused(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"model_type": "gpt2"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model type 'gpt2'"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not known"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "lacks the field 'factor'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": "64"}, "another type"),
    ],
)
def test_a_model_that_is_not_quite_a_llama_is_refused(tok, tmp_path, change, says):
    save(model_of(tok), tok, tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | change
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "m")


def test_saving_replaces_a_model_and_never_somebodys_folder(tok, tmp_path):
    for _ in range(2):
        save(model_of(tok), tok, tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not replaced"):
        save(model_of(tok), tok, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_tokenizer_larger_than_the_model_is_refused(tok, tmp_path):
    model = Llama(replace(model_of(tok).config, vocab_size=100)).init_weights(0)
    with pytest.raises(ValueError, match="use the one it trained with"):
        save(model, tok, tmp_path / "m")
    assert not (tmp_path / "m").exists()
