"""A document's words as an array of hashes, made once and shared by the heuristics, MinHash and the overlap checks.

Everything is array arithmetic over the UTF-8 bytes: a prefix sum of table[byte] * B^i (mod 2^64) gives the hash of any range of
bytes by one subtraction and one multiplication with B^-i, so no Python object is made per word. Characters of scripts that
write without spaces are words of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASE = 0x9E3779B97F4A7C15
SHINGLE_BASE = np.uint64(0xD6E8FEB86659FD93)
CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Words:
    """The n words of a text. hashes: uint64 (n,); starts, sizes: int64 (n,), in characters of the text."""

    hashes: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)


def hash_words(text: str) -> Words:
    """The words of a text (letters and digits of any script, case folded), as hashes that depend on the word alone."""
    if len(text) <= CHUNK_BYTES:
        return _hash_chunk(text, 0)
    chunks, at = [], 0
    while at < len(text):
        end = at + CHUNK_BYTES
        if end < len(text):
            space = max(text.rfind(" ", at, end), text.rfind("\n", at, end))
            end = space + 1 if space > at else end
        chunks.append(_hash_chunk(text[at:end], at))
        at = end
    return Words(*(np.concatenate([getattr(c, name) for c in chunks]) for name in ("hashes", "starts", "sizes")))


def shingles(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of n words (in order, repeats included); the whole document where it is shorter. uint64."""
    if len(hashes) == 0:
        return hashes
    n = min(n, len(hashes))
    count = len(hashes) - n + 1
    total = hashes[:count].copy()
    for k in range(1, n):
        total *= SHINGLE_BASE
        total += hashes[k : k + count]
    return mix(total)


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def hash_terms(terms: str) -> np.ndarray:
    """Sorted hashes of the words of a list, to look documents' words up in."""
    return np.unique(hash_words(terms).hashes)


def is_in(hashes: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Which of the words are among sorted terms: bool (n,)."""
    at = np.searchsorted(terms, hashes)
    at[at == len(terms)] = 0
    return terms[at] == hashes


def _powers(base: int, count: int) -> np.ndarray:
    steps = np.full(count, np.uint64(base & 0xFFFFFFFFFFFFFFFF))
    steps[0] = 1
    return np.multiply.accumulate(steps)


_POWERS = {"size": 0}


def _tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    """B^i and B^-i up to at least `size`, grown on demand."""
    if _POWERS["size"] < size:
        grown = max(1 << 15, 1 << size.bit_length())
        _POWERS.update(size=grown, up=_powers(BASE, grown), down=_powers(pow(BASE, -1, 1 << 64), grown))
    return _POWERS["up"], _POWERS["down"]


_BYTE_VALUES = mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(BASE))
_IS_WORD = np.zeros(256, bool)
_IS_WORD[[*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), 0x5F, *range(0x80, 0x100)]] = True


def _hash_chunk(text: str, offset: int) -> Words:
    data = text.lower().encode("utf-8", "surrogatepass")
    raw = np.frombuffer(data, np.uint8)
    word = _IS_WORD[raw]
    ascii_only = len(data) == len(text)
    if not ascii_only:
        _mask_punctuation(raw, word)
    edge = np.diff(word.view(np.int8), prepend=np.int8(0), append=np.int8(0))
    starts, ends = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    if not ascii_only:
        starts, ends = _split_unspaced(raw, word, starts, ends)
    up, down = _tables(len(raw) + 1)
    sums = np.zeros(len(raw) + 1, np.uint64)
    np.cumsum(_BYTE_VALUES[raw] * up[: len(raw)], out=sums[1:])
    hashes = mix((sums[ends] - sums[starts]) * down[starts])
    if ascii_only:
        return Words(hashes, starts + offset, ends - starts)
    characters = np.zeros(len(raw) + 1, np.int64)
    np.cumsum((raw & 0xC0) != 0x80, out=characters[1:])
    starts, ends = characters[starts], characters[ends]
    return Words(hashes, starts + offset, ends - starts)


def _mask_punctuation(raw: np.ndarray, word: np.ndarray) -> None:
    """Takes general, Latin-1 and CJK punctuation (U+0080-00BF, U+2000-206F, U+3000-303F, U+FF00-FF0F) out of the words."""
    for lead, second, length in (
        (0xC2, None, 2),
        (0xE2, (0x80, 0x81), 3),
        (0xE3, (0x80, 0x80), 3),
        (0xEF, (0xBC, 0xBC), 3),
    ):
        at = np.flatnonzero(raw == lead)
        at = at[at + length <= len(raw)]
        if second is not None:
            follows = raw[at + 1]
            at = at[(follows >= second[0]) & (follows <= second[1])]
        for k in range(length):
            word[at + k] = False


def _split_unspaced(raw: np.ndarray, word: np.ndarray, starts: np.ndarray, ends: np.ndarray):
    """Makes every kana, Han and Hangul character (lead bytes E3 to ED) a word of its own."""
    wide = np.flatnonzero((raw >= 0xE3) & (raw <= 0xED) & word)
    if len(wide) == 0:
        return starts, ends
    cuts = np.union1d(wide, wide + 3)
    inside = np.searchsorted(starts, cuts, side="right") - 1
    cuts = cuts[(inside >= 0) & (cuts > starts[inside]) & (cuts < ends[inside])]
    return np.union1d(starts, cuts), np.union1d(ends, cuts)
