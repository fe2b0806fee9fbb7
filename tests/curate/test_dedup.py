"""MinHash: estimates against true Jaccard similarities, recall against the S-curve, clusters against brute force."""

import random

import numpy as np
import pytest

from herder.curate import NearDuplicates
from herder.curate.dedup import Clusters, expected_recall, keepers, near_duplicates, signatures
from herder.curate.words import hash_words, shingles

RULE = NearDuplicates()


def edited(words, share, rng):
    return [f"w{rng.randrange(50_000)}" if rng.random() < share else word for word in words]


def hashes(words):
    return hash_words(" ".join(words)).hashes


def jaccard(a, b, n):
    a, b = (set(shingles(h, n).tolist()) for h in (a, b))
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_true_jaccard_similarity():
    rng = random.Random(0)
    base = [f"w{rng.randrange(2000)}" for _ in range(400)]
    for share in (0.05, 0.2, 0.5):
        pair = [hashes(base), hashes(edited(base, share, rng))]
        estimate = np.equal(*signatures(pair, 2)).mean()
        assert estimate == pytest.approx(jaccard(*pair, 2), abs=0.13)  # 3 standard errors of 128 values


@pytest.mark.parametrize("share", [0.08, 0.2, 0.26, 0.32])
def test_recall_follows_the_s_curve(share):
    rng = random.Random(share)
    documents, promised = [], []
    for _ in range(200):
        base = [f"w{rng.randrange(5000)}" for _ in range(90)]
        pair = [hashes(base), hashes(edited(base, share, rng))]
        documents += pair
        promised.append(expected_recall(jaccard(*pair, RULE.shingle), RULE))
    roots = near_duplicates(signatures(documents, RULE.shingle), RULE)
    assert np.mean(roots[0::2] == roots[1::2]) == pytest.approx(np.mean(promised), abs=0.1)


def test_unlike_documents_stay_apart():
    rng = random.Random(3)
    documents = [hashes([f"w{rng.randrange(300)}" for _ in range(150)]) for _ in range(400)]
    assert len(np.unique(near_duplicates(signatures(documents, 2), RULE))) == 400


def test_clusters_are_connected_components():
    rng = random.Random(4)
    clusters, label = Clusters(60), list(range(60))
    for _ in range(45):
        a, b = rng.randrange(60), rng.randrange(60)
        clusters.union(a, b)
        label = [label[a] if x == label[b] else x for x in label]
    roots = clusters.roots()
    assert all((roots[i] == roots[j]) == (label[i] == label[j]) for i in range(60) for j in range(60))
    assert all(roots[i] <= i for i in range(60))


def test_what_goes_is_like_what_stays():
    """A chain a-b-c whose ends differ: the middle represents both, and without it both ends would stay."""
    matrix = np.zeros((3, 128), np.uint32)
    matrix[1, 60:], matrix[2] = 1, 1
    needed = np.full(3, 0.45)
    assert keepers(matrix, np.array([0, 1, 2]), needed).tolist() == [1, 1, 1]
    assert keepers(matrix, np.array([0, 2]), needed).tolist() == [0, 2]


def test_the_stricter_of_two_documents_decides():
    rng = random.Random(5)
    base = [f"w{rng.randrange(5000)}" for _ in range(200)]
    matrix = signatures([hashes(base), hashes(edited(base, 0.15, rng))], 2)
    assert len(set(near_duplicates(matrix, RULE, np.array([0.4, 0.4])))) == 1
    assert len(set(near_duplicates(matrix, RULE, np.array([0.4, 0.9])))) == 2


def test_bands_must_fit_a_signature():
    with pytest.raises(ValueError, match="bands \\* rows is 200"):
        NearDuplicates(bands=50, rows=4)
