"""Lists of merges against ranks: whatever is accepted gives the ids of `tokenizers`."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.tokenizer.bpe import Conventions
from herder.tokenizer.huggingface import spell, vocabulary
from herder.tokenizer.patterns import GPT2

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (the test extra has it)")


def from_lists(vocab, merges, whole=False, specials=None):
    return vocabulary(vocab.items(), merges, specials or {}, GPT2, whole, Conventions())


BYTES = [spell(bytes([byte])) for byte in range(256)]
WORDS = ["".join(letters) for n in range(1, 8) for letters in itertools.product("ab", repeat=n)]


@settings(max_examples=120)
@given(draw=st.randoms(use_true_random=False), whole=st.booleans(), complete=st.booleans())
def test_whatever_list_of_merges_is_accepted_gives_the_ids_of_tokenizers(draw, whole, complete):
    """Random lists: in any order, with repeats of a token, with every split or some, with tokens that no merge makes, and ids
    in any order. Refusing is allowed; other ids are not."""
    tokens, merges = ["a", "b"], []
    for _ in range(draw.randint(1, 12)):
        pair = [draw.choice(tokens), draw.choice(tokens)]
        if len("".join(pair)) <= 7 and pair not in merges:
            merges.append(pair)
            tokens += ["".join(pair)] * ("".join(pair) not in tokens)
    if complete:
        cuts = ((t[:i], t[i:]) for t in tokens[2:] for i in range(1, len(t)))
        merges = [[a, b] for a, b in cuts if a in tokens and b in tokens]
    if draw.random() < 0.2:
        draw.shuffle(merges)
    names = [*BYTES, *tokens[2:], *{"".join(draw.choices("ab", k=3)) for _ in range(draw.randint(0, 1))} - set(tokens)]
    ids = list(range(len(names)))
    if draw.random() < 0.5:
        draw.shuffle(ids)
    vocab = dict(zip(names, ids, strict=True))
    ours = accepted(lambda: from_lists(vocab, merges, whole), "cannot be written as ranks")
    if ours is None:
        return
    model = tokenizers.models.BPE(vocab=vocab, merges=[tuple(merge) for merge in merges], ignore_merges=whole)
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [ours.encode(word) for word in WORDS] == [e.ids for e in theirs.encode_batch(WORDS)]


def accepted(load, said):
    """What `load` returns; None where it refuses by a ValueError that says this. Anything else it raises fails the test."""
    try:
        return load()
    except ValueError as error:
        if said not in str(error):
            raise
        return None


def test_merges_that_no_ranks_can_follow_are_refused():
    vocab = {name: i for i, name in enumerate([*BYTES, "ab", "abc", "bc"])}
    with pytest.raises(
        ValueError, match="cannot be written as ranks: neighbours 'ab' and 'c' would become the token 'abc'"
    ):
        from_lists(vocab, ["a b", "b c", "a bc"])
    from_lists(vocab, ["a b", "b c", "ab c"])


def test_a_token_that_no_merge_makes_decodes_but_is_never_made():
    vocab = {name: i for i, name in enumerate([*BYTES, "xyz", "not spelled in bytes", "xy"])}
    ours = from_lists(vocab, ["x y"])
    assert ours.encode("xyz") == [258, vocab["z"]]
    assert ours.decode([256, 257]) == "xyznot spelled in bytes"
    assert ours.n_base == 259


def test_whole_pieces_become_tokens_that_no_merge_makes_where_the_file_says_so():
    vocab = {name: i for i, name in enumerate([*BYTES, "xyz"])}
    assert from_lists(vocab, [], whole=True).encode("xyz") == [256]
    assert from_lists(vocab, [], whole=False).encode("xyz") == [vocab[c] for c in "xyz"]
