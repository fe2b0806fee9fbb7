"""The guides' blocks marked `runnable` run in order, one guide a temporary folder, and what the documentation names exists."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = sorted(DOCS.glob("guide-*.md"))
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(python|bash) runnable(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(line, language, file name or None, code) of every runnable block."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, *found.groups()


def test_every_guide_has_something_to_run():
    assert len(GUIDES) >= 4
    assert all(list(blocks(guide)) for guide in GUIDES)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.stem)
def test_runnable_blocks_run(guide, tmp_path, monkeypatch):
    from herder.cli import app

    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    for line, language, file, code in blocks(guide):
        if file:
            Path(file).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile("\n" * line + code, str(guide), "exec"), names)
        else:
            for command in code.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(command, comments=True)
                assert program == "herder", f"{guide.name}, line {line}: only herder commands can be marked runnable"
                app(arguments, standalone_mode=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_linked_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    named = set(re.findall(r"`((?:src/herder|tests|benchmarks|recipes)/[\w/.]+)`", text))
    missing += [name for name in named if not (ROOT / name).exists() and not (ROOT / "src/herder" / name).exists()]
    assert not missing


def test_the_map_names_real_files_and_recipe_fields():
    from herder.config import encode

    rows = [line.split("|")[1:-1] for line in (DOCS / "map.md").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 4 and "`" in row[1]]
    assert len(rows) > 20
    config = encode(importlib.import_module("herder.recipes.miniature").Config(), only="all")
    for _, files, fields, tests in rows:
        for name in re.findall(r"`([^`]+)`", files):
            assert (ROOT / "src/herder" / name).exists(), name
        for name in re.findall(r"`([^`]+)`", tests):
            assert (ROOT / "tests" / name).exists(), name
        for name in re.findall(r"`([^`]+)`", fields):
            value = config
            for key in name.split("."):
                assert key in value, name
                value = value[key]
