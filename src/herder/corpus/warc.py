"""WARC files: responses, resources and conversions as records, through fastwarc (ISO 28500:2017; paper section 3.1.1).

A bad record is counted by its reason and skipped. Where a damaged file stops fastwarc, reading resumes at the next record
that starts cleanly, so one flipped bit costs one record, not the rest of a gigabyte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import xxhash
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from herder.config import runtime
from herder.corpus.files import PATIENT, Patience, listing, manifest, open_binary
from herder.corpus.payload import GZIP_MAGIC, Unusable, decode_body, is_html
from herder.records import Ledger, Record

PAGE_LIMIT_BYTES = 10_000_000
"""A page above this is skipped as too_large: real pages end near 1 MB (Common Crawl's own cut), the rest are data dumps."""

_WANTED = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True)
class WarcSource:
    """WARC files under a path, a glob or a URL; one file is one part."""

    path: str
    name: str = "warc"
    limit_bytes: int = PAGE_LIMIT_BYTES
    patience: Patience = runtime(PATIENT)

    def parts(self) -> list[str]:
        return [p for p in listing(self.path) if is_warc(p)] or listing(self.path)

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        with open_binary(part, self.patience) as file:
            yield from read_warc(file, ledger, self.name, self.limit_bytes)

    def manifest(self, part: str = "") -> list[dict]:
        return manifest(self.path, [part] if part else self.parts())


def is_warc(path: str) -> bool:
    return path.lower().endswith((".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz"))


def read_warc(file: BinaryIO, ledger: Ledger, source: str, limit_bytes: int = PAGE_LIMIT_BYTES) -> Iterator[Record]:
    """Records of one seekable WARC file (plain, gzip or zstd). Every record seen is in `ledger`, used or not.

    Reasons: truncated, corrupt, http_error, bad_http, not_html, too_large, decode_error, unknown_encoding, empty.
    """
    start = 0
    compressed = file.read(3) == GZIP_MAGIC
    counted = False  # the damage ahead is in the ledger already
    while True:
        file.seek(start)
        progress = start  # where the last record that was seen starts
        resume = seen = False
        try:
            for warc in ArchiveIterator(file, record_types=_WANTED, parse_http=False):
                progress, counted, seen = warc.stream_pos, False, True
                ledger.read += 1
                try:
                    yield _record(warc, ledger, source, limit_bytes)
                except Unusable as reason:
                    ledger.remove(str(reason))
                    if resume := str(reason) == "truncated" and _short(warc):
                        break  # its declared length ran over the records behind it
        except ConnectionError:
            raise  # the server is gone, the file is not broken
        except OSError:
            if not counted:
                ledger.read += 1
                ledger.remove("corrupt")
            # A member whose start is whole is tried once more from there: that second failure is the same damage.
            counted = seen
            resume = True
        if not resume:
            return
        found = _next_record(file, progress + 1, compressed)
        if found is None:
            return
        start = found


def _record(warc: WarcRecord, ledger: Ledger, source: str, limit_bytes: int) -> Record:
    kind = warc.record_type
    headers, content_type, charset = {}, "", ""
    if warc.content_length > limit_bytes:
        ledger.bytes += warc.content_length
        raise Unusable("too_large")
    if warc.is_http and kind == WarcRecordType.response:
        warc.parse_http(quirks_mode=True)
        if warc.http_headers is None:
            raise Unusable("bad_http")
        headers = {key.lower(): value for key, value in warc.http_headers.items()}
        content_type, charset = (warc.http_content_type or "").lower(), warc.http_charset or ""
    else:
        content_type = (warc.headers.get("Content-Type") or "").split(";")[0].strip().lower()
    body = warc.reader.read()
    ledger.bytes += len(body)
    if len(body) < warc.content_length or warc.headers.get("WARC-Truncated"):
        raise Unusable("truncated")
    if headers:
        body = _http_body(warc, headers, body, limit_bytes)
    if not body.strip():
        raise Unusable("empty")
    if kind == WarcRecordType.conversion and content_type == "text/plain":
        charset = charset or "utf-8"  # a WET record: the text that the crawl itself extracted
    elif is_html(body, content_type):
        content_type = "text/html"
    else:
        raise Unusable("not_html")
    url = (warc.headers.get("WARC-Target-URI") or "").strip("<>")
    date = (warc.headers.get("WARC-Date") or "")[:25]
    return Record(_record_id(warc, url, date), url, body, content_type, charset, date, source)


def _http_body(warc: WarcRecord, headers: dict[str, str], body: bytes, limit_bytes: int) -> bytes:
    if warc.http_headers.status_code != 200:
        raise Unusable("http_error")
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > len(body):
        raise Unusable("truncated")
    transfer, content = headers.get("transfer-encoding", ""), headers.get("content-encoding", "")
    return decode_body(body, transfer, content, limit_bytes)


def _record_id(warc: WarcRecord, url: str, date: str) -> str:
    """The record's own UUID; where a writer gave none, a hash of what makes the capture unique."""
    given = (warc.headers.get("WARC-Record-ID") or "").strip("<>").removeprefix("urn:").removeprefix("uuid:")
    return given or xxhash.xxh3_128_hexdigest(f"{url} {date} {warc.stream_pos}")


def _short(warc: WarcRecord) -> bool:
    """Whether a record has less content than it declares (as opposed to a crawler's own cut, which is well framed)."""
    return not warc.headers.get("WARC-Truncated")


def _next_record(file: BinaryIO, start: int, compressed: bool) -> int | None:
    """The offset of the next record at or after `start` that begins cleanly; None at the end of the file."""
    magic = GZIP_MAGIC if compressed else b"\nWARC/1."
    at, tail = start, b""
    file.seek(start)
    while block := file.read(_SCAN_BYTES):
        window, found = tail + block, -1
        base = at - len(tail)
        while (found := window.find(magic, found + 1)) >= 0:
            if not compressed:
                return base + found + 1
            if _starts_warc(file, base + found, window[found:]):
                return base + found
        at += len(block)
        tail = window[-(len(magic) - 1) :]
    return None


def _starts_warc(file: BinaryIO, offset: int, seen: bytes) -> bool:
    """Whether the gzip member at `offset` opens with a WARC version line (the magic also occurs by chance)."""
    if len(seen) < 256:
        here = file.tell()
        file.seek(offset)
        seen = file.read(256)
        file.seek(here)
    try:
        return zlib.decompressobj(31).decompress(seen[:256], 5) == b"WARC/"
    except zlib.error:
        return False
