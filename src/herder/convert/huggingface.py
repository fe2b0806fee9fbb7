"""Hugging Face model folders: `config.json`, safetensors or old `.bin` files, one or many, the tokenizer's files.

What herder saves is such a folder, with checksums beside the files, which `transformers` reads as it lies. Every field of
config.json that would make another function of the same weights is checked: a model that is not quite a Llama is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from herder.convert.checkpoint import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    check_tensors,
    check_tokenizer,
    inside,
    model_folder,
    parameter_shapes,
    positive,
    read_object,
    read_tokenizer,
    same,
    whole,
    write_json,
)
from herder.convert.tensorfiles import TensorFiles, n_bytes, write_safetensors
from herder.model import LlamaConfig, RopeScaling
from herder.tokenizer import Tokenizer, chat_template

SHARD_BYTES = 5 * 10**9
"""Largest weight file written, as on the hub; a model below it is one file."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where the weights can lie, in the order in which `transformers` looks."""
_LEFTOVERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Buffers that old checkpoints stored although they follow from the configuration."""


class HuggingFaceCheckpoint(Checkpoint):
    def __init__(self, folder: Path):
        self.folder = folder
        self.config = config_of(read_object(inside(folder, "config.json")), folder / "config.json")
        weights, files = weight_files(folder)
        self._files = TensorFiles(files)
        self._place = {name: path for path, shapes in self._files.shapes.items() for name in shapes}
        _check_index(weights, self._files)
        found = {name: self._files.shapes[path][name] for name, path in self._place.items()}
        found = {name: shape for name, shape in found.items() if not _LEFTOVERS.fullmatch(name)}
        self._tied_twice = self.config.tie_embeddings and found.get(HEAD) == found.get(EMBEDDING, ())
        if self._tied_twice:
            del found[HEAD]
        self._names = check_tensors(self.config, found, weights)
        self.dtype = self.stored(max(self._names, key=lambda name: torch.Size(found[name]).numel()))

    def names(self) -> list[str]:
        return list(self._names)

    def stored(self, name: str) -> torch.dtype:
        return self._files.dtypes[self._place[name]][name]

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._files.tensor(self._place[name], name)
        if name == EMBEDDING and self._tied_twice and not same(tensor, self._files.tensor(self._place[HEAD], HEAD)):
            raise ValueError(
                f"{self.folder}: config.json ties the head to the embeddings, but {HEAD} is stored and differs from "
                f"{EMBEDDING}; set tie_word_embeddings to false, or delete {HEAD}"
            )
        return tensor

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder, self.config)


def weight_files(folder: Path) -> tuple[Path, list[Path]]:
    """The file or index that names the weights of a folder, and the files of tensors."""
    for name in WEIGHTS:
        path = folder / name
        if not path.exists():
            continue
        if not name.endswith(".index.json"):
            return path, [inside(folder, name)]
        index = read_object(inside(folder, name))
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{path} has no weight_map; copy the file again")
        files = [inside(folder, file) for file in dict.fromkeys(places.values())]
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file} is missing, {name} names it; copy the file again")
        return path, files
    raise ValueError(f"{folder} holds no weights ({', '.join(WEIGHTS)}); copy them there")


def _check_index(weights: Path, files: TensorFiles) -> None:
    """Every tensor in one file, and in the file where the index says it lies."""
    seen: dict[str, Path] = {}
    for path, shapes in files.shapes.items():
        for name in shapes:
            if name in seen:
                raise ValueError(f"{path} holds the tensor {name}, and so does {seen[name]}; copy the model again")
            seen[name] = path
    if weights.name.endswith(".index.json"):
        for name, file in read_object(weights)["weight_map"].items():
            if seen.get(name) != weights.parent / file:
                raise ValueError(f"{weights.parent / file} lacks the tensor {name}, which {weights.name} places there")


def write_hf(
    checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes a model folder tensor by tensor, whole or not at all; an older model there is replaced.

    dtype None keeps each tensor's own. Raises ValueError where the folder holds something else.
    """
    tokenizer = check_tokenizer(checkpoint.tokenizer(), checkpoint.config)
    specs = [(name, shape, dtype or checkpoint.stored(name)) for name, shape in parameter_shapes(checkpoint.config)]
    with model_folder(out, "config.json") as (part, sums):
        shards = split(specs, shard_bytes)
        names = shard_names(len(shards))
        for file, shard in zip(names, shards, strict=True):
            sums[file] = write_safetensors(part / file, shard, checkpoint.tensor)
        if len(shards) > 1:
            places = {name: file for file, shard in zip(names, shards, strict=True) for name, _, _ in shard}
            total = sum(n_bytes(shape, kind) for _, shape, kind in specs)
            write_json(part / WEIGHTS[1], {"metadata": {"total_size": total}, "weight_map": places})
        write_json(part / "config.json", config_json(checkpoint.config, dtype or checkpoint.dtype, tokenizer))
        write_json(
            part / "generation_config.json",
            {
                "bos_token_id": tokenizer.bos_id,
                "eos_token_id": sorted(tokenizer.stop_ids),
                "pad_token_id": tokenizer.pad_id,
            },
        )
        system = tokenizer.conventions.system
        tokenizer.save(part, chat_template(tokenizer.dialect, system=system) if tokenizer.dialect else "")
        # Tools take a tokenizer.model beside a config.json for SentencePiece's (llama.cpp's converter stops at tiktoken's).
        (part / "tokenizer.model").unlink(missing_ok=True)
    return out


