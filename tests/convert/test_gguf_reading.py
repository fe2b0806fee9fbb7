"""GGUF checkpoints against files that the `gguf` package writes and against what it and `transformers` read from them."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from herder.convert.gguf import GgufCheckpoint
from herder.convert.gguf_metadata import rope_factors
from herder.model import Llama, LlamaConfig, RopeScaling

gguf = pytest.importorskip("gguf", reason="the independent writer is the package gguf")
CONFIG = LlamaConfig(64, 256, 2, 4, 2, 512, max_seq_len=128, rope_theta=10_000.0, tie_embeddings=True)
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
    "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
    "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
    "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
    "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
    "blk.1.ffn_gate.weight": "model.layers.1.mlp.gate_proj.weight",
    "blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
}
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the half-precision scales lie in a block of the types that the package cannot quantize to."""


def metadata(config: LlamaConfig = CONFIG) -> dict:
    return {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
    }


def tensors(config: LlamaConfig = CONFIG, kind: str = "F32") -> dict:
    """A random model by GGUF's names: vectors in F32, matrices in the given type, as the package would store them."""
    draw, out = np.random.default_rng(0), {}
    theirs = {ours: name for name, ours in NAMES.items()}
    for name, p in Llama(config).named_parameters():
        layer = re.search(r"layers\.(\d+)", name)
        name = theirs[re.sub(r"layers\.\d+", "layers.1", name)].replace("blk.1", f"blk.{layer and layer[1]}")
        values = draw.normal(size=p.shape).astype(np.float32)
        if values.ndim == 1 or kind == "F32":
            out[name] = (values, "F32")
        elif kind in SCALES:
            _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            blocks = draw.integers(0, 256, (*p.shape[:-1], p.shape[-1] // 256, size), np.uint8)
            for at in SCALES[kind]:
                blocks[..., at : at + 2] = (
                    draw.normal(size=blocks.shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
                )
            out[name] = (blocks.reshape(*p.shape[:-1], -1), kind)
        else:
            out[name] = (gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]), kind)
    return out


def write(path, pairs: dict, weights: dict, architecture: str = "llama"):
    writer = gguf.GGUFWriter(path, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
    for key, value in pairs.items():
        add.get(type(value), writer.add_array)(key, value)
    for name, (values, kind) in weights.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_type_is_read_bit_for_bit_as_the_package_reads_it(tmp_path, kind):
    path = write(tmp_path / "m.gguf", metadata(), tensors(kind=kind))
    ours = GgufCheckpoint(path)
    assert ours.config == CONFIG
    assert ours.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert ours.names() == [name for name, _ in Llama(CONFIG).named_parameters()]
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"attn_q": 4, "attn_k": 2}.get(tensor.name.split(".")[-2])
        if heads:  # row 2i + half of a head is row half * 32 + i of Hugging Face's
            rows = [[[(h * 64 + 2 * i + half) for i in range(32)] for half in (0, 1)] for h in range(heads)]
            theirs = theirs[np.ravel(rows)]
        name = NAMES[re.sub(r"blk\.\d+", "blk.1", tensor.name)]
        name = re.sub(r"layers\.1", f"layers.{tensor.name.split('.')[1]}", name)
        found = ours.tensor(name)
        assert found.dtype == ours.stored(name)
        assert torch.equal(found.float(), torch.from_numpy(theirs.copy())), name


def test_logits_of_a_gguf_file_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [chr(33 + i) for i in range(64)],
        "tokenizer.ggml.merges": ["! !"],
    }
    path = write(tmp_path / "m.gguf", metadata() | vocabulary, tensors(kind="Q5_1"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    checkpoint, tokens = GgufCheckpoint(path), torch.arange(40)[None]
    model = Llama(checkpoint.config)
    model.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()}, strict=False)
    with torch.no_grad():
        theirs, ours = theirs(tokens).logits, model(tokens)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_the_head_is_tied_where_output_is_absent(tmp_path):
    untied = replace(CONFIG, tie_embeddings=False)
    assert GgufCheckpoint(write(tmp_path / "a.gguf", metadata(), tensors())).config.tie_embeddings
    checkpoint = GgufCheckpoint(write(tmp_path / "b.gguf", metadata(untied), tensors(untied)))
    assert not checkpoint.config.tie_embeddings
    assert "lm_head.weight" in checkpoint.names()


