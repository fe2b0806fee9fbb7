"""GGUF files of ours: read by the `gguf` package and by `transformers`, and back by us; streaming; nothing half-written."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from herder.convert import convert, open_checkpoint, save
from herder.convert.gguf import GgufCheckpoint, write_gguf
from herder.convert.transfer import InMemory
from herder.gguf import read_gguf
from herder.model import Llama, LlamaConfig, RopeScaling
from herder.tokenizer import PATTERN, Tokenizer, chat_template

gguf = pytest.importorskip("gguf", reason="the independent reader, and the optional package that writes")
TOKENS = torch.arange(60)[None]
TEXTS = ["def f(x): return x", "Grüße aus Köln", "日本語", "🙂 emoji", "12345 6", "  spaces \n\n x", "I'll DON'T"]


def model_of(tok, **more):
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 128}
    return Llama(LlamaConfig(**{"vocab_size": tok.n_vocab} | sizes | more)).init_weights(0).eval()


@pytest.fixture
def write(tok, tmp_path):
    """Writes a model and returns the path; the model is `write.model`."""

    def run(dtype=None, name="m.gguf", **more):
        run.model = model_of(tok, **more)
        save(run.model, tok, tmp_path / name, format="gguf", dtype=dtype)
        return tmp_path / name

    return run


SHAPES = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "wide heads": {"head_dim": 32},
    "scaled": {"rope_scaling": RopeScaling(32.0), "rope_theta": 500_000.0},
    "scaled in another way": {"rope_scaling": RopeScaling(4.0, 1.0, 2.0, 16)},
    "more rows than tokens": {"vocab_size": 2100},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read_back(write, tok, shape):
    checkpoint = open_checkpoint(write("f32", **SHAPES[shape]))
    assert checkpoint.config == write.model.config
    for name, parameter in write.model.named_parameters():
        assert torch.equal(checkpoint.tensor(name), parameter), name
    again = checkpoint.tokenizer()
    assert [again.encode(text) for text in TEXTS] == [tok.encode(text) for text in TEXTS]
    assert tok.special.items() <= again.special.items()
    assert (again.bos_id, again.eos_id, again.add_bos) == (tok.bos_id, tok.eos_id, tok.add_bos)


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": True}, {"vocab_size": 2100}])
def test_transformers_computes_the_same_logits(write, more):
    transformers = pytest.importorskip("transformers")
    path = write("f32", **more)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(TOKENS).logits - write.model(TOKENS)).abs().max() < 1e-5


def test_transformers_reads_the_same_tokenizer(write, tok):
    transformers = pytest.importorskip("transformers")
    path = write("f16")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tok.encode(text)
    assert theirs.chat_template == chat_template(tok.dialect)


def test_the_package_reads_header_and_vocabulary(write, tok):
    path = write("q8_0", vocab_size=2100)
    reader = gguf.GGUFReader(path)
    value = {key: field.contents() for key, field in reader.fields.items()}
    assert value["general.architecture"] == "llama"
    assert value["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert value["llama.attention.head_count_kv"] == 2
    assert value["llama.rope.dimension_count"] == 16
    assert value["tokenizer.ggml.pre"] == "llama-bpe"
    assert value["tokenizer.ggml.add_bos_token"] is True
    tokens, types = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 2100
    special = [i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL]
    assert {tokens[i]: i for i in special} == tok.special
    assert {types[i] for i in range(tok.n_vocab, 2100)} == {gguf.TokenType.UNUSED}
    assert tokens[value["tokenizer.ggml.eot_token_id"]] == "<|eot_id|>"
    assert tokens[value["tokenizer.ggml.eom_token_id"]] == "<|eom_id|>"
    offsets = [tensor.data_offset for tensor in reader.tensors]
    assert all(offset % 32 == 0 for offset in offsets)


@pytest.mark.parametrize(("dtype", "steps"), [("q8_0", 127), ("q4_0", 8)])
def test_quantized_weights_lie_within_half_a_step(write, dtype, steps):
    checkpoint = GgufCheckpoint(write(dtype))
    for name, parameter in write.model.named_parameters():
        if parameter.dim() > 1:
            exact, found = (x.detach().reshape(-1, 32) for x in (parameter, checkpoint.tensor(name)))
            # Of 4 bits, the end without the largest value is cut: a whole step there.
            step = exact.abs().amax(1, keepdim=True) / steps * (1.0 if dtype == "q4_0" else 0.5)
            assert (
                (exact - found).abs() <= step * 1.15 + 4e-6
            ).all()  # the step itself is rounded to half precision, name


def test_each_tensor_has_the_type_that_llama_cpp_would_give_it(write):
    types = {name: info.type for name, info in read_gguf(write("q4_0", ffn_dim=72)).tensors.items()}
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "Q4_0"
    assert types["output.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 72
    assert read_gguf(write("q4_0", tie_embeddings=True)).tensors["token_embd.weight"].type == "Q8_0"


def test_fallbacks_are_told(tok, tmp_path):
    told = write_gguf(InMemory(model_of(tok, ffn_dim=72), tok), tmp_path / "m.gguf", "Q8_0")
    assert told["fallbacks"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert told["bytes"] == (tmp_path / "m.gguf").stat().st_size
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("of somebody else")
    numbers = convert(tmp_path / "m.gguf", tmp_path / "out", "gguf", "q4_0")
    assert numbers["bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert numbers["tensors kept in f16, for their rows are no multiple of 32"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_dtype_matrices_stay_as_they_are_stored(tok, tmp_path, dtype):
    save(model_of(tok).to(dtype), tok, tmp_path / "m.gguf", format="gguf")
    assert GgufCheckpoint(tmp_path / "m.gguf").dtype == dtype


def test_a_folder_gets_the_model_and_a_modelfile(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "out", format="gguf", dtype="q8_0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    assert "\nFROM ./model.gguf\n" in (tmp_path / "out" / "Modelfile").read_text()
    assert open_checkpoint(tmp_path / "out").config.dim == 64


def test_a_modelfile_lies_beside_a_file(write):
    path = write("q8_0", name="small.gguf")
    assert "\nFROM ./small.gguf\n" in path.with_name("small.Modelfile").read_text()


def test_only_an_older_export_is_replaced(write, tok, tmp_path):
    before = write("f32").read_bytes()
    assert write("q8_0").read_bytes() != before
    for name, mine in (("m.gguf", "years of work"), ("m.Modelfile", "FROM llama3\n")):
        (tmp_path / name).write_text(mine)
        with pytest.raises(ValueError, match="of another kind and is not replaced"):
            write("f32")
        assert (tmp_path / name).read_text() == mine
        (tmp_path / name).unlink()


class Failing(InMemory):
    def tensor(self, name):
        if name == "model.norm.weight":
            raise ValueError("the disk of the source broke")
        return super().tensor(name)


def test_a_failed_export_leaves_nothing_and_what_was_there(tok, tmp_path):
    with pytest.raises(ValueError, match="broke"):
        write_gguf(Failing(model_of(tok), tok), tmp_path / "m.gguf", "F32")
    assert list(tmp_path.iterdir()) == []
    write_gguf(InMemory(model_of(tok), tok), tmp_path / "m.gguf", "F32")
    before = (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(ValueError, match="broke"):
        write_gguf(Failing(model_of(tok), tok), tmp_path / "m.gguf", "F32")
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.Modelfile", "m.gguf"]


def test_what_cannot_be_written_is_said(tok, tmp_path):
    model = model_of(tok)
    with pytest.raises(ValueError, match="'q2_k' cannot be written to GGUF; choose one of F32"):
        write_gguf(InMemory(model, tok), tmp_path / "m.gguf", "q2_k")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = 70_000.0
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight holds values beyond half precision"):
        write_gguf(InMemory(model, tok), tmp_path / "m.gguf", "F16")
    with pytest.raises(ValueError, match="the tokenizer has"):
        write_gguf(InMemory(replace_vocabulary(model, tok.n_vocab - 1), tok), tmp_path / "m.gguf", "F32")
    assert list(tmp_path.iterdir()) == []


def replace_vocabulary(model: Llama, size: int) -> Llama:
    return Llama(replace(model.config, vocab_size=size)).init_weights(0)


def test_a_tokenizer_that_llama_cpp_cannot_have_is_refused(tok, tmp_path):
    other = Tokenizer(tok.ranks, list(tok.special), PATTERN + "|x")
    with pytest.raises(ValueError, match=r"in a way that llama\.cpp has no name for"):
        write_gguf(InMemory(model_of(tok), other), tmp_path / "m.gguf", "F32")
    plain = Tokenizer({bytes([i]): i for i in range(256)}, list(tok.special))
    with pytest.raises(ValueError, match="has no merges"):
        write_gguf(InMemory(model_of(tok), plain), tmp_path / "m.gguf", "F32")


STREAMED = """
import resource, sys
from pathlib import Path
import gguf, torch
from herder.convert.checkpoint import parameter_shapes
from herder.convert.gguf import write_gguf
from herder.model import LlamaConfig
from herder.tokenizer import Tokenizer

class Drawn:
    config, dtype = LlamaConfig(4096, 1024, 12, 8, 8, 2816, tie_embeddings=True), torch.float32
    def tensor(self, name):
        return torch.full(shapes[name], 0.5)
    def tokenizer(self):
        return tokenizer

tokenizer, shapes = Tokenizer.load(Path(sys.argv[1])), dict(parameter_shapes(Drawn.config))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_gguf(Drawn(), Path(sys.argv[2]), sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "megabytes"), [("F32", 630), ("Q8_0", 165)])
def test_memory_holds_a_few_tensors_and_not_the_model(tok, tmp_path, dtype, megabytes):
    tok.save(tmp_path / "tok")
    command = [sys.executable, "-c", STREAMED, tmp_path / "tok", tmp_path / "m.gguf", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "m.gguf").stat().st_size > megabytes * 1e6
    assert int(done.stdout) * 1024 < 120e6
