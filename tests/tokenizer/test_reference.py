"""Ids against the published Llama 3 encoder, where its package (`pip install --no-deps llama-models`) is installed."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.tokenizer import ChatFormat, Tokenizer

reference = pytest.importorskip("llama_models.llama3.tokenizer", reason="llama-models is not installed")
RANKS = Path(reference.__file__).with_name("tokenizer.model")


@pytest.fixture(scope="module")
def published():
    return reference.Tokenizer(RANKS)


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.load(RANKS)


def test_the_special_ids_are_the_published_ones(ours, published):
    assert (ours.n_vocab, ours.special) == (128_256, published.special_tokens)


def test_ids_equal_the_published_encoders(ours, published, corpus):
    draw = random.Random(0)
    ranges = [range(32, 127)] * 3 + [
        range(0xA0, 0x250),
        range(0x400, 0x460),
        range(0x4E00, 0x4F00),
        [9, 10, 13, 32, 0x3000],
    ]
    letters = [chr(c) for codes in ranges for c in codes]
    texts = ["".join(draw.choices(letters, k=draw.randint(0, 200))) for _ in range(500)] + corpus
    texts += ["a" * 60_001, " " * 60_001, "ab " * 200_000, "x" * 24_999 + " " * 25_001 + "y" * 25_001]
    for text in texts:
        assert ours.encode(text) == published.encode(text, bos=False, eos=False)


@settings(max_examples=40)
@given(draw=st.randoms(use_true_random=False))
def test_long_runs_and_chunks_are_cut_where_the_published_encoder_cuts(ours, published, draw):
    """Runs around 25,000 characters and texts around 400,000, with what may stand at the cuts: a space, a newline, a digit, a
    character of two or more code points or of none (a lone surrogate), Unicode's rarer spaces."""
    units = [
        " ",
        "a",
        "\n",
        "\r\n",
        "1",
        "é",
        "e\u0301",
        "日",
        "🙂",
        "\ud83d",
        "\u3000",
        "\x1c",
        "\x85",
        "-",
        "'s",
        "ab ",
    ]
    parts = []
    for _ in range(draw.randint(1, 6)):
        unit = draw.choice(units)
        length = draw.choice([24_999, 25_000, 25_001, 50_001, draw.randint(1, 60), draw.randint(1, 60)])
        parts.append(unit * (length // len(unit)))
    text = "".join(parts)
    if draw.random() < 0.25:
        text = ("x " * 200_000)[: 400_000 - draw.randint(0, 3)] + text
    assert ours.encode(text) == published.encode(text, bos=False, eos=False)


@pytest.mark.parametrize("letter", ["a", " ", "\n"])
@pytest.mark.long
def test_ten_megabytes_of_one_letter_have_the_published_ids(ours, published, letter):
    text = letter * 10_000_000
    assert ours.encode(text) == published.encode(text, bos=False, eos=False)


@pytest.mark.long
def test_every_character_has_the_published_ids_and_those_of_tokenizers(ours, published, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (the test extra has it)")
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    characters = [chr(code) for code in codes if unicodedata.category(chr(code)) not in ("Cn", "Co") or code % 97 == 0]
    for start in range(0, len(characters), 64):
        text = "".join(f"a{c}b 1{c}!{c}" for c in characters[start : start + 64])
        ids = ours.encode(text)
        assert ids == published.encode(text, bos=False, eos=False) == theirs.encode(text, add_special_tokens=False).ids


def test_merges_are_listed_as_in_the_published_conversion(ours, tmp_path):
    """`transformers` converts Meta's file as the published tokenizer.json of Llama 3 was converted."""
    slow = pytest.importorskip("transformers.convert_slow_tokenizer", reason="transformers is not installed")
    converted = slow.TikTokenConverter(vocab_file=str(RANKS), pattern=ours.pattern).converted()
    ours.save(tmp_path)
    published, saved = json.loads(converted.to_str()), json.loads((tmp_path / "tokenizer.json").read_text())
    for field in ("vocab", "merges", "ignore_merges"):
        assert saved["model"][field] == published["model"][field]
    assert saved["pre_tokenizer"] == published["pre_tokenizer"]


def test_a_saved_copy_of_the_published_tokenizer_is_the_same(ours, tmp_path):
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.special, again.conventions) == (ours.fingerprint, ours.special, ours.conventions)
    assert (tmp_path / "tokenizer.model").read_bytes().split() == RANKS.read_bytes().split()


def test_the_published_chat_example_has_its_ids(ours):
    messages = [{"role": "system", "content": "You are a helpful assistant"}, {"role": "user", "content": "Hi"}]
    expected = [128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 128009]
    expected += [128006, 882, 128007, 271, 13347, 128009, 128006, 78191, 128007, 271]
    assert ChatFormat(ours).encode(messages, add_generation_prompt=True).ids == expected
