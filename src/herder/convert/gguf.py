"""GGUF files in and out: the checkpoints of llama.cpp, read and written one tensor at a time.

The one design decision: the numbers of quantized blocks are the package `gguf`'s, in both directions, so that what is read
equals bit for bit what every other reader of that package sees, and what is written is what llama.cpp would write.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herder.convert.checkpoint import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    check_tensors,
    check_tokenizer,
    parameter_shapes,
    to_half_split,
    to_interleaved,
)
from herder.convert.gguf_metadata import (
    ARCHITECTURE,
    ROPE_FACTORS,
    config_of,
    gguf_name,
    huggingface_name,
    metadata_of,
    refuse_other_models,
    rope_factors,
    vocabulary_of,
    with_scaling,
)
from herder.convert.ollama import FIRST_LINE, modelfile
from herder.gguf import ALIGNMENT, BLOCKS, MAGIC, TensorInfo, read_gguf
from herder.tokenizer import Tokenizer, chat_template
from herder.tokenizer.files import GGUF_DIALECT, GGUF_SYSTEM

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""What can be written, with llama.cpp's number for a file that is mostly of this type."""
QUANTIZATION_VERSION = 2
INSTALL = "pip install 'herder[gguf]'"
_NUMBERS = {name: (number, block, size) for number, (name, block, size) in BLOCKS.items()}


class GgufCheckpoint(Checkpoint):
    """A Llama in a GGUF file. Raises ValueError where the file is damaged, of another architecture, or of other tensors
    than its metadata says; nothing but the header is read until `tensor` is called."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.file = read_gguf(self.path)
        refuse_other_models(self.file)
        factors = self.file.tensors.get(ROPE_FACTORS)
        self._infos = {huggingface_name(n): t for n, t in self.file.tensors.items() if n != ROPE_FACTORS}
        self.config = config_of(self.file, tied=HEAD not in self._infos)
        found = {name: info.shape for name, info in self._infos.items()}
        self._names = check_tensors(self.config, found, self.path, "the metadata", gguf_name)
        for info in self._infos.values():
            if info.type not in DTYPES and info.type not in QUANTIZED:
                known = ", ".join([*DTYPES, *QUANTIZED])
                raise ValueError(f"{self.path}: {info.name} is of type {info.type}; these types can be read: {known}")
        if factors is not None:
            self.config = with_scaling(self.config, self._rope_factors(factors), self.file)
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


def write_gguf(checkpoint: Checkpoint, out: Path | str, dtype: str | None = None) -> dict[str, Any]:
    """Writes a GGUF file that llama.cpp loads, and an Ollama Modelfile beside it, each whole or not at all.

    `out` is a file name that ends in .gguf, or a folder that gets model.gguf and Modelfile. `dtype` is F32, F16, BF16,
    Q8_0 or Q4_0, of the matrices (None: as stored); vectors stay F32 as llama.cpp wants them. Returns the files, the bytes
    and `fallbacks`, the tensors whose rows are no multiple of 32 and stay F16. Raises ValueError for another dtype, a
    tokenizer that llama.cpp cannot have, or a file in the way that is no GGUF.
    """
    wanted = (dtype or next(name for name, kind in DTYPES.items() if kind == checkpoint.dtype)).upper()
    if wanted not in FILE_TYPES:
        raise ValueError(f"dtype {dtype!r} cannot be written to GGUF; choose one of {', '.join(FILE_TYPES)}")
    out, config, package = Path(out), checkpoint.config, gguf_package()
    file = out if out.suffix == ".gguf" else out / "model.gguf"
    beside = file.with_suffix(".Modelfile") if file is out else out / "Modelfile"
    tokenizer = check_tokenizer(checkpoint.tokenizer(), config)
    metadata = {
        "general.type": "model",
        "general.name": file.stem if file is out else out.name,
        "general.size_label": _size_label(config.n_params),
        "general.file_type": FILE_TYPES[wanted],
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.alignment": ALIGNMENT,
        **metadata_of(config),
        **vocabulary_of(tokenizer, config.vocab_size),
        **_chat(tokenizer),
    }
    plan = {
        name: (shape, _type_for(name, shape, wanted, config.tie_embeddings)) for name, shape in parameter_shapes(config)
    }
    ollama = modelfile(file.name, tokenizer)
    with _replacing(file, MAGIC) as part, _replacing(beside, FIRST_LINE.encode()) as beside_part:
        writer = package.GGUFWriter(part, ARCHITECTURE)
        try:
            _write(writer, package, metadata, plan, checkpoint)
        finally:
            writer.close()
        beside_part.write_text(ollama, encoding="utf-8")
    fallbacks = [gguf_name(name) for name, (shape, kind) in plan.items() if kind == "F16" != wanted and len(shape) > 1]
    return {"file": file, "modelfile": beside, "bytes": file.stat().st_size, "fallbacks": fallbacks}


def _write(writer: Any, package: Any, metadata: dict, plan: dict, checkpoint: Checkpoint) -> None:
    kinds, config = package.GGUFValueType, checkpoint.config
    scalars = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING, list: kinds.ARRAY}
    for key, value in metadata.items():
        writer.add_key_value(key, value, scalars[type(value)])
    factors = None if config.rope_scaling is None else rope_factors(config).numpy()
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name, (shape, kind) in plan.items():
        number, block, size = _NUMBERS[kind]
        writer.add_tensor_info(
            gguf_name(name),
            shape,
            np.dtype(np.float32),
            math.prod(shape) // block * size,
            raw_dtype=package.GGMLQuantizationType(number),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    for name, (_, kind) in plan.items():
        values, groups = checkpoint.tensor(name), heads.get(name.split(".")[-2])
        writer.write_tensor_data(
            _encoded(values if groups is None else to_interleaved(values, groups), kind, name, package)
        )


def _encoded(values: torch.Tensor, kind: str, name: str, package: Any) -> np.ndarray:
    """The tensor's bytes in a type of GGUF."""
    if kind in DTYPES:
        stored = values.to(DTYPES[kind]).contiguous()
        if kind == "F16" and not torch.isfinite(torch.stack(stored.aminmax())).all():
            raise ValueError(f"{name} holds values beyond half precision (65504); write BF16 or F32")
        return stored.view(torch.uint8).numpy()
    return package.quants.quantize(values.float().contiguous().numpy(), package.GGMLQuantizationType[kind])


