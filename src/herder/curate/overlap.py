"""Overlap of 8-grams between documents and texts they must not repeat: benchmark items and held-out documents (paper 5.1.4).

The protected side's n-grams are kept as one sorted array; documents stream past it. So memory grows with what is
protected, never with the corpus.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from herder.curate.words import hash_words, shingles
from herder.records import read_jsonl

NGRAM = 8


class Protected:
    """The 8-grams of texts that must not recur. grams: sorted uint64 (g,); owner: the text each belongs to (one, if shared)."""

    def __init__(self, texts: list[str]):
        found = [np.unique(shingles(hash_words(text).hashes, NGRAM)) for text in texts]
        owners = np.repeat(np.arange(len(found)), [len(f) for f in found])
        grams = np.concatenate(found) if found else np.zeros(0, np.uint64)
        self.grams, first = np.unique(grams, return_index=True)
        self.owner = owners[first]
        self.sizes = np.bincount(self.owner, minlength=len(texts))

    def hits(self, word_hashes: np.ndarray) -> np.ndarray:
        """Positions in `grams` of the n-grams that a document holds."""
        if len(self.grams) == 0 or len(word_hashes) < NGRAM:
            return np.zeros(0, np.int64)
        grams = shingles(word_hashes, NGRAM)
        at = np.searchsorted(self.grams, grams)
        at[at == len(self.grams)] = 0
        return np.unique(at[self.grams[at] == grams])

    def shares(self, positions: np.ndarray) -> np.ndarray:
        """For each protected text, the share of its n-grams that are among the positions."""
        found = np.bincount(self.owner[positions], minlength=len(self.sizes))
        return found / np.maximum(self.sizes, 1)

    def worst(self, word_hashes: np.ndarray) -> float:
        """The largest share of any one protected text that a document holds."""
        positions = self.hits(word_hashes)
        return float(self.shares(positions).max()) if len(positions) else 0.0

    def worst_in(self, text: str) -> float:
        """`worst` of a text."""
        return self.worst(hash_words(text).hashes)


def read_benchmarks(path: str) -> tuple[Protected | None, str]:
    """The protected items of a JSONL file (all string values of a line are its text), and the file's content hash."""
    if not path:
        return None, ""
    if not Path(path).exists():
        raise ValueError(f"benchmarks={path}: no such file; give a JSONL file with one benchmark item a line")
    texts = [" ".join(strings(row)) for row in read_jsonl(Path(path))]
    kept = [text for text in texts if len(hash_words(text)) >= NGRAM]
    return Protected(kept), xxhash.xxh3_64_hexdigest(Path(path).read_bytes())


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []
