"""The header of a GGUF file: metadata and where each tensor lies (llama.cpp's container, versions 2 and 3, little-endian).

A parser of our own, since tokenizers are read from GGUF files without any optional package, and since the usual reader
takes 2.7 s for the 49K vocabulary of SmolLM2 (this one 0.03 s) and trusts every count. The one design decision: no
length, count or offset is believed before it is held against the bytes that are there, so a damaged or hostile file
costs a ValueError that names it, and never memory beyond a small multiple of `HEADER_BYTES`. Tensor data is not read.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
HEADER_BYTES = 64 * 2**20
"""Most bytes of metadata and tensor list that are read; a vocabulary of 262K with its merges takes 12 MiB."""
MOST_DIMENSIONS = 4

BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""ggml's number of a tensor type -> (name, elements in a block, bytes of a block)."""

_CODES = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1", 10: "u8", 11: "i8", 12: "f8"}
_DTYPES = {kind: np.dtype(f"<{code}") for kind, code in _CODES.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` has the outermost dimension first, `type` is ggml's name ("Q4_0"), `offset` counts
    from the file's first byte and `bytes` is the length of the stored data."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A parsed header. Values of `metadata` are int, float, bool, str, or a list of one of these."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf(path: Path | str) -> Gguf:
    """Reads the header. Raises ValueError, naming the file and the field, for whatever is not a whole GGUF file:
    truncated anywhere, tensors outside the file or over each other, counts that the file cannot hold."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a GGUF file")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ValueError(f"{path} is empty; copy the file again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Header(path, data, size).read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None


class Header:
    """A cursor over the bytes of a file's beginning; every step checks that what it wants is there."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, size: int):
        self.path, self.data, self.size = path, data, size
        self.position, self.end = 0, min(size, HEADER_BYTES)

    def read(self) -> Gguf:
        n_tensors, n_pairs = self._preamble()
        metadata: dict[str, Any] = {}
        for i in range(n_pairs):
            key = self._string(f"the key of metadata entry {i}")
            if key in metadata:
                raise self._refusal(f"holds the metadata key {key!r} twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), f"the value of {key!r}")
        stated = [self._tensor(i) for i in range(n_tensors)]
        tensors = self._placed(stated, self._alignment(metadata))
        return Gguf(self.path, metadata, tensors)

    def _preamble(self) -> tuple[int, int]:
        """Magic, version and the two counts: (tensors, metadata entries)."""
        if bytes(self.data[:4]) != MAGIC:
            raise self._refusal("is not a GGUF file (it does not begin with the letters GGUF)")
        self.position = 4
        version = self._u32("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in VERSIONS:
                raise self._refusal("is a big-endian GGUF file; export it again as little-endian")
            raise self._refusal(f"is a GGUF file of version {version}; versions 2 and 3 can be read")
        n_tensors, n_pairs = self._u64("the number of tensors"), self._u64("the number of metadata entries")
        left = self.end - self.position
        for count, least, what in ((n_pairs, 13, "metadata entries"), (n_tensors, 24, "tensors")):  # smallest encodings
            if count * least > left:
                raise self._refusal(f"states {count} {what}, more than its {self.size} bytes can hold")
        return n_tensors, n_pairs

    def _value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            item, count = self._u32(what), self._u64(what)
            return self._strings(count, what) if item == _STRING else self._numbers(item, count, what)
        return self._numbers(kind, 1, what)[0]

    def _numbers(self, kind: int, count: int, what: str) -> list:
        if kind not in _DTYPES:
            raise self._refusal(f"has an unknown type number {kind} in {what}")
        start = self._take(count * _DTYPES[kind].itemsize, what)
        values = np.frombuffer(self.data[start : self.position], _DTYPES[kind])
        return (values != 0 if kind == _BOOL else values).tolist()

    def _strings(self, count: int, what: str) -> list[str]:
        if count * _U64.size > self.end - self.position:
            raise self._truncated(what)
        data, position, end, length, out = self.data, self.position, self.end, _U64.unpack_from, []
        try:
            for _ in range(count):
                start = position + 8
                position = start + length(data, position)[0]
                if position > end:
                    raise self._truncated(what)
                out.append(data[start:position].decode())
        except struct.error:
            raise self._truncated(what) from None
        except UnicodeDecodeError:
            raise self._refusal(f"holds text that is not UTF-8 in {what}") from None
        self.position = position
        return out

    def _string(self, what: str) -> str:
        return self._strings(1, what)[0]

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type number, offset from the data's beginning) as stated."""
        name = self._string(f"the name of tensor {index}")
        what = f"the entry of tensor {name!r}"
        n_dims = self._u32(what)
        if n_dims > MOST_DIMENSIONS:
            raise self._refusal(f"gives tensor {name!r} {n_dims} dimensions; {MOST_DIMENSIONS} are the most there are")
        shape = tuple(self._u64(what) for _ in range(n_dims))[::-1]
        return name, shape, self._u32(what), self._u64(what)

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= HEADER_BYTES or alignment & (alignment - 1):
            raise self._refusal(f"states the alignment {alignment!r}; it must be a power of two")
        return alignment

    def _placed(self, stated: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, TensorInfo]:
        """The tensors with absolute offsets, each within the file and apart from the others."""
        begin = -(-self.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, number, offset in stated:
            if name in tensors:
                raise self._refusal(f"holds the tensor {name!r} twice")
            if number not in BLOCKS:
                raise self._refusal(f"gives tensor {name!r} the unknown type number {number}")
            kind, block, block_bytes = BLOCKS[number]
            row, elements = shape[-1] if shape else 1, math.prod(shape)
            if elements == 0 or row % block:
                raise self._refusal(f"gives tensor {name!r} the shape {shape}, which type {kind} cannot have")
            if offset % alignment:
                raise self._refusal(f"places tensor {name!r} at {offset}, which is no multiple of {alignment}")
            info = TensorInfo(name, shape, kind, begin + offset, elements // block * block_bytes)
            if info.offset + info.bytes > self.size:
                raise self._refusal(
                    f"ends at byte {self.size}, but tensor {name!r} reaches to byte {info.offset + info.bytes}; "
                    "the file is truncated, copy it again"
                )
            tensors[name] = info
        ordered = sorted(tensors.values(), key=lambda t: t.offset)
        for first, second in pairwise(ordered):
            if first.offset + first.bytes > second.offset:
                raise self._refusal(f"lays tensor {second.name!r} over tensor {first.name!r}")
        return tensors

    def _u32(self, what: str) -> int:
        return _U32.unpack_from(self.data, self._take(4, what))[0]

    def _u64(self, what: str) -> int:
        return _U64.unpack_from(self.data, self._take(8, what))[0]

    def _take(self, count: int, what: str) -> int:
        """Moves past `count` bytes and returns where they begin."""
        start = self.position
        if count > self.end - start:
            raise self._truncated(what)
        self.position = start + count
        return start

    def _truncated(self, what: str) -> ValueError:
        if self.end < self.size:
            return self._refusal(f"has a header of more than {HEADER_BYTES >> 20} MiB (in {what}); it is no model file")
        return self._refusal(f"is damaged or truncated: it ends within {what}; copy the file again")

    def _refusal(self, what: str) -> ValueError:
        return ValueError(f"{self.path} {what}")
