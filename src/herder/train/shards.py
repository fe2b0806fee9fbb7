"""Token shards: memory-mapped uint32 tokens with document offsets, one folder per source, and a ledger.

`<source>/tokens.bin` holds every document as begin_of_text, its tokens, end_of_text; `<source>/offsets.npy` (documents + 1,
int64) says where each begins; `<source>/bytes.npy` how many UTF-8 bytes of text it stands for, so that a loss in nats per
token can be told in bits per byte.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herder import progress
from herder.records import Ledger, check_replaceable, replace_folder
from herder.tokenizer import Tokenizer

ENCODE_DOCUMENTS = 512
"""Documents encoded at a time: enough to keep the encoder's threads busy, little enough to stay small in memory."""


def write_shards(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, out: Path, threads: int = 2
) -> list[Ledger]:
    """Encodes (source, text) pairs into shards under `out`; returns a ledger per source, also written to `ledger.json`.

    Older shards there are replaced once the new ones are whole. Raises ValueError where a source's name cannot be a folder, or
    `out` holds something else.
    """
    begin, end = tokenizer.document_ids
    out = Path(out)
    check_replaceable(out, "ledger.json")
    part = out.with_name(out.name + ".herder.part")
    shutil.rmtree(part, ignore_errors=True)
    writers: dict[str, _Writer] = {}
    pending: list[tuple[str, str]] = []
    done = 0

    def flush() -> None:
        encoded = tokenizer.encode_batch([text for _, text in pending], threads=threads)
        for (source, text), ids in zip(pending, encoded, strict=True):
            if source not in writers:
                writers[source] = _Writer(part, source)
            writers[source].add([begin, *ids, end], text)
        pending.clear()

    for source, text in documents:
        pending.append((source, text))
        if len(pending) == ENCODE_DOCUMENTS:
            done += len(pending)
            flush()
            progress.report(done, unit="documents")
    flush()
    if not writers:
        raise ValueError(
            f"no documents to tokenize for {out.name}: none was kept, or its split is empty; see the ledger of the curated "
            "corpus, and raise curate.heldout_share for a small corpus"
        )
    ledgers = [writers[source].close() for source in sorted(writers)]
    (part / "ledger.json").write_text(json.dumps([ledger.to_json() for ledger in ledgers], indent=1))
    replace_folder(part, out)
    return ledgers


class _Writer:
    def __init__(self, out: Path, source: str):
        if not source or "/" in source or source.startswith("."):
            raise ValueError(f"source name {source!r} cannot be a folder name; use letters, digits, '-' and '_'")
        self.folder = out / source
        self.folder.mkdir(parents=True)
        self.file = open(self.folder / "tokens.bin", "wb")  # noqa: SIM115, closed in close()
        self.ledger = Ledger(source)
        self.offsets, self.bytes = [0], []

    def add(self, ids: list[int], text: str) -> None:
        self.file.write(np.asarray(ids, dtype=np.uint32).data)
        self.offsets.append(self.offsets[-1] + len(ids))
        self.bytes.append(len(text.encode("utf-8", "replace")))
        self.ledger.read += 1
        self.ledger.documents += 1
        self.ledger.characters += len(text)
        self.ledger.bytes += self.bytes[-1]
        self.ledger.tokens += len(ids)

    def close(self) -> Ledger:
        self.file.close()
        for name, values in (("offsets", self.offsets), ("bytes", self.bytes)):
            whole = io.BytesIO()  # numpy writing to a file itself tells a full disk without its error number
            np.save(whole, np.asarray(values, dtype=np.int64), allow_pickle=False)
            (self.folder / f"{name}.npy").write_bytes(whole.getbuffer())
        return self.ledger


@dataclass(frozen=True)
class Source:
    """One source's tokens: `tokens` (memory-mapped), `offsets` (documents + 1), `bytes` (documents)."""

    name: str
    tokens: np.ndarray
    offsets: np.ndarray
    bytes: np.ndarray

    @property
    def n_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


class TokenShards:
    """The sources of folders written by `write_shards`. Raises ValueError where one is missing or damaged, or where two have a
    source of the same name."""

    def __init__(self, folder: Path, *more: Path):
        self.folder, self.sources = Path(folder), {}
        for place in (self.folder, *map(Path, more)):
            if not (place / "ledger.json").exists():
                raise ValueError(
                    f"{place} holds no token shards (ledger.json is missing); make them with a tokenize step"
                )
            for ledger in json.loads((place / "ledger.json").read_text()):
                name = ledger["source"]
                if name in self.sources:
                    raise ValueError(
                        f"{place} has a source {name!r}, and so has {folder}; give one of them another name"
                    )
                self.sources[name] = self._open(place, name)

    def _open(self, place: Path, name: str) -> Source:
        folder = place / name
        offsets, n_bytes = np.load(folder / "offsets.npy"), np.load(folder / "bytes.npy")
        size = (folder / "tokens.bin").stat().st_size
        if size != 4 * offsets[-1] or len(n_bytes) != len(offsets) - 1:
            raise ValueError(
                f"{folder}/tokens.bin has {size} bytes where its offsets say {4 * offsets[-1]}; delete it and run again"
            )
        return Source(name, np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r"), offsets, n_bytes)
