"""JSONL and Parquet with field mapping; broken lines are counted and placed."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herder.corpus import Fields, open_source
from herder.records import Ledger

ROWS = [{"text": "Bees make honey.", "id": "b1", "url": "https://example.com/1"}, {"text": "Ants dig.", "id": "a2"}]


def read(source) -> tuple[list, Ledger]:
    ledger = Ledger()
    return [r for part in source.parts() for r in source.read(part, ledger)], ledger


def lines(*rows) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", lambda b: pa.compress(b, "zstd", asbytes=True)),
    ],
)
def test_rows_become_plain_text_records(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(*ROWS)))
    found, ledger = read(open_source(str(tmp_path / name)))
    assert [(r.id, r.url, r.body, r.content_type) for r in found] == [
        ("a/b1", "https://example.com/1", b"Bees make honey.", "text/plain"),
        ("a/a2", "", b"Ants dig.", "text/plain"),
    ]
    assert ledger.read == 2


def test_fields_are_mapped_also_inside_objects(tmp_path):
    row = {"content": "<p>Bees</p>", "meta": {"link": "https://example.com/x", "when": "2024-01-01"}}
    (tmp_path / "a.jsonl").write_bytes(lines(row))
    mapping = {"text": "content", "url": "meta.link", "date": "meta.when", "content_type": "text/html"}
    [found], _ = read(open_source(str(tmp_path / "a.jsonl"), fields=mapping))
    assert (found.body, found.url, found.crawled_at) == (b"<p>Bees</p>", "https://example.com/x", "2024-01-01")
    assert found.content_type == "text/html"
    assert found.id == "a/a.jsonl:1"


def test_a_broken_line_is_counted_and_its_place_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS[0], b'{"text": "cut', ROWS[1], b"[1, 2]", b'{"text": "\xff\xfe"}', b"[" * 100_000))
    found, ledger = read(open_source(str(path)))
    assert len(found) == 2
    assert ledger.removed == {"broken_line": 4}
    assert ledger.read == 6
    assert [note.split(":")[0] for note in ledger.notes] == [f"{path}, line {n}" for n in (2, 4, 5, 6)]


def test_only_the_first_places_are_kept(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[0], *[b"{" for _ in range(500)]))
    _, ledger = read(open_source(str(tmp_path / "a.jsonl")))
    assert ledger.removed == {"broken_line": 500}
    assert len(ledger.notes) == 20


def test_a_file_of_broken_lines_only_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"not\njson\nat all\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: none of its 3 lines is a JSON object"):
        read(open_source(str(tmp_path / "a.jsonl")))


def test_strict_reading_names_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[0], b"{oops"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        read(open_source(str(tmp_path / "a.jsonl"), strict=True))


def test_rows_without_text_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[0], {"text": None}, {"text": 5}, {"text": "  "}, {"body": "x"}))
    found, ledger = read(open_source(str(tmp_path / "a.jsonl")))
    assert len(found) == 1
    assert ledger.removed == {"no_text": 3, "empty": 1}


def test_a_lone_surrogate_does_not_end_the_run(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "bees \\ud83d buzz"}\n')
    [found], _ = read(open_source(str(tmp_path / "a.jsonl")))
    assert found.body.decode("utf-8") == "bees ? buzz"


def test_a_gzip_file_cut_short_gives_what_it_has(tmp_path):
    many = lines(*({"text": f"row {n} {n * n}"} for n in range(5000)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(many)[:-3000])
    found, ledger = read(open_source(str(tmp_path / "a.jsonl.gz")))
    assert 1000 < len(found) < 5000
    assert ledger.removed["truncated"] == 1


def test_parquet_columns_are_mapped_and_others_not_read(tmp_path):
    table = pa.table({"body": ["Bees.", None, ""], "key": [7, 8, 9], "other": [[1], [2], [3]]})
    pq.write_table(table, tmp_path / "a.parquet")
    found, ledger = read(open_source(str(tmp_path / "a.parquet"), fields=Fields(text="body", id="key")))
    assert [(r.id, r.body) for r in found] == [("a/7", b"Bees.")]
    assert ledger.removed == {"no_text": 1, "empty": 1}


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'; map one of content"):
        read(open_source(str(tmp_path / "a.parquet")))


def test_a_file_that_is_no_parquet_is_a_clear_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file"):
        read(open_source(str(tmp_path / "a.parquet")))


def test_an_unknown_mapping_key_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*ROWS))
    with pytest.raises(ValueError, match="fields has no 'txt'"):
        open_source(str(tmp_path / "a.jsonl"), fields={"txt": "content"})
