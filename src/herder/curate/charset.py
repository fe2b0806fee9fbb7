"""From bytes as crawled to characters (paper section 3.1: the step before the HTML parser).

What a page declares is often wrong, and bytes that are valid UTF-8 with multi-byte characters are UTF-8 in practice whatever
was declared. So the order is: byte order mark, valid UTF-8, HTTP header, `<meta>`, detection; a declared charset is
believed only if the bytes decode under it.
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
META = re.compile(rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w:.-]{2,40})""", re.IGNORECASE)
META_WINDOW = 4096
DETECT_WINDOW = 65536


def decode(body: bytes, declared: str | None = None) -> str:
    """The characters of a page; undecodable bytes become U+FFFD. Never raises."""
    for mark, name in BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, errors="replace")
    candidates = [declared, _meta_charset(body)]
    if body.isascii():
        # Two encodings hide in ASCII bytes: ISO-2022-JP (escape sequences) and UTF-7, which no page means.
        if b"\x1b$" not in body:
            return body.decode("ascii")
        candidates.append("iso-2022-jp")
    else:
        text = _try(body, "utf-8")
        if text is not None and "\0" not in text[:META_WINDOW]:
            return text
    for name in candidates:
        if name and (text := _try(body, _html5_name(name))) is not None:
            return text
    detected = _html5_name(detect_encoding(body[:DETECT_WINDOW]) or "windows-1252")
    return _try(body, detected, errors="replace") or body.decode("utf-8", errors="replace")


def _meta_charset(body: bytes) -> str | None:
    found = META.search(body, 0, META_WINDOW)
    return found[1].decode("ascii", "ignore") if found else None


def _html5_name(name: str) -> str:
    """The WHATWG reading of a label: latin-1 means windows-1252, gb2312 means gb18030."""
    try:
        return map_encoding_to_html5(name.strip().strip("\"'"), False) or name
    except (ValueError, TypeError, AttributeError):
        return name


def _try(body: bytes, name: str, errors: str = "strict") -> str | None:
    try:
        return body.decode(name, errors=errors)
    except (UnicodeDecodeError, LookupError, ValueError):
        return _sloppy_cp1252(body) if name in ("windows-1252", "cp1252") else None


def _sloppy_cp1252(body: bytes) -> str:
    """windows-1252 as browsers read it: the five undefined bytes are control characters."""
    return "".join(SLOPPY[byte] for byte in body)


SLOPPY = [bytes([b]).decode("cp1252", errors="ignore") or chr(b) for b in range(256)]
TO_BYTE = {character: byte for byte, character in enumerate(SLOPPY)}
_LEADS2 = "".join(SLOPPY[0xC2:0xE0])
_LEADS3 = "".join(SLOPPY[0xE1:0xF0])
_TAIL = "[" + re.escape("".join(SLOPPY[0x80:0xC0])) + "]"
MOJIBAKE = re.compile(f"[{_LEADS2}]{_TAIL}|[{_LEADS3}]{_TAIL}{{2}}|[{''.join(SLOPPY[0xF0:0xF5])}]{_TAIL}{{3}}")
NON_ASCII = re.compile("[^\x00-\x7f\ufdd0-\ufdd3]+")
CERTAIN = 0.9
"""Share of a text's non-ASCII characters that must be part of a valid UTF-8-read-as-windows-1252 sequence."""


def repair_mojibake(text: str) -> str:
    """Undoes UTF-8 that was read as windows-1252 and saved again ("cafÃ©"), only where nearly every one says so.

    It is asked of each paragraph, since a broken import leaves the site's own furniture whole. A paragraph that explains
    mojibake, or holds one Portuguese capital, stays as it is: well-formed characters stand beside it.
    """
    if text.isascii() or not ("Ã" in text or "â€" in text or "Â" in text):
        return text
    broken = sum(len(found) for found in MOJIBAKE.findall(text))
    if not broken or broken < CERTAIN * sum(len(found) for found in NON_ASCII.findall(text)):
        return text
    return MOJIBAKE.sub(_reread, text)


def _reread(found: re.Match) -> str:
    try:
        return bytes(TO_BYTE[character] for character in found[0]).decode("utf-8")
    except (UnicodeDecodeError, KeyError):
        return found[0]
