"""From one HTML page to its text (paper section 3.1, "custom HTML parser"): high recall of content, precision in boilerplate.

One pass over a C-built DOM collects text blocks with what is known of each (containing elements, share of link text);
`boilerplate.py` picks the blocks that are content; the blocks are then written one under the other. Code keeps its
indentation, formulas their TeX, images their alt text, tables their rows. The text holds no markup (the paper found
markdown harmful): structure lies in `spans`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser

from herder.curate.boilerplate import choose, names
from herder.curate.charset import decode, repair_mojibake
from herder.curate.walk import ALT, CLOSE, FORMULA, Block, Frame, walk
from herder.records import Span

MAX_DEPTH = 800
"""Elements nested deeper than this are flattened: the parser's time grows with the square of the depth."""
DEPTH_SUSPECT = 20_000
"""Pages with fewer tags than this cannot be deep enough to matter: they take under a second in the worst case."""


@dataclass(slots=True)
class Page:
    """The extracted text of one page; `spans` are character ranges of `text`."""

    text: str
    spans: list[Span] = field(default_factory=list)
    title: str = ""


def extract(body: bytes | str, url: str | None = None, charset: str | None = None) -> Page:
    """The main content of an HTML page. `charset` is what the HTTP header declared; `url` is for messages only.

    Never raises on malformed pages: what cannot be read gives an empty text.
    """
    html = body if isinstance(body, str) else decode(body, charset)
    if not html.strip():
        return Page("")
    html = UNWANTED.sub("", flatten(html))
    tree = LexborHTMLParser(html)
    title = tree.css_first("title")
    blocks = walk(tree, html)
    name = " ".join(repair_mojibake(title.text()).split()) if title is not None else ""
    text, spans = assemble(choose(blocks, name))
    return Page(text, spans, CONTROL.sub("", name))


UNWANTED = re.compile("[\x00-\x08\x0b\x0e-\x1f\ufdd0-\ufdd3\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufdd0-\ufdd3\ud800-\udfff\ufeff\u00ad\u200b]")
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^>]*)>")
VOID = names("area base br col embed hr img input link meta source track wbr p li td tr th dt dd option")


def flatten(html: str) -> str:
    """Drops the tags that nest deeper than MAX_DEPTH. Ordinary pages are returned as they are, unscanned."""
    if html.count("<") < DEPTH_SUSPECT:
        return html
    depth = 0

    def keep(tag: re.Match) -> str:
        nonlocal depth
        if tag[2].lower() in VOID or tag[3].endswith("/"):
            return tag[0]
        if tag[1]:
            depth = max(depth - 1, 0)
            return tag[0] if depth < MAX_DEPTH else ""
        depth += 1
        return tag[0] if depth <= MAX_DEPTH else ""

    return TAG.sub(keep, html)


def assemble(blocks: list[Block]) -> tuple[str, list[Span]]:
    """Writes blocks one under the other: a blank line between paragraphs, one newline inside a list or a table."""
    parts: list[str] = []
    spans: list[Span] = []
    at, group, group_start, group_end = 0, None, 0, 0
    for text, kind, language, home in merge_rows(blocks):
        if kind == "code":
            found: list[Span] = [Span(0, len(text), "code", language)]
        else:
            text, found = read_marks(text)
            if kind == "heading":
                text = text.replace("\n", " ")
                found = [Span(0, len(text), "heading"), *found]
        if not text:
            continue
        if parts:
            separator = "\n" if home is not None and home is group else "\n\n"
            parts.append(separator)
            at += len(separator)
        if home is not group:
            close_group(spans, group, group_start, group_end)
            group, group_start = home, at
        spans.extend(Span(s.start + at, s.end + at, s.kind, s.language) for s in found)
        parts.append(text)
        at += len(text)
        group_end = at
    close_group(spans, group, group_start, group_end)
    spans.sort(key=lambda span: (span.start, -span.end))
    return "".join(parts), spans


GROUP_KINDS = {"table": "table", "ul": "list", "ol": "list", "menu": "list", "blockquote": "quote"}


def close_group(spans: list[Span], group, start: int, end: int) -> None:
    if group is not None and (kind := GROUP_KINDS.get(group.tag)):
        spans.append(Span(start, end, kind))


def merge_rows(blocks: list[Block]):
    """Yields (text, kind, language, home): the cells of a data table joined to one line a row, other blocks as they are.

    `home` is the outermost list, table or quotation that a block belongs to: neighbours of one home stand close together.
    """
    index, layout = 0, layout_tables(blocks)
    while index < len(blocks):
        block = blocks[index]
        row = block.frame.row
        if row is None or block.kind == "code" or id(row.table) in layout:
            yield block.text, block.kind, block.language, home_of(block.frame, layout)
            index += 1
            continue
        cells: dict[int, list[str]] = {}
        while index < len(blocks) and blocks[index].frame.row is row:
            text = blocks[index].text.replace("\n", " ")
            cells.setdefault(blocks[index].frame.cell, []).append(text)
            index += 1
        line = " | ".join(" ".join(cells.get(cell, [""])) for cell in range(max(cells) + 1))
        yield line, "row", "", home_of(block.frame, layout)


def home_of(frame: Frame, layout: set[int]) -> Frame | None:
    """The outermost list, table of data or quotation that a block lies in."""
    home, outermost = frame.home, None
    while home is not None:
        if id(home) not in layout:
            outermost = home
        home = home.parent.home
    return outermost


def layout_tables(blocks: list[Block]) -> set[int]:
    """Tables that place things on the page instead of holding data: code, headings, lists or much text in one cell."""
    layout, cells = set(), {}
    for block in blocks:
        row = block.frame.row
        if row is None:
            continue
        key = (id(row), block.frame.cell)
        cells[key] = cells.get(key, 0) + 1
        crowded = cells[key] > MAX_BLOCKS_PER_CELL or len(block.text) > MAX_CELL
        if crowded or block.kind in ("code", "heading") or block.frame.tag == "li":
            layout.add(id(row.table))
    return layout


MAX_BLOCKS_PER_CELL = 3
MAX_CELL = 600
MARKS = re.compile(f"[{FORMULA}{ALT}{CLOSE}]")
TEX_IN_TEXT = re.compile(r"\\\((?:[^\\]|\\[^)]){1,2000}?\\\)|\\\[(?:[^\\]|\\[^\]]){1,4000}?\\\]|\$\$[^$]{1,4000}\$\$")


def read_marks(text: str) -> tuple[str, list[Span]]:
    """Takes the walk's marks out of a block's text and gives them as spans; delimited TeX in the text is found here too."""
    spans: list[Span] = []
    if FORMULA in text or ALT in text or CLOSE in text:
        parts, at, opened = [], 0, None
        last = 0
        for mark in MARKS.finditer(text):
            parts.append(text[last : mark.start()])
            at += mark.start() - last
            last = mark.end()
            if mark[0] != CLOSE:
                opened = (at, "formula" if mark[0] == FORMULA else "alt")
            elif opened is not None:
                spans.append(Span(opened[0], at, opened[1]))
                opened = None
        text = "".join([*parts, text[last:]])
    if "\\" in text or "$$" in text:
        known = {span.start for span in spans}
        spans.extend(Span(*m.span(), "formula") for m in TEX_IN_TEXT.finditer(text) if m.start() not in known)
    return text, spans