Spec = tuple[str, tuple[int, ...], torch.dtype]


def split(specs: list[Spec], shard_bytes: int) -> list[list[Spec]]:
    """Tensors in order, cut into files of at most `shard_bytes`; a larger tensor has a file of its own."""
    shards: list[list[Spec]] = [[]]
    used = 0
    for name, shape, dtype in specs:
        size = n_bytes(shape, dtype)
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((name, shape, dtype))
        used += size
    return shards


def shard_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS[0]]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def config_json(config: LlamaConfig, dtype: torch.dtype, tokenizer: Tokenizer) -> dict:
    """`config.json` of a model: what `transformers` and everything that follows it reads."""
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
    older = {"rope_scaling": rope} if config.rope_scaling else {}  # all that transformers 4 reads; 5 takes either
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
        **older,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "dtype": str(dtype).removeprefix("torch."),
    }


_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
"""Fields of which a Llama has one value; absent ones have it."""


def config_of(data: dict, path: Path) -> LlamaConfig:
    """The shape that a config.json states, in today's fields or in older ones.

    Raises ValueError, naming file and field, for another architecture and for what would make another function of the weights.
    """
    kinds = data.get("architectures") or ["LlamaForCausalLM"]
    if data.get("model_type") != "llama" or kinds != ["LlamaForCausalLM"]:
        other = f"of model type {data.get('model_type')!r}, architecture {', '.join(map(str, kinds))}"
        raise ValueError(f"{path} is {other}; only a Llama (model type 'llama', LlamaForCausalLM) can be loaded")
    if data.get("quantization_config"):
        raise ValueError(
            f"{path} says the weights are quantized (quantization_config); take the unquantized model, or a GGUF of it"
        )
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    for name, expected in _FIXED.items():
        if (found := data.get(name, expected)) != expected:
            raise ValueError(f"{path}: {name} is {found!r}; a Llama has {expected!r}")
    try:
        theta = rope.get("rope_theta", data.get("rope_theta", 10_000.0))
        return LlamaConfig(
            vocab_size=whole(data["vocab_size"]),
            dim=whole(data["hidden_size"]),
            n_layers=whole(data["num_hidden_layers"]),
            n_heads=whole(data["num_attention_heads"]),
            n_kv_heads=whole(data.get("num_key_value_heads") or data["num_attention_heads"]),
            ffn_dim=whole(data["intermediate_size"]),
            max_seq_len=whole(data["max_position_embeddings"]),
            head_dim=whole(data.get("head_dim") or 0),
            norm_eps=positive(data["rms_norm_eps"]),
            rope_theta=positive(theta),
            rope_scaling=_scaling_of(rope),
            tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds a value of another type than a Llama's ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _scaling_of(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type {kind!r} is not known; default and llama3 can be loaded")
    if kind == "default":
        return None
    return RopeScaling(
        positive(rope["factor"]),
        positive(rope["low_freq_factor"]),
        positive(rope["high_freq_factor"]),
        whole(rope["original_max_position_embeddings"]),
    )
