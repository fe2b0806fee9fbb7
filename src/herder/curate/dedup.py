"""Document deduplication (paper section 3.1.1: global MinHash across the whole data set; exact copies first).

Signatures are 128 MinHash values of word shingles (rensa). Banding proposes pairs; the estimated Jaccard similarity of the two
signatures decides, so a band's chance agreement removes nothing. Only one band's keys are in memory at a time, and signatures
are read through a memory map: what grows with the corpus is a few bytes a document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from rensa import RMinHash

from herder.curate.words import Words, mix, shingles

PERMUTATIONS = 128
SEED = 1


@dataclass(frozen=True)
class NearDuplicates:
    """Shingle length in words, the banding (bands * rows <= 128) and the similarity from which documents are one."""

    shingle: int = 5
    bands: int = 25
    rows: int = 5
    similarity: float = 0.7

    def __post_init__(self):
        if self.bands * self.rows > PERMUTATIONS:
            raise ValueError(f"bands * rows is {self.bands * self.rows}; a signature has {PERMUTATIONS} values")


def content_key(words: Words) -> str:
    """Equal for documents with the same words in the same order, whatever their case, punctuation and white space."""
    return xxhash.xxh3_128_hexdigest(words.hashes.tobytes())


def signature(words: Words, shingle: int) -> np.ndarray:
    """The MinHash signature of a document: uint32 (128,)."""
    return signatures([words.hashes], shingle)[0]


def signatures(documents: list[np.ndarray], shingle: int) -> np.ndarray:
    """MinHash signatures of documents given as arrays of word hashes: uint32 (documents, 128)."""
    if not documents:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    grams = [shingles(hashes, shingle) for hashes in documents]
    offsets = np.cumsum([0, *(len(g) for g in grams)]).tolist()
    flat = np.concatenate(grams)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, SEED)
    return np.array(digests.to_rows(), np.uint32)


class Clusters:
    """Union-find over documents 0..n-1; the root of a cluster is its smallest member."""

    def __init__(self, n: int):
        self.parent = np.arange(n, dtype=np.int64)

    def find(self, item: int) -> int:
        parent = self.parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def roots(self) -> np.ndarray:
        """The root of every document, int64 (n,)."""
        parent = self.parent
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                return parent
            self.parent = parent = above


def near_duplicates(matrix: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """The cluster of every row of a signature matrix (may be a memory map), as the smallest member's row number."""
    clusters = Clusters(len(matrix))
    for band in range(rule.bands):
        keys = band_keys(matrix, band * rule.rows, rule.rows)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        edges = np.flatnonzero(np.diff(ordered)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.concatenate((edges, [len(ordered)]))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            join_bucket(order[start:end], matrix, rule.similarity, clusters)
    return clusters.roots()


def band_keys(matrix: np.ndarray, first: int, rows: int, block: int = 65536) -> np.ndarray:
    """One 64-bit key a document for the signature values first .. first + rows."""
    keys = np.zeros(len(matrix), np.uint64)
    for at in range(0, len(matrix), block):
        part = np.asarray(matrix[at : at + block, first : first + rows]).astype(np.uint64)
        for column in part.T:
            keys[at : at + block] = mix(keys[at : at + block] * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1))
    return keys


MAX_LEADERS = 64


def join_bucket(members: np.ndarray, matrix: np.ndarray, similarity: float, clusters: Clusters) -> None:
    """Joins the members of one bucket that are similar enough to a leader: linear in the bucket, not quadratic.

    Leaders are the first members that are like no earlier leader; buckets hold few kinds, since they agree on a whole band.
    """
    left = members
    for _ in range(MAX_LEADERS):
        leader, left = int(left[0]), left[1:]
        if len(left) == 0:
            return
        alike = (np.asarray(matrix[left]) == np.asarray(matrix[leader])).mean(axis=1) >= similarity
        for member in left[alike]:
            clusters.union(leader, int(member))
        left = left[~alike]
        if len(left) == 0:
            return


def expected_recall(jaccard: float, rule: NearDuplicates) -> float:
    """The chance that two documents of this Jaccard similarity share a band and pass the check: the S-curve, with
    the estimate's binomial spread over 128 values taken as independent of the banding."""
    from math import comb

    banded = 1.0 - (1.0 - jaccard**rule.rows) ** rule.bands
    need = int(np.ceil(rule.similarity * PERMUTATIONS - 1e-9))
    passed = sum(
        comb(PERMUTATIONS, k) * jaccard**k * (1 - jaccard) ** (PERMUTATIONS - k) for k in range(need, PERMUTATIONS + 1)
    )
    return min(banded, passed)
