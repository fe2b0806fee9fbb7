"""Meta's checkpoints: `consolidated.*.pth`, `params.json`, `tokenizer.model`.

The files are pickles, one for each model-parallel rank: q, k, v, w1, w3 and the head are cut along their output (dim 0), wo and
w2 along their input (dim 1), the embeddings along the vocabulary (Llama 3) or the width (Llama 2). q and k rotate pairs of
neighbours where Hugging Face rotates halves. params.json names neither the context nor the scale of 3.1's RoPE, which the
reference code has built in; they come from the published shapes, or from our own key "herder", which other readers ignore.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
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
    to_half_split,
    to_interleaved,
    whole,
    write_json,
)
from herder.convert.tensorfiles import TensorFiles, write_tensor
from herder.model import SHAPES, LlamaConfig, RopeScaling
from herder.tokenizer import Tokenizer

_OUTER = {EMBEDDING: "tok_embeddings.weight", "model.norm.weight": "norm.weight", HEAD: "output.weight"}
_INNER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ROWS, _COLUMNS = (
    ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight"),
    ("wo.weight", "w2.weight"),
)
_LEFTOVERS = re.compile(r"(layers\.\d+\.attention\.(inner_attention\.)?)?rope\.freqs")
_OTHER_MODELS = ("vision_chunk_size", "vision_model", "moe_args", "quantization_args", "lora_args")
LLAMA3_THETA = 500_000.0
LLAMA2_CONTEXT, LLAMA3_CONTEXT, LONG_CONTEXT = 4096, 8192, 131_072
_ALIGNMENT = 64
_STORAGES = {torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage, torch.bfloat16: torch.BFloat16Storage}


def own_name(name: str) -> str:
    """Meta's name of a parameter."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"layers.{layer}.{_INNER[rest.removesuffix('.weight')]}.weight"


class MetaCheckpoint(Checkpoint):
    def __init__(self, folder: Path):
        self.folder, says = folder, folder / "params.json"
        params = read_object(inside(folder, "params.json"))
        self._shards = _shards(folder)
        self._files = TensorFiles(self._shards)
        self._shapes = _shapes(self._files)
        rows = self._shapes.get(_OUTER[HEAD], self._shapes.get(_OUTER[EMBEDDING], (0,)))[0]
        self.config = config_of(params, says, rows * len(self._shards), _OUTER[HEAD] not in self._shapes)
        hf_names = {own_name(name): name for name, _ in self._expected()}
        found = {hf_names.get(own, own): self._merged_shape(hf_names.get(own, ""), own) for own in self._shapes}
        self._names = check_tensors(
            self.config,
            found,
            self._shards[0],
            says.name,
            lambda name: name if name in self._shapes else own_name(name),
        )
        if not self.config.tie_embeddings and self._is_tied(params):
            self.config = replace(self.config, tie_embeddings=True)
            self._names.remove(HEAD)
        self.dtype = self.stored(EMBEDDING)

    def names(self) -> list[str]:
        return list(self._names)

    def stored(self, name: str) -> torch.dtype:
        return self._files.dtypes[self._shards[0]][own_name(name)]

    def tensor(self, name: str) -> torch.Tensor:
        own, copies = own_name(name), self._copies(name)
        parts = [self._files.tensor(shard, own) for shard in self._shards]
        for i, part in enumerate(parts):
            if copies > 1 and not same(parts[i - i % copies], part):
                raise ValueError(
                    f"{self._shards[i]}: {own} differs from its copy in the shard before; copy the files again"
                )
        parts, axis = parts[::copies], self._axis(own)
        merged = parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, axis)
        if not own.endswith(("wq.weight", "wk.weight")):
            return merged
        return to_half_split(merged, self.config.n_heads if own.endswith("wq.weight") else self.config.n_kv_heads)

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder, self.config)

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes by the configuration, up to the first that the files lack: a hostile layer count ends there."""
        for name, shape in parameter_shapes(self.config):
            if own_name(name) not in self._shapes:
                return
            yield name, shape

    def _axis(self, own: str) -> int | None:
        """The dimension along which a tensor is cut into shards; None for one that each shard holds whole."""
        if own == _OUTER[EMBEDDING]:
            return 0 if self._shapes[own][-1] == self.config.dim else 1
        return 0 if own.endswith(_ROWS) else 1 if own.endswith(_COLUMNS) else None

    def _copies(self, name: str) -> int:
        """Where there are more ranks than KV heads, that many neighbours hold the same head."""
        if not name.endswith(("k_proj.weight", "v_proj.weight")) or len(self._shards) % self.config.n_kv_heads:
            return 1
        rows = self._shapes[own_name(name)][0]
        return len(self._shards) // self.config.n_kv_heads if rows == self.config.head_dim else 1

    def _merged_shape(self, name: str, own: str) -> tuple[int, ...]:
        shape, axis = self._shapes[own], self._axis(own)
        count = len(self._shards) // self._copies(name)
        return tuple(n * count if i == axis else n for i, n in enumerate(shape))

    def _is_tied(self, params: dict) -> bool:
        """Meta's files hold the head of a tied model too, equal to the embeddings; files of ours may say it is untied."""
        if _ours(params).get("tie_embeddings") is False or self._axis(_OUTER[EMBEDDING]) == 1:
            return False
        pairs = ((self._files.tensor(s, _OUTER[EMBEDDING]), self._files.tensor(s, _OUTER[HEAD])) for s in self._shards)
        return all(same(embedding, head) for embedding, head in pairs)


