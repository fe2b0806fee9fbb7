"""Data sets of the Hugging Face Hub (or a local folder in its layout), streamed by shards; the extra [hf]."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herder.corpus.tables import PLAIN_FIELDS, Fields, row_record
from herder.corpus.warc import PAGE_LIMIT_BYTES
from herder.records import Ledger, Record

_SPEC = re.compile(r"hf:(?P<dataset>[^@#:]+)(?::(?P<subset>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?")


@dataclass(frozen=True)
class HuggingFaceSource:
    """One split of a data set. Pin `revision` (a commit) to give the data a stable identity."""

    dataset: str
    subset: str = ""
    split: str = "train"
    revision: str = ""
    name: str = "hf"
    fields: Fields = PLAIN_FIELDS
    limit_bytes: int = PAGE_LIMIT_BYTES

    def parts(self) -> list[str]:
        count = max(1, getattr(self._stream(), "num_shards", 1) or 1)
        return [f"{index}/{count}" for index in range(count)]

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        index, count = (int(n) for n in part.split("/"))
        stream = self._stream()
        if count > 1:
            stream = stream.shard(num_shards=count, index=index)
        seen = found = 0
        for number, row in enumerate(stream):
            seen += 1
            ledger.read += 1
            record = row_record(row, self.fields, f"{self.name}/{self.split}:{part}:{number}", self.name, ledger)
            if record is None:
                continue
            found += 1
            ledger.bytes += len(record.body)
            if len(record.body) > self.limit_bytes:
                ledger.remove("too_large")
            else:
                yield record
        if seen and not found:
            raise ValueError(
                f"hf:{self.dataset}: no row has text in field {self.fields.text!r}; map it with fields={{'text': ...}}"
            )

    def manifest(self, part: str = "") -> list[dict]:
        row = {"path": f"hf:{self.dataset}", "subset": self.subset, "split": self.split, "revision": self.revision}
        return [row | {"part": part}] if part else [row]

    def rows(self) -> Iterator[dict]:
        """The rows as the data set has them, for who wants more than text (dialogues)."""
        return (dict(row) for row in self._stream())

    def _stream(self) -> Any:
        load_dataset = require("datasets", "hf").load_dataset
        try:
            return load_dataset(
                self.dataset, self.subset or None, split=self.split, revision=self.revision or None, streaming=True
            )
        except (FileNotFoundError, ValueError, ConnectionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"hf:{self.dataset} cannot be opened: {reason}") from None


def parse_spec(spec: str, **options) -> HuggingFaceSource:
    """`hf:NAME[:SUBSET][@REVISION][#SPLIT]`, for instance hf:wikimedia/wikipedia:20231101.en#train."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r}: give hf:NAME, hf:NAME:SUBSET, with @REVISION and #SPLIT where needed")
    chosen = {key: value for key, value in match.groupdict().items() if value}
    return HuggingFaceSource(**(chosen | options))


def require(module: str, extra: str) -> Any:
    """An optional package, or a ValueError with the one command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"the package {module!r} is missing; install it with: pip install 'herder[{extra}]'") from None
