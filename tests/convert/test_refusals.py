"""Damaged and hostile model folders: what is wrong is named, nothing of them runs, nothing is half-loaded."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import edit, saved

from herder.convert import load, open_checkpoint
from herder.convert.tensorfiles import TensorFiles


def test_a_flipped_byte_is_named(tok, tmp_path):
    saved(tok, tmp_path / "m", without_checksums=False)
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
        (lambda t: t.update({"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}), "stored as F8_E4M3"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "stored as I8"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(tok, tmp_path, change, says):
    folder = saved(tok, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b'"F32"', b'"F99"'),
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_a_damaged_safetensors_file_is_refused_in_a_sentence(tok, tmp_path, damage):
    path = saved(tok, tmp_path / "m") / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read.*(copy the model again|git lfs pull)"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2'"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM; only a Llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "fp8"}}, "the weights are quantized"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not known"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "lacks the field 'factor'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": "64"}, "another type"),
        ({"hidden_size": 2**62}, "another type"),
        ({"rms_norm_eps": -1e-5}, "no number above zero"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "no number above zero"),
        ({"num_attention_heads": 0}, r"config.json: n_heads is 0"),
        ({"num_hidden_layers": 2**31 - 1}, r"lacks the tensor model\.layers\.2\."),
        ({"head_dim": 2**30}, "cannot exist"),
        ({"intermediate_size": 2**30, "hidden_size": 2**30, "head_dim": 8}, "has shape|cannot exist"),
    ],
)
def test_a_model_that_is_not_quite_a_llama_is_refused(tok, tmp_path, change, says):
    edit(saved(tok, tmp_path / "m") / "config.json", change)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": 1' + "0" * 10_000, "\x00\xff"])
def test_a_damaged_configuration_is_refused_in_a_sentence(tok, tmp_path, text):
    folder = saved(tok, tmp_path / "m")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load(folder)


def run_marker(tmp_path):
    """An object whose pickle makes a file when it is read carelessly."""

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    return Hostile()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tok, tmp_path, zipped):
    folder = saved(tok, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    hostile = {"model.norm.weight": torch.ones(32), "x": run_marker(tmp_path)}
    torch.save(hostile, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin holds more than tensors: it would run (posix|nt)\.system"
    ):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"hello" * 100])
def test_a_damaged_pickle_is_refused_in_a_sentence(tok, tmp_path, damage):
    folder = saved(tok, tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(damage((folder / "pytorch_model.bin").read_bytes()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    "content", [torch.ones(3), {"state_dict": {"a": torch.ones(1)}}, {"a": torch.ones(2).to_sparse()}]
)
def test_a_pickle_of_other_things_than_named_weights_is_refused(tok, tmp_path, content):
    folder = saved(tok, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"not tensors by name|no named tensor|not a plain tensor"):
        load(folder)


def test_code_beside_the_weights_is_never_imported(tok, tmp_path):
    folder = saved(tok, tmp_path / "m")
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(
        folder / "config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "trust_remote_code": True}
    )
    load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", 7, "..", "a\0b"])
def test_an_index_that_names_a_path_is_refused(tok, tmp_path, name):
    folder = saved(tok, tmp_path / "m")
    os.rename(folder / "model.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ValueError, match="no plain file name"):
        load(folder)


def test_a_link_out_of_the_folder_is_refused_except_within_the_cache(tok, tmp_path):
    folder = saved(tok, tmp_path / "m")
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        os.rename(file, blobs / file.name)
        os.symlink(f"../../blobs/{file.name}", snapshot / file.name)
    load(snapshot)
    os.rename(blobs / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (snapshot / "model.safetensors").unlink()
    os.symlink(tmp_path / "elsewhere.safetensors", snapshot / "model.safetensors")
    with pytest.raises(ValueError, match="link to a file outside"):
        load(snapshot)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"model.norm.weight": "gone.safetensors"}}, r"gone\.safetensors is missing"),
        ({"weight_map": {"nowhere": "part.safetensors"}}, "lacks the tensor nowhere"),
        ({"weight_map": []}, "has no weight_map"),
        ([], "holds no JSON object"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tok, tmp_path, index, says):
    folder = saved(tok, tmp_path / "m")
    os.rename(folder / "model.safetensors", folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=says):
        load(folder)


def test_a_folder_without_weights_or_tokenizer_says_so(tok, tmp_path):
    folder = saved(tok, tmp_path / "m")
    for name in ("tokenizer.model", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has no tokenizer .*copy the files"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        load(folder)
    with pytest.raises(ValueError, match="holds no model"):
        open_checkpoint(tmp_path)


def test_nothing_is_read_before_all_shapes_are_checked(tok, tmp_path, monkeypatch):
    folder = saved(tok, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.ones(1, 1)}, folder / "model.safetensors")
    monkeypatch.setattr(TensorFiles, "tensor", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(1, 1\)"):
        load(folder)


def test_a_folder_of_several_gguf_files_asks_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"several models \(a.gguf, b.gguf\); give the path of one file"):
        open_checkpoint(tmp_path)