def _shards(folder: Path) -> list[Path]:
    """The files of all ranks, in order. Raises ValueError where a number is missing."""
    names = sorted(path.name for path in folder.glob("consolidated*.pth"))
    for i, name in enumerate(names):
        if name not in (f"consolidated.{i:02d}.pth", "consolidated.pth"):
            raise ValueError(f"{folder / f'consolidated.{i:02d}.pth'} is missing, {name} is there; copy all shards")
    if not names:
        raise ValueError(f"{folder} holds no consolidated.00.pth; copy the weights there")
    return [inside(folder, name) for name in names]


def _shapes(files: TensorFiles) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor has in every shard. Raises ValueError where shards differ."""
    (first, shapes), *others = files.shapes.items()
    shapes = {name: shape for name, shape in shapes.items() if not _LEFTOVERS.fullmatch(name)}
    for name, shape in shapes.items():
        if len(shape) not in (1, 2):
            raise ValueError(f"{first}: {name} has shape {shape}; a Llama's tensors have one or two dimensions")
        for path, other in others:
            if other.get(name) != shape or files.dtypes[path][name] != files.dtypes[first][name]:
                raise ValueError(
                    f"{path}: {name} is missing or of another shape or dtype than in {first.name}; copy it again"
                )
    for path, other in others:
        if extra := sorted(name for name in other if name not in shapes and not _LEFTOVERS.fullmatch(name)):
            raise ValueError(f"{path} holds the tensor {extra[0]}, which {first.name} does not; copy the files again")
    return shapes


def config_of(params: dict, path: Path, vocab_rows: int, tied: bool) -> LlamaConfig:
    """The shape that a params.json states; `vocab_rows` stands in for a vocabulary size that it leaves open.

    Raises ValueError, naming the field, for a model that is more or less than a Llama.
    """
    for name in _OTHER_MODELS:
        if params.get(name) not in (None, -1):
            raise ValueError(f"{path}: {name} says this is another model than a plain Llama; only that can be loaded")
    try:
        dim, n_heads, ours = whole(params["dim"]), whole(params["n_heads"]), _ours(params)
        theta = positive(params.get("rope_theta", 10_000.0))
        scaled = bool(params.get("use_scaled_rope", False))
        stated = params.get("vocab_size", -1)
        config = LlamaConfig(
            vocab_size=vocab_rows if stated == -1 else whole(stated),
            dim=dim,
            n_layers=whole(params["n_layers"]),
            n_heads=n_heads,
            n_kv_heads=whole(params.get("n_kv_heads") or n_heads),
            ffn_dim=ffn_dim(dim, whole(params.get("multiple_of", 256)), params.get("ffn_dim_multiplier")),
            max_seq_len=LONG_CONTEXT if scaled else LLAMA3_CONTEXT if theta >= LLAMA3_THETA else LLAMA2_CONTEXT,
            norm_eps=positive(params["norm_eps"]),
            rope_theta=theta,
            rope_scaling=RopeScaling() if scaled else None,
            tie_embeddings=tied,
        )
        if known := published(config):
            config = replace(config, max_seq_len=known.max_seq_len, rope_scaling=known.rope_scaling)
        return replace(config, max_seq_len=whole(ours.get("max_seq_len", config.max_seq_len)))
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}") from None
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} holds a value of another type than a Llama's ({error})") from None
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: {error or 'a size is zero'}") from None


def published(config: LlamaConfig) -> LlamaConfig | None:
    """The published shape whose matrices these are, scaled RoPE or not as here; None for any other."""
    for shape in SHAPES.values():
        like = replace(config, rope_scaling=shape.rope_scaling, max_seq_len=shape.max_seq_len, norm_eps=shape.norm_eps)
        is_scaled_alike = (shape.rope_scaling is None) == (config.rope_scaling is None)
        if is_scaled_alike and replace(like, tie_embeddings=shape.tie_embeddings) == shape:
            return shape
    return None


def ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """The width of the feed-forward layers: two thirds of 4 dim, times the multiplier, rounded up (reference code)."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(float(multiplier) * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def ffn_fields(config: LlamaConfig) -> dict[str, float | None]:
    """multiple_of and ffn_dim_multiplier that give exactly this width: as published where that fits."""
    for multiplier in (None, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5):
        for multiple_of in (256, 1024, 4096):
            if ffn_dim(config.dim, multiple_of, multiplier) == config.ffn_dim:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    return {"multiple_of": 1, "ffn_dim_multiplier": (config.ffn_dim + 0.5) / int(2 * 4 * config.dim / 3)}


