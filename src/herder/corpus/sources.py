"""One streaming interface for every source of raw pages, and `open_source`, which picks the source for an address.

A source is a frozen dataclass: it travels to worker processes, and its fields are its configuration. Work is split by parts;
a part is read by one worker into that worker's own ledger, and ledgers add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Protocol

from herder.corpus import commoncrawl, huggingface
from herder.corpus.files import listing, suffix
from herder.corpus.folders import CONTENT_TYPES, FolderSource
from herder.corpus.tables import JSONL_SUFFIXES, PARQUET_SUFFIXES, JsonlSource, ParquetSource, field_mapping
from herder.corpus.warc import WarcSource, is_warc
from herder.records import Ledger, Record


class Source(Protocol):
    """Where raw records come from."""

    name: str

    def parts(self) -> list[str]:
        """Addresses of independent units of work, in a fixed order."""

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        """Records of one part. Counts what it reads and every record it leaves out, with the reason, in `ledger`."""

    def manifest(self, part: str = "") -> list[dict]:
        """What identifies the content of the source, or of one part: per file its name, size and content hash."""


KINDS = {"warc": WarcSource, "folder": FolderSource, "jsonl": JsonlSource, "parquet": ParquetSource}


def open_source(spec: str, *, kind: str = "", **options: Any) -> Source:
    """The source for a folder, a file, a glob, a URL, `cc:CRAWL-ID[:FIRST-LAST]` or `hf:NAME[:SUBSET][@REVISION][#SPLIT]`.

    `kind` (warc, folder, jsonl, parquet) settles what a folder of mixed files is read as; `fields` maps a table's columns;
    other options are the fields of the source. Raises ValueError for what does not exist or holds nothing to read.
    """
    if "fields" in options:
        options["fields"] = field_mapping(options["fields"])
    if spec.startswith("cc:"):
        return commoncrawl.parse_spec(spec, **options)
    if spec.startswith("hf:"):
        huggingface.require("datasets", "hf")
        return huggingface.parse_spec(spec, **options)
    if kind and kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    made = KINDS[kind or _kind(spec)]
    known = made.__dataclass_fields__
    for option in options:
        if option not in known:
            raise ValueError(f"{spec}: a {made.__name__} has no option {option!r}; it has {', '.join(known)}")
    options.setdefault("name", PurePosixPath(spec.split("?")[0].rstrip("/*")).name.split(".")[0] or "corpus")
    source = made(spec, **options)
    if not source.parts():
        raise ValueError(f"{spec} holds nothing to read")
    return source


def _kind(spec: str) -> str:
    """What the files under an address are. ValueError where they are of several kinds, or of none that is known."""
    counts = dict.fromkeys(KINDS, 0)
    for path in listing(spec):
        ending = suffix(path)
        if is_warc(path):
            counts["warc"] += 1
        elif ending in PARQUET_SUFFIXES:
            counts["parquet"] += 1
        elif ending in JSONL_SUFFIXES[:2]:
            counts["jsonl"] += 1
        elif ending in CONTENT_TYPES:
            counts["folder"] += 1
    found = [name for name, count in counts.items() if count]
    if not found:
        raise ValueError(
            f"{spec} holds no text: expected .warc(.gz), .jsonl(.gz/.zst), .parquet, .html, .md, .txt or code files"
        )
    if counts["warc"]:
        return "warc"
    if len(found) > 1:
        raise ValueError(f"{spec} holds {' and '.join(found)} files; choose what to read with kind={found[0]!r}")
    return found[0]
