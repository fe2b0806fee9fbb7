"""Heuristics that tell text worth reading from what is not (paper section 3.1.1: Rae et al. 2021, Raffel et al. 2020).

`measure` computes numbers once and they are stored; `judge` compares them with thresholds, so a threshold can change without
reading a document again. Prose rules look at the words outside code, formulas and tables only: documents made of those must
survive. Repetition counts words, as hashes, so it costs a few array operations a document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from herder.curate.terms import DIRTY, FUNCTION_WORDS, SPAM
from herder.curate.words import Words, is_in, shingles
from herder.records import Span


@dataclass(frozen=True)
class Thresholds:
    """Where each rule draws its line. Shares are between 0 and 1; the sources are Rae et al. (table A1) where they give one."""

    min_words: int = 15
    max_words: int = 200_000
    min_mean_word: float = 2.5
    max_mean_word: float = 12.0
    max_symbols_per_word: float = 0.15
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.6
    max_repeated_lines: float = 0.3
    max_repeated_line_characters: float = 0.25
    max_top_2gram: float = 0.3
    max_top_3gram: float = 0.3
    max_top_4gram: float = 0.3
    max_repeated_5grams: float = 0.5
    max_repeated_10grams: float = 0.4
    max_dirty_words: float = 0.015
    min_dirty_kinds: int = 3
    max_spam_words: float = 0.06
    min_spam_kinds: int = 5
    max_top_word: float = 0.2
    min_function_words: float = 0.06
    repetition_from_words: int = 40


@dataclass(frozen=True, slots=True)
class Stats:
    """What is measured of one document. `words` counts all words; what follows `prose_words` is of prose alone."""

    words: int = 0
    characters: int = 0
    code_share: float = 0.0
    prose_words: int = 0
    mean_word: float = 0.0
    symbols_per_word: float = 0.0
    bullet_lines: float = 0.0
    ellipsis_lines: float = 0.0
    alphabetic_words: float = 0.0
    repeated_lines: float = 0.0
    repeated_line_characters: float = 0.0
    top_2gram: float = 0.0
    top_3gram: float = 0.0
    top_4gram: float = 0.0
    repeated_5grams: float = 0.0
    repeated_10grams: float = 0.0
    dirty_words: int = 0
    dirty_kinds: int = 0
    spam_words: int = 0
    spam_kinds: int = 0
    top_word: float = 0.0
    function_words: float = 0.0
    lorem_ipsum: bool = False


STAT_NAMES = tuple(f.name for f in fields(Stats))
UNPROSE = frozenset(("code", "formula", "table"))
SYMBOLS = re.compile(r"#|…|\.\.\.")
BULLETS = ("•", "●", "▪", "■", "‣", "*", "-", "–", "·")
ELLIPSES = ("…", "...")


def measure(text: str, spans: list[Span], words: Words) -> Stats:
    """The numbers that `judge` looks at; about 0.5 ms for a page of a thousand words."""
    hidden = [(s.start, s.end) for s in spans if s.kind in UNPROSE]
    code = sum(s.end - s.start for s in spans if s.kind == "code")
    plain, hashes, sizes = text, words.hashes, words.sizes
    if hidden:
        plain, inside = cut_out(text, hidden, words.starts)
        hashes, sizes = hashes[~inside], sizes[~inside]
    n = len(hashes)
    lines = [line.strip() for line in plain.split("\n")]
    lines = [line for line in lines if line]
    numbers = {
        "words": len(words),
        "characters": len(text),
        "code_share": code / max(len(text), 1),
        "prose_words": n,
        "lorem_ipsum": "lorem ipsum" in plain.lower(),
    }
    if n:
        numbers |= {
            "mean_word": float(sizes.mean()),
            "symbols_per_word": len(SYMBOLS.findall(plain)) / n,
            "alphabetic_words": alphabetic(plain, n),
            "dirty_words": len(dirty := hashes[is_in(hashes, DIRTY)]),
            "dirty_kinds": len(np.unique(dirty)),
            "spam_words": len(spam := hashes[is_in(hashes, SPAM)]),
            "spam_kinds": len(np.unique(spam)),
            "function_words": float(is_in(hashes, FUNCTION_WORDS).mean()),
        }
        numbers |= repetition(hashes, sizes) | line_repetition(lines)
    return Stats(**{name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()})


def cut_out(text: str, ranges: list[tuple[int, int]], starts: np.ndarray) -> tuple[str, np.ndarray]:
    """The text without some ranges, and which words begin inside them."""
    parts, at = [], 0
    inside = np.zeros(len(starts), bool)
    for start, end in sorted(ranges):
        inside[np.searchsorted(starts, start) : np.searchsorted(starts, end)] = True
        if start > at:
            parts.append(text[at:start])
        at = max(at, end)
    parts.append(text[at:])
    return "\n".join(parts), inside


def alphabetic(text: str, n: int) -> float:
    """Words that are not bare numbers, as a share of all."""
    numbers = len(re.findall(r"(?<!\w)\d+(?!\w)", text))
    return 1.0 - min(numbers / n, 1.0)


def repetition(hashes: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """The share of characters in the most frequent 2-, 3- and 4-gram and in repeated 5- and 10-grams (Rae et al., A.1.1)."""
    total = float(sizes.sum())
    content = np.sort(hashes[sizes >= MIN_CONTENT_WORD])
    numbers = {"top_word": most_frequent(content)[0] / len(hashes)}
    for n in (2, 3, 4):
        grams = shingles(hashes, n)
        count, top = most_frequent(np.sort(grams))
        if count < MIN_REPEATS:
            break  # no longer n-gram can be more frequent
        at = int(np.argmax(grams == top))
        numbers[f"top_{n}gram"] = float(count * sizes[at : at + n].sum() / total)
    for n in (5, 10):
        numbers[f"repeated_{n}grams"] = repeated = repeated_share(hashes, sizes, n)
        if repeated == 0.0:
            break
    return numbers


def most_frequent(ordered: np.ndarray) -> tuple[int, int]:
    """How often the most frequent of sorted values occurs, and which it is (the smallest of equals)."""
    if len(ordered) == 0:
        return 0, 0
    starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
    counts = np.diff(starts, append=len(ordered))
    top = int(counts.argmax())
    return int(counts[top]), ordered[starts[top]]


MIN_CONTENT_WORD = 4
MIN_REPEATS = 4
"""In a short text a name said three times is a fifth of it, and no fault."""
MIN_LINES = 4


def repeated_share(hashes: np.ndarray, sizes: np.ndarray, n: int) -> float:
    """The share of characters that lie in an n-gram which stood in the text before."""
    if len(hashes) <= n:
        return 0.0
    grams = shingles(hashes, n)
    ordered = np.sort(grams)
    if not (ordered[1:] == ordered[:-1]).any():
        return 0.0
    _, first = np.unique(grams, return_index=True)
    again = np.ones(len(grams), np.int64)
    again[first] = 0
    edges = np.zeros(len(hashes) + 1, np.int64)
    edges[: len(grams)] += again
    edges[n : n + len(grams)] -= again
    return float(sizes[np.cumsum(edges[:-1]) > 0].sum() / sizes.sum())


def line_repetition(lines: list[str]) -> dict[str, float]:
    """Shares of lines: seen before (and their characters), opening with a bullet, ending in an ellipsis."""
    if not lines:
        return {}
    counts = Counter(lines)
    repeats = {line: count - 1 for line, count in counts.items() if count > 1} if len(counts) < len(lines) else {}
    return {
        "repeated_lines": sum(repeats.values()) / len(lines),
        "repeated_line_characters": sum(len(line) * k for line, k in repeats.items()) / sum(map(len, lines)),
        "bullet_lines": 0.0 if len(lines) < MIN_LINES else sum(line.startswith(BULLETS) for line in lines) / len(lines),
        "ellipsis_lines": 0.0
        if len(lines) < MIN_LINES
        else sum(line.endswith(ELLIPSES) for line in lines) / len(lines),
    }


Verdict = tuple[str, str]
"""A reason (the filter's name) and a detail that a person can read: what was measured against which threshold."""

MOSTLY_CODE = 0.5


def judge(stats: Stats, limits: Thresholds, language: str = "") -> Verdict | None:
    """The first rule a document breaks, in a fixed order; None for a document that passes."""
    for rule in RULES:
        if found := rule(stats, limits, language):
            return found
    return None


def too_short(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    return below("too_short", "words", stats.words, limits.min_words)


def too_long(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    return above("too_long", "words", stats.words, limits.max_words)


def placeholder(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    return ("placeholder", "holds lorem ipsum") if stats.lorem_ipsum and stats.prose_words < PLACEHOLDER_WORDS else None


PLACEHOLDER_WORDS = 2000
"""A longer text may well be about typesetting."""


def dirty_words(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    """Several different dirty words; an article on one of them says only that one."""
    if stats.dirty_kinds < limits.min_dirty_kinds:
        return None
    return above("dirty_words", "share of dirty words", stats.dirty_words / stats.prose_words, limits.max_dirty_words)


def spam_words(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    """Many different words of advertisement in little text; one or two of them are the topic of an honest page."""
    if stats.spam_kinds < limits.min_spam_kinds:
        return None
    return above("spam_words", "share of spam words", stats.spam_words / stats.prose_words, limits.max_spam_words)


def repeated_lines(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    if stats.prose_words < limits.repetition_from_words or stats.code_share > MOSTLY_CODE:
        return None
    return above("repeated_lines", "share of lines", stats.repeated_lines, limits.max_repeated_lines) or above(
        "repeated_lines", "share of characters", stats.repeated_line_characters, limits.max_repeated_line_characters
    )


def keyword_stuffing(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    """One content word again and again, or hardly a function word: lists of search terms, not sentences."""
    if stats.prose_words < limits.repetition_from_words or stats.code_share > MOSTLY_CODE:
        return None
    few = stats.function_words < limits.min_function_words * 2
    if few and (found := above("keyword_stuffing", "share of one word", stats.top_word, limits.max_top_word)):
        return found
    if language in FUNCTION_WORD_LANGUAGES and stats.code_share == 0:
        return below("keyword_stuffing", "share of function words", stats.function_words, limits.min_function_words)
    return None


FUNCTION_WORD_LANGUAGES = frozenset(("en", "fr", "es", "de", "it", "pt"))


def repeated_ngrams(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    if stats.prose_words < limits.repetition_from_words or stats.code_share > MOSTLY_CODE:
        return None
    for name in ("repeated_10grams", "repeated_5grams", "top_2gram", "top_3gram", "top_4gram"):
        if found := above("repeated_ngrams", f"share in {name}", getattr(stats, name), getattr(limits, f"max_{name}")):
            return found
    return None


def not_prose(stats: Stats, limits: Thresholds, language: str) -> Verdict | None:
    """Word lengths, symbols, bullets and numbers as no prose has them."""
    if stats.prose_words < limits.min_words or stats.code_share > MOSTLY_CODE:
        return None
    spaced = language not in UNSPACED
    return (
        (spaced and below("word_length", "mean characters", stats.mean_word, limits.min_mean_word))
        or above("word_length", "mean characters", stats.mean_word, limits.max_mean_word)
        or above("symbols", "symbols a word", stats.symbols_per_word, limits.max_symbols_per_word)
        or above("bullet_lines", "share of lines", stats.bullet_lines, limits.max_bullet_lines)
        or above("ellipsis_lines", "share of lines", stats.ellipsis_lines, limits.max_ellipsis_lines)
        or below("few_letters", "share of words with letters", stats.alphabetic_words, limits.min_alphabetic_words)
        or None
    )


UNSPACED = frozenset(("zh", "ja", "ko", "th", "lo", "km", "my"))

RULES: tuple[Callable[[Stats, Thresholds, str], Verdict | None], ...] = (
    too_short,
    too_long,
    placeholder,
    dirty_words,
    spam_words,
    repeated_lines,
    keyword_stuffing,
    repeated_ngrams,
    not_prose,
)


def above(reason: str, what: str, value: float, limit: float) -> Verdict | None:
    return (reason, f"{what} {value:.4g} > {limit:g}") if value > limit else None


def below(reason: str, what: str, value: float, limit: float) -> Verdict | None:
    return (reason, f"{what} {value:.4g} < {limit:g}") if value < limit else None
