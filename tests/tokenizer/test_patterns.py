"""Expressions that cut text: put together for speed, they cut where they did."""

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.tokenizer import patterns

PIECES = st.sampled_from(
    [
        "'s",
        "'LL",
        "'ſ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "a",
        "Ω",
        "ß",
        "日",
        "1",
        "٣",
        "½",
        "_",
        "-",
        "🙂",
        "é",
    ]
)


def merging(pattern, pairs):
    """An encoder whose tokens are the bytes and every pair of them that stands in `pairs`: what it joins lies in one piece."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {pair: 256 + i for i, pair in enumerate(sorted(pairs))}
    return tiktoken.Encoding("merge", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("pattern", sorted(patterns.EXHAUSTIVE))
@settings(max_examples=150)
@given(parts=st.lists(PIECES | st.text(max_size=3), max_size=30))
def test_a_grouped_expression_cuts_where_the_plain_one_does(pattern, parts):
    text = "".join(parts).encode("utf-8", "replace").decode()
    data = text.encode()
    pairs = {data[i : i + 2] for i in range(len(data) - 1)}
    plain, fast = merging(pattern, pairs), merging(patterns.grouped(pattern), pairs)
    assert fast.encode_ordinary(text) == plain.encode_ordinary(text)


def test_alternatives_are_those_of_the_top_level():
    assert patterns.alternatives(r"a[|\]|]|\||(b|c)|[[a]|b]|[^]|]|d") == [
        r"a[|\]|]",
        r"\|",
        "(b|c)",
        "[[a]|b]",
        "[^]|]",
        "d",
    ]


@pytest.mark.parametrize(
    ("pattern", "grouped"),
    [
        ("a|b|c", "(?:a|b|c)"),
        (r"a|\s+(?!\S)|b|c", r"(?:a)|\s+(?!\S)|(?:b|c)"),
        (r"a++|b|\p{L}+|c", r"a++|(?:b|\p{L}+|c)"),
        ("(?i)a|b", "(?i)a|b"),
    ],
)
def test_only_what_looks_nowhere_is_grouped(pattern, grouped):
    assert patterns.grouped(pattern) == grouped
