"""One pass over the DOM: from elements to text blocks.

The parser's pre-order traversal gives nodes without end events, so a stack of open elements is kept and compared with each node's
parent: constant time a node and no recursion, whatever the depth. Inline elements that change nothing share their parent's
frame. Marks inside a block's text (Unicode noncharacters, removed from the input before) say where formulas and alt texts
lie, so that they survive the collapse of white space.
"""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herder.curate.boilerplate import names, suspicion
from herder.curate.charset import repair_mojibake

FORMULA, ALT, CLOSE, BREAK = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"

BLOCKS = names(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption "
    "figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li listing main menu nav ol p plaintext "
    "pre search section summary table tbody td tfoot th thead tr ul xmp"
)
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
PREFORMATTED = frozenset(("pre", "listing", "xmp", "plaintext"))
DROPPED = names(
    "style noscript template iframe svg textarea select button input object embed video audio canvas map noframes "
    "noembed datalist progress meter frameset rp rt link meta base"
)
SKIPPED = frozenset([*DROPPED, "script", "head", "title"])
LISTS = frozenset(("ul", "ol", "menu", "dir"))


class Frame:
    """An open element, as far as its content cares."""

    __slots__ = (
        "above", "cell", "cells", "certain", "home", "inline", "language", "link", "named", "open_pre", "parent", "row", "skip",
        "suspect", "table", "tag", "weight", "words",
    )  # fmt: skip

    def __init__(self, tag: str, parent: Frame | None):
        self.tag, self.parent = tag, parent
        self.weight, self.cells, self.words = 0.0, -1, ""
        self.named = self.certain = self.inline = False
        if parent is None:
            self.skip = self.link = self.open_pre = False
            self.suspect = self.home = self.row = self.table = None
            self.cell, self.language = 0, ""
        else:
            self.skip, self.link, self.open_pre, self.suspect = (
                parent.skip,
                parent.link,
                parent.open_pre,
                parent.suspect,
            )
            self.home, self.row, self.table, self.cell = parent.home, parent.row, parent.table, parent.cell
            self.language = parent.language


class Block:
    """A run of inline content: one paragraph, heading, list item, cell or code block."""

    __slots__ = ("frame", "kind", "language", "length", "link_length", "text")

    def __init__(self, frame: Frame, kind: str, text: str, link_length: int, language: str = ""):
        self.frame, self.kind, self.text, self.language = frame, kind, text, language
        self.length = len(text)
        self.link_length = min(link_length, self.length)


class Walker:
    """The state of one walk: the open elements, the block being collected, and the blocks done."""

    def __init__(self):
        self.blocks: list[Block] = []
        self.pieces: list[str] = []
        self.link_length = 0
        self.block_frame: Frame | None = None

    def flush(self) -> None:
        """Ends the block being collected."""
        if not self.pieces:
            return
        frame, text = self.block_frame, "".join(self.pieces)
        if frame.open_pre:
            text = text.replace(BREAK, "\n").strip("\n").rstrip()
            if text:
                self.blocks.append(Block(frame, "code", text, 0, frame.language))
        else:
            if not text.isascii():
                text = repair_mojibake(text)  # before white space collapses: half of "à" is a no-break space
            if BREAK in text:
                lines = (" ".join(line.split()) for line in text.split(BREAK))
                text = "\n".join(line for line in lines if line)
            else:
                text = " ".join(text.split())
            if text:
                kind = "heading" if frame.tag in HEADINGS else "text"
                self.blocks.append(Block(frame, kind, text, self.link_length))
        self.pieces = []
        self.link_length = 0

    def add(self, frame: Frame, text: str) -> None:
        if not self.pieces:
            self.block_frame = frame.parent if frame.inline else frame
        self.pieces.append(text)
        if frame.link:
            self.link_length += len(text)


def walk(tree: LexborHTMLParser, html: str) -> list[Block]:
    """All text blocks of a page in reading order, boilerplate included (each block's frame says what it lies in)."""
    simplify(tree, html)
    if tree.body is None:
        return []
    walker = Walker()
    blocks_of_page, add, flush = walker.blocks, walker.add, walker.flush
    root = Frame("html", None)
    ids, frames, block_ends = [tree.body.parent.mem_id], [root], [True]
    for node in tree.body.traverse(include_text=True):
        tag = node.tag
        parent_id = node.parent.mem_id
        while ids[-1] != parent_id:
            ids.pop()
            frames.pop()
            if block_ends.pop():
                flush()
        frame = frames[-1]
        if tag == "-text":
            if not frame.skip:
                add(frame, node.text_content)
            continue
        if not node.is_element_node:
            continue
        is_block = tag in BLOCKS
        if frame.skip:
            is_block = False
        elif frame.open_pre and is_block:
            if walker.pieces and not walker.pieces[-1].endswith("\n"):
                add(frame, BREAK)
            is_block = False
        elif is_block:
            flush()
            frame = open_block(node, tag, frame)
        elif tag == "br":
            add(frame, BREAK)
        else:
            frame = open_inline(node, tag, frame, walker)
        ids.append(node.mem_id)
        frames.append(frame)
        block_ends.append(is_block)
    flush()
    return blocks_of_page


