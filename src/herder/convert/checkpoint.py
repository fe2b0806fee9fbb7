"""A model somewhere, read tensor by tensor: the one view through which every format is read and written.

Readers (`huggingface`, `meta`, `gguf`) show any file as a `Checkpoint` with Hugging Face's names and q/k layout; writers take
a `Checkpoint` and write it out one tensor after the other, so n formats need n readers and n writers, and no conversion holds
a model in memory. Names and shapes are checked against the configuration before any weight is read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch.overrides import TorchFunctionMode

from herder.model import Llama, LlamaConfig
from herder.records import check_replaceable, replace_folder
from herder.tokenizer import Tokenizer
from herder.train.checkpoint import checksum

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
CHECKSUMS_FILE = "checksums.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPARED_ROWS = 4096
_HEAD_DIM_MOST = 1 << 16


class Checkpoint(Protocol):
    """A Llama that lies in files or in memory. Readers subclass it; opening one raises ValueError for whatever does not fit."""

    config: LlamaConfig
    dtype: torch.dtype
    """Of the stored matrices; float32 for quantized ones, which `tensor` dequantizes."""

    def names(self) -> list[str]:
        """Hugging Face's parameter names in the model's order; a tied model does not list lm_head.weight."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Reads this one tensor now: merged, dequantized, q and k in the half-split layout. May be a view of a mapped file."""
        ...

    def stored(self, name: str) -> torch.dtype:
        """The dtype that `tensor(name)` has; a reader whose tensors differ (fp32 norms beside bf16 matrices) says so here."""
        return self.dtype

    def tokenizer(self) -> Tokenizer:
        """Raises ValueError ("has no tokenizer") where there is none."""
        ...


def parameter_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of `Llama(config)` in its order, lazily: a hostile layer count costs nothing before it is refuted."""
    try:
        if config.head_dim > _HEAD_DIM_MOST:  # frequencies are computed even on the meta device
            raise RuntimeError
        with weightless():
            block = Llama(replace(config, n_layers=1))
    except RuntimeError:
        raise ValueError(f"a model of these sizes cannot exist: {config}") from None
    layer = "model.layers.0."
    shapes = [(name, tuple(p.shape)) for name, p in block.named_parameters()]
    inner = [(name.removeprefix(layer), shape) for name, shape in shapes if name.startswith(layer)]
    outer = [(name, shape) for name, shape in shapes if not name.startswith(layer)]
    yield outer[0]
    for i in range(config.n_layers):
        yield from ((f"model.layers.{i}.{name}", shape) for name, shape in inner)
    yield from outer[1:]


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made here have shapes but no weights, which are not drawn either: on the meta device that would do nothing but
    import torch's compiler, a second and 80 MB of it."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def check_tensors(
    config: LlamaConfig,
    found: Mapping[str, Sequence[int]],
    where: Path,
    says: str = "config.json",
    own: Callable[[str], str] = str,
) -> list[str]:
    """The parameter names in order, after comparing the shapes `found` in `where` with the configuration that `says` gives.

    `own` turns a Hugging Face name into the file's own for the message. Raises ValueError naming the first tensor that is
    missing, of another shape, or none of this model's.
    """
    names = []
    for name, shape in parameter_shapes(config):
        if name not in found:
            raise ValueError(f"{where} lacks the tensor {own(name)}; copy or convert the model again")
        if tuple(found[name]) != shape:
            raise ValueError(f"{where}: {own(name)} has shape {tuple(found[name])}, {says} says {shape}")
        names.append(name)
    if extra := sorted(found.keys() - set(names)):
        raise ValueError(f"{where} holds the tensor {own(extra[0])}, which this shape does not have")
    return names


def check_tokenizer(tokenizer: Tokenizer, config: LlamaConfig, where: Path | str = "the tokenizer") -> Tokenizer:
    """The tokenizer, if each of its ids has a row of the embeddings; published models pad, so rows may be left over."""
    if tokenizer.n_vocab > config.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.n_vocab} ids, the model {config.vocab_size}; use the one it trained with"
        )
    return tokenizer


def read_tokenizer(folder: Path, config: LlamaConfig) -> Tokenizer:
    """The tokenizer that lies beside the weights. Raises ValueError where there is none, or one with more ids than the model."""
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}); copy the files of the model's publisher there"
        )
    return check_tokenizer(Tokenizer.load(folder), config, folder)


def check_dtype(name: str, dtype: object, where: Path) -> None:
    if dtype not in FLOATS:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{where}: {name} is stored as {kind}; only float32, float16 and bfloat16 weights and GGUF's quantized types "
            "can be read, so take the checkpoint that was not quantized"
        )


def verify(folder: Path) -> None:
    """Compares the files of a folder that herder wrote with the checksums beside them; a folder without them passes."""
    if not (folder / CHECKSUMS_FILE).exists():
        return
    for name, expected in read_object(folder / CHECKSUMS_FILE).items():
        path = inside(folder, name)
        if not path.is_file() or checksum(path) != expected:
            raise ValueError(f"{path} is missing or damaged (its checksum differs); make or copy the model again")


@contextmanager
def model_folder(out: Path, marker: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder to write a model to, and its checksums by file: it takes the place of `out` when all is written, or vanishes.

    Files whose checksum the writer has not entered are hashed at the end. Raises ValueError where `out` holds files and no
    `marker`: that is somebody's folder, not an older model.
    """
    check_replaceable(out, marker)
    # A name that only herder gives: what a killed run left there is deleted, and a folder "NAME.part" may be somebody's.
    part = out.with_name(out.name + ".herder.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    sums: dict[str, str] = {}
    try:
        yield part, sums
        sums |= {path.name: checksum(path) for path in part.iterdir() if path.name not in sums}
        write_json(part / CHECKSUMS_FILE, dict(sorted(sums.items())))
        replace_folder(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read_object(path: Path) -> dict:
    """The JSON object in a file of a checkpoint. Raises ValueError where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); copy the file there") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object); copy the file again")
    return data


def write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def inside(folder: Path, name: object) -> Path:
    """`folder / name`, if that is a plain name of a file that lies there, or in the Hugging Face cache the folder is part of.

    Raises ValueError for a name with a path in it and for a link that leaves the folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(
            f"{folder} names the file {name!r}, which is no plain file name; take the model from its publisher"
        )
    path, home = folder / name, folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # a snapshot of the cache links to blobs beside it
        allowed.append(home.parents[1] / "blobs")
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise ValueError(f"{path} is a link to a file outside of its folder; copy the file itself there")
    return path


def whole(value: object) -> int:
    """An integer that a size can be; TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise TypeError(f"{value!r} is no size")
    return value


def positive(value: object) -> float:
    """A number above zero; TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise TypeError(f"{value!r} is no number above zero")
    return float(value)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit in value; stops at the first rows that differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rows = zip(a.split(_COMPARED_ROWS), b.split(_COMPARED_ROWS), strict=True)
    return all(torch.equal(x, y) for x, y in rows)


def to_half_split(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of a q or k projection (Meta's and GGUF's pairs 2i, 2i+1) in Hugging Face's layout (pairs i, i + head_dim / 2)."""
    rows, columns = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def to_interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """The inverse of `to_half_split`."""
    rows, columns = weight.shape
    return weight.view(n_heads, 2, rows // n_heads // 2, columns).transpose(1, 2).reshape(rows, columns)
