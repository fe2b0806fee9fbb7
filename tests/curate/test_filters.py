"""Filters on single documents: words, heuristics, language, URLs, markdown, overlap."""

import random

import numpy as np
import pytest

from herder.curate import Thresholds
from herder.curate.heuristics import RULES, judge, measure
from herder.curate.language import detect
from herder.curate.overlap import Protected
from herder.curate.plain import read
from herder.curate.urls import normalize_url
from herder.curate.words import hash_words, shingles
from herder.records import Span

ENGLISH = (
    "The harbour town grew quickly after the railway arrived, and by the end of the century it had three schools, a library "
    "and a small theatre. Fishing was still the main trade, but many families also kept sheep on the hills above the bay. "
    "In spring the market moved to the old square, where farmers sold cheese, honey and early vegetables to the visitors."
)


def verdict(text, spans=(), language="en"):
    found = judge(measure(text, list(spans), hash_words(text)), Thresholds(), language)
    return found[0] if found else None


def test_words_are_found_where_a_reader_sees_them():
    text = "Déjà-vu: «Straße» 東京、x_1 don’t … 3,14"
    words = hash_words(text)
    found = [text[a : a + n] for a, n in zip(words.starts, words.sizes, strict=True)]
    assert found == ["Déjà", "vu", "Straße", "東", "京", "x_1", "don", "t", "3", "14"]


def test_a_words_hash_depends_on_the_word_alone():
    a, b = hash_words("cat — the CAT"), hash_words("x" * 3_000_000 + " cat")
    assert a.hashes[0] == a.hashes[2] == b.hashes[-1] != a.hashes[1]


def test_no_two_of_a_hundred_thousand_words_share_a_hash():
    words = hash_words(" ".join(f"{i:x}" for i in range(100_000)))
    assert len(np.unique(words.hashes)) == 100_000


def test_shingles_agree_with_tuples_of_words():
    rng = random.Random(0)
    text = [rng.choice("abcde") for _ in range(500)]
    grams = shingles(hash_words(" ".join(text)).hashes, 3)
    assert len(np.unique(grams)) == len({tuple(text[i : i + 3]) for i in range(498)})


def test_plain_prose_passes():
    assert verdict(ENGLISH) is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("too_short", "Page not found."),
        ("placeholder", "Lorem ipsum dolor sit amet. " + ENGLISH),
        (
            "dirty_words",
            "Free porn and xxx milf videos, hardcore pussy every day for you and your friends at night now.",
        ),
        (
            "spam_words",
            ENGLISH + " Order cheap replica watches now! Casino bonus, free coupon, instant loan, win a prize today.",
        ),
        ("repeated_lines", "\n".join(["Best casino bonus, play now and win big today!"] * 12)),
        (
            "keyword_stuffing",
            " ".join(random.Random(1).choices(["violet", "timber", "garden", "candle", "window"], k=200)),
        ),
        ("repeated_ngrams", " ".join([ENGLISH] * 3)),
        ("word_length", " ".join(f"{'x' * 30}{chr(97 + i % 26)}{i} the" for i in range(60))),
        ("symbols", " ".join(f"#{w} the" for w in ENGLISH.split())),
        ("ellipsis_lines", "\n".join(f"{part} and read more about it here..." for part in ENGLISH.split(","))),
        ("bullet_lines", "\n".join(f"- {part}" for part in ENGLISH.replace(".", ",").split(","))),
        ("few_letters", " ".join(f"{i} the {i * 7} {i * 13}" for i in range(60))),
    ],
)
def test_each_rule_fires_on_what_it_is_for(reason, text):
    assert verdict(text) == reason


def test_every_rule_is_a_function_of_numbers_alone():
    numbers = measure(ENGLISH, [], hash_words(ENGLISH))
    assert [rule(numbers, Thresholds(), "en") for rule in RULES] == [None] * len(RULES)


def test_code_and_tables_survive():
    code = "\n".join(f"    x[{i}] = {i} # ...\n    x[{i}] = {i} # ..." for i in range(80))
    intro = ENGLISH[:120]
    assert verdict(f"{intro}\n\n{code}", [Span(len(intro) + 2, len(intro) + 2 + len(code), "code")]) is None
    table = "\n".join(f"{i} | {i * i} | {i**3}" for i in range(80))
    text = f"{ENGLISH}\n\n{table}"
    assert verdict(text, [Span(len(ENGLISH) + 2, len(text), "table")]) is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", ENGLISH),
        ("fr", "La ville est devenue célèbre au siècle dernier grâce à son port et à ses écoles de musique."),
        ("es", "La ciudad creció mucho durante el siglo pasado gracias a su puerto y a sus escuelas de música."),
        ("ru", "На рынке продают сыр, мёд и яблоки с окрестных хозяйств, а утром пекарь открывает лавку."),
        ("ja", "この町は港と音楽学校のおかげで、前の世紀に大きく発展しました。"),
    ],
)
def test_languages_are_told_apart(code, text):
    assert detect(text)[0] == code


def test_nothing_to_judge_by_has_no_language():
    assert detect("12 345 — 678") == ("", 0.0)


def test_addresses_of_one_page_are_equal():
    same = {
        "https://www.example.com/a/b/",
        "http://EXAMPLE.com:80/a//b?utm_source=x#top",
        "https://example.com:443/%61/b/index.html?fbclid=1",
    }
    assert len({normalize_url(u) for u in same}) == 1


def test_addresses_of_different_pages_differ():
    different = [
        "https://a.com/x?id=1",
        "https://a.com/x?id=2",
        "https://a.com/X?id=1",
        "https://b.a.com/x?id=1",
        "https://a.com:8080/x?id=1",
    ]
    assert len({normalize_url(u) for u in different}) == len(different)
    assert normalize_url("http://[broken") == "http://[broken"


def test_markdown_loses_its_markers_and_keeps_its_code():
    page = read(
        b"# Big *title*\n\nSee [the docs](http://x.y) and `f_x`, **now**.\n\n"
        b"```py\ndef f():\n    return 2 * 3 * 4\n```\n- item\n",
        "text/markdown",
    )
    assert page.text == "Big title\n\nSee the docs and f_x, now.\n\ndef f():\n    return 2 * 3 * 4\nitem"
    assert [(s.kind, s.language) for s in page.spans] == [("heading", ""), ("code", "py")]
    assert page.text[page.spans[1].start : page.spans[1].end] == "def f():\n    return 2 * 3 * 4"


def test_source_files_are_one_span_of_code():
    page = read(b"import os\n\n\nprint(os)\n", "text/x-python")
    assert [(s.start, s.end, s.kind, s.language) for s in page.spans] == [(0, len(page.text), "code", "python")]


def test_overlap_is_the_share_of_one_items_8grams():
    protected = Protected([ENGLISH, "one two three four five six seven eight nine ten eleven twelve"])
    half = " ".join(ENGLISH.split()[:40])
    whole = len(hash_words(ENGLISH)) - 7
    assert protected.worst(hash_words("Before. " + ENGLISH + " After.").hashes) == 1.0
    assert protected.worst(hash_words(half).hashes) == pytest.approx((len(hash_words(half)) - 7) / whole)
    assert protected.worst(hash_words("nothing of the kind stands in this short text at all").hashes) == 0.0
