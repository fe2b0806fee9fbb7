"""What GGUF says of a Llama, in both directions: names of tensors, shape, RoPE scaling, vocabulary (llama.cpp's `llama`).

The one design decision: a file is refused where its metadata means anything that a Llama of ours is not, since a model that
loads and computes something else is worse than one that does not load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from herder.convert.checkpoint import EMBEDDING, HEAD
from herder.gguf import Gguf
from herder.model import LlamaConfig, RopeScaling
from herder.model.rope import inverse_frequencies
from herder.tokenizer import Tokenizer, huggingface
from herder.tokenizer.patterns import GGUF_NAMES, GGUF_WHOLE_PIECES

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
SCALING_KEY = "herder.rope_scaling"
"""Metadata of ours beside the factors: factor, low_freq_factor, high_freq_factor, original_max_seq_len."""
KINDS = ("llama-bpe", "qwen2", "gpt-2", "smollm")
"""llama.cpp's names for ways to cut text, one for each that herder knows."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens."""

_OUTER = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER_BACK = {theirs: ours for ours, theirs in _OUTER.items()}
_INNER_BACK = {theirs: ours for ours, theirs in _INNER.items()}
_RELATIVE_ERROR = 1e-5


def gguf_name(name: str) -> str:
    """GGUF's name of a parameter: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name):
        return f"blk.{match[1]}.{_INNER.get(match[2], match[2])}.weight"
    return _OUTER.get(name, name)


def huggingface_name(name: str) -> str:
    """The inverse of `gguf_name`; a name that is none of a Llama's comes back unchanged."""
    match = re.fullmatch(r"blk\.(0|[1-9]\d*)\.(.+)\.weight", name)
    if match and match[2] in _INNER_BACK:
        return f"model.layers.{match[1]}.{_INNER_BACK[match[2]]}.weight"
    return _OUTER_BACK.get(name, name)


def rope_factors(config: LlamaConfig) -> torch.Tensor:
    """(head_dim / 2,) fp32: what each frequency is divided by under the configuration's RoPE scaling."""
    plain = replace(config, rope_scaling=None)
    return inverse_frequencies(plain) / inverse_frequencies(config)


def with_scaling(config: LlamaConfig, factors: torch.Tensor, file: Gguf) -> LlamaConfig:
    """The configuration with the scaling that these factors were made of.

    GGUF keeps the factors alone. Files of ours say in `SCALING_KEY` what they came from; of others, the factor of the
    longest wavelength and the published constants (original context 8192, blended between factors 1 and 4) are tried.
    """
    if bool((factors == 1).all()):
        return config
    candidates, stated = [], file.metadata.get(SCALING_KEY)
    if isinstance(stated, list) and len(stated) == 4 and all(isinstance(v, float) and 0 < v < 2**31 for v in stated):
        candidates.append(RopeScaling(*map(_shortest, stated[:3]), original_max_seq_len=int(stated[3])))
    if math.isfinite(last := float(factors[-1])) and last > 0:
        candidates.append(RopeScaling(factor=last))
    for scaling in candidates:
        scaled = replace(config, rope_scaling=scaling)
        if torch.allclose(rope_factors(scaled), factors, rtol=_RELATIVE_ERROR, atol=0):
            return scaled
    raise ValueError(
        f"{file.path}: {ROPE_FACTORS} is not the RoPE scaling of Llama 3.1 or 3.2 (original context 8192, blended "
        "between frequency factors 1 and 4); take the model in another format, whose configuration names the scaling"
    )


def refuse_other_models(file: Gguf) -> None:
    found = file.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise ValueError(f"{file.path} is of architecture {found!r}; only {ARCHITECTURE} can be loaded")
    refusals: dict[str, tuple[Callable[[Any], bool], str]] = {
        "general.type": (lambda v: v == "model", "only whole models can be loaded, not adapters or projectors"),
        "split.count": (lambda v: v in (0, 1), "join the parts with llama-gguf-split --merge"),
        "llama.expert_count": (lambda v: v == 0, "a mixture of experts is no Llama 3"),
        "llama.rope.scaling.type": (lambda v: v == "none", "only the RoPE scaling of Llama 3.1 is known"),
        "llama.rope.scale_linear": (lambda v: v in (0, 1), "only the RoPE scaling of Llama 3.1 is known"),
        "llama.rope.scaling.factor": (lambda v: v in (0, 1), "only the RoPE scaling of Llama 3.1 is known"),
        "llama.attention.causal": (lambda v: v is True, "a Llama's attention is causal"),
    }
    for key, (fine, why) in refusals.items():
        if key in file.metadata and not fine(value := file.metadata[key]):
            raise ValueError(f"{file.path}: {key} is {_short(value)}; {why}")


