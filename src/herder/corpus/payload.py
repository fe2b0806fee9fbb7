"""From an HTTP payload as crawled to the page's bytes: transfer and content encodings undone, and is it HTML at all.

Crawls lie about encodings (Common Crawl keeps the header after undoing the encoding; servers send gzip undeclared), so a
declared encoding is undone only where the bytes bear it out, and gzip is undone wherever its magic stands. Everything that
cannot be used leaves as `Unusable` with its reason; output is bounded, so a small bomb cannot fill the memory.
"""

from __future__ import annotations

import re
import zlib

import pyarrow as pa

GZIP_MAGIC = b"\x1f\x8b\x08"
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_BINARY_MAGIC = (
    b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"%PDF", b"PK\x03\x04", b"RIFF", b"\x00\x00\x00", b"OggS", b"ID3",
    b"wOFF", b"wOF2", b"\x7fELF", b"MZ\x90", b"7z\xbc\xaf", b"Rar!", b"BM", b"II*\x00", b"MM\x00*", b"{\\rtf",
)  # fmt: skip
_HTML_TAG = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|title|meta|link|script|style|div|p|table|span|a|h[1-6]|article|section|main"
    rb"|ul|ol|pre|font|center|br|img|b|i|strong|em)[\s>/]",
    re.IGNORECASE,
)
_OTHER_MARKUP = re.compile(
    rb"<(?:\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)?<?(?:rss|feed|svg|urlset|sitemapindex|wml|smil)[\s>]", re.I | re.S
)
SNIFF_BYTES = 4096


class Unusable(Exception):
    """A payload that goes no further; the message is the reason, as the ledger counts it."""


def decode_body(body: bytes, transfer: str, content: str, limit_bytes: int) -> bytes:
    """Undoes Transfer-Encoding, then Content-Encoding (gzip, deflate, br, zstd; several in order).

    Raises Unusable("truncated"), ("decode_error"), ("unknown_encoding") or ("too_large").
    """
    if "chunked" in transfer.lower():
        body = _dechunk(body, limit_bytes)
    for name in reversed([n.strip().lower() for n in content.split(",") if n.strip()]):
        body = _decompress(body, name, limit_bytes)
    if body.startswith(GZIP_MAGIC):
        body = _inflate(body, 31, limit_bytes)
    if len(body) > limit_bytes:
        raise Unusable("too_large")
    return body


def is_html(body: bytes, content_type: str) -> bool:
    """Whether the bytes are a HTML page. The bytes decide; the declared type only breaks ties of bare text."""
    head = body[:SNIFF_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.replace(b"\x00", b"")[2:]  # UTF-16: its ASCII tags, without the zero bytes
    if not head or head.startswith(_BINARY_MAGIC) or _OTHER_MARKUP.match(head) or head.count(b"\x00") > 2:
        return False
    tag = _HTML_TAG.search(head)
    if tag is None:
        return False
    declared = content_type in ("", "text/html", "application/xhtml+xml")
    # A JSON or script file that holds a tag inside is no page: without a HTML declaration the markup must come first.
    return head.startswith(b"<") or (declared and head[:1] not in b"{[")


def _dechunk(body: bytes, limit_bytes: int) -> bytes:
    match = _CHUNK_LINE.match(body)
    if match is None:
        return body  # declared, but already undone by the crawler
    pieces, at, size = [], 0, 0
    while match := _CHUNK_LINE.match(body, at):
        length = int(match[1], 16)
        if length == 0:
            return b"".join(pieces)
        start = match.end()
        if start + length > len(body):
            raise Unusable("truncated")
        pieces.append(body[start : start + length])
        size += length
        if size > limit_bytes:
            raise Unusable("too_large")
        at = start + length
        at += 2 if body[at : at + 2] == b"\r\n" else body[at : at + 1] == b"\n"
    raise Unusable("truncated" if at >= len(body) else "decode_error")


def _decompress(body: bytes, name: str, limit_bytes: int) -> bytes:
    if name in ("identity", "none", "utf-8", "utf8"):
        return body
    if name in ("gzip", "x-gzip"):
        return _inflate(body, 31, limit_bytes) if body.startswith(GZIP_MAGIC) else body
    if name == "deflate":
        if is_html(body, ""):
            return body
        zlib_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] * 256 + body[1]) % 31 == 0
        return _inflate(body, 15 if zlib_header else -15, limit_bytes)
    if name in ("br", "zstd"):
        return body if is_html(body, "") else _stream(body, "brotli" if name == "br" else "zstd", limit_bytes)
    raise Unusable("unknown_encoding")


def _inflate(body: bytes, window_bits: int, limit_bytes: int) -> bytes:
    machine = zlib.decompressobj(window_bits)
    try:
        plain = machine.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise Unusable("decode_error") from None
    if len(plain) > limit_bytes:
        raise Unusable("too_large")
    if not machine.eof:
        raise Unusable("truncated")
    return plain


def _stream(body: bytes, codec: str, limit_bytes: int) -> bytes:
    """Brotli and Zstandard through Arrow's codecs, which every installation has."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            plain = stream.read(limit_bytes + 1)
    except (OSError, pa.ArrowException) as error:
        raise Unusable("truncated" if "truncated" in str(error).lower() else "decode_error") from None
    if len(plain) > limit_bytes:
        raise Unusable("too_large")
    return plain
