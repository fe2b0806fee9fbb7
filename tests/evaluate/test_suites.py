"""Published benchmarks read from files, by rows written as their authors and the Hub write them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herder.evaluate import suite

ARC = {"id": "a1", "question": "What is wet?", "choices": ["water", "sand"], "labels": ["A", "B"], "answer": 0}
HUB_ARC = {
    "id": "a1",
    "question": "What is wet?",
    "choices": {"text": ["water", "sand"], "label": ["1", "2"]},
    "answerKey": "1",
}
PIQA = {"goal": "Dry a cup", "sol1": "with a towel", "sol2": "with water", "label": 0}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", [ARC, HUB_ARC], ids=["index", "label"])
def test_arc_becomes_the_customary_prompt_from_each_form_and_file(tmp_path, row):
    plain = write(tmp_path / "a.jsonl", [row])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for path in (plain, packed, tmp_path / "a.parquet"):
        (item,) = suite("arc_easy", path).items
        assert (item.context, item.options, item.gold) == ("Question: What is wet?\nAnswer:", ("water", "sand"), 0)


def test_options_without_labels_are_numbered(tmp_path):
    row = {"question": "What is wet?", "choices": ["sand", "water"], "answerKey": "1"}
    (item,) = suite("arc_easy", write(tmp_path / "a.jsonl", [row])).items
    assert item.gold == 1


def test_piqa_has_two_options_and_a_limit_cuts_the_file(tmp_path):
    task = suite("piqa", write(tmp_path / "p.jsonl", [PIQA, PIQA | {"label": 1}, PIQA]), limit=2)
    assert [item.gold for item in task.items] == [0, 1]
    assert task.items[0].options == ("with a towel", "with water")
    assert task.items[0].context == "Question: Dry a cup\nAnswer:"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("arc_easy", {"question": "x"}, "row 1: the field 'choices' is missing"),
        ("arc_easy", ARC | {"answer": 2}, "row 1: the answer is 2; it must be the index of one of 2"),
        ("arc_easy", HUB_ARC | {"answerKey": "Z"}, "row 1: answerKey 'Z' is none of the labels"),
        ("arc_easy", ARC | {"choices": ["a", ""]}, "none of them empty"),
        ("arc_easy", ARC | {"choices": 5}, "the options must be a list of texts"),
        ("arc_easy", HUB_ARC | {"choices": {"text": ["a", "b"], "label": 5}}, "none of the labels 5"),
        ("piqa", PIQA | {"label": "0"}, "the answer is '0'"),
        ("mmlu_maybe", PIQA, "benchmark 'mmlu_maybe' is unknown; known are arc_easy"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, name, row, says):
    with pytest.raises(ValueError, match=says):
        suite(name, write(tmp_path / "a.jsonl", [row]))


def test_a_missing_empty_or_damaged_file_says_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist; give the file of piqa"):
        suite("piqa", tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no rows"):
        suite("piqa", write(tmp_path / "empty.jsonl", []))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(PIQA).encode() * 50)[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        suite("piqa", cut)
