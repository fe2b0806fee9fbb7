import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.engine.speculate import LONGEST_REST, PromptLookup, Width


def naive(tokens, longest, shortest, count):
    """What followed the last earlier occurrence of the longest possible run, found by looking everywhere."""
    for n in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for i in range(count):
                    text.append(text[end + i])
                return text[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.data())
def test_drafts_are_what_a_search_through_the_whole_text_finds(tokens, data):
    shortest = data.draw(st.integers(1, 3))
    longest = data.draw(st.integers(shortest, 5))
    lookup, shown = PromptLookup(longest=longest, shortest=shortest, count=6), 0
    while shown < len(tokens):
        shown = data.draw(st.integers(shown + 1, len(tokens)))
        assert lookup.propose(tokens[:shown]) == naive(tokens[:shown], longest, shortest, 6)


def test_a_repeated_passage_is_proposed_whole():
    passage = list(range(100, 130))
    assert PromptLookup(count=10).propose([*passage, 1, 2, *passage[:5]]) == passage[5:15]


def test_a_loop_is_continued_beyond_the_present():
    assert PromptLookup(shortest=2, count=7).propose([9, 1, 2, 3, 1, 2, 3]) == [1, 2, 3, 1, 2, 3, 1]


def test_new_text_gives_no_draft():
    assert PromptLookup().propose(list(range(50))) == []


def test_each_token_is_entered_once():
    """Work is counted, not time: every slice that is read must come from the tokens that are new."""

    class Counted(list):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

    tokens, lookup = Counted(random.Random(0).choices(range(50), k=4000)), PromptLookup()
    lookup.propose(tokens)
    Counted.reads = 0
    for token in range(100):
        tokens.append(token)
        lookup.propose(tokens)
    assert Counted.reads < 100 * 10


def test_drafts_shrink_when_refused_and_grow_when_right():
    lookup, loop = PromptLookup(count=8), [1, 2, 3] * 5
    assert len(lookup.propose(loop)) == 8
    lookup.judged(8, 3)
    assert len(lookup.propose(loop)) == 3
    lookup.judged(3, 3)
    assert len(lookup.propose(loop)) == 6
    lookup.judged(6, 0)
    assert len(lookup.propose(loop)) == 3
    lookup.judged(3, 3)
    lookup.judged(6, 6)
    assert len(lookup.propose(loop)) == 8


def test_a_proposer_that_is_always_wrong_falls_nearly_silent_and_recovers():
    width, asked = Width(8), 0
    for _ in range(1000):
        if n := width.ask():
            asked += n
            width.judged(n, 0)
    assert asked < 1000 / LONGEST_REST + 30
    while not (n := width.ask()):
        pass
    width.judged(n, n)
    assert width.ask() == 2


def test_no_verdict_changes_nothing():
    width = Width(4)
    width.judged(0, 0)
    assert width.ask() == 4


@pytest.mark.parametrize("wrong", [{"shortest": 0}, {"longest": 1, "shortest": 2}, {"count": 0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        PromptLookup(**wrong)