def published_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """The factors of Llama 3.1 (8) and 3.2 (32), frequency by frequency."""
    out = []
    for i in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * i / head_dim)
        smooth = min(max((8192 / wavelength - 1) / 3, 0), 1)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_is_recovered_from_its_factors(tmp_path, factor):
    config = replace(CONFIG, rope_theta=500_000.0)
    weights = tensors(config) | {"rope_freqs.weight": (published_factors(500_000.0, 64, factor), "F32")}
    found = GgufCheckpoint(write(tmp_path / "m.gguf", metadata(config), weights)).config
    assert found == replace(config, rope_scaling=RopeScaling(factor=factor))
    assert np.allclose(rope_factors(found), weights["rope_freqs.weight"][0], rtol=1e-5)


def test_factors_of_another_scaling_are_refused(tmp_path):
    for factors in (np.linspace(1, 4, 32), np.full(32, np.nan), np.zeros(32)):
        weights = tensors() | {"rope_freqs.weight": (factors.astype(np.float32), "F32")}
        with pytest.raises(ValueError, match=r"not the RoPE scaling of Llama|not finite"):
            GgufCheckpoint(write(tmp_path / "m.gguf", metadata(), weights))


def without(name: str) -> dict:
    return {key: value for key, value in tensors().items() if key != name}