def _ours(params: dict) -> dict:
    ours = params.get("herder", {})
    if not isinstance(ours, dict):
        raise TypeError("the field herder is no object")
    return ours


def write_meta(checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes `consolidated.00.pth`, params.json and the tokenizer, tensor by tensor, whole or not at all.

    dtype None keeps each tensor's own. Raises ValueError for a shape that the reference code cannot have, and where the
    folder holds something else.
    """
    tokenizer = check_tokenizer(checkpoint.tokenizer(), checkpoint.config)
    params = params_json(checkpoint.config)
    with model_folder(out, "params.json") as (part, _):
        specs = [(name, shape, dtype or checkpoint.stored(name)) for name, shape in parameter_shapes(checkpoint.config)]
        _write_pth(part / "consolidated.00.pth", specs, checkpoint)
        write_json(part / "params.json", params)
        tokenizer.save(part)
    return out


def params_json(config: LlamaConfig) -> dict:
    if config.head_dim * config.n_heads != config.dim:
        raise ValueError(
            f"Meta's format has no head_dim: {config.n_heads} heads of {config.head_dim} do not make dim {config.dim}; "
            "write hf or gguf"
        )
    known = published(config)
    if config.rope_scaling not in (None, known.rope_scaling if known else RopeScaling()):
        raise ValueError(f"Meta's format cannot state {config.rope_scaling}; write hf or gguf")
    return {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        **ffn_fields(config),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
        "herder": {"max_seq_len": config.max_seq_len, "tie_embeddings": config.tie_embeddings},
    }


class _Storage:
    """Stands for the bytes of one tensor in the pickle."""

    def __init__(self, key: int, count: int, dtype: torch.dtype):
        self.id = ("storage", _STORAGES[dtype], str(key), "cpu", count)


class _Tensor:
    """Pickles as a tensor over a `_Storage` does."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]):
        strides = torch.empty(shape, device="meta").stride()
        self._parts = (storage, 0, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self._parts


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple | None:
        return obj.id if isinstance(obj, _Storage) else None


def _write_pth(path: Path, specs: list[tuple[str, tuple[int, ...], torch.dtype]], checkpoint: Checkpoint) -> None:
    """Writes what torch.save would write of these tensors, but one at a time: a zip, uncompressed, of one pickle that names
    the tensors and one entry of bytes for each. The head of a tied model shares the entry of the embeddings."""
    tensors, order = {}, []
    for key, (name, shape, dtype) in enumerate(specs):
        tensors[own_name(name)] = _Tensor(_Storage(key, torch.Size(shape).numel(), dtype), shape)
        order.append((f"data/{key}", name, dtype))
    if checkpoint.config.tie_embeddings:
        tensors[_OUTER[HEAD]] = tensors[_OUTER[EMBEDDING]]
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(tensors)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickled.getvalue()), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(_entry(name, 0), data)
        for entry, name, dtype in order:
            with archive.open(_entry(entry, archive.fp.tell()), "w", force_zip64=True) as file:
                tensor = checkpoint.tensor(name)
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    heads = checkpoint.config.n_heads if "q_proj" in name else checkpoint.config.n_kv_heads
                    tensor = to_interleaved(tensor, heads)
                write_tensor(file, tensor, dtype)


def _entry(name: str, offset: int) -> zipfile.ZipInfo:
    """An entry whose data begin at a multiple of 64 bytes where `offset` says where its header lies: mapped, they stay aligned.

    The header has 30 bytes, the name, 20 bytes of 64-bit sizes, and padding in a field of its own as torch.save pads.
    """
    info = zipfile.ZipInfo(f"consolidated/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    if offset:
        gap = -(offset + 30 + len(info.filename) + 20 + 4) % _ALIGNMENT
        info.extra = b"FB" + gap.to_bytes(2, "little") + b"Z" * gap
    return info
