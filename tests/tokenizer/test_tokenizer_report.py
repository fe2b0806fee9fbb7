"""Comparison of tokenizers: figures against sums by hand."""

import json

import pyarrow as pa
import pytest

from herder.records import Document, Span, write_documents, write_table
from herder.tokenizer import Tokenizer
from herder.tokenizer.report import Sample, open_encoders, read_samples, report

SAMPLES = [
    ("the cat and the hat", "en", "prose"),
    ("Grüße aus Köln, schöne Grüße", "de", "prose"),
    ("def f(x): return x", "en", "code"),
    ("", "en", "code"),
    ("日本語", "", ""),
]


@pytest.fixture(scope="module")
def paths(tok, corpus, tmp_path_factory):
    """A byte tokenizer and the trained one."""
    folder = tmp_path_factory.mktemp("tokenizers")
    Tokenizer({bytes([byte]): byte for byte in range(256)}, []).save(folder / "bytes")
    tok.save(folder / "trained")
    return [folder / "bytes", folder / "trained"]


@pytest.fixture
def rows(paths, tmp_path):
    report(paths, iter(SAMPLES), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())["rows"]
    return {(row["tokenizer"], row["group"]): row for row in found}


def test_every_group_has_every_tokenizer(rows):
    groups = list(dict.fromkeys(group for _, group in rows))
    assert groups == ["all", "language en", "language de", "domain prose", "domain code"]
    assert {name for name, _ in rows} == {"bytes", "trained"}
    assert rows["bytes", "all"]["documents"] == 4


def test_figures_are_sums_over_documents(rows, tok):
    english = [text for text, language, _ in SAMPLES if language == "en"]
    characters, tokens = sum(map(len, english)), sum(len(tok.encode(text)) for text in english)
    found = rows["trained", "language en"]
    assert found["characters_per_token"]["value"] == pytest.approx(characters / tokens)
    assert found["fewer"]["value"] == pytest.approx(1 - tokens / characters)  # English: a byte a character
    assert found["fewer"]["low"] <= found["fewer"]["value"] <= found["fewer"]["high"]
    german = len(SAMPLES[1][0].encode()) / len(tok.encode(SAMPLES[1][0]))
    assert rows["trained", "language de"]["bytes_per_token"]["value"] == pytest.approx(german)


def test_the_first_tokenizer_saves_nothing_on_itself(rows):
    assert rows["bytes", "all"]["fewer"]["value"] == 0
    assert rows["bytes", "all"]["bytes_per_token"]["value"] == 1


def test_the_table_and_a_plot_are_written(paths, tmp_path):
    text = report(paths, SAMPLES, tmp_path)
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == text
    assert "language de, 1 document\n" in text
    assert "trained (2,048)" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_one_tokenizer_alone_is_measured_too(paths, tmp_path):
    assert "trained" in report(paths[1:], SAMPLES, tmp_path)


def test_files_are_told_apart_by_their_folders(paths):
    found = open_encoders([paths[0] / "tokenizer.json", paths[1] / "tokenizer.model"])
    assert [encoder.name for encoder in found] == ["bytes", "trained"]
    assert len({e.name for e in open_encoders([paths[0], paths[0]])}) == 2


def test_a_kind_that_herder_cannot_express_is_counted_by_tokenizers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (the test extra has it)")
    vocab = {"<unk>": 0, "▁": 1, "▁a": 2, "b": 3, "a": 4}
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>"))
    foreign.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    foreign.save(str(tmp_path / "tokenizer.json"))
    encoder = open_encoders([tmp_path])[0]
    assert (encoder.n_vocab, encoder.count([" ab", " a\ud800", "<unk>"])) == (5, [2, 2, 5])


def test_what_no_tool_reads_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3, "merges": []}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        report([tmp_path], SAMPLES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no tokenizer is given"):
        report([], SAMPLES, tmp_path / "out")


def test_no_text_is_refused(paths, tmp_path):
    with pytest.raises(ValueError, match="no text"):
        report(paths, [("", "en", "")], tmp_path)


def test_samples_of_a_jsonl_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "lang": "de", "source": "web"}\n{"content": "y"}\n')
    assert list(read_samples(path)) == [Sample("x", "de", "web"), Sample("y")]
    path.write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, row 2: it has no text"):
        list(read_samples(path))


def test_samples_of_a_folder_of_texts(tmp_path):
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "a.txt").write_text("Grüße", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"a\xff")
    assert sorted(read_samples(tmp_path)) == [("Grüße", "de", ""), ("a\ufffd", "", "")]
    assert list(read_samples(tmp_path / "b.txt")) == [("a\ufffd", "", "")]
    with pytest.raises(ValueError, match="does not exist"):
        list(read_samples(tmp_path / "nowhere"))


def test_samples_of_a_curated_folder_are_its_kept_documents(tmp_path):
    documents = [
        Document(id="1", url="", text="x = 1", spans=[Span(0, 5, "code", "")]),
        Document(id="2", url="", text="Bonjour"),
        Document(id="3", url="", text="removed"),
    ]
    write_documents(documents, tmp_path / "documents" / "a.parquet")
    for name, column, values in (
        ("language", "language", ["en", "fr", "en"]),
        ("fate", "fate", ["kept", "kept", "line"]),
    ):
        table = pa.table({"id": ["1", "2", "3"], column: values})
        write_table(table, tmp_path / "attributes" / name / "a.parquet")
    assert list(read_samples(tmp_path)) == [("x = 1", "en", "code"), ("Bonjour", "fr", "prose")]