TRANSPARENT = names(
    "b i em strong u s small big font tt kbd samp var cite abbr acronym dfn mark q ins time bdi bdo wbr span label nobr"
)
GENERATED = {
    "headerlink": ".headerlink", "anchorjs": ".anchorjs-link", "viewcode": ".viewcode-link", "katex-html": ".katex-html",
    "lineno": ".linenos,.lineno,.linenodiv", "line-numbers": ".line-numbers-rows", "mw-editsection": ".mw-editsection",
    "MathJax": ".MathJax,.MathJax_Preview,.MathJax_Display", "visually-hidden": ".visually-hidden", "noprint": ".noprint",
    "screen-reader": ".screen-reader-text", "footnote-back": ".footnote-backref", "sr-only": ".sr-only",
}  # fmt: skip
HIDDEN = {
    "aria-hidden": '[aria-hidden="true"]',
    " hidden": "[hidden]",
    "display:": "span[style],a[style],b[style],i[style],font[style]",
}
"""What marks text that readers do not see as content: a word that the page must hold for it, and the selector."""


def simplify(tree: LexborHTMLParser, html: str) -> None:
    """Removes inside the parser what is never read: unwanted and invisible elements, then inline tags that change nothing.

    The parser's passes cost per tag and selector, so only those are asked for that the page holds.
    """
    tags = set(TAG_NAME.findall(html))
    if "math/tex" in html:
        for node in tree.css('script:not([type^="math/tex"])'):
            node.decompose()
        tags.discard("script")
    remove = [tag for tag in tags if tag in DROPPED or tag == "script"]
    if remove:
        tree.strip_tags(remove, recursive=True)
    classes = " ".join(set(CLASSES.findall(html)))
    for word, selector in GENERATED.items():
        if word in classes:
            for node in tree.css(selector):
                node.decompose()
    for word, selector in HIDDEN.items():
        if word in html:
            for node in tree.css(selector):
                if word != "display:" or is_invisible(node):
                    node.decompose()
    unwrap = [tag for tag in tags if tag in TRANSPARENT]
    if unwrap:
        tree.unwrap_tags(unwrap)
        tree.merge_text_nodes()


TAG_NAME = re.compile(r"<([a-z]+)")
CLASSES = re.compile(r"""\sclass=["']?([^"'>]*)""")


def is_invisible(node: LexborNode) -> bool:
    """Inline elements that a style hides. Sites that draw formulas as images hide the MathML that we want."""
    return bool(HIDDEN_STYLE.search(node.attributes.get("style") or "")) and node.css_first("math") is None


def open_block(node: LexborNode, tag: str, parent: Frame) -> Frame:
    """The frame of a block-level element: what it is suspected of, and which list, table, row and cell it is."""
    frame = Frame(tag, parent)
    attributes = node.attributes
    suspicion(frame, tag, attributes)
    if tag in PREFORMATTED:
        frame.open_pre = True
        frame.language = code_language(node, attributes, parent)
    elif tag == "tr":
        frame.row, frame.table = frame, parent.table or parent
    elif tag in ("td", "th"):
        if parent.row is not None:
            parent.row.cells += 1
            frame.cell = parent.row.cells
    elif tag == "table":
        frame.row, frame.table = None, frame
        frame.home = frame
    elif tag in LISTS or tag == "blockquote":
        frame.home = frame
    return frame


def open_inline(node: LexborNode, tag: str, parent: Frame, walker: Walker) -> Frame:
    """The frame of an inline element that matters: links, formulas, images, hidden or generated spans."""
    if tag == "a":
        attributes = node.attributes
        if parent.link or "href" not in attributes:
            return parent
        frame = inline_frame(parent)
        frame.link = True
        return frame
    if tag == "img":
        alt = useful_alt(node.attributes)
        if alt and not parent.open_pre and not (walker.pieces and alt in walker.pieces[-1]):
            walker.add(parent, f" {ALT}{alt}{CLOSE} ")
        return parent
    if tag in ("math", "script"):
        tex, display = (
            read_math(node) if tag == "math" else (node.text(), "mode=display" in (node.attributes.get("type") or ""))
        )
        if tex.strip():
            tex = " ".join(tex.split())
            walker.add(parent, f" {FORMULA}\\[{tex}\\]{CLOSE} " if display else f"{FORMULA}\\({tex}\\){CLOSE}")
        return skipping(parent)
    if tag in SKIPPED:
        return skipping(parent)
    if tag in ("sup", "sub"):
        return open_script(node, tag, parent, walker)
    if tag == "code" and parent.open_pre and not parent.language:
        parent.language = language_in(node.attributes.get("class") or "")
    return parent


