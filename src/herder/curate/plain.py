"""Records that are text already: plain text, code and markdown (paper 3.1.1: markdown markers are removed, structure is kept)."""

from __future__ import annotations

import re

from herder.curate.charset import decode, repair_mojibake
from herder.curate.extract import CONTROL, Page
from herder.records import Span

NOT_CODE = frozenset(("text/plain", "text/markdown", "text/x-rst", ""))


def read(body: bytes, content_type: str, charset: str | None = None) -> Page:
    """The page of a record that is no HTML. Code is one span, in the language its type names (text/x-python)."""
    text = (
        CONTROL.sub("", repair_mojibake(decode(body, charset)).replace("\r\n", "\n").replace("\r", "\n"))
        .strip("\n")
        .rstrip()
    )
    if content_type == "text/markdown":
        return from_markdown(text)
    if content_type in NOT_CODE:
        return Page(text)
    language = content_type.rpartition("/")[2].removeprefix("x-")
    return Page(text, [Span(0, len(text), "code", language)] if text else [])


FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^\n]*$")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$")
UNDERLINE = re.compile(r"^ {0,3}(?:=+|-{3,})\s*$")
INLINE = (
    (re.compile(r"!\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),
    (re.compile(r"(?<![\w*])(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"(?<![\w*])[*_](?=\S)([^*_\n]+?)(?<=\S)[*_](?![\w*])"), r"\1"),
    (re.compile(r"(`+)(.+?)\1"), r"\2"),
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"^\s*(?:[-*+]|>)\s+"), ""),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!-])"), r"\1"),
)


def from_markdown(text: str) -> Page:
    """Markdown without its markers: fenced and indented code verbatim as code spans, headings as heading spans."""
    parts: list[str] = []
    spans: list[Span] = []
    at, title, lines, index = 0, "", text.split("\n"), 0
    while index < len(lines):
        line, index = lines[index], index + 1
        kind, language = "", ""
        if fence := FENCE.match(line):
            code, index = fenced(lines, index, fence[1])
            line, kind, language = "\n".join(code), "code", fence[2].lower()
        elif heading := HEADING.match(line):
            line, kind = inline(heading[1]), "heading"
        elif (
            line.strip()
            and index < len(lines)
            and UNDERLINE.match(lines[index])
            and not lines[index - 1].startswith("|")
        ):
            line, kind, index = inline(line), "heading", index + 1
        elif not line.startswith("    "):
            line = inline(line)
        if kind and line:
            spans.append(Span(at, at + len(line), kind, language))
            title = title or (line if kind == "heading" else "")
        parts.append(line)
        at += len(line) + 1
    return Page("\n".join(parts), spans, title)


def fenced(lines: list[str], index: int, fence: str) -> tuple[list[str], int]:
    """The lines of a fenced block from `index` on, and the index after its end."""
    code = []
    while index < len(lines) and not lines[index].strip().startswith(fence):
        code.append(lines[index])
        index += 1
    return code, index + 1


def inline(line: str) -> str:
    for pattern, replacement in INLINE:
        line = pattern.sub(replacement, line)
    return line
