"""Document deduplication (paper section 3.1.1: global MinHash across the whole data set; exact copies first).

Signatures are 128 MinHash values of word shingles (rensa). Banding proposes pairs; the estimated Jaccard similarity of the two
signatures decides, so a band's chance agreement removes nothing. Only one band's keys are in memory at a time, and signatures
are read through a memory map: what grows with the corpus is a few bytes a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from rensa import RMinHash

from herder.curate.words import mix, shingles

PERMUTATIONS = 128
SEED = 1


@dataclass(frozen=True)
class NearDuplicates:
    """Shingle length in words, the banding (bands * rows <= 128) and the similarity from which documents are one.

    Pairs of words find copies with up to a quarter of their words changed, also in texts of fifty words. For long pages by the
    million, shingle=5, bands=14, rows=8, similarity=0.75 makes far fewer candidates and finds copies with 5% changed.
    Pages with code need more: the reference pages of sibling functions share a template, and say different things.
    """

    shingle: int = 2
    bands: int = 42
    rows: int = 3
    similarity: float = 0.4
    similarity_with_code: float = 0.55

    def __post_init__(self):
        if self.bands * self.rows > PERMUTATIONS:
            raise ValueError(f"bands * rows is {self.bands * self.rows}; a signature has {PERMUTATIONS} values")


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


def near_duplicates(matrix: np.ndarray, rule: NearDuplicates, needed: np.ndarray | None = None) -> np.ndarray:
    """The cluster of every row of a signature matrix (may be a memory map), as the smallest member's row number.

    `needed` is the similarity each row asks for (rule.similarity, where not given); a pair must meet the higher of its two.
    """
    needed = np.full(len(matrix), rule.similarity) if needed is None else needed
    clusters = Clusters(len(matrix))
    for band in range(rule.bands):
        keys = band_keys(matrix, band * rule.rows, rule.rows)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        edges = np.flatnonzero(np.diff(ordered)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.concatenate((edges, [len(ordered)]))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            join_bucket(order[start:end], matrix, needed, clusters)
    return clusters.roots()


def similar(row: np.ndarray, rows: np.ndarray, need: float, needed: np.ndarray) -> np.ndarray:
    """Which rows have an estimated Jaccard similarity to `row` of at least what both ask for: bool (rows,)."""
    return (rows == row).mean(axis=1) >= np.maximum(needed, need)


HUBS_UP_TO = 1000


def keepers(matrix: np.ndarray, members: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """For the members of a cluster, best first, which member each is represented by (itself, if it stays).

    A cluster is a chain of similar pairs and its ends may differ: a document goes only if one that stays is like it. The one
    like most others stays first (the original of several edited copies), the best among equals; huge clusters go by best alone.
    """
    rows, needed = np.asarray(matrix[members]), needed[members]
    keeper = np.full(len(members), -1, np.int64)
    neighbours = np.zeros(len(members), np.int64)
    if len(members) <= HUBS_UP_TO:
        neighbours = np.array([similar(row, rows, need, needed).sum() for row, need in zip(rows, needed, strict=True)])
    for best in np.argsort(-neighbours, kind="stable"):
        if keeper[best] < 0:
            open_ = np.flatnonzero(keeper < 0)
            keeper[open_[similar(rows[best], rows[open_], needed[best], needed[open_])]] = best
    return members[keeper]


def band_keys(matrix: np.ndarray, first: int, rows: int, block: int = 65536) -> np.ndarray:
    """One 64-bit key a document for the signature values first .. first + rows."""
    keys = np.zeros(len(matrix), np.uint64)
    for at in range(0, len(matrix), block):
        part = np.asarray(matrix[at : at + block, first : first + rows]).astype(np.uint64)
        for column in part.T:
            keys[at : at + block] = mix(keys[at : at + block] * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1))
    return keys


MAX_LEADERS = 64


def join_bucket(members: np.ndarray, matrix: np.ndarray, needed: np.ndarray, clusters: Clusters) -> None:
    """Joins the members of one bucket that are similar enough to a leader: linear in the bucket, not quadratic.

    Leaders are the first members that are like no earlier leader; buckets hold few kinds, since they agree on a whole band.
    """
    left = members
    for _ in range(MAX_LEADERS):
        leader, left = int(left[0]), left[1:]
        if len(left) == 0:
            return
        alike = similar(np.asarray(matrix[leader]), np.asarray(matrix[left]), needed[leader], needed[left])
        for member in left[alike]:
            clusters.union(leader, int(member))
        left = left[~alike]
        if len(left) == 0:
            return


def expected_recall(jaccard: float, rule: NearDuplicates, with_code: bool = False) -> float:
    """The chance that two documents of this Jaccard similarity share a band and pass the check: the S-curve, with
    the estimate's binomial spread over 128 values taken as independent of the banding."""
    banded = 1.0 - (1.0 - jaccard**rule.rows) ** rule.bands
    asked = rule.similarity_with_code if with_code else rule.similarity
    need = int(np.ceil(asked * PERMUTATIONS - 1e-9))
    passed = sum(
        comb(PERMUTATIONS, k) * jaccard**k * (1 - jaccard) ** (PERMUTATIONS - k) for k in range(need, PERMUTATIONS + 1)
    )
    return min(banded, passed)