def config_of(file: Gguf, tied: bool) -> LlamaConfig:
    """The shape that the metadata states. Raises ValueError naming the key that is missing or cannot be."""

    def number(key: str, default: int | float | None = None, kind: type = int) -> Any:
        value = file.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"{file.path} lacks the metadata llama.{key}")
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 < value < 2**31
        if not right:
            raise ValueError(f"{file.path}: llama.{key} is {_short(value)}; a Llama has one positive number there")
        return _shortest(value) if kind is float else value

    vocab_size = _vocab_size(file)
    if (stated := number("vocab_size", vocab_size)) != vocab_size:
        raise ValueError(f"{file.path}: llama.vocab_size is {stated}, but token_embd.weight has {vocab_size} rows")
    heads, dim = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", max(dim // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (value := number(key, head_dim)) != head_dim:
            raise ValueError(f"{file.path}: llama.{key} is {value}; a Llama of these sizes has {head_dim}")
    query = file.tensors.get("blk.0.attn_q.weight")
    if query is None or query.shape != (heads * head_dim, dim):  # before anything is made by these numbers
        shape = "missing" if query is None else f"of shape {query.shape}"
        raise ValueError(f"{file.path}: blk.0.attn_q.weight is {shape}, the metadata says {(heads * head_dim, dim)}")
    sizes = {
        "n_layers": number("block_count"),
        "n_kv_heads": number("attention.head_count_kv", heads),
        "ffn_dim": number("feed_forward_length"),
        "max_seq_len": number("context_length"),
        "norm_eps": number("attention.layer_norm_rms_epsilon", kind=float),
        "rope_theta": number("rope.freq_base", 10_000.0, kind=float),
    }
    try:
        return LlamaConfig(vocab_size, dim, n_heads=heads, head_dim=head_dim, tie_embeddings=tied, **sizes)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


def _vocab_size(file: Gguf) -> int:
    """Rows of the embeddings, which the list of tokens must fit."""
    embedding, tokens = file.tensors.get("token_embd.weight"), file.metadata.get("tokenizer.ggml.tokens", [])
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} lacks the matrix token_embd.weight; copy the file again")
    if not isinstance(tokens, list) or len(tokens) > embedding.shape[0]:
        count = len(tokens) if isinstance(tokens, list) else _short(tokens)
        raise ValueError(
            f"{file.path} holds embeddings of {embedding.shape[0]} tokens but a tokenizer of {count}; "
            "they are of different models"
        )
    return embedding.shape[0]


def metadata_of(config: LlamaConfig) -> dict[str, Any]:
    """The metadata of a model's shape; a scaling is told apart from its factors, which are a tensor."""
    scaling = config.rope_scaling
    out = {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
    }
    if scaling is not None:
        values = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_seq_len)
        out[SCALING_KEY] = [float(value) for value in values]
    return out


def vocabulary_of(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The metadata of a tokenizer, its list filled up to `size` with unused tokens. Raises ValueError for a splitting
    pattern that llama.cpp does not have."""
    # Where llama.cpp takes a whole piece for a token whatever the merges say, tokens that merging never reaches would appear.
    fits = [name for name in KINDS if GGUF_NAMES[name] == tokenizer.pattern]
    fits = [name for name in fits if not (tokenizer.unreached and name in GGUF_WHOLE_PIECES)]
    if not fits:
        raise ValueError(
            f"the tokenizer cuts text in a way that llama.cpp has no name for: {_short(tokenizer.pattern)}; "
            f"GGUF can hold tokenizers of the kinds {', '.join(KINDS)}"
        )
    data = json.loads(huggingface.write(tokenizer)[0])  # tokenizer.json spells tokens and merges just as GGUF does
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in data["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in data["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    if not merges:
        raise ValueError("the tokenizer has no merges; llama.cpp cannot load it, train it on more than bytes")
    ends = {"eot": ("<|eot_id|>", "<|im_end|>"), "eom": ("<|eom_id|>",)}
    found = {kind: [tokenizer.special[n] for n in names if n in tokenizer.special] for kind, names in ends.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": fits[0],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        **{f"tokenizer.ggml.{kind}_token_id": ids[0] for kind, ids in found.items() if ids},
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": False,
    }


def _shortest(value: float) -> float:
    """The shortest number that is this one in fp32, as metadata holds numbers: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
