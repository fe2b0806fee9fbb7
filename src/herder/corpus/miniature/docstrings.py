"""Documentation pages from Python source files: names, signatures, docstrings and source, read as data through `ast`.

Nothing is imported. A function's page always reads the same once extracted: its qualified name, a code block with the
signature, the docstring's prose, and for some a "Source code" heading with the code; later stages ask questions from that.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from herder.corpus.miniature.blocks import TEX_CLOSE, TEX_OPEN, Article, Block

SHORTEST_DOCSTRING = 120
LONGEST_PAGE = 4000
FEWEST_DOCSTRINGS = 3
LONGEST_SOURCE_LINES = 60
SOURCE_HEADING = "Source code"

_MATH_ROLE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":[a-z:+]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_TICKS = re.compile(r"``([^`]+)``|`([^`]+)`_{0,2}")
_DIRECTIVE = re.compile(r"\.\. ([a-z:-]+)::\s*(.*)")
_UNDERLINE = re.compile(r"([-=~^*\"'])\1{2,}\s*$")
_BULLET = re.compile(r"(?:[-*+•]|\d+[.)])\s+")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}\w+)*) : (.+)")
_PLACEHOLDER = re.compile(r"%\(\S+\)s|_PLACEHOLDER")  # filled in by decorators at import
_SECTION_WORDS = (
    "Args:",
    "Arguments:",
    "Parameters:",
    "Returns:",
    "Raises:",
    "Yields:",
    "Attributes:",
    "Keyword Args:",
)
_TEX_DIRECTIVES = ("math",)
_CODE_DIRECTIVES = ("code-block", "code", "testcode", "plot", "doctest", "sourcecode")


@dataclass(frozen=True)
class Module:
    """A source file and the dotted name it is imported by."""

    name: str
    path: Path


def module_pages(module: Module, with_source: float, draw) -> Iterator[Article]:
    """Pages of one file: the module, its public classes, functions and methods. `draw()` in [0, 1) decides on source code."""
    try:
        text = module.path.read_text(encoding="utf-8")
        if text.count('"""') < 2 * FEWEST_DOCSTRINGS:
            return  # parsing is most of the cost of gathering, and a file of few docstrings gives little for it
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, OSError, RecursionError, ValueError):
        return
    lines = text.splitlines()
    seen = set()
    for article in _pages(module, tree, lines, with_source, draw):
        if article.origin not in seen:  # overloads and redefinitions share a name
            seen.add(article.origin)
            yield article


def _pages(module: Module, tree: ast.Module, lines: list[str], with_source: float, draw) -> Iterator[Article]:
    doc = ast.get_docstring(tree)
    if doc and len(doc) >= SHORTEST_DOCSTRING:
        members = _summaries(tree.body)
        yield _article("module", module.name, [Block("code", f"import {module.name}", "python")], doc, members)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _class_pages(module.name, node, lines, with_source, draw)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function_page(module.name, node, lines, with_source, draw)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _added_doc(node.value)


def _class_pages(prefix: str, node: ast.ClassDef, lines: list[str], with_source: float, draw) -> Iterator[Article]:
    name = f"{prefix}.{node.name}"
    doc = ast.get_docstring(node)
    if doc and len(doc) >= SHORTEST_DOCSTRING:
        makes = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        arguments = _arguments(makes, skip_self=True) if makes else ""
        yield _article(
            "class", name, [Block("code", f"class {node.name}({arguments})", "python")], doc, _summaries(node.body)
        )
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function_page(name, member, lines, with_source, draw)


def _function_page(prefix: str, node, lines: list[str], with_source: float, draw) -> Iterator[Article]:
    if node.name.startswith("_"):
        return
    doc = ast.get_docstring(node)
    if not doc or len(doc) < SHORTEST_DOCSTRING:
        return
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = Block("code", f"{word} {node.name}({_arguments(node)}){returns}", "python")
    source: list[Block] = []
    long = (node.end_lineno or node.lineno) - node.lineno
    if draw() < with_source and long <= LONGEST_SOURCE_LINES + doc.count("\n"):
        code = _source(node, lines)
        if code:
            source = [Block("heading", SOURCE_HEADING, "2"), Block("code", code, "python")]
    yield _article("function", f"{prefix}.{node.name}", [signature], doc, source)


def _added_doc(call: ast.Call) -> Iterator[Article]:
    """torch documents its compiled functions by calls: add_docstr(torch.abs, "abs(input) -> Tensor ...")."""
    name = ast.unparse(call.func)
    if not name.endswith("add_docstr") or len(call.args) < 2:
        return
    text = call.args[1]
    while isinstance(text, ast.Call | ast.BinOp | ast.Attribute):  # r\"\"\"...\"\"\".format(...) or a sum of strings
        text = text.func if isinstance(text, ast.Call) else text.left if isinstance(text, ast.BinOp) else text.value
    if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
        return
    signature, _, doc = inspect.cleandoc(text.value).partition("\n")
    if len(doc) >= SHORTEST_DOCSTRING and "(" in signature and "{" not in doc:
        yield _article(
            "function", ast.unparse(call.args[0]), [Block("code", f"def {signature}", "python")], doc.strip(), []
        )