MATRIX, EXTRA = (np.ones((4, 32), np.float32), "F32"), {"blk.0.attn_q.bias": (np.ones(32, np.float32), "F32")}
REFUSED = {
    "missing tensor": ({}, without("blk.1.ffn_up.weight"), r"lacks the tensor blk\.1\.ffn_up\.weight"),
    "missing embedding": ({}, without("token_embd.weight"), r"lacks the matrix token_embd\.weight"),
    "extra tensor": ({}, tensors() | EXTRA, r"holds the tensor blk\.0\.attn_q\.bias"),
    "extra layer": ({"llama.block_count": 1}, tensors(), r"holds the tensor blk\.1\."),
    "missing layer": ({"llama.block_count": 3}, tensors(), r"lacks the tensor blk\.2\."),
    "wild layers": ({"llama.block_count": 2**31 - 1}, tensors(), r"lacks the tensor blk\.2\."),
    "misshapen": ({}, tensors() | {"blk.1.ffn_up.weight": MATRIX}, r"blk\.1\.ffn_up\.weight has shape \(4, 32\)"),
    "wild head": ({"llama.attention.key_length": 2**31 - 2}, tensors(), "value_length|dimension_count|attn_q"),
    "heads that do not divide": ({"llama.attention.head_count_kv": 3}, tensors(), "not divisible by n_kv_heads 3"),
    "no heads": ({"llama.attention.head_count": 0}, tensors(), r"llama\.attention\.head_count is 0"),
    "heads by layer": ({"llama.attention.head_count": [4, 4]}, tensors(), r"head_count is \[4, 4\]; a Llama has one"),
    "text for a number": ({"llama.context_length": "long"}, tensors(), "context_length is 'long'"),
    "theta of infinity": ({"llama.rope.freq_base": float("inf")}, tensors(), "freq_base is inf"),
    "partial rotation": ({"llama.rope.dimension_count": 32}, tensors(), "dimension_count is 32; .* has 64"),
    "linear scaling": ({"llama.rope.scaling.type": "linear"}, tensors(), r"scaling\.type is 'linear'"),
    "experts": ({"llama.expert_count": 8}, tensors(), r"expert_count is 8; a mixture"),
    "a part of a split file": ({"split.count": 4}, tensors(), "join the parts"),
    "an adapter": ({"general.type": "adapter"}, tensors(), "only whole models"),
    "other vocabulary": ({"llama.vocab_size": 65}, tensors(), r"vocab_size is 65, but token_embd\.weight has 64"),
    "tokenizer of another model": ({"tokenizer.ggml.tokens": ["t"] * 65}, tensors(), "64 tokens but a tokenizer of 65"),
    "tokens that are text": ({"tokenizer.ggml.tokens": "abc"}, tensors(), "a tokenizer of 'abc'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_no_llama_of_its_metadata_is_refused(tmp_path, what):
    change, weights, says = REFUSED[what]
    path = write(tmp_path / "m.gguf", metadata() | change, weights)
    with pytest.raises(ValueError, match=says) as caught:
        GgufCheckpoint(path)
    assert "m.gguf" in str(caught.value)


@pytest.mark.parametrize("key", [key for key in metadata() if "head_count_kv" not in key and "freq_base" not in key])
def test_missing_metadata_is_named(tmp_path, key):
    pairs = {k: v for k, v in metadata().items() if k != key}
    with pytest.raises(ValueError, match=f"lacks the metadata {key}"):
        GgufCheckpoint(write(tmp_path / "m.gguf", pairs, tensors()))


def test_another_architecture_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", metadata(), tensors(), architecture="gemma2")
    with pytest.raises(ValueError, match="of architecture 'gemma2'; only llama"):
        GgufCheckpoint(path)


def test_a_type_that_cannot_be_read_is_named_before_anything_is_read(tmp_path):
    weights = tensors() | {"blk.0.ffn_up.weight": (np.zeros((512, 84), np.uint8), "Q2_K")}
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight is of type Q2_K"):
        GgufCheckpoint(write(tmp_path / "m.gguf", metadata(), weights))


def test_a_file_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"m\.gguf has no tokenizer"):
        GgufCheckpoint(write(tmp_path / "m.gguf", metadata(), tensors())).tokenizer()


def test_values_that_are_not_finite_are_named(tmp_path):
    weights = tensors(kind="Q8_0")
    weights["blk.1.ffn_down.weight"][0][3, :2] = (0x00, 0x7E)  # a scale that is NaN
    checkpoint = GgufCheckpoint(write(tmp_path / "m.gguf", metadata(), weights))
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down\.weight holds values that are not finite"):
        checkpoint.tensor("model.layers.1.mlp.down_proj.weight")


def test_a_file_that_shrinks_after_opening_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", metadata(), tensors())
    checkpoint = GgufCheckpoint(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match="was cut short while it was read"):
        checkpoint.tensor("model.norm.weight")


def test_flipped_bytes_cost_a_sentence_and_nothing_else(tmp_path):
    config = LlamaConfig(8, 32, 1, 2, 1, 32, max_seq_len=16, tie_embeddings=True)
    vocabulary = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": list("abcdefgh")}
    path = write(tmp_path / "m.gguf", metadata(config) | vocabulary, tensors(config, "Q8_0"))
    sound, draw, opened = path.read_bytes(), random.Random(1), 0
    for _ in range(800):
        data = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.choice((0, 1, 8, 127, 128, 255, draw.randrange(256)))
        path.write_bytes(data)
        try:
            checkpoint = GgufCheckpoint(path)
            for name in checkpoint.names():
                checkpoint.tensor(name)
            opened += 1
            checkpoint.tokenizer()
        except ValueError:
            continue
    assert opened > 50


def test_without_the_package_plain_types_are_read_and_quantized_ones_name_the_command(tmp_path, monkeypatch):
    plain = write(tmp_path / "a.gguf", metadata(), tensors())
    quantized = write(tmp_path / "b.gguf", metadata(), tensors(kind="Q8_0"))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    GgufCheckpoint(plain).tensor("model.embed_tokens.weight")
    with pytest.raises(ValueError, match=r"pip install 'herder\[gguf\]'"):
        GgufCheckpoint(quantized).tensor("model.embed_tokens.weight")
