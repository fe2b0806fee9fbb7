"""Hugging Face model folders: `config.json`, `model.safetensors`, the tokenizer's files, and checksums beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from herder.model import Llama, LlamaConfig, RopeScaling
from herder.records import check_replaceable, replace_folder
from herder.steps import read_json
from herder.tokenizer import Tokenizer
from herder.train.checkpoint import checksum, save_tensors


def save(model: Llama, tokenizer: Tokenizer, out: Path, format: str = "hf") -> Path:
    """Writes a model folder, whole or not at all; an older model there is replaced.

    Raises ValueError for an unknown format, sizes that do not fit, or a folder that holds something else.
    """
    if format != "hf":
        raise ValueError(f"format {format!r} is not known; the formats are: hf")
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} ids, the model {model.config.vocab_size}; use the one it trained with"
        )
    out = Path(out)
    check_replaceable(out, "config.json")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_tensors(dict(model.named_parameters()), part / "model.safetensors")
    (part / "config.json").write_text(
        json.dumps(_to_config(model.config, next(model.parameters()).dtype, tokenizer), indent=1)
    )
    tokenizer.save(part)
    sums = {p.name: checksum(p) for p in sorted(part.iterdir())}
    (part / "checksums.json").write_text(json.dumps(sums, indent=1))
    replace_folder(part, out)
    return out


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Llama, Tokenizer]:
    """Reads a model folder. Raises ValueError, naming file and tensor, for what is missing, damaged or of another shape."""
    path = Path(path)
    if (path / "model" / "config.json").exists():
        path = path / "model"
    if (path / "checksums.json").exists():
        for name, expected in read_json(path / "checksums.json").items():
            if not (path / name).exists() or checksum(path / name) != expected:
                raise ValueError(
                    f"{path / name} is missing or damaged (its checksum differs); make or copy the model again"
                )
    config = _from_config(read_json(path / "config.json"), path)
    try:
        tensors = load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path / 'model.safetensors'} cannot be read ({error}); make or copy the model again"
        ) from None
    with torch.device("meta"):
        model = Llama(config)
    expected = dict(model.named_parameters())
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{path / 'model.safetensors'} lacks the tensor {name}")
        if name not in expected:
            raise ValueError(f"{path / 'model.safetensors'} holds the tensor {name}, which this shape does not have")
        if tensors[name].shape != expected[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, config.json says {tuple(expected[name].shape)}"
            raise ValueError(f"{path / 'model.safetensors'}: {name} has shape {shapes}")
    model = model.to_empty(device="cpu")
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.load_state_dict(tensors, strict=False)
    return model.to(dtype).eval(), Tokenizer.load(path)


def _to_config(config: LlamaConfig, dtype: torch.dtype, tokenizer: Tokenizer) -> dict:
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_seq_len,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.special["<|begin_of_text|>"],
        "eos_token_id": sorted(tokenizer.stop_ids),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _from_config(data: dict, path: Path) -> LlamaConfig:
    if data.get("model_type") != "llama":
        raise ValueError(
            f"{path / 'config.json'} is of model type {data.get('model_type')!r}; only llama can be loaded"
        )
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    scaling, kind = None, rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{path / 'config.json'}: rope_type {kind!r} is not known; default and llama3 can be loaded")
    for name, expected in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if data.get(name, expected) != expected:
            raise ValueError(f"{path / 'config.json'}: {name} is {data[name]!r}; a Llama has {expected!r}")
    try:
        if kind == "llama3":
            scaling = RopeScaling(
                rope["factor"],
                rope["low_freq_factor"],
                rope["high_freq_factor"],
                rope["original_max_position_embeddings"],
            )
        return LlamaConfig(
            vocab_size=data["vocab_size"],
            dim=data["hidden_size"],
            n_layers=data["num_hidden_layers"],
            n_heads=data["num_attention_heads"],
            n_kv_heads=data.get("num_key_value_heads", data["num_attention_heads"]),
            ffn_dim=data["intermediate_size"],
            max_seq_len=data["max_position_embeddings"],
            head_dim=data.get("head_dim") or 0,
            norm_eps=data["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
            rope_scaling=scaling,
            tie_embeddings=data.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path / 'config.json'} lacks the field {error}") from None
    except TypeError as error:
        raise ValueError(f"{path / 'config.json'} holds a value of another type than a Llama's ({error})") from None
