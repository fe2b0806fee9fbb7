"""JSONL and Parquet with field mapping. A part is a file; a row is a record whose text is already plain.

A broken line is counted, and the first such lines stand in the ledger's notes with file and line number; only a file in which
every line is broken is an error, since that is a wrong file and no bad record.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from herder.corpus.files import listing, manifest, open_binary, relative, suffix
from herder.corpus.warc import PAGE_LIMIT_BYTES
from herder.records import Ledger, Record


@dataclass(frozen=True)
class Fields:
    """Which field of a row holds what ("" = none). Dots reach into objects: "meta.url".

    `content_type` is what the text is: "text/plain", "text/html" (then it is extracted), "text/markdown", a code type.
    """

    text: str = "text"
    id: str = "id"
    url: str = "url"
    date: str = "date"
    content_type: str = "text/plain"


PLAIN_FIELDS = Fields()


@dataclass(frozen=True)
class JsonlSource:
    """JSONL files (plain, .gz, .zst) under a path or glob. `strict` makes the first broken line an error."""

    path: str
    name: str = "jsonl"
    fields: Fields = PLAIN_FIELDS
    limit_bytes: int = PAGE_LIMIT_BYTES
    strict: bool = False

    def parts(self) -> list[str]:
        return with_suffix(self.path, JSONL_SUFFIXES)

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        stem, broken, rows = relative(self.path, part), 0, 0
        for number, line in _lines(part, ledger):
            if not line.strip():
                continue
            rows += 1
            ledger.read += 1
            ledger.bytes += len(line)
            if len(line) > self.limit_bytes:
                ledger.remove("too_large")
                continue
            row, fault = _parse(line)
            if row is None:
                broken += 1
                if self.strict:
                    raise ValueError(f"{part}, line {number}: {fault}; mend or delete the line")
                ledger.remove("broken_line")
                ledger.note(f"{part}, line {number}: {fault}")
                continue
            record = row_record(row, self.fields, f"{self.name}/{stem}:{number}", self.name, ledger)
            if record is not None:
                yield record
        if rows and broken == rows:
            raise ValueError(f"{part}: none of its {rows} lines is a JSON object; give a file with one object a line")

    def manifest(self, part: str = "") -> list[dict]:
        return manifest(self.path, [part] if part else self.parts())


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files under a path or glob; only the mapped columns are read."""

    path: str
    name: str = "parquet"
    fields: Fields = PLAIN_FIELDS
    limit_bytes: int = PAGE_LIMIT_BYTES

    def parts(self) -> list[str]:
        return with_suffix(self.path, PARQUET_SUFFIXES)

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        stem, number = relative(self.path, part), 0
        with open_binary(part) as file:
            try:
                table = pq.ParquetFile(file)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{part} is no Parquet file ({str(error).splitlines()[0]})") from None
            columns = self._columns(part, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=512, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    ledger.read += 1
                    record = row_record(row, self.fields, f"{self.name}/{stem}:{number}", self.name, ledger)
                    if record is None:
                        continue
                    ledger.bytes += len(record.body)
                    if len(record.body) > self.limit_bytes:
                        ledger.remove("too_large")
                    else:
                        yield record

    def _columns(self, part: str, present: list[str]) -> list[str]:
        text = self.fields.text.split(".")[0]
        if text not in present:
            raise ValueError(
                f"{part} has no column {text!r}; map one of {', '.join(present)} with fields={{'text': ...}}"
            )
        wanted = {getattr(self.fields, f).split(".")[0] for f in ("text", "id", "url", "date")}
        return [name for name in present if name in wanted]

    def manifest(self, part: str = "") -> list[dict]:
        return manifest(self.path, [part] if part else self.parts())


JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet",)


def with_suffix(spec: str, suffixes: tuple[str, ...]) -> list[str]:
    """Addresses under `spec` with one of the suffixes. ValueError if there is none."""
    found = [p for p in listing(spec) if suffix(p) in suffixes]
    if not found:
        raise ValueError(f"{spec} holds no file that ends in {' or '.join(suffixes)}")
    return found


def field_mapping(mapping: dict[str, str] | Fields | None) -> Fields:
    """Fields from a plain mapping such as {"text": "content"}. ValueError names an unknown key."""
    if mapping is None or isinstance(mapping, Fields):
        return mapping or PLAIN_FIELDS
    known = [f.name for f in fields(Fields)]
    for key in mapping:
        if key not in known:
            raise ValueError(f"fields has no {key!r}; it maps {', '.join(known)}")
    return Fields(**mapping)


def row_record(row: dict, mapping: Fields, fallback_id: str, source: str, ledger: Ledger) -> Record | None:
    """One row as a record, or None with the reason (no_text, empty) counted."""
    text = _reach(row, mapping.text)
    if isinstance(text, bytes):
        body = text
    elif isinstance(text, str):
        body = text.encode("utf-8", "replace")  # a lone surrogate from "\\ud83d" has no UTF-8
    else:
        ledger.remove("no_text")
        return None
    if not body.strip():
        ledger.remove("empty")
        return None
    name, url, date = (_reach(row, f) for f in (mapping.id, mapping.url, mapping.date))
    identity = fallback_id if name in (None, "") else f"{source}/{name}"
    charset = "" if isinstance(text, bytes) else "utf-8"
    return Record(identity, str(url or ""), body, mapping.content_type, charset, str(date or ""), source)


def _reach(row: Any, dotted: str) -> Any:
    if not dotted:
        return None
    if isinstance(row, dict) and dotted in row:
        return row[dotted]
    for key in dotted.split("."):
        if not isinstance(row, dict):
            return None
        row = row.get(key)
    return row


def _lines(path: str, ledger: Ledger) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a plain, gzip or zstd file; a file cut short counts one `truncated` and ends."""
    with open_binary(path) as file:
        number = 0
        try:
            for number, line in enumerate(_decompressed(path, file), 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
            ledger.read += 1
            ledger.remove("truncated")
            ledger.note(f"{path}, after line {number}: {error}")


def _decompressed(path: str, file: BinaryIO) -> BinaryIO:
    lower = path.lower()
    if lower.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if lower.endswith(".zst"):
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
    return file


def _parse(line: bytes) -> tuple[dict | None, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not valid JSON ({error.msg})"
    except UnicodeDecodeError:
        return None, "not valid UTF-8"
    except RecursionError:
        return None, "nested too deeply"
    if not isinstance(row, dict):
        return None, f"expected a JSON object, found {type(row).__name__}"
    return row, ""
