"""Ids against the published Llama 3 encoder, where its package (`pip install --no-deps llama-models`) is installed."""

import random
from pathlib import Path

import pytest

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


def test_the_published_chat_example_has_its_ids(ours):
    messages = [{"role": "system", "content": "You are a helpful assistant"}, {"role": "user", "content": "Hi"}]
    expected = [128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 128009]
    expected += [128006, 882, 128007, 271, 13347, 128009, 128006, 78191, 128007, 271]
    assert ChatFormat(ours).encode(messages, add_generation_prompt=True).ids == expected
