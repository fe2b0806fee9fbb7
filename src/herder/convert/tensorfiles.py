"""Files of tensors, read one tensor at a time: safetensors, and PyTorch's pickles without their code.

Both are mapped, not read: a tensor is a view whose pages come in when they are used. Mappings are dropped after every
`MAPPED_BYTES` handed out, or a conversion would end with the whole model resident. Pickles are opened with `weights_only`,
which builds tensors and nothing else. The safetensors file is written here, because the library wants all tensors at once.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from herder.convert.checkpoint import check_dtype

MAPPED_BYTES = 1 << 26
SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FLOATS_BY_NAME = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}
_WRITTEN_BYTES = 1 << 24


class TensorFiles:
    """Named tensors in some files. `shapes[file][name]` and `dtypes[file][name]` are known after opening, nothing is read."""

    def __init__(self, files: Iterable[Path]):
        self.shapes: dict[Path, dict[str, tuple[int, ...]]] = {}
        self.dtypes: dict[Path, dict[str, torch.dtype]] = {}
        self._mapped: dict[Path, Any] = {}
        self._handed_out = 0
        for path in files:
            tensors = self._file(path)
            self.shapes[path] = {name: tensors.shape(name) for name in tensors.names}
            self.dtypes[path] = {name: tensors.dtype(name) for name in tensors.names}

    def tensor(self, path: Path, name: str) -> torch.Tensor:
        """A view of the mapped file."""
        if self._handed_out > MAPPED_BYTES:
            self._mapped.clear()
            self._handed_out = 0
        found = self._file(path).tensor(name)
        if tuple(found.shape) != self.shapes[path][name] or found.dtype != self.dtypes[path][name]:
            raise ValueError(f"{path} was changed while it was read; start again")
        self._handed_out += found.nbytes
        return found

    def _file(self, path: Path) -> _Safetensors | _Pickled:
        if path not in self._mapped:
            self._mapped[path] = _Safetensors(path) if path.suffix == ".safetensors" else _Pickled(path)
        return self._mapped[path]


class _Safetensors:
    def __init__(self, path: Path):
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
        self._path, self.names = path, list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind = self._file.get_slice(name).get_dtype()
        check_dtype(name, _FLOATS_BY_NAME.get(kind, kind), self._path)
        return _FLOATS_BY_NAME[kind]

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _Pickled:
    def __init__(self, path: Path):
        self._tensors = _unpickle(path)
        self._path, self.names = path, list(self._tensors)
        for name, tensor in self._tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{path} holds {name!r}, which is no named tensor; give a file of weights alone")
            if tensor.layout != torch.strided or tensor.device.type != "cpu":
                raise ValueError(f"{path}: {name} is not a plain tensor ({tensor.layout}, {tensor.device.type})")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        check_dtype(name, self._tensors[name].dtype, self._path)
        return self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    """The dictionary of tensors in a file of torch.save, mapped where the file is a zip (torch 1.6 and later)."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors: it would run {wanted[1]}, so it was not loaded; take the model in safetensors"
            ) from None
        raise _unreadable(path, "a damaged pickle") from None
    except Exception as error:  # whatever a damaged pickle makes torch or zipfile raise
        raise _unreadable(path, error) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name; give a file of weights")
    return found


def _unreadable(path: Path, why: object) -> ValueError:
    hint = "make or copy the model again"
    try:
        with open(path, "rb") as file:
            if file.read(20) == b"version https://git-":
                hint = "it is a pointer of Git LFS, fetch the file itself with `git lfs pull`"
    except OSError:
        pass
    return ValueError(f"{path} cannot be read ({str(why).strip()[:200]}); {hint}")


class Hashed:
    """A file that is hashed (xxh3, as `train.checkpoint.checksum`) while it is written."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)

    def checksum(self) -> str:
        return self._digest.hexdigest()


def write_safetensors(
    path: Path, specs: list[tuple[str, tuple[int, ...], torch.dtype]], read: Callable[[str], torch.Tensor]
) -> str:
    """Writes one safetensors file, holding one tensor at a time; returns its checksum.

    The format (8 bytes of header length, a JSON header of names, types, shapes and offsets, the data) is fixed and public;
    readers want the data without gaps, in the order of the offsets, from a multiple of 8 bytes on.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in specs:
        begin, end = end, end + n_bytes(shape, dtype)
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        hashed = Hashed(file)
        hashed.write(len(text).to_bytes(8, "little") + text)
        for name, _, dtype in specs:
            write_tensor(hashed, read(name), dtype)
    return hashed.checksum()


def write_tensor(file: Any, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Writes a tensor's bytes (little-endian) block by block; a mapped or fp32 source never becomes resident twice."""
    flat = tensor.detach().reshape(-1)
    for block in flat.split(_WRITTEN_BYTES // 4):
        file.write(memoryview(block.to("cpu", dtype).contiguous().view(torch.uint8).numpy()))


def n_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def float_type(name: str | None) -> torch.dtype | None:
    """The dtype that a person's name for it means (f32, fp16, bfloat16, ...); None stays None: as stored.

    Raises ValueError for another name.
    """
    if name is None:
        return None
    bits = name.lower().replace("bfloat", "bf").removeprefix("float").removeprefix("fp").removeprefix("f")
    names = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
    if bits not in names:
        raise ValueError(f"dtype {name!r} is not known to this format; it holds f32, f16 and bf16")
    return names[bits]