def _type_for(name: str, shape: tuple[int, ...], wanted: str, tied: bool) -> str:
    """The type a tensor is stored in. As in llama.cpp, vectors stay F32, rows that do not fill blocks fall back to F16, and
    the output matrix keeps 8 bits in a file of 4 (llama.cpp gives it 6, which the package `gguf` cannot write)."""
    if len(shape) == 1:
        return "F32"
    if shape[-1] % _NUMBERS[wanted][1]:
        return "F16"
    output = name == HEAD or (tied and name == EMBEDDING)
    return "Q8_0" if wanted == "Q4_0" and output else wanted


def _chat(tokenizer: Tokenizer) -> dict[str, str]:
    """How dialogues are written, for other tools as a template."""
    known = tokenizer.conventions
    if not tokenizer.dialect:
        return {}
    recorded = {key: value for key, value in ((GGUF_DIALECT, known.dialect), (GGUF_SYSTEM, known.system)) if value}
    return {"tokenizer.chat_template": chat_template(tokenizer.dialect, system=known.system), **recorded}


def _size_label(n_params: int) -> str:
    """135M, 8.0B: how llama.cpp labels sizes."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if n_params >= size:
            return f"{n_params / size:.1f}{letter}" if n_params < 10 * size else f"{n_params // size}{letter}"
    return f"{n_params / 1000:.0f}K"


@contextmanager
def _replacing(path: Path, magic: bytes) -> Iterator[Path]:
    """A `.part` path that takes the place of `path` when the block ends well, and vanishes otherwise.

    Raises ValueError where a file lies there that does not begin with `magic`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder and is not replaced; give another name")
    if path.exists():
        with open(path, "rb") as there:
            if there.read(len(magic)) != magic:
                raise ValueError(f"{path} is a file of another kind and is not replaced; move it or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".herder.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
