"""Files of a checkpoint, as torch.distributed.checkpoint (DCP) writes and reads them (paper 3.3.1: each GPU saves its own state).

A folder holds `rank-00000.safetensors` ... with the shards each rank wrote, and `checkpoint.json`: facts, shapes, dtypes, which
part of each tensor lies where, and a checksum of every file and of itself. The one design decision: DCP's planners decide who
writes and who reads what, but its own storage pickles; here everything is data, and any tool reads the safetensors files.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, SavePlan, SavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from herder.records import replace_folder

INDEX = "checkpoint.json"
FORMAT = 1
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the dtypes a checkpoint may hold."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK = 8 << 20
"""Bytes written, read or hashed at a time: small enough that training never waits long for Python's lock."""
_SYNC_EVERY = 1 << 30
"""Bytes after which written data are forced to the disk: a stalled disk shows, and memory does not fill with dirty pages."""


class Damaged(ValueError):
    """A checkpoint that is not what was written: a file is missing, cut short or changed."""


@dataclass(frozen=True)
class File:
    """One safetensors file of a checkpoint."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Place:
    """Where a chunk of a tensor lies: its bytes begin at `begin` of file `file`."""

    file: str
    begin: int


@dataclass(frozen=True)
class Index:
    """What `checkpoint.json` says: plain facts, files by name, and DCP's metadata (`storage_data`: chunk -> Place)."""

    facts: dict
    files: dict[str, File]
    metadata: Metadata

    def to_text(self) -> str:
        """JSON with its own checksum as the last field."""
        numbers = {name: i for i, name in enumerate(self.files)}
        tensors = {}
        for name, tensor in sorted(self.metadata.state_dict_metadata.items()):
            chunks = []
            for chunk in tensor.chunks:
                place = self.metadata.storage_data[MetadataIndex(name, chunk.offsets)]
                chunks.append([numbers[place.file], place.begin, list(chunk.offsets), list(chunk.sizes)])
            tensors[name] = {
                "dtype": DTYPE_NAMES[tensor.properties.dtype],
                "shape": list(tensor.size),
                "chunks": chunks,
            }
        files = [[f.name, f.bytes, f.checksum] for f in self.files.values()]
        body = {"format": FORMAT, "facts": self.facts, "files": files, "tensors": tensors}
        return json.dumps({**body, "checksum": _hash(json.dumps(body))})

    @classmethod
    def from_text(cls, text: str, folder: Path) -> Index:
        """Raises Damaged where the text is not what `to_text` wrote, or names a place outside of the folder."""
        try:
            body = json.loads(text)
            if body.pop("checksum") != _hash(json.dumps(body)):
                raise Damaged(f"checkpoint {folder} is damaged: {INDEX} is not as it was written")
            if body["format"] != FORMAT:
                raise Damaged(f"checkpoint {folder} has format {body['format']}; this herder reads format {FORMAT}")
            files = [File(*entry) for entry in body["files"]]
            tensors, places = {}, {}
            for name, entry in body["tensors"].items():
                size, dtype = torch.Size(entry["shape"]), DTYPES[entry["dtype"]]
                chunks = []
                for number, begin, offsets, sizes in entry["chunks"]:
                    chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                    places[MetadataIndex(name, offsets)] = Place(files[number].name, begin)
                if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
                    raise Damaged(f"checkpoint {folder} lacks a part of {name}")
                tensors[name] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
        except Damaged:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise Damaged(f"checkpoint {folder} is damaged: {INDEX} is not as it was written") from None
        for file in files:
            if not re.fullmatch(r"rank-\d+\.safetensors", file.name):
                raise Damaged(f"checkpoint {folder} names the file {file.name!r}, which herder never writes")
        return cls(body["facts"], {file.name: file for file in files}, Metadata(tensors, storage_data=places))