def inline_frame(parent: Frame) -> Frame:
    """A frame for an inline element; its parent is always the block-level element around it."""
    frame = Frame(parent.tag, parent.parent if parent.inline else parent)
    frame.inline = True
    frame.link = parent.link
    return frame


def skipping(parent: Frame) -> Frame:
    frame = inline_frame(parent)
    frame.skip = True
    return frame


HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
EXPONENT = re.compile(r"[-+−]?\w{1,3}")
BASE = re.compile(r"(?:^|[\s(=+*/−-])(?:\d[\d.,]*|[A-Za-zα-ω]|[ckm]?m|\))$")


def open_script(node: LexborNode, tag: str, parent: Frame, walker: Walker) -> Frame:
    """Superscripts: an exponent keeps its sign (10^6, not 106); the mark of a footnote is dropped."""
    if tag == "sub" or parent.open_pre:
        return parent
    marks, text = node.attributes.get("class") or "", node.text().strip()
    if "reference" in marks or (text.startswith("[") and text.endswith("]")):
        return skipping(parent)
    if (
        EXPONENT.fullmatch(text)
        and walker.pieces
        and BASE.search(walker.pieces[-1][-12:])
        and text not in ("st", "nd", "rd", "th")
    ):
        walker.add(parent, "^")
    return parent


def read_math(node: LexborNode) -> tuple[str, bool]:
    """The TeX of a MathML element: its annotation, else its alttext, else its characters."""
    attributes = node.attributes
    annotation = node.css_first('annotation[encoding="application/x-tex"]')
    tex = annotation.text() if annotation is not None else attributes.get("alttext") or node.text(separator=" ")
    tex = tex.strip()
    if tex.startswith("{\\displaystyle") and tex.endswith("}"):
        tex = tex[len("{\\displaystyle") : -1].strip()
    return tex, attributes.get("display") == "block"


DULL_ALT = re.compile(
    r"(?:image|img|photo|picture|logo|icon|avatar|spacer|banner|thumbnail|loading)?[\s\d.:_-]*", re.IGNORECASE
)
FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|svg|webp|bmp)", re.IGNORECASE)
SMALL_IMAGE = 40


def useful_alt(attributes: dict) -> str:
    """The alt text of an image, or "" where it says nothing: generic words, file names, icons."""
    alt = " ".join((attributes.get("alt") or "").split())
    if (
        len(alt) < 5
        or DULL_ALT.fullmatch(alt)
        or FILE_NAME.fullmatch(alt)
        or "mwe-math" in (attributes.get("class") or "")
    ):
        return ""
    for side in ("width", "height"):
        size = (attributes.get(side) or "").removesuffix("px")
        if size.isdigit() and int(size) <= SMALL_IMAGE:
            return ""
    return alt


LANGUAGE_CLASS = re.compile(
    r"(?:^|[\s:])(?:language-|lang-|highlight-source-|highlight-|brush:\s*|sourceCode\s+)([\w+#-]+)"
)
NOT_A_LANGUAGE = frozenset(("default", "none", "text", "notranslate", "plaintext", "highlight", "nohighlight"))
LANGUAGES = names(
    "python python3 pycon js javascript java c cpp rust go bash sh console shell sql html css json yaml toml "
    "ruby php perl r julia haskell lua kotlin swift scala typescript ts"
)


def code_language(node: LexborNode, attributes: dict, parent: Frame) -> str:
    """The programming language that a code block's classes name, its own or those of the two elements around it."""
    for marks in (attributes.get("class"), attributes.get("data-lang"), attributes.get("lang")):
        if marks and (language := language_in(marks)):
            return language
    for around in (parent, parent.parent):
        if around is not None and around.words and (language := language_in(around.words)):
            return language
    return ""


def language_in(marks: str) -> str:
    found = LANGUAGE_CLASS.search(marks)
    name = found[1].lower() if found else next((w for w in marks.lower().split() if w in LANGUAGES), "")
    return "" if name in NOT_A_LANGUAGE else name
