"""WARC reading: every payload that can be decoded is, every other record is counted by its reason, and none is fatal."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import pyarrow as pa
import pytest
from fastwarc.warc import WarcRecord, WarcRecordType
from warcs import HTML, PAGE, record, zipped

from herder.corpus import WarcSource, open_source
from herder.corpus.warc import read_warc
from herder.records import Ledger


def read(data: bytes, **options) -> tuple[dict[str, bytes], Ledger]:
    ledger = Ledger()
    return {r.id: r.body for r in read_warc(io.BytesIO(data), ledger, "test", **options)}, ledger


def chunks(body: bytes, size: int = 17) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%X;ext=1\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def test_a_record_carries_url_date_type_and_charset():
    source = list(read_warc(io.BytesIO(zipped(record("a"))), Ledger(), "web"))
    [found] = source
    assert (found.id, found.url, found.crawled_at) == ("a", "https://example.com/a", "2024-07-01T12:00:00Z")
    assert (found.content_type, found.charset, found.source, found.body) == ("text/html", "utf-8", "web", PAGE)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Transfer-Encoding: chunked\r\n", chunks(PAGE)),
        (b"Content-Encoding: gzip\r\n", gzip.compress(PAGE)),
        (b"Content-Encoding: GZIP\r\nTransfer-Encoding: Chunked\r\n", chunks(gzip.compress(PAGE))),
        (b"Content-Encoding: deflate\r\n", zlib.compress(PAGE)),
        (b"Content-Encoding: deflate\r\n", zlib.compress(PAGE)[2:-4]),
        (b"Content-Encoding: br\r\n", pa.compress(PAGE, codec="brotli", asbytes=True)),
        (b"Content-Encoding: deflate, gzip\r\n", gzip.compress(zlib.compress(PAGE))),
        (b"", gzip.compress(PAGE)),
        (b"Content-Encoding: gzip\r\n", PAGE),
        (b"Content-Encoding: br\r\n", PAGE),
        (b"Transfer-Encoding: chunked\r\n", PAGE),
    ],
    ids=[
        "chunked",
        "gzip",
        "both",
        "zlib",
        "raw deflate",
        "brotli",
        "two",
        "undeclared",
        "false gzip",
        "false br",
        "false chunks",
    ],
)
def test_encodings_are_undone_where_the_bytes_bear_them_out(headers, body):
    found, ledger = read(zipped(record("a", body, HTML + headers)))
    assert found == {"a": PAGE}
    assert ledger.removed == {}


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("truncated", record("b", gzip.compress(PAGE)[:40], HTML + b"Content-Encoding: gzip\r\n")),
        ("truncated", record("b", chunks(PAGE)[:50], HTML + b"Transfer-Encoding: chunked\r\n")),
        ("truncated", record("b", PAGE, HTML + b"Content-Length: 5000\r\n")),
        ("truncated", record("b", PAGE, fields=b"WARC-Truncated: length\r\n")),
        ("truncated", record("b", PAGE, length=9000)),
        ("decode_error", record("b", b"\x1f\x8b\x08" + PAGE, HTML + b"Content-Encoding: gzip\r\n")),
        ("decode_error", record("b", b"\x00\xff no brotli", HTML + b"Content-Encoding: br\r\n")),
        ("unknown_encoding", record("b", PAGE, HTML + b"Content-Encoding: sdch\r\n")),
        ("http_error", record("b", PAGE, b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n")),
        ("not_html", record("b", b"%PDF-1.7 stream <p>", HTML)),
        ("not_html", record("b", b'{"html": "<p>json</p>"}', HTML)),
        ("not_html", record("b", b"User-agent: *\nDisallow: /", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")),
        ("not_html", record("b", b"\x89PNG\r\n\x1a\n" + bytes(200), HTML)),
        ("empty", record("b", b" \r\n ", HTML)),
    ],
)
def test_a_bad_record_is_counted_with_its_reason_and_its_neighbours_are_read(reason, bad):
    found, ledger = read(zipped(record("a"), bad, record("c")))
    assert list(found) == ["a", "c"]
    assert ledger.removed == {reason: 1}
    assert ledger.read == 3


@pytest.mark.parametrize("declared", [b"text/plain", b"application/octet-stream", b"image/png"])
def test_a_page_declared_as_something_else_is_still_read(declared):
    found, _ = read(zipped(record("a", PAGE, b"HTTP/1.1 200 OK\r\nContent-Type: " + declared + b"\r\n")))
    assert found == {"a": PAGE}


def test_a_page_in_utf16_is_html():
    body = PAGE.decode().encode("utf-16")
    assert read(zipped(record("a", body)))[0] == {"a": body}


@pytest.mark.parametrize("damaged", range(5))
def test_reading_resumes_after_a_damaged_member(damaged):
    members = [gzip.compress(record(f"r{i}"), mtime=0) for i in range(5)]
    broken = bytearray(members[damaged])
    broken[len(broken) // 2] ^= 0xFF
    broken[len(broken) // 2 + 1] ^= 0xFF
    found, ledger = read(b"".join([*members[:damaged], bytes(broken), *members[damaged + 1 :]]))
    assert list(found) == [f"r{i}" for i in range(5) if i != damaged]
    assert ledger.removed == {"corrupt": 1}


def test_reading_resumes_after_garbage_in_an_uncompressed_file():
    found, ledger = read(record("a") + b"\x00garbage" * 50 + b"\r\n" + record("b"))
    assert list(found) == ["a", "b"]
    assert ledger.removed == {"corrupt": 1}


def test_a_file_cut_in_the_middle_of_its_last_record_loses_only_that_record():
    found, ledger = read(zipped(record("a"), record("b"))[:-60])
    assert list(found) == ["a"]
    assert sum(ledger.removed.values()) == 1


def test_whatever_is_cut_or_flipped_every_record_is_accounted_for():
    whole = zipped(record("a"), record("b", gzip.compress(PAGE), HTML + b"Content-Encoding: gzip\r\n"), record("c"))
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        ledger = Ledger()
        count = len(list(read_warc(io.BytesIO(bytes(data)), ledger, "test")))
        assert ledger.read == count + sum(ledger.removed.values())


def test_a_page_of_50_megabytes_is_skipped_as_too_large():
    huge = PAGE + b"<p>again</p>" * (50_000_000 // 12)
    found, ledger = read(zipped(record("a"), record("b", huge), record("c")))
    assert list(found) == ["a", "c"]
    assert ledger.removed == {"too_large": 1}
    assert ledger.bytes > 50_000_000


def test_a_small_bomb_is_not_unpacked_beyond_the_limit():
    bomb = gzip.compress(PAGE + bytes(30_000_000))
    assert len(bomb) < 100_000
    _, ledger = read(zipped(record("b", bomb, HTML + b"Content-Encoding: gzip\r\n")), limit_bytes=1_000_000)
    assert ledger.removed == {"too_large": 1}


def test_the_text_of_a_wet_file_is_plain_text():
    data = zipped(record("a", b"Bees make honey.", b"", kind="conversion"))
    [found] = read_warc(io.BytesIO(data), Ledger(), "wet")
    assert (found.content_type, found.body) == ("text/plain", b"Bees make honey.")


def test_requests_and_metadata_are_no_documents():
    data = zipped(record("a", kind="request"), record("b", kind="metadata"), record("c"))
    found, ledger = read(data)
    assert list(found) == ["c"]
    assert ledger.read == 1


def test_files_of_another_writer_are_read(tmp_path):
    written = WarcRecord()
    written.init_headers(WarcRecordType.response)
    written.headers["WARC-Target-URI"] = "https://example.org/fastwarc"
    written.is_http = True
    written.set_bytes_content(HTML + b"\r\n" + PAGE)
    with open(tmp_path / "a.warc", "wb") as file:
        written.write(file, checksum_data=True)
    source = open_source(str(tmp_path / "a.warc"))
    assert isinstance(source, WarcSource)
    [found] = source.read(source.parts()[0], Ledger())
    assert (found.url, found.body) == ("https://example.org/fastwarc", PAGE)


def test_binary_that_is_no_warc_yields_nothing_and_is_counted():
    found, ledger = read(bytes(range(256)) * 400)
    assert found == {}
    assert ledger.removed == {"corrupt": 1}
    assert read(b"") == ({}, Ledger())
