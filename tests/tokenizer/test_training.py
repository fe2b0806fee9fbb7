"""Training in two parts, against a naive trainer and rustbpe itself."""

import itertools
import random
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import regex
import rustbpe
from hypothesis import given
from hypothesis import strategies as st

from herder.tokenizer import PATTERN, Tokenizer, special_names, train
from herder.tokenizer.training import LEARNED_RUN, extend, learn

FOREIGN = [
    "Съешь ещё этих мягких французских булок, да выпей чаю. Съешь же ещё, ещё и ещё булок!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Größe, Straße, Füße, Grüße.",
    "日本語のテキストです。これは日本語の文章です。日本の文化と日本の歴史。",
    "नमस्ते दुनिया, दुनिया नमस्ते। यह हिन्दी का वाक्य है।",
] * 3


@pytest.fixture(scope="module")
def both(corpus):
    return train(corpus, 1024, n_special=32, extension=FOREIGN, extension_size=160)


def test_one_part_is_what_rustbpe_learns(corpus):
    peer = rustbpe.Tokenizer()
    peer.train_from_iterator(iter(corpus), 1200, pattern=PATTERN)
    expected = [bytes(token) for token, _ in sorted(peer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    assert learn(corpus, 900) == list(dict.fromkeys(expected))[:900]


def test_the_extension_leaves_ranks_and_ids_of_the_first_part(both, corpus):
    alone = train(corpus, 1024 - 160, n_special=32)
    assert list(both.ranks.items())[: 1024 - 160 - 32] == list(alone.ranks.items())
    assert (both.n_vocab, both.n_base) == (1024, 992)
    assert list(both.special) == special_names(32)
    assert min(both.special_ids) == 992


@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from(" ".join(FOREIGN[:4]).split())).map(" ".join)))
def test_the_extension_only_joins_what_the_first_part_leaves_apart(both, corpus_ranks, text):
    borders = [
        set(itertools.accumulate(len(tok.decode_bytes([i])) for i in tok.encode(text))) for tok in (both, corpus_ranks)
    ]
    assert borders[0] <= borders[1]


@pytest.fixture(scope="module")
def corpus_ranks(both):
    return Tokenizer(dict(itertools.islice(both.ranks.items(), 1024 - 160 - 32)), [])


def naive_extension(tokens, texts, size):
    """The definition: count neighbours over all pieces as encoded so far, make the most frequent pair a token, encode anew."""
    ranks = {token: i for i, token in enumerate(tokens)}
    pieces = Counter(piece for text in texts for piece in regex.findall(PATTERN, text))
    for _ in range(size):
        encoding = Tokenizer(ranks, [])
        counts = Counter()
        for piece, count in pieces.items():
            for pair in itertools.pairwise(encoding.encode_piece(piece.encode())):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ordered = list(ranks)
        ranks[ordered[best[0]] + ordered[best[1]]] = len(ranks)
    return list(ranks)[len(tokens) :]


def test_the_extension_is_that_of_a_naive_trainer(corpus):
    tokens = learn(corpus, 600)
    texts = [*FOREIGN, "aaaaaaaaaaaaaaaa aaaaaaaa aaaa aaa ----------- ----- ä ä ää äää ääää äääää ääääää ääääää"]
    assert extend(tokens, texts, 120) == naive_extension(tokens, texts, 120)


def test_training_twice_gives_the_same_tokens_in_any_order_of_the_texts(both, corpus):
    shuffled = random.Random(0).sample(FOREIGN, len(FOREIGN))
    again = train(iter(corpus), 1024, n_special=32, extension=iter(shuffled), extension_size=160)
    assert again.fingerprint == both.fingerprint


def test_tokens_of_the_extension_are_all_reached(both):
    for token, rank in itertools.islice(both.ranks.items(), 832, None):
        assert both.encode_piece(token) == [rank]


def test_the_extension_shortens_the_languages_it_was_learned_on(both, corpus):
    alone = train(corpus, 1024, n_special=32)
    text = " ".join(FOREIGN[:4])
    assert len(both.encode(text)) < 0.8 * len(alone.encode(text))


def test_too_little_text_for_the_extension_is_refused_with_the_size_that_works(corpus):
    with pytest.raises(ValueError, match=r"extension give only \d+ tokens .* set extension_size to \d+ or less"):
        train(corpus, 2048, n_special=32, extension=["ää ää öö öö"], extension_size=1000)


@pytest.mark.parametrize(("texts", "size"), [(None, 5), (["x"], 0)])
def test_texts_and_size_of_an_extension_come_together(corpus, texts, size):
    with pytest.raises(ValueError, match="extension_size"):
        train(corpus, 1024, n_special=32, extension=texts, extension_size=size)


def test_too_few_base_tokens_are_refused(corpus):
    with pytest.raises(ValueError, match="leaves 192 base tokens"):
        train(corpus, 1024, n_special=32, extension=FOREIGN, extension_size=800)


@pytest.mark.parametrize("letter", ["a", " ", "=", "é", "\n", "1"])
def test_a_megabyte_of_one_letter_is_learned_from_in_pieces(letter):
    line = letter * 1_000_000
    assert max(map(len, learn([line, "the cat and the hat " * 5], 262))) <= 4 * LEARNED_RUN
    assert len(extend([bytes([b]) for b in range(256)], [line + " and the cat and the hat" * 5], 8)) == 8


def test_a_genome_on_one_line_is_learned_from():
    line = "".join(random.Random(0).choices("ACGT", k=200_000))
    assert len(learn([line], 900)) == 900
    assert len(extend([bytes([b]) for b in range(256)], [line], 300)) == 300


def test_lone_surrogates_and_nul_do_not_stop_training():
    texts = ["a\ud800b \x00\x00 ä ä ä ä " * 3]
    assert b" \xc3\xa4" in extend([bytes([b]) for b in range(256)], texts, 2)
    assert b" \xc3\xa4" in learn(texts, 258)


@pytest.mark.long
def test_the_full_shape_has_the_published_sizes_and_special_ids():
    """128,256 ids of 100,256 + 27,744 + 256, from this installation's Python files and made-up words of other scripts."""
    code, foreign, size = [], [], 0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        code.append(path.read_bytes().decode("utf-8", "replace"))
        size += len(code[-1])
        if size > 60_000_000:
            break
    draw, stems = (
        random.Random(0),
        [chr(c) for r in ((0x430, 0x44F), (0x3041, 0x3090), (0x627, 0x648)) for c in range(*r)],
    )
    for _ in range(60_000):  # words that repeat, as a language's do
        stem = "".join(draw.choices(stems, k=3))
        foreign += [f" {stem} {stem}{draw.choice(stems)}"] * 3
    tok = train(code, 128_256, extension=foreign, extension_size=27_744)
    assert (tok.n_vocab, tok.n_base, len(tok.special)) == (128_256, 128_000, 256)
    ids = [tok.special[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text", "eom_id", "eot_id")]
    assert ids == [128_000, 128_001, 128_008, 128_009]
    assert tok.encode("the same")[0] < 100_256
    assert tok.pad_id == 128_004
