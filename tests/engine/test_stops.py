from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from herder.engine.stops import StopStrings
from herder.tokenizer import StreamDecoder, Tokenizer

TEXT = st.text("abé€😀", max_size=40)
STOPS = st.lists(st.text("abé€😀", min_size=1, max_size=4), min_size=1, max_size=4)


def expected(text, strings):
    """The text before the stop string that is complete first (of those the longest), by searching the whole text."""
    found = [(text.find(s) + len(s), -len(s)) for s in strings if s in text]
    if not found:
        return text, False
    end, length = min(found)
    return text[: end + length], True


def pieces(text, cuts):
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(at)]


@given(TEXT, STOPS, st.lists(st.integers(0, 40)))
@example("eabab", ["abab", "ba"], [2, 4])  # a stop string within what might become another
@example("ababc", ["abc"], [1, 2, 3, 4])
def test_the_text_ends_where_a_search_in_the_whole_finds_the_first_stop(text, strings, cuts):
    stops, out, stopped = StopStrings(strings), "", False
    for piece in pieces(text, cuts):
        safe, stopped = stops.push(piece)
        out += safe
        if stopped:
            break
    else:
        out += stops.finish()
    assert (out, stopped) == expected(text, strings)


@given(TEXT, STOPS, st.lists(st.integers(0, 40)))
def test_all_that_cannot_become_a_stop_string_is_passed_on_at_once(text, strings, cuts):
    stops, seen, out = StopStrings(strings), "", ""
    for piece in pieces(text, cuts):
        safe, stopped = stops.push(piece)
        seen, out = seen + piece, out + safe
        if stopped:
            return
        open_ends = [n for s in strings for n in range(1, len(s)) if seen.endswith(s[:n])]
        assert len(seen) - len(out) == max(open_ends, default=0)


@given(TEXT, STOPS)
def test_stops_across_tokens_that_cut_characters_apart(text, strings):
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, ["<|end_of_text|>"])
    decoder, stops, out, stopped = StreamDecoder(tokenizer), StopStrings(strings), "", False
    for token in tokenizer.encode(text):  # one byte each
        safe, stopped = stops.push(decoder.push([token]))
        out += safe
        if stopped:
            break
    else:
        out += stops.finish()
    assert (out, stopped) == expected(text, strings)


def test_the_string_that_stopped_is_named_and_nothing_follows():
    stops = StopStrings(["\n\n", "END"])
    assert stops.push("one\ntwo E") == ("one\ntwo ", False)
    assert stops.found is None
    assert stops.push("ND more") == ("", True)
    assert stops.found == "END"
    assert stops.push("again") == ("", True)
    assert stops.finish() == ""


def test_work_is_linear_where_every_character_nearly_stops():
    """Steps of the automaton, fallbacks included, are at most two per character."""

    class Counted(StopStrings):
        steps = 0

        def _step(self, state, character, links):
            while state and character not in self._children[state]:
                state, self.steps = links[state], self.steps + 1
            self.steps += 1
            return self._children[state].get(character, 0)

    stops = Counted(["a" * 100 + "b"])
    stops.steps, text = 0, ("a" * 99 + "c") * 50 + "a" * 5000
    for character in text:
        stops.push(character)
    assert stops.steps <= 2 * len(text)


@pytest.mark.parametrize(
    ("strings", "message"),
    [(["a", ""], "stop string 1 is empty"), (("a", 3), "stop string 1 is 3; it must be text")],
)
def test_what_cannot_stop_is_refused_in_a_sentence(strings, message):
    with pytest.raises(ValueError, match=message):
        StopStrings(strings)


def test_a_single_string_may_be_given_alone():
    assert StopStrings("ab").push("xaby") == ("x", True)