def _article(kind: str, name: str, before: list[Block], doc: str, after: list[Block]) -> Article:
    blocks, size = [], 0
    for block in docstring_blocks(doc):
        size += len(block.text)
        if size > LONGEST_PAGE and blocks:
            break
        blocks.append(block)
    while blocks and blocks[-1].kind == "heading":
        blocks.pop()
    return Article(f"python/{name}", kind, "en", name, (*before, *blocks, *after), topic=name.split(".")[0])


def _summaries(nodes: list[ast.stmt]) -> list[Block]:
    """The list of public members with the first line of each docstring."""
    items = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n")[0].strip()
            if first:
                items.append(f"{node.name}: {_inline(first)}")
    return [Block("heading", "Contents", "2"), Block("list", "\n".join(items[:20]))] if len(items) > 1 else []


def _arguments(node, skip_self: bool = False) -> str:
    text = ast.unparse(node.args)
    return text.partition(", ")[2] if skip_self else text


def _source(node, lines: list[str]) -> str:
    """The function's code without decorators and docstring, dedented."""
    body = node.body[1:]
    if not body:
        return ""
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    code = head + lines[node.body[0].end_lineno : node.end_lineno]
    return inspect.cleandoc("\n".join(["", *code])).expandtabs(4)


def docstring_blocks(doc: str) -> list[Block]:
    """The blocks of a docstring: reStructuredText, Google or numpy style, as a documentation site would show them."""
    blocks: list[Block] = []
    literal = False  # the paragraph before ended in "::", so an indented chunk is code
    for chunk in re.split(r"\n[ \t]*\n", doc.expandtabs(4)):
        lines = [line.rstrip() for line in chunk.split("\n") if line.strip() and not _PLACEHOLDER.search(line)]
        if len(lines) > 1 and _UNDERLINE.match(lines[1]) and not lines[0].startswith(" "):
            blocks.append(Block("heading", _inline(lines[0]), "3"))
            lines = lines[2:]
        if not lines:
            continue
        title = blocks[-1].text if blocks and blocks[-1].kind == "heading" else ""
        made = _chunk_blocks(lines, literal, title)
        literal = lines[-1].endswith("::")
        for block in made:
            if block.kind == "code" and blocks and blocks[-1].kind == "code":
                block = Block("code", f"{blocks.pop().text}\n\n{block.text}", "python")
            if block.text.strip():
                blocks.append(block)
    return blocks


def _chunk_blocks(lines: list[str], literal: bool, title: str) -> list[Block]:
    directive = _DIRECTIVE.match(lines[0].strip())
    if directive:
        return _directive(directive[1], directive[2], lines[1:])
    indents = [len(line) - len(line.lstrip()) for line in lines]
    if lines[0].lstrip().startswith(">>>") or (literal and min(indents) > 0):
        return [Block("code", _dedent(lines), "python")]
    if _BULLET.match(lines[0].lstrip()):
        return [Block("list", "\n".join(_items(lines)))]
    if lines[0].strip() in _SECTION_WORDS and len(lines) > 1:
        return [Block("heading", lines[0].strip().rstrip(":"), "3"), Block("list", "\n".join(_items(lines[1:])))]
    if min(indents) == 0 and max(indents) > 0 and (title or _ENTRY.match(lines[0])):
        return [Block("list", "\n".join(_items(lines, typed=title != "See Also")))]
    if len(lines) > 1 and min(indents) > 0 and max(indents) - min(indents) > 3:
        return [Block("code", _dedent(lines), "python")]
    text = _inline(" ".join(line.strip() for line in lines))
    return [Block("paragraph", text.removesuffix(":") if text.endswith("::") else text)]


def _directive(name: str, argument: str, lines: list[str]) -> list[Block]:
    if name in _TEX_DIRECTIVES:
        tex = " ".join([argument, *(line.strip() for line in lines)]).strip()
        return [Block("formula", tex)]
    if name in _CODE_DIRECTIVES:
        return [Block("code", _dedent([line for line in lines if not line.strip().startswith(":")]), "python")]
    text = " ".join([argument, *(line.strip() for line in lines)]).strip()
    return [Block("paragraph", _inline(text))] if len(text) > 20 else []


def _items(lines: list[str], typed: bool = True) -> list[str]:
    """Entries of a list: a line at the outermost indent starts one, deeper lines belong to the one above.

    `typed` entries "name : type" read "name (type): ..." as elsewhere; untyped ones keep their colon.
    """
    outer = min(len(line) - len(line.lstrip()) for line in lines)
    items: list[str] = []
    for line in lines:
        text = line.strip()
        if len(line) - len(line.lstrip()) == outer or not items:
            entry = _ENTRY.match(text) if typed else None
            items.append(f"{entry[1]} ({entry[2]}):" if entry else _BULLET.sub("", text, count=1))
        else:
            joint = "" if items[-1].endswith((":", ",", ".")) or " " in items[-1] else ":"
            items[-1] += f"{joint} {text}"
    return [_inline(item.removesuffix(":")) for item in items]


def _dedent(lines: list[str]) -> str:
    return inspect.cleandoc("\n".join(["", *lines]))


def _inline(text: str) -> str:
    """Prose without reStructuredText's roles and ticks."""
    if "`" not in text:
        return " ".join(text.split())
    text = _MATH_ROLE.sub(f"{TEX_OPEN}\\1{TEX_CLOSE}", text)
    text = _ROLE.sub(lambda m: m[1].lstrip("!"), text)
    return " ".join(_TICKS.sub(lambda m: (m[1] or m[2]).removeprefix("~").removeprefix("."), text).split())
