"""`open_source` picks the source for an address, and sources travel to other processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from warcs import record, zipped

from herder.corpus import (
    Fields,
    FolderSource,
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    WarcSource,
    huggingface,
    open_source,
)
from herder.records import Ledger


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("a.warc.gz", zipped(record("a")), WarcSource),
        ("a.warc", record("a"), WarcSource),
        ("a.jsonl", b'{"text": "x"}\n', JsonlSource),
        ("a.parquet", b"", ParquetSource),
        ("a.md", b"# x", FolderSource),
    ],
)
def test_files_and_folders_of_one_kind_open_as_that_kind(tmp_path, name, body, kind):
    (tmp_path / name).write_bytes(body)
    for spec in (tmp_path / name, tmp_path, tmp_path / "*"):
        source = open_source(str(spec))
        assert type(source) is kind
        assert source.manifest()[0]["path"] == name


def test_a_folder_of_several_kinds_asks_which(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "row"}\n')
    (tmp_path / "notes.md").write_text("note")
    with pytest.raises(ValueError, match="holds folder and jsonl files; choose"):
        open_source(str(tmp_path))
    assert isinstance(open_source(str(tmp_path), kind="jsonl"), JsonlSource)


@pytest.mark.parametrize(
    ("name", "old", "new"), [("a.txt", b"one", b"two"), ("a.jsonl", b"{}", b"[]"), ("a.warc", record("a"), record("b"))]
)
def test_the_manifest_of_a_part_changes_with_its_files_and_with_no_others(tmp_path, name, old, new):
    (tmp_path / name).write_bytes(old)
    (tmp_path / f"b{name}").write_bytes(old)
    source = open_source(str(tmp_path))
    if isinstance(source, FolderSource):
        source = FolderSource(source.path, files_per_part=1)
    first, second = source.parts()
    before = source.manifest(first), source.manifest(second)
    assert source.manifest() == before[0] + before[1]
    (tmp_path / name).write_bytes(new)
    assert source.manifest(first) != before[0]
    assert source.manifest(second) == before[1]


def test_a_source_survives_pickling_and_hashing(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(zipped(record("a"), record("b")))
    source = open_source(str(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert hash(again) == hash(source)
    assert [r.id for r in again.read(again.parts()[0], Ledger())] == ["a", "b"]


def test_wrong_addresses_and_options_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(tmp_path / "missing"))
    (tmp_path / "data.bin").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="holds no text"):
        open_source(str(tmp_path / "data.bin"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="has no option 'limit'"):
        open_source(str(tmp_path / "a.txt"), limit=5)
    with pytest.raises(ValueError, match="kind='csv' is unknown"):
        open_source(str(tmp_path / "a.txt"), kind="csv")


def test_a_missing_optional_package_names_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'herder\[hf\]'"):
        open_source("hf:some/data")


def test_a_local_data_set_streams_through_the_hugging_face_source(tmp_path):
    pytest.importorskip("datasets", reason="needs the extra [hf]")
    for n in range(2):
        rows = [json.dumps({"content": f"Text {n} {i}", "key": f"{n}{i}"}) for i in range(3)]
        (tmp_path / f"train-{n}.jsonl").write_text("\n".join(rows))
    source = huggingface.parse_spec(f"hf:{tmp_path}#train", fields=Fields(text="content", id="key"))
    ledger = Ledger()
    found = [r for part in source.parts() for r in source.read(part, ledger)]
    assert sorted(r.id for r in found) == ["hf/00", "hf/01", "hf/02", "hf/10", "hf/11", "hf/12"]
    assert ledger.read == 6
    with pytest.raises(ValueError, match="no row has text in field 'text'"):
        list(huggingface.parse_spec(f"hf:{tmp_path}").read("0/1", Ledger()))


def test_a_hugging_face_spec_names_subset_revision_and_split():
    made = huggingface.parse_spec("hf:wikimedia/wikipedia:20231101.en@abc123#train[:1%]")
    assert made == HuggingFaceSource("wikimedia/wikipedia", "20231101.en", "train[:1%]", "abc123")


def test_importing_the_corpus_is_light():
    code = "import sys, herder.corpus; print([m for m in ('torch', 'datasets', 'aiohttp', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
