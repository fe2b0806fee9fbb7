"""GGUF files in and out: the names, layouts, metadata and number formats of llama.cpp's `llama` architecture.

The one design decision: the numbers of quantized blocks are the package `gguf`'s, in both directions, so that what is read
equals bit for bit what every other reader of that package sees; names, q/k layout, RoPE factors and metadata are ours.
Tensors are read and written one at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herder.convert.checkpoint import EMBEDDING, HEAD, Checkpoint, check_tensors, check_tokenizer, to_half_split
from herder.gguf import Gguf, TensorInfo, read_gguf
from herder.model import LlamaConfig, RopeScaling
from herder.model.rope import inverse_frequencies
from herder.tokenizer import Tokenizer

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
SCALING_KEY = "herder.rope_scaling"
"""Metadata of ours beside the factors: factor, low_freq_factor, high_freq_factor, original_max_seq_len."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
INSTALL = "pip install 'herder[gguf]'"

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


class GgufCheckpoint(Checkpoint):
    """A Llama in a GGUF file. Raises ValueError where the file is damaged, of another architecture, or of other tensors
    than its metadata says; nothing but the header is read until `tensor` is called."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.file = read_gguf(self.path)
        _refuse_other_models(self.file)
        factors = self.file.tensors.get(ROPE_FACTORS)
        self._infos = {huggingface_name(n): t for n, t in self.file.tensors.items() if n != ROPE_FACTORS}
        self.config = _config(self.file, tied=HEAD not in self._infos)
        found = {name: info.shape for name, info in self._infos.items()}
        self._names = check_tensors(self.config, found, self.path, "the metadata", gguf_name)
        for info in self._infos.values():
            if info.type not in DTYPES and info.type not in QUANTIZED:
                known = ", ".join([*DTYPES, *QUANTIZED])
                raise ValueError(f"{self.path}: {info.name} is of type {info.type}; these types can be read: {known}")
        if factors is not None:
            self.config = _with_scaling(self.config, self._rope_factors(factors), self.file)
        kinds = {info.type for info in self._infos.values() if len(info.shape) > 1}
        self.dtype = DTYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def names(self) -> list[str]:
        return self._names

    def stored(self, name: str) -> torch.dtype:
        return DTYPES.get(self._infos[name].type, torch.float32)

    def tensor(self, name: str) -> torch.Tensor:
        weight = self._read(self._infos[name])
        heads = {"q_proj": self.config.n_heads, "k_proj": self.config.n_kv_heads}.get(name.split(".")[-2])
        return weight if heads is None else to_half_split(weight, heads)

    def tokenizer(self) -> Tokenizer:
        if "tokenizer.ggml.tokens" not in self.file.metadata:
            raise ValueError(f"{self.path} has no tokenizer; take a GGUF file that holds one")
        return check_tokenizer(Tokenizer.load(self.path), self.config, self.path)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        """The tensor's values in its own dtype (fp32 where it is quantized), rows in the file's order."""
        try:
            raw = np.fromfile(self.path, np.uint8, info.bytes, offset=info.offset)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read ({error.strerror or error})") from None
        if raw.size < info.bytes:
            raise ValueError(f"{self.path} was cut short while it was read: {info.name} is incomplete; load it again")
        if info.type in DTYPES:
            values = torch.from_numpy(raw).view(DTYPES[info.type]).view(info.shape)
        else:
            package, kind = gguf_package(), info.type
            with np.errstate(all="ignore"):  # damaged scales are refused below
                rows = package.quants.dequantize(
                    raw.reshape(math.prod(info.shape[:-1]), -1), package.GGMLQuantizationType[kind]
                )
            values = torch.from_numpy(rows).view(info.shape)
        if not torch.isfinite(torch.stack(values.aminmax())).all():
            raise ValueError(f"{self.path}: {info.name} holds values that are not finite; copy the file again")
        return values

    def _rope_factors(self, info: TensorInfo) -> torch.Tensor:
        if info.type != "F32" or info.shape != (self.config.head_dim // 2,):
            raise ValueError(
                f"{self.path}: {info.name} is {info.type} of shape {info.shape}; RoPE factors are F32, one for each "
                f"of the {self.config.head_dim // 2} frequencies"
            )
        return self._read(info)


def gguf_package() -> Any:
    """The package `gguf`; ValueError with the command that installs it where it is absent."""
    try:
        import gguf
    except ImportError:
        raise ValueError(f"quantized GGUF files need the package gguf; install it with: {INSTALL}") from None
    return gguf


def rope_factors(config: LlamaConfig) -> torch.Tensor:
    """(head_dim / 2,) fp32: what each frequency is divided by under the configuration's RoPE scaling."""
    plain = replace(config, rope_scaling=None)
    return inverse_frequencies(plain) / inverse_frequencies(config)


def _with_scaling(config: LlamaConfig, factors: torch.Tensor, file: Gguf) -> LlamaConfig:
    """The configuration with the scaling that these factors were made of.

    GGUF keeps the factors alone. Files of ours say in `SCALING_KEY` what they came from; of others, the factor of the
    longest wavelength and the published constants (original context 8192, blended between factors 1 and 4) are tried.
    """
    if bool((factors == 1).all()):
        return config
    candidates, stated = [], file.metadata.get(SCALING_KEY)
    if isinstance(stated, list) and len(stated) == 4 and all(isinstance(v, float) and 0 < v < 2**31 for v in stated):
        candidates.append(RopeScaling(*stated[:3], original_max_seq_len=int(stated[3])))
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


def _refuse_other_models(file: Gguf) -> None:
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


def _config(file: Gguf, tied: bool) -> LlamaConfig:
    """The shape that the metadata states. Raises ValueError naming the key that is missing or cannot be."""

    def number(key: str, default: int | float | None = None, kind: type = int) -> Any:
        value = file.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"{file.path} lacks the metadata llama.{key}")
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 < value < 2**31
        if not right:
            raise ValueError(f"{file.path}: llama.{key} is {_short(value)}; a Llama has one positive number there")
        return float(str(np.float32(value))) if kind is float else value  # 1e-05, not fp32's 9.999999747378752e-06

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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
