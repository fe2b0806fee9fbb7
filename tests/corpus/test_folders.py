"""Folders of html, md, txt and code; what is no text is left out or counted."""

from __future__ import annotations

import pytest
from warcs import PAGE

from herder.corpus import FolderSource, open_source
from herder.records import Ledger


def read(source) -> tuple[dict[str, str], Ledger]:
    ledger = Ledger()
    return {r.id: r.content_type for part in source.parts() for r in source.read(part, ledger)}, ledger


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "notes"
    (root / "sub").mkdir(parents=True)
    (root / "page.html").write_bytes(PAGE)
    (root / "readme.md").write_text("# Bees")
    (root / "sub" / "story.txt").write_text("Bees make honey.", encoding="utf-8")
    (root / "sub" / "tool.py").write_text("print('bees')")
    return root


def test_each_file_has_the_type_of_its_suffix(folder):
    found, ledger = read(open_source(str(folder)))
    assert found == {
        "notes/page.html": "text/html",
        "notes/readme.md": "text/markdown",
        "notes/sub/story.txt": "text/plain",
        "notes/sub/tool.py": "text/x-python",
    }
    assert ledger.read == 4
    assert ledger.removed == {}


def test_unusable_files_are_counted_with_reasons(folder):
    (folder / "blob.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "void.md").write_text("  \n")
    (folder / "fake.html").write_bytes(b"%PDF-1.4 no page")
    (folder / "huge.txt").write_text("word " * 30_000)
    found, ledger = read(open_source(str(folder), limit_bytes=100_000))
    assert len(found) == 4
    assert ledger.removed == {"binary": 1, "empty": 1, "not_html": 1, "too_large": 1}


def test_hidden_files_and_unknown_suffixes_are_no_part_of_the_corpus(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "note.txt").write_text("internal")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    assert len(read(open_source(str(folder)))[0]) == 4


@pytest.mark.parametrize("content", [{}, {"photo.jpg": b"\xff\xd8\xff"}])
def test_a_folder_without_text_is_a_clear_error(tmp_path, content):
    for name, body in content.items():
        (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=r"holds no (text|files)"):
        open_source(str(tmp_path))


def test_parts_split_the_files_without_loss(folder):
    for n in range(30):
        (folder / f"n{n:02d}.txt").write_text(f"note {n}")
    whole, _ = read(open_source(str(folder)))
    source = FolderSource(str(folder), name="notes", files_per_part=7)
    assert len(source.parts()) == 5
    assert read(source)[0] == whole


def test_text_in_latin1_or_utf16_is_not_taken_for_binary(tmp_path):
    (tmp_path / "a.txt").write_bytes("déjà vu à la plage".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("déjà vu".encode("utf-16"))
    assert len(read(open_source(str(tmp_path)))[0]) == 2
