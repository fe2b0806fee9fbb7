"""An interpolated, modified Kneser-Ney n-gram model over token ids (Chen and Goodman 1999): the baseline of a language model.

Its probabilities are exactly normalised, so its bits per byte stand beside a neural model's. The one design decision: an
n-gram is numbered within its order, and its key is (number of its first n-1 tokens) * base + last token, so any vocabulary
fits in 64 bits and both training and scoring are sorts and look-ups of whole arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST_DISCOUNT = 0.05
"""Some mass must reach the order below, or a token unseen after a context would have probability 0."""


@dataclass
class _Order:
    """Tables of one order n. Contexts are n-grams of order n - 1, by number."""

    keys: np.ndarray
    """(n-grams,) int64, sorted: number of the context * base + last token."""
    counts: np.ndarray
    """(n-grams,) how often each occurs (highest order), or how many different tokens precede it; 0: only a context."""
    discounts: np.ndarray
    """(4,) what is taken from counts of 0, 1, 2, and 3 or more."""
    totals: np.ndarray
    """(contexts,) sum of counts after each context."""
    backoff: np.ndarray
    """(contexts,) share of the mass that goes to the order below."""


class KneserNey:
    """Trained on documents of ids below `vocab_size`; each document starts from its own beginning."""

    def __init__(self, documents: Iterable[Sequence[int]], vocab_size: int, order: int = 5):
        if order < 1:
            raise ValueError(f"order is {order}; it must be at least 1")
        # The id vocab_size stands for "before the document"; it is context only and never predicted.
        self.vocab_size, self.order, self._base = vocab_size, order, vocab_size + 1
        ids, real = self._lay_out(documents)
        if not real.any():
            raise ValueError("the n-gram model has no tokens to learn from; give it documents")
        context, tables = np.zeros(len(ids), np.int64), []
        for _ in range(order):
            keys, first, number = np.unique(context * self._base + ids, return_index=True, return_inverse=True)
            tables.append((keys, first, number, np.bincount(number[real], minlength=len(keys))))
            context = np.concatenate(([0], number[:-1]))
        self._orders: list[_Order] = []
        for n in range(1, order + 1):
            keys, _, _, counts = tables[n - 1]
            if n < order:  # lower orders count the different tokens before an n-gram, not its occurrences
                _, longer_first, _, longer_counts = tables[n]
                counts = np.bincount(tables[n - 1][2][longer_first[longer_counts > 0]], minlength=len(keys))
            contexts = len(tables[n - 2][0]) if n > 1 else 1
            self._orders.append(self._finish(keys, counts, contexts))

    def nats(self, documents: Iterable[Sequence[int]]) -> list[np.ndarray]:
        """-log p of each token of each document, given the tokens before it in the document."""
        documents = list(documents)
        ids, real = self._lay_out(documents)
        values = -np.log(self._probabilities(ids)[real])
        return np.split(values, np.cumsum([len(d) for d in documents])[:-1]) if documents else []

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """(vocab_size,) probabilities of the next token after a document that begins with `context`."""
        start = [self.vocab_size] * (self.order - 1) + list(context)
        rows = [np.array([*start, w], dtype=np.int64) for w in range(self.vocab_size)]
        ids = np.concatenate(rows)
        return self._probabilities(ids)[len(start) :: len(start) + 1]

    def _lay_out(self, documents: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """All ids in one array, order - 1 marks of beginning before each document; True where an id is real."""
        mark, parts = np.full(max(1, self.order - 1), self.vocab_size, np.int64), []
        for document in documents:
            ids = np.asarray(document, dtype=np.int64)
            if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
                raise ValueError(f"document {len(parts) // 2} holds an id outside 0 to {self.vocab_size - 1}")
            parts += [mark, ids]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return ids, ids != self.vocab_size

    def _finish(self, keys: np.ndarray, counts: np.ndarray, contexts: int) -> _Order:
        discounts, context = _discounts(counts), keys // self._base
        totals = np.bincount(context, counts, contexts)
        taken = np.bincount(context, discounts[np.minimum(counts, 3)], contexts)
        return _Order(
            keys, counts, discounts, totals, np.divide(taken, totals, out=np.ones(contexts), where=totals > 0)
        )

    def _probabilities(self, ids: np.ndarray) -> np.ndarray:
        """The probability of each id after the ids before it in the array."""
        p = np.full(len(ids), 1 / self.vocab_size)
        context = np.zeros(len(ids), np.int64)  # the number of the n-1 tokens before; -1 where training never saw them
        for table in self._orders:
            key = context * self._base + ids
            place = np.minimum(np.searchsorted(table.keys, key), len(table.keys) - 1)
            number = np.where((table.keys[place] == key) & (context >= 0), place, -1)
            count = np.where(number >= 0, table.counts[place], 0)
            total = np.where(context >= 0, table.totals[context], 0.0)
            seen = total > 0
            own = (count - table.discounts[np.minimum(count, 3)])[seen] / total[seen]
            p[seen] = own + table.backoff[context[seen]] * p[seen]
            context = np.concatenate(([-1], number[:-1]))
        return p


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Chen and Goodman's three discounts from the counts of counts; 0.75 (at most the count) where those are too few."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    each = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(min(max(d, _LEAST_DISCOUNT), c) for d, c in zip(each, (1, 2, 3), strict=True))])
