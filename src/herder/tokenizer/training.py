"""Training in two parts (paper section 3.2): 100K tokens learned on English and code, then 28K for other languages.

The first part is rustbpe's work. The second goes on from it: the one design decision is that the other languages' words are
first encoded by the first part, so its merges and ids stay as they are, and only what it leaves apart is learned. The same
texts give the same ranks, whatever the machine.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import regex
import rustbpe

from herder.tokenizer.bpe import LLAMA3_SPECIALS, PATTERN, Tokenizer, cut_runs, special_names

LEARNED_RUN = 1_000
"""Runs of letters, of spaces or of signs beyond this length (a genome, a blob, a line of dashes) are cut while learning: the
cost of a merge grows with the length of the words it is in. No written language has such a word."""

_SPARE_MERGES = 64
_RUN = re.compile(r"[^\W\d_]+|\s+|[^\w\s]+|[\d_]+")
_WORD_END, _GONE = -1, -2


def train(
    texts: Iterable[str],
    vocab_size: int,
    n_special: int = LLAMA3_SPECIALS,
    pattern: str = PATTERN,
    extension: Iterable[str] | None = None,
    extension_size: int = 0,
) -> Tokenizer:
    """Trains a tokenizer of exactly `vocab_size` ids on streams of texts.

    `n_special` ids are special, and the last `extension_size` of the others are learned on the texts of `extension`. Those
    before them are what training on `texts` alone gives: their ranks and ids do not depend on the extension (Llama 3: 128,256
    ids, 256 special, 27,744 of the extension). Raises ValueError where a stream is too little for that many tokens.
    """
    first = vocab_size - n_special - extension_size
    if (extension is None) != (extension_size == 0):
        raise ValueError(f"extension_size is {extension_size}; give texts to extend on exactly where it is above 0")
    if first < 256:
        raise ValueError(
            f"vocab_size {vocab_size} leaves {first} base tokens beside {n_special} special; 256 are bytes"
        )
    tokens = learn(texts, first, pattern)
    if len(tokens) < first:
        raise ValueError(
            f"the texts give only {len(tokens)} base tokens of the {first} asked for; "
            f"give more text or set vocab_size to {len(tokens) + n_special + extension_size} or less"
        )
    if extension is not None:
        more = extend(tokens, extension, extension_size, pattern)
        if len(more) < extension_size:
            raise ValueError(
                f"the texts of the extension give only {len(more)} tokens of the {extension_size} asked for; "
                f"give more text or set extension_size to {len(more)} or less"
            )
        tokens += more
    return Tokenizer({token: rank for rank, token in enumerate(tokens)}, special_names(n_special), pattern)


def learn(texts: Iterable[str], size: int, pattern: str = PATTERN) -> list[bytes]:
    """Up to `size` tokens in merging order, the 256 bytes first."""
    trainer = rustbpe.Tokenizer()
    # Two merges can spell the same bytes; tiktoken needs distinct ones, so a few spare merges stand in for the repeats.
    trainer.train_from_iterator(_cut(texts), size + _SPARE_MERGES, pattern=pattern)
    ordered = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return list(dict.fromkeys(bytes(token) for token, _ in ordered))[:size]


def extend(tokens: list[bytes], texts: Iterable[str], size: int, pattern: str = PATTERN) -> list[bytes]:
    """Up to `size` further tokens, learned on texts that `tokens` encode first; a pair that occurs once is no token."""
    words, pieces = Counter(), regex.compile(pattern)
    for text in _cut(texts):
        words.update(pieces.findall(text) if not pieces.groups else (match[0] for match in pieces.finditer(text)))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encode = Tokenizer(ranks, (), pattern).encode_piece
    ids = [encode(word.encode()) for word in words]
    return _Merger(ids, list(words.values()), tokens).learn(size)


class _Merger:
    """Byte-pair merging over distinct words laid end to end in one array, each counted as often as it occurs.

    `at[i]` is the token that begins at place i, `next` and `previous` lead over places that were merged away. Where each pair
    occurs is only ever added to and checked when read; counts only fall, so the heap holds upper bounds.
    """

    def __init__(self, words: list[list[int]], counts: list[int], tokens: list[bytes]):
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        self.at = np.full(int(lengths.sum()) + len(words) + 1, _WORD_END, dtype=np.int64)
        inside = np.ones(len(self.at), dtype=bool)
        inside[np.concatenate([[0], np.cumsum(lengths + 1)])] = False  # a mark before each word and after the last
        self.at[inside] = np.fromiter((i for word in words for i in word), dtype=np.int64, count=int(lengths.sum()))
        self.weight = np.zeros(len(self.at), dtype=np.int64)
        self.weight[inside] = np.repeat(np.asarray(counts, dtype=np.int64), lengths)
        self.next, self.previous = np.arange(1, len(self.at) + 1), np.arange(-1, len(self.at) - 1)
        self.tokens, self.known = list(tokens), {token: i for i, token in enumerate(tokens)}
        self.places: dict[tuple[int, int], np.ndarray] = {}
        self.heap: list[tuple[int, int, int]] = []
        begin = np.flatnonzero((self.at[:-1] >= 0) & (self.at[1:] >= 0))
        self._add(self.at[begin], self.at[begin + 1], begin)

    def learn(self, size: int) -> list[bytes]:
        """Merges the most frequent pair, of equals the one of the lowest ids, until `size` tokens are new."""
        old = len(self.tokens)
        while self.heap and len(self.tokens) < old + size:
            bound, a, b = self.heap[0]
            if (a, b) not in self.places:
                heapq.heappop(self.heap)
                continue
            places = self._occurrences(a, b)
            count = int(self.weight[places].sum())
            if count < 2:
                heapq.heappop(self.heap)
                del self.places[a, b]
            elif count < -bound:
                heapq.heapreplace(self.heap, (-count, a, b))
                self.places[a, b] = places
            else:
                heapq.heappop(self.heap)
                self._merge(a, b)
        return self.tokens[old:]

    def _occurrences(self, a: int, b: int) -> np.ndarray:
        places = self.places[a, b]
        places = places[self.at[places] == a]
        return places[self.at[self.next[places]] == b]

    def _merge(self, a: int, b: int) -> None:
        """Makes the token that the pair spells, at every place where neighbours spell it: so does encoding."""
        spelled = self.tokens[a] + self.tokens[b]
        new = self.known.setdefault(spelled, len(self.tokens))
        if new == len(self.tokens):
            self.tokens.append(spelled)
        made = []
        for cut in range(1, len(spelled)):
            pair = self.known.get(spelled[:cut]), self.known.get(spelled[cut:])
            if pair in self.places:
                made.append(self._replace(*pair, new))
        left = np.concatenate(made)
        left = left[self.at[left] == new]
        before, after = self.previous[left], self.next[left]
        here = (self.at[before] >= 0) & (self.at[before] != new)  # two new neighbours are seen from the left one
        there = self.at[after] >= 0
        filled = np.full(len(left), new)
        self._add(
            np.concatenate([self.at[before[here]], filled[there]]),
            np.concatenate([filled[here], self.at[after[there]]]),
            np.concatenate([before[here], left[there]]),
        )

    def _replace(self, a: int, b: int, new: int) -> np.ndarray:
        """Puts `new` where `a` and `b` are neighbours; returns its places."""
        left = self._occurrences(a, b)
        del self.places[a, b]
        if a == b:  # of a run of equal tokens every second pair, from the left
            starts = np.append(True, self.next[left[:-1]] != left[1:])
            since = np.arange(len(left)) - np.maximum.accumulate(np.where(starts, np.arange(len(left)), 0))
            left = left[since % 2 == 0]
        right = self.next[left]
        after = self.next[right]
        self.at[left], self.at[right] = new, _GONE
        self.next[left], self.previous[after] = after, left
        return left

    def _add(self, a: np.ndarray, b: np.ndarray, places: np.ndarray) -> None:
        """Notes pairs that have come to lie side by side, each pair's places rising; those that occur once are left out."""
        keys = (a << 32) | b
        order = np.lexsort((places, keys))
        keys, places = keys[order], places[order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.arange(0)
        sums = np.add.reduceat(self.weight[places], starts) if len(keys) else starts
        often = sums > 1
        ends = np.append(starts[1:], len(keys))[often].tolist()
        for key, start, end, count in zip(
            keys[starts[often]].tolist(), starts[often].tolist(), ends, sums[often].tolist(), strict=True
        ):
            pair, found = (key >> 32, key & 0xFFFFFFFF), places[start:end]
            if pair in self.places:  # a token that was known is made in a new place
                found = np.union1d(self.places[pair], found)
                count = int(self.weight[found].sum())
            self.places[pair] = found
            heapq.heappush(self.heap, (-count, *pair))


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """The texts with over-long runs cut and lone surrogates replaced, as encoding does."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if len(text) <= LEARNED_RUN:
            yield text
        else:
            yield from cut_runs(text, LEARNED_RUN, _RUN)
