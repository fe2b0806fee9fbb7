"""Measures, ledgers and the files of records."""

import math

import pytest

from herder.records import (
    Document,
    Ledger,
    Measure,
    Span,
    half_width,
    read_documents,
    read_jsonl,
    wilson,
    write_documents,
    write_jsonl,
    write_table,
)

# (share, n, half width in points): the paper's printed 95% intervals.
PRINTED = [
    (0.797, 1172, 2.3),
    (0.572, 1319, 2.7),
    (0.372, 164, 7.4),
    (0.476, 500, 4.4),
    (0.728, 378, 4.5),
    (0.203, 5000, 1.1),
    (0.81, 1838, 1.8),
    (0.495, 1954, 2.2),
    (0.757, 1767, 2.0),
    (0.77, 11873, 0.8),
    (0.81, 21, 16.8),
    (0.56, 2086, 2.1),
    (0.651, 229, 6.2),
    (0.60, 100, 9.6),
]


@pytest.mark.parametrize(("share", "n", "printed"), PRINTED)
def test_the_papers_printed_intervals_are_reproduced_to_the_digit(share, n, printed):
    assert round(100 * half_width(share, n), 1) == printed
    if min(share * n, n - share * n) >= 5:
        measure = Measure.share(share * n, n)
        assert round(100 * (measure.high - measure.low) / 2, 1) == printed


def test_a_share_of_all_or_nothing_keeps_an_interval():
    nothing, everything = Measure.share(0, 50), Measure.share(50, 50)
    assert nothing.low == 0
    assert nothing.high == pytest.approx(0.0714, abs=5e-4)  # Wilson, 0 of 50
    assert everything.high == 1
    assert everything.low == pytest.approx(1 - nothing.high)


def test_wilsons_interval_solves_its_equation():
    """Wilson's bounds are the p at which |S - p| is 1.96 standard errors of p itself."""
    for share, n in ((0.1, 30), (0.5, 12), (1.0, 8)):
        for p in wilson(share, n):
            assert abs(share - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))


def test_the_interval_of_a_ratio_shrinks_with_documents_and_covers_the_truth():
    import random

    rng, covered = random.Random(0), 0
    for _ in range(200):
        sizes = [rng.randint(50, 500) for _ in range(100)]
        bits = [2.0 * s + rng.gauss(0, 40) for s in sizes]
        measure = Measure.ratio(bits, sizes)
        covered += measure.low <= 2.0 <= measure.high
    assert 180 <= covered <= 199


def test_above_means_disjoint_intervals():
    low, high = Measure.share(20, 100), Measure.share(60, 100)
    assert high.above(low)
    assert low.below(high)
    assert not Measure.share(25, 100).above(low)


def test_documents_come_back_as_written_and_by_fate(tmp_path):
    documents = [
        Document("a", "http://a", "def f(): pass", spans=[Span(0, 13, "code", "python")]),
        Document("b", "http://b", "text"),
    ]
    write_documents(documents, tmp_path / "documents" / "part-00000.parquet")
    import pyarrow as pa

    for name, values in (("fate", ["kept", "too_short"]), ("split", ["train", "train"])):
        table = pa.table({"id": ["a", "b"], name: values})
        write_table(table, tmp_path / "attributes" / name / "part-00000.parquet")
    assert list(read_documents(tmp_path, fate=None)) == documents
    assert [d.id for d in read_documents(tmp_path)] == ["a"]
    assert [d.id for d in read_documents(tmp_path, fate="too_short", split="train")] == ["b"]


def test_a_broken_line_of_jsonl_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl([{"a": 1}], path)
    path.write_text(path.read_text() + '{"a": \n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(path))


def test_one_observation_has_no_bound_and_stays_plain_json():
    import json

    measure = Measure.mean([2.0])
    text = json.dumps(measure.to_json(), allow_nan=False)
    assert Measure.from_json(json.loads(text)) == measure


def test_a_line_that_is_no_utf_8_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not valid UTF-8"):
        list(read_jsonl(tmp_path / "x.jsonl"))


def test_ledgers_add_up():
    a, b = Ledger("x", read=3, removed={"short": 1}), Ledger("x", read=2, removed={"short": 1, "spam": 1})
    a.add(b)
    assert (a.read, a.removed) == (5, {"short": 2, "spam": 1})
    assert Ledger.from_json(a.to_json()) == a
