"""Blocks as HTML in several dialects: semantic tags, div soup, old-style markup, and a documentation generator's."""

from __future__ import annotations

import random
import re
from html import escape

from herder.corpus.miniature.blocks import TEX_CLOSE, TEX_OPEN, Block

DIALECTS = ("semantic", "divs", "breaks", "sphinx")

_FORMULA = re.compile(f"{TEX_OPEN}([^{TEX_CLOSE}]*){TEX_CLOSE}")
_TEX_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[0-9]+|[a-zA-Z]|[^\s{}]")
_HIGHLIGHT = re.compile(
    r"(?P<c>#[^\n]*)|(?P<s>&#x27;[^\n]*?&#x27;|&quot;[^\n]*?&quot;)"
    r"|\b(?P<k>def|class|return|import|from|if|else|elif|for|while|in|not|is|None|True|False|with|as|try|except|raise)\b"
)


def render(blocks: list[Block], dialect: str, rng: random.Random) -> str:
    """The blocks' HTML. `rng` picks between equivalent forms (how formulas are embedded, classes of pre)."""
    return "\n".join(_RENDERERS[block.kind](block, dialect, rng) for block in blocks)


def heading(text: str, level: int, dialect: str) -> str:
    text = escape(text)
    if dialect == "divs":
        return f'<div class="hd hd-{level}"><span>{text}</span></div>' if level > 1 else f'<h1 class="ttl">{text}</h1>'
    if dialect == "breaks":
        return f'<p><font size="+{4 - level}"><b>{text}</b></font></p>' if level > 1 else f"<H1>{text}</H1>"
    if dialect == "sphinx":
        return f'<h{level}>{text}<a class="headerlink" href="#s{level}" title="Link to this heading">¶</a></h{level}>'
    return f"<h{level}>{text}</h{level}>"


def _heading(block: Block, dialect: str, rng: random.Random) -> str:
    return heading(block.text, int(block.note or 2), dialect)


def _paragraph(block: Block, dialect: str, rng: random.Random) -> str:
    text = _inline(block.text, rng)
    if dialect == "divs":
        return f'<div class="txt">{text}</div>'
    if dialect == "breaks":
        return f"{text}<br><br>"
    return f"<p>{text}</p>"


def _inline(text: str, rng: random.Random) -> str:
    text = escape(text, quote=False)
    if TEX_OPEN in text:
        text = _FORMULA.sub(lambda match: _formula_html(match[1], False, rng), text)
    return text


def _formula(block: Block, dialect: str, rng: random.Random) -> str:
    return f'<div class="equation">{_formula_html(escape(block.text, quote=False), True, rng)}</div>'


def _formula_html(tex: str, display: bool, rng: random.Random) -> str:
    """One of the ways the web embeds TeX: MathML with annotation, a script element, delimiters. `tex` is escaped."""
    form = rng.randrange(3)
    if form == 0:
        mode = ' display="block"' if display else ""
        note = f'<annotation encoding="application/x-tex">{tex}</annotation>'
        return f"<math{mode}><semantics><mrow>{_mathml(tex)}</mrow>{note}</semantics></math>"
    if form == 1:
        kind = "math/tex; mode=display" if display else "math/tex"
        plain = tex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return f'<script type="{kind}">{plain}</script>'
    return f"\\[{tex}\\]" if display else f"\\({tex}\\)"


def _mathml(tex: str) -> str:
    pieces = []
    for token in _TEX_TOKEN.findall(tex.replace("&lt;", "\\lt").replace("&gt;", "\\gt").replace("&amp;", "")):
        tag = "mn" if token.isdigit() else "mi" if token.isalpha() else "mo"
        pieces.append(f"<{tag}>{token.removeprefix(chr(92))}</{tag}>")
    return "".join(pieces)


def _code(block: Block, dialect: str, rng: random.Random) -> str:
    code = escape(block.text)
    if dialect == "sphinx":
        code = _HIGHLIGHT.sub(lambda m: f'<span class="{m.lastgroup}">{m[0]}</span>', code)
        return f'<div class="highlight-{block.note or "text"} notranslate"><div class="highlight"><pre>{code}\n</pre></div></div>'
    if dialect == "breaks":
        return f"<PRE>\n{code}\n</PRE>"
    attribute = f' class="language-{block.note}"' if block.note else ""
    return f"<pre><code{attribute}>{code}\n</code></pre>"


def _list(block: Block, dialect: str, rng: random.Random) -> str:
    items = [_inline(item, rng) for item in block.text.split("\n")]
    if dialect == "breaks":
        return "<UL>" + "".join(f"<LI>{item}\n" for item in items) + "</UL>"
    inner = "<p>{}</p>" if dialect == "sphinx" else "{}"
    return "<ul>\n" + "\n".join(f"<li>{inner.format(item)}</li>" for item in items) + "\n</ul>"


def _table(block: Block, dialect: str, rng: random.Random) -> str:
    first, *rest = [[escape(cell) for cell in row.split("\t")] for row in block.text.split("\n")]
    head = "".join(f"<th>{cell}</th>" for cell in first)
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rest)
    if dialect == "semantic":
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>\n</table>"
    return f'<table class="data" border="1">\n<tr>{head}</tr>\n{rows}</table>'


def _quote(block: Block, dialect: str, rng: random.Random) -> str:
    return f"<blockquote><p>{_inline(block.text, rng)}</p></blockquote>"


def _image(block: Block, dialect: str, rng: random.Random) -> str:
    image = f'<img src="/media/{rng.randrange(10**6):06d}.jpg" alt="{escape(block.text)}" width="480" height="320">'
    return f"<figure>{image}</figure>" if dialect == "semantic" else f'<div class="img">{image}</div>'


_RENDERERS = {
    "heading": _heading, "paragraph": _paragraph, "code": _code, "list": _list, "table": _table, "quote": _quote,
    "formula": _formula, "image": _image,
}  # fmt: skip
