"""Token shards and the mixing sampler."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train.toy import MIX, Words, documents, mixture, shards

from herder.train import Mixture, Stage, TokenShards, write_shards
from herder.train.data import consumed, data_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "train"
    shards(path)
    return path


def test_shards_hold_every_document_between_begin_and_end(folder):
    texts = {s: [t for n, t in documents() if n == s] for s in "abc"}
    for name, source in TokenShards(folder).sources.items():
        assert source.n_documents == len(texts[name])
        for index, text in enumerate(texts[name]):
            assert source.document(index).tolist() == [62, *(ord(c) % 60 for c in text), 63]
            assert source.bytes[index] == len(text)


def test_the_ledger_counts_documents_bytes_and_tokens(folder):
    ledger = {row["source"]: row for row in json.loads((folder / "ledger.json").read_text())}
    source = TokenShards(folder).sources["a"]
    assert ledger["a"]["tokens"] == source.n_tokens
    assert ledger["a"]["documents"] == source.n_documents
    assert ledger["a"]["bytes"] == source.bytes.sum()


def test_damaged_shards_are_refused(tmp_path):
    shards(tmp_path / "x")
    path = tmp_path / "x" / "a" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="offsets say"):
        TokenShards(tmp_path / "x")
    with pytest.raises(ValueError, match="holds no token shards"):
        TokenShards(tmp_path)


def test_shards_replace_shards_and_never_somebodys_folder(tmp_path):
    write_shards(documents(), Words(), tmp_path / "x")
    write_shards([("a", "only this")], Words(), tmp_path / "x")
    assert list(TokenShards(tmp_path / "x").sources) == ["a"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not replaced"):
        write_shards(documents(), Words(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_cut_off_call_leaves_the_older_shards_whole(tmp_path):
    def breaking():
        yield from documents()
        raise KeyboardInterrupt

    write_shards([("a", "only this")], Words(), tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        write_shards(breaking(), Words(), tmp_path / "x")
    assert list(TokenShards(tmp_path / "x").sources) == ["a"]


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no documents to tokenize"):
        write_shards([], Words(), tmp_path / "x")


def test_realised_shares_are_within_one_percent_of_the_mix(folder):
    m = mixture(folder, steps=100, rows=5)
    used = m.used(100)
    for name, share in MIX.items():
        assert used[name] / sum(used.values()) == pytest.approx(share, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    shares=st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    steps=st.integers(1, 40),
)
def test_no_source_is_ever_more_than_a_row_from_its_share(folder, rows, shares, steps):
    mix = dict(zip("abc", shares, strict=True))
    m = Mixture(TokenShards(folder), [Stage(steps, rows, 16, mix)], seed=0)
    used = m.used(steps)
    for name, share in mix.items():
        assert abs(used[name] - share / sum(shares) * steps * rows * 16) <= 2 * 16
    assert sum(used.values()) == steps * rows * 16


def test_a_step_is_a_pure_function_of_seed_and_step(folder):
    fresh = [mixture(folder).batch(step) for step in range(12)]
    again = mixture(folder)
    assert [again.batch(step) for step in reversed(range(12))] == fresh[::-1]
    assert mixture(folder, seed=1).batch(3) != fresh[3] or not np.array_equal(
        mixture(folder, seed=1).read(fresh[3][0])[0], mixture(folder).read(fresh[3][0])[0]
    )


def test_no_token_is_lost_and_none_seen_twice_in_an_epoch(folder):
    """The slices of a source, in order, are its documents one after the other, in a permutation."""
    m = mixture(folder, steps=200)
    source = m.streams["a"].source
    slices = sorted((s for step in range(200) for s in m.batch(step) if s.source == "a"), key=lambda s: s.start)
    assert [s.start for s in slices] == list(range(0, 32 * len(slices), 32))
    stream = np.concatenate([m.read(s)[0][:-1] for s in slices])[: source.n_tokens]
    ends = np.flatnonzero(stream == 63) + 1
    found = sorted(tuple(d) for d in np.split(stream, ends)[:-1])
    assert found == sorted(tuple(source.document(i).tolist()) for i in range(source.n_documents))


def test_any_order_of_asking_gives_the_same_rows(folder):
    jumping, walking = mixture(folder, steps=300), mixture(folder, steps=300)
    far = jumping.batch(299)
    assert [walking.batch(step) for step in range(300)][299] == far
    assert jumping.batch(7) == walking.batch(7)


def test_a_row_ends_with_the_token_that_follows_it(folder):
    m = mixture(folder, steps=50)
    slices = sorted((s for step in range(50) for s in m.batch(step) if s.source == "b"), key=lambda s: s.start)
    for before, after in itertools.pairwise(slices):
        assert m.read(before)[0][-1] == m.read(after)[0][0]


def test_a_skipped_batch_is_replaced_by_the_next(folder):
    plain, skipping = mixture(folder), mixture(folder)
    skipping.skips = (3, 4)
    assert [skipping.batch(s) for s in range(6)] == [plain.batch(s) for s in (0, 1, 2, 5, 6, 7)]
    assert data_step(3, (3, 4)) == 5


def test_a_change_of_mix_and_length_keeps_what_came_before(folder):
    stages = [Stage(5, 4, 32, MIX), Stage(5, 2, 64, {"b": 1.0})]
    m, plain = Mixture(TokenShards(folder), stages, 0), mixture(folder, steps=5)
    assert [m.batch(s) for s in range(5)] == [plain.batch(s) for s in range(5)]
    assert {(s.source, s.length) for step in range(5, 10) for s in m.batch(step)} == {("b", 64)}


def test_consumed_is_what_the_rows_held(folder):
    m = mixture(folder, steps=3)
    used = m.used(3)
    ids = sorted(np.concatenate(list(consumed(TokenShards(folder), used, 0))).tolist())
    rows = [m.read(s)[0][:-1] for step in range(3) for s in m.batch(step)]
    assert ids == sorted(np.concatenate(rows).tolist())


def test_an_unknown_source_is_named(folder):
    with pytest.raises(ValueError, match="'x'; the token shards have a, b, c"):
        Mixture(TokenShards(folder), [Stage(1, 1, 8, {"x": 1.0})], 0)


def test_a_run_goes_on_behind_what_was_used_before(folder):
    first = mixture(folder, steps=4)
    used = first.used(4)
    then = Mixture(TokenShards(folder), [Stage(6, 3, 48, {"b": 0.5, "c": 0.5})], 0, before=used)
    slices = {s.start: s for step in range(6) for s in then.batch(step) if s.source == "b"}
    assert sorted(slices) == [used["b"] + 48 * i for i in range(len(slices))]
    assert then.used(6) == pytest.approx({"b": 6 * 3 * 24, "c": 6 * 3 * 24}, abs=48)
    ids, _ = then.read(slices[used["b"]])
    last = max((s for step in range(4) for s in first.batch(step) if s.source == "b"), key=lambda s: s.start)
    assert first.read(last)[0][-1] == ids[0]  # the last target before is the first token now


def test_two_folders_of_shards_lie_side_by_side_unless_they_share_a_name(folder, tmp_path):
    for source in ("a", "d"):
        write_shards([(source, "More text, held elsewhere. " * 9)], Words(), tmp_path / source)
    assert sorted(TokenShards(folder, tmp_path / "d").sources) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="source 'a', and so has"):
        TokenShards(folder, tmp_path / "a")
