"""Folders of html, markdown, plain text and source code. A part is a group of files, so thousands of small files cost little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from herder.config import runtime
from herder.corpus.files import filesystem, listing, manifest, open_binary, relative, suffix
from herder.corpus.payload import is_html
from herder.corpus.warc import PAGE_LIMIT_BYTES
from herder.records import Ledger, Record

FILES_PER_PART = 256
CONTENT_TYPES = {
    ".html": "text/html", ".htm": "text/html", ".xhtml": "text/html",
    ".md": "text/markdown", ".markdown": "text/markdown", ".txt": "text/plain", ".text": "text/plain",
    ".rst": "text/x-rst", ".tex": "text/x-tex",
    ".py": "text/x-python", ".pyi": "text/x-python", ".c": "text/x-c", ".h": "text/x-c", ".cc": "text/x-c++",
    ".cpp": "text/x-c++", ".hpp": "text/x-c++", ".cu": "text/x-cuda", ".rs": "text/x-rust", ".go": "text/x-go",
    ".java": "text/x-java", ".kt": "text/x-kotlin", ".scala": "text/x-scala", ".js": "text/x-javascript",
    ".ts": "text/x-typescript", ".rb": "text/x-ruby", ".php": "text/x-php", ".swift": "text/x-swift",
    ".sh": "text/x-shell", ".sql": "text/x-sql", ".r": "text/x-r", ".jl": "text/x-julia", ".hs": "text/x-haskell",
    ".lua": "text/x-lua", ".cs": "text/x-csharp",
}  # fmt: skip


@dataclass(frozen=True)
class FolderSource:
    """Text files under a folder (recursively; names starting with a dot are left out), or one text file."""

    path: str
    name: str = "folder"
    limit_bytes: int = PAGE_LIMIT_BYTES
    files_per_part: int = runtime(FILES_PER_PART)

    def parts(self) -> list[str]:
        """A part is the addresses of its files, one a line. ValueError for a folder without text."""
        paths, size = text_files(self.path), self.files_per_part
        return ["\n".join(paths[first : first + size]) for first in range(0, len(paths), size)]

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        for path in part.split("\n"):
            ledger.read += 1
            body = _body(path, ledger, self.limit_bytes)
            if body is not None:
                name = relative(self.path, path)
                yield Record(f"{self.name}/{name}", path, body, CONTENT_TYPES[suffix(path)], source=self.name)

    def manifest(self, part: str = "") -> list[dict]:
        return manifest(self.path, part.split("\n") if part else text_files(self.path))


def text_files(spec: str) -> list[str]:
    """Addresses of the files under `spec` that hold text by their suffix, sorted. ValueError if there is none."""
    root = filesystem(spec)[1]
    found = [p for p in listing(spec) if suffix(p) in CONTENT_TYPES and "\n" not in p and not _hidden(p, root)]
    if not found:
        raise ValueError(f"{spec} holds no text: no file ends in .html, .md, .txt or a known code suffix such as .py")
    return found


def _hidden(path: str, root: str) -> bool:
    inside = filesystem(path)[1].removeprefix(root)
    return any(piece.startswith(".") or piece == "__pycache__" for piece in inside.split("/"))


def _body(path: str, ledger: Ledger, limit_bytes: int) -> bytes | None:
    """The file's bytes, or None with the reason counted: unreadable, too_large, empty, binary, not_html."""
    try:
        with open_binary(path) as file:
            body = file.read(limit_bytes + 1)
    except (OSError, ValueError):
        ledger.remove("unreadable")
        return None
    ledger.bytes += len(body)
    reason = ""
    if len(body) > limit_bytes:
        reason = "too_large"
    elif not body.strip():
        reason = "empty"
    elif CONTENT_TYPES[suffix(path)] == "text/html":
        reason = "" if is_html(body, "text/html") else "not_html"
    elif is_binary(body):
        reason = "binary"
    if reason:
        ledger.remove(reason)
    return None if reason else body


def is_binary(body: bytes) -> bool:
    """Bytes that are no text in any charset: zero bytes (other than UTF-16's) or many control characters."""
    head = body[:SAMPLE_BYTES]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return False
    control = sum(head.count(bytes((c,))) for c in _CONTROL)
    return b"\x00" in head or control > len(head) / 50


SAMPLE_BYTES = 8192
_CONTROL = [c for c in range(32) if c not in (9, 10, 12, 13, 27)]
