"""Converting: streaming in every direction, whole or not at all, and load and save by name."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from herder.convert import convert, load, open_checkpoint, save
from herder.model import Llama, LlamaConfig

MEASURE = """
import json, sys
from herder.convert import convert
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
folder, base, above = sys.argv[1], status("VmRSS"), {}
for source, to in (("hf", "meta"), ("meta", "hf"), ("hf", "hf"), ("hf", "gguf")):
    convert(f"{folder}/{source}", f"{folder}/{source}-{to}", to)
    above[f"{source} to {to}"] = status("VmHWM") - base
print(json.dumps(above))
"""


def model_of(tok, **more):
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48} | more
    return Llama(LlamaConfig(tok.n_vocab, max_seq_len=128, **sizes)).init_weights(0).eval()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_converting_holds_a_few_tensors_not_the_model(tok, tmp_path):
    """A model of 300 MB whose largest tensor has 6 MB, converted every way in one process."""
    pytest.importorskip("gguf", reason="needs the package gguf")
    config = LlamaConfig(tok.n_vocab, 1024, 12, 8, 4, 3072)
    model = Llama(config).to(torch.bfloat16)
    save(model, tok, tmp_path / "hf")
    save(model, tok, tmp_path / "meta", format="meta")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for way, peak in json.loads(done.stdout.splitlines()[-1]).items():
        assert peak < 0.5 * 2 * config.n_params, way


@pytest.mark.parametrize("to", ["hf", "meta"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16), ("F32", torch.float32)]
)
def test_another_dtype_is_that_of_every_tensor(tok, tmp_path, to, name, dtype):
    model = model_of(tok)
    save(model, tok, tmp_path / "a")
    numbers = convert(tmp_path / "a", tmp_path / "b", to, name)
    checkpoint = open_checkpoint(tmp_path / "b")
    assert checkpoint.dtype == dtype
    for key, p in model.named_parameters():
        assert torch.equal(checkpoint.tensor(key), p.to(dtype))
    assert numbers["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_model_of_mixed_dtypes_keeps_them(tok, tmp_path):
    model = model_of(tok).to(torch.bfloat16)
    for layer in model.model.layers:
        layer.input_layernorm.float()
    save(model, tok, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "meta")
    convert(tmp_path / "b", tmp_path / "c", "hf")
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in "ac")
    assert {name: t.dtype for name, t in first.items()} == {name: t.dtype for name, t in last.items()}
    assert first["model.layers.0.input_layernorm.weight"].dtype == torch.float32


def test_loading_gives_the_dtype_asked_for(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "m")
    assert {p.dtype for p in load(tmp_path / "m", torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    tied = model_of(tok, tie_embeddings=True)
    save(tied, tok, tmp_path / "tied")
    loaded, _ = load(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("hf", "q8_0"), "'q8_0' is not known to this format"), (("onnx", None), "the formats are: hf, meta, gguf")],
)
def test_an_unknown_format_or_dtype_is_refused_before_anything_is_written(tok, tmp_path, arguments, says):
    save(model_of(tok), tok, tmp_path / "a")
    with pytest.raises(ValueError, match=says):
        convert(tmp_path / "a", tmp_path / "b", *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_model_is_not_written_over_itself(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "run" / "model")
    for out in (tmp_path / "run" / "model", tmp_path / "run", tmp_path / "run" / ".." / "run" / "model"):
        with pytest.raises(ValueError, match="is where the model is read from"):
            convert(tmp_path / "run", out, "hf", "bf16")
    load(tmp_path / "run")


def test_a_damaged_source_leaves_nothing_behind(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match="damaged"):
        convert(tmp_path / "a", tmp_path / "b", "meta")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_older_model_of_another_format_is_not_replaced(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "a")
    save(model_of(tok), tok, tmp_path / "b", format="meta")
    with pytest.raises(ValueError, match=r"holds no config\.json, so it is not replaced"):
        convert(tmp_path / "a", tmp_path / "b", "hf")


@pytest.mark.parametrize("format", ["hf", "meta", "gguf"])
def test_neighbours_called_part_and_old_are_left_alone_and_a_killed_runs_remains_go(tok, tmp_path, format):
    pytest.importorskip("gguf", reason="needs the package gguf")
    mine = [tmp_path / f"out.{ending}" / "mine" for ending in ("part", "old")]
    for file in mine:
        file.parent.mkdir()
        file.write_text("precious")
    left = tmp_path / "out.herder.part"
    if format != "gguf":
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"cut off")
    for _ in range(2):  # the second takes the place of the first
        save(Llama(LlamaConfig(tok.n_vocab, 32, 1, 2, 1, 48)).init_weights(0), tok, tmp_path / "out", format=format)
    assert [file.read_text() for file in mine] == ["precious"] * 2
    assert not left.exists()
    assert load(tmp_path / "out")
