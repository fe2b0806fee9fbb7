"""Writes the miniature web: gzip WARC files with every record in its own member, a truth table, and the benchmark items.

Records of one site are spread over all files, as in a real crawl, so that deduplication has to look across files.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from herder import progress
from herder.corpus.miniature import mess, words
from herder.corpus.miniature.benchmark import benchmark_items
from herder.corpus.miniature.blocks import Block, plain_text
from herder.corpus.miniature.markup import render
from herder.corpus.miniature.plan import Capture, Planner, WebConfig
from herder.corpus.miniature.sites import View, page_html
from herder.records import Ledger, write_jsonl, write_table

TRUTH_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("site", pa.string()),
        ("layout", pa.string()),
        ("crawled_at", pa.string()),
        ("origin", pa.string()),
        ("kind", pa.string()),
        ("language", pa.string()),
        ("expected", pa.string()),
        ("planted", pa.list_(pa.string())),
        ("group", pa.string()),
        ("duplicate_of", pa.string()),
        ("edit", pa.float32()),
        ("pii", pa.list_(pa.string())),
        ("benchmark", pa.list_(pa.string())),
        ("boilerplate", pa.list_(pa.string())),
        ("title", pa.string()),
        ("text", pa.string()),
    ]
)
"""`expected` is "" where the record should be kept, else the reason it should not; of a `group` of duplicates any one member
should survive; `edit` is the share of words changed in a near copy; `pii` and `benchmark` list what was planted; `text` is
what extraction should return and `boilerplate` lines that it should not."""

GZIP_LEVEL = 1
TEASER_CHARACTERS = 140
TEASER_SHARE = 0.25
"""The share of pages that show openings of other pages below their own text, in layouts that do so."""
TOO_LARGE_BYTES = 11_000_000
TOO_LARGE_FROM_PAGES = 2000
"""Webs from this size on hold one page above the usual size limit (small ones would consist of little else)."""


def write_web(out: Path, config: WebConfig | None = None) -> Ledger:
    """Writes out/warc/*.warc.gz, out/truth.parquet and out/benchmark.jsonl; same config and material, same bytes.

    The ledger counts the records written (`read`), those that should be kept (`documents`), and the others by expected reason.
    """
    config = config or WebConfig()
    out = Path(out)
    captures = Planner(config).plan()
    if config.pages >= TOO_LARGE_FROM_PAGES:
        _make_too_large(next((c for c in captures if c.expected == "http_error"), captures[-1]))
    part = out / "warc.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    ledger = Ledger("miniature")
    _write_files(part, captures, config, ledger)
    shutil.rmtree(out / "warc", ignore_errors=True)
    os.replace(part, out / "warc")
    write_table(_truth(captures, ledger), out / "truth.parquet")
    items = benchmark_items(config.seed)
    write_jsonl(({**i._asdict(), "choices": list(i.choices)} for i in items), out / "benchmark.jsonl")
    return ledger


def _write_files(folder: Path, captures: list[Capture], config: WebConfig, ledger: Ledger) -> None:
    count = max(1, min(config.files, len(captures)))
    openings: dict[str, list[tuple[str, str]]] = {language: [("Home", "")] for language in words.NAVIGATION}
    for capture in captures:
        if capture.kind == "wiki" and not capture.expected:
            text = next((b.text for b in capture.blocks if b.kind == "paragraph"), "")
            openings[capture.language].append((capture.title, text[:TEASER_CHARACTERS].rpartition(" ")[0]))
    rng = random.Random(f"pages/{config.seed}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"miniature-{n:05d}.warc.gz", "wb")) for n in range(count)]
        for file in files:
            _write_record(
                file, "warcinfo", [("Content-Type", "application/warc-fields")], b"software: herder miniature web\r\n"
            )
        for number, capture in enumerate(captures):
            body = _page(capture, openings, rng)
            block, extra = _response(capture, body, rng)
            fields = [
                ("WARC-Record-ID", f"<urn:uuid:{capture.id}>"),
                ("WARC-Target-URI", capture.url),
                ("WARC-Date", capture.crawled_at),
                ("Content-Type", "application/http; msgtype=response"),
            ]
            _write_record(files[number % count], "response", fields + extra, block)
            ledger.read += 1
            ledger.bytes += len(body)
            if number % 1000 == 0:
                progress.report(number, len(captures), "pages")


def _write_record(file: BinaryIO, kind: str, fields: list[tuple[str, str]], block: bytes) -> None:
    if kind == "warcinfo":
        fields = [
            ("WARC-Record-ID", "<urn:uuid:00000000-0000-4000-8000-000000000000>"),
            ("WARC-Date", "2024-08-01T00:00:00Z"),
            *fields,
        ]
    lines = [
        "WARC/1.1",
        f"WARC-Type: {kind}",
        *(f"{name}: {value}" for name, value in fields),
        f"Content-Length: {len(block)}",
    ]
    machine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    file.write(machine.compress(head + block + b"\r\n\r\n") + machine.flush())


def _page(capture: Capture, openings: dict[str, list[tuple[str, str]]], rng: random.Random) -> bytes:
    """The page's HTML in its charset (before content encodings), or the file's bytes."""
    if capture.transport.startswith("file:"):
        return mess.other_file(random.Random(int(capture.transport[5:])))[2]
    site, title, blocks = capture.site, capture.title, capture.blocks
    if capture.transport == "mojibake":
        title, blocks = mess.mojibake(title), [Block(b.kind, mess.mojibake(b.text), b.note) for b in blocks]
    content = capture.raw or render(blocks, site.dialect, rng)
    if len(blocks) > 3 and rng.random() < 0.2:  # an advert in the middle of the text
        label, text = words.ADVERT[site.language]
        pieces = content.split("\n<p>", 2)
        if len(pieces) == 3:
            advert = f'<div class="advert"><span>{label}</span><a href="https://ads.example/">{text}</a></div>'
            content = f"{pieces[0]}\n<p>{pieces[1]}\n{advert}\n<p>{pieces[2]}"
    name = f"{rng.choice(words.GIVEN)} {rng.choice(words.FAMILY)}"
    byline = words.BYLINE[site.language].format(name=name, date=capture.crawled_at[:10])
    others = rng.choices(openings[site.language], k=9)
    teasers = tuple(others[6:]) if blocks and rng.random() < TEASER_SHARE else ()
    view = View(title, content, byline, tuple(title for title, _ in others[:6]), teasers)
    case = capture.transport
    charset = {"bare_cp1252": "", "cp1252": "windows-1252", "header_latin1": "", "utf16": ""}.get(case, "utf-8")
    html = page_html(site, view, charset)
    if case == "too_large":
        html += "<p>row of a table dump</p>\n" * (TOO_LARGE_BYTES // 27)
    if case in ("bare_cp1252", "meta_utf8_cp1252", "cp1252"):
        return html.encode("cp1252", "xmlcharrefreplace")
    return html.encode("utf-16") if case == "utf16" else html.encode()


def _response(capture: Capture, body: bytes, rng: random.Random) -> tuple[bytes, list[tuple[str, str]]]:
    """The HTTP response that carries a body, and WARC fields to add."""
    case = capture.transport
    status, content_type = "200 OK", "text/html; charset=utf-8"
    headers, extra = [], []
    if case.startswith("file:"):
        content_type = mess.other_file(random.Random(int(case[5:])))[1]
    elif case.startswith("status:"):
        status = f"{case[7:]} Error"
    elif case in _CONTENT_TYPES:
        content_type = _CONTENT_TYPES[case]
    if case in ("gzip", "deflate", "br", "zstd", "chunked_gzip", "cut_gzip", "bad_gzip"):
        name = "gzip" if "gzip" in case else case
        body = mess.compressed(body, name)
        headers.append(f"Content-Encoding: {name}")
    if case == "bare_gzip":
        body = mess.compressed(body, "gzip")
    if "chunk" in case:
        body = mess.chunked(body, rng)
        headers.append("Transfer-Encoding: chunked")
    length = len(body)
    if case in ("cut_gzip", "cut_length", "cut_chunks"):
        body = body[: length * 2 // 3]
        length = length if case == "cut_length" else len(body)
    elif case == "cut_flag":
        body, extra = body[: length // 2], [("WARC-Truncated", "length")]
        length = len(body)
    elif case == "bad_gzip":
        body = body[:20] + bytes(255 - byte for byte in body[20:60]) + body[60:]
    elif case == "strange_encoding":
        headers.append("Content-Encoding: sdch")
    elif case == "no_body":
        body, length = b"", 0
    if content_type:
        headers.append(f"Content-Type: {content_type}")
    if "chunk" not in case:
        headers.append(f"Content-Length: {length}")
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, "Server: miniature"]) + "\r\n\r\n"
    return head.encode() + body, extra


_CONTENT_TYPES = {
    "header_latin1": "text/html; charset=iso-8859-1", "bare_cp1252": "text/html", "meta_utf8_cp1252": "text/html",
    "cp1252": "text/html; charset=windows-1252", "utf16": "text/html", "as_plain": "text/plain; charset=utf-8",
    "as_octets": "application/octet-stream", "as_nothing": "",
}  # fmt: skip


def _make_too_large(capture: Capture) -> None:
    capture.transport, capture.expected, capture.planted, capture.kind = "too_large", "too_large", ["too_large"], "dump"


def _truth(captures: list[Capture], ledger: Ledger) -> pa.Table:
    """The truth table; fills the ledger's documents, characters and removals on the way."""
    rows = list(_truth_rows(captures))
    for row in rows:
        if row["expected"]:
            ledger.remove(row["expected"])
        else:
            ledger.documents += 1
            ledger.characters += len(row["text"])
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def _truth_rows(captures: list[Capture]) -> Iterator[dict]:
    copied = (
        "id",
        "url",
        "crawled_at",
        "origin",
        "kind",
        "language",
        "expected",
        "planted",
        "group",
        "duplicate_of",
        "edit",
    )
    for capture in captures:
        row = {name: getattr(capture, name) for name in copied}
        yield row | {
            "site": capture.site.domain,
            "layout": capture.site.layout,
            "pii": capture.pii,
            "benchmark": capture.benchmark,
            "boilerplate": list(capture.site.boilerplate),
            "title": capture.title,
            "text": plain_text(capture.title, capture.blocks),
        }
