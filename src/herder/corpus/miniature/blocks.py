"""A page before its markup: a title and blocks. The true text and the HTML come from the same blocks.

A formula within a paragraph stands between two private marks, so the text holds plain TeX and the HTML any of its forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

TEX_OPEN, TEX_CLOSE = "\ue000", "\ue001"
_MARKS = re.compile(f"[{TEX_OPEN}{TEX_CLOSE}]")


class Block(NamedTuple):
    """One piece of a page. Kinds: heading, paragraph, code, list, table, quote, formula, image.

    A list has one item a line; a table one row a line with cells between tabs; an image's text is its alt text. `note` is the
    programming language of code and the level (2, 3) of a heading.
    """

    kind: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Article:
    """One document of real text. `origin` names it across copies; `kind`: wiki, function, class, module, topic, source."""

    origin: str
    kind: str
    language: str
    title: str
    blocks: tuple[Block, ...]
    topic: str = ""


def plain_text(title: str, blocks: Iterable[Block]) -> str:
    """What extraction should return: the title, then the blocks, with blank lines between."""
    pieces = [title] if title else []
    for block in blocks:
        text = _MARKS.sub("", block.text)
        if block.kind == "table":
            text = text.replace("\t", " | ")
        pieces.append(text)
    return "\n\n".join(pieces)