def index_text(folder: Path) -> str:
    """The text of `checkpoint.json`. Raises Damaged for a folder that is no whole checkpoint."""
    try:
        return (folder / INDEX).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder} is no whole checkpoint: {INDEX} cannot be read ({error})") from None


def verify(folder: Path, files: Iterable[File]) -> None:
    """Reads the files and compares their lengths and checksums. Raises Damaged naming the first that differs."""
    for file in files:
        path = folder / file.name
        try:
            size, found = path.stat().st_size, checksum(path)
        except FileNotFoundError:
            raise Damaged(f"checkpoint {folder} is damaged: {file.name} is missing") from None
        except OSError as error:
            raise Damaged(f"checkpoint {folder} cannot be read: {file.name}: {error.strerror}") from None
        if size != file.bytes:
            raise Damaged(f"checkpoint {folder} is damaged: {file.name} has {size} bytes, {file.bytes} were written")
        if found != file.checksum:
            raise Damaged(
                f"checkpoint {folder} is damaged: {file.name} has checksum {found}, {file.checksum} was written"
            )


class Writer(StorageWriter):
    """Writes one checkpoint: every rank its own file into `<folder>.part`, which the coordinator renames in `finish`.

    `written` counts the bytes that have gone to the file so far; another thread may watch it.
    """

    def __init__(self, folder: Path, facts: dict | None = None):
        self.facts, self.written = facts or {}, 0
        self.reset(folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id is not None:
            self.folder = Path(checkpoint_id)
            self.part = self.folder.with_name(self.folder.name + ".part")

    def set_up_storage_writer(self, is_coordinator: bool, *args, **kwargs) -> None:
        """Makes an empty `.part` folder; no rank may write before the coordinator has done so."""
        if is_coordinator:
            self.discard()
            self.part.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Gives each rank the name of its file."""
        return [replace(plan, storage_data=f"rank-{i:05d}.safetensors") for i, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Streams this rank's shards to its file, hashing them on the way; a rank with nothing to write makes no file."""
        done: Future[list[WriteResult]] = Future()
        try:
            done.set_result(self._write(plan, planner) if plan.items else [])
        except OSError as error:  # a full disk is met in write(), which does not know its file's name
            error.filename = error.filename or str(self.part / plan.storage_data)
            raise
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        # Wide dtypes first: every tensor of the file is then aligned without gaps, which safetensors forbids.
        items = sorted(plan.items, key=lambda i: (-_dtype(i).itemsize, i.index.fqn, i.index.offset))
        sizes = [math.prod(i.tensor_data.chunk.sizes) * _dtype(i).itemsize for i in items]
        header, begin = _header(items, sizes)
        path, digest, unsynced = self.part / plan.storage_data, xxhash.xxh3_128(), 0
        with open(path, "wb", buffering=0) as file:

            def put(data: memoryview) -> None:
                nonlocal unsynced
                digest.update(data)
                while data:
                    count = file.write(data)
                    data, self.written, unsynced = data[count:], self.written + count, unsynced + count
                if unsynced >= _SYNC_EVERY:
                    os.fsync(file.fileno())
                    unsynced = 0

            put(memoryview(header))
            for item, size in zip(items, sizes, strict=True):
                data = _bytes(planner.resolve_data(item))
                assert len(data) == size, item.index
                for start in range(0, size, _BLOCK):
                    put(data[start : start + _BLOCK])
            os.fsync(file.fileno())
        written = File(path.name, begin + sum(sizes), digest.hexdigest())
        results = []
        for item, size in zip(items, sizes, strict=True):
            results.append(WriteResult(item.index, size, (written, begin)))
            begin += size
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Coordinator only: writes the index, looks at every rank's file, and renames. Raises OSError for what did not arrive."""
        places, files = {}, {}
        for result in (r for of_rank in results for r in of_rank):
            file, begin = result.storage_data
            files[file.name] = file
            places[result.index] = Place(file.name, begin)
        for file in files.values():
            path = self.part / file.name
            if not path.exists() or path.stat().st_size != file.bytes:
                raise OSError(
                    f"{path} was written by another rank and is not seen here; all ranks must share this folder"
                )
        text = Index(self.facts, files, replace(metadata, storage_data=places)).to_text()
        with open(self.part / INDEX, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        _sync_folder(self.part)
        replace_folder(self.part, self.folder)
        _sync_folder(self.folder.parent)

    def discard(self) -> None:
        """Removes what was half-written."""
        shutil.rmtree(self.part, ignore_errors=True)


class Reader(StorageReader):
    """Reads a checkpoint into tensors of any layout. Checksums are `verify`'s part, which can be shared between ranks."""

    def __init__(self, folder: Path, index: Index | None = None):
        self.folder, self.index = Path(folder), index

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return (Path(checkpoint_id) / INDEX).exists()

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id is not None:
            self.folder, self.index = Path(checkpoint_id), None

    def read_metadata(self, *args, **kwargs) -> Metadata:
        if self.index is None:
            self.index = Index.from_text(index_text(self.folder), self.folder)
        return self.index.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args, **kwargs) -> None:
        self.metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @torch.no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fills the planner's tensors in place."""
        with ExitStack() as stack:
            files = {}
            for item in plan.items:
                if 0 in item.lengths:
                    continue
                place = self.metadata.storage_data[item.storage_index]
                if place.file not in files:
                    files[place.file] = stack.enter_context(open(self.folder / place.file, "rb", buffering=0))
                target = planner.resolve_tensor(item).detach()
                self._fill(target, item, files[place.file].fileno(), place.begin)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _fill(self, target: torch.Tensor, item: ReadItem, file: int, begin: int) -> None:
        """Copies a box of a stored chunk to `target`, some rows at a time."""
        tensor = self.metadata.state_dict_metadata[item.storage_index.fqn]
        chunk = tensor.chunks[item.storage_index.index]
        if not chunk.sizes:  # a scalar is one row
            chunk, target = ChunkStorageMetadata(torch.Size([0]), torch.Size([1])), target[None]
        offsets, lengths = list(item.storage_offsets) or [0], list(item.lengths) or [1]
        dtype, columns = tensor.properties.dtype, chunk.sizes[1:]
        row_bytes = math.prod(columns) * dtype.itemsize
        rows = max(1, _BLOCK // row_bytes)
        for first in range(0, lengths[0], rows):
            count = min(rows, lengths[0] - first)
            data = _pread(file, count * row_bytes, begin + (offsets[0] + first) * row_bytes)
            block = torch.frombuffer(data, dtype=dtype).view(count, *columns)
            for dim in range(1, block.dim()):
                block = block.narrow(dim, offsets[dim], lengths[dim])
            target.narrow(0, first, count).copy_(block)


def checksum(path: Path) -> str:
    """xxh3-128 of a file, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _dtype(item: WriteItem) -> torch.dtype:
    return item.tensor_data.properties.dtype


def _header(items: list[WriteItem], sizes: list[int]) -> tuple[bytes, int]:
    """The head of a safetensors file and its length. A part of a tensor is named after its place: `name[0:4,8:16]`."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item, size in zip(items, sizes, strict=True):
        chunk, name = item.tensor_data.chunk, item.index.fqn
        if chunk.sizes != item.tensor_data.size:
            ranges = [f"{o}:{o + n}" for o, n in zip(chunk.offsets, chunk.sizes, strict=True)]
            name = f"{name}[{','.join(ranges)}]"
        entries[name] = {
            "dtype": DTYPE_NAMES[_dtype(item)],
            "shape": list(chunk.sizes),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes; a view where it is contiguous and in main memory."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _pread(file: int, count: int, at: int) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = os.preadv(file, [view[done:]], at + done)
        if not got:
            raise Damaged(f"a file of a checkpoint ends {count - done} bytes early")
        done += got
    return data


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
