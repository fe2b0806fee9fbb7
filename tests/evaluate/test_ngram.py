import math
import random
from collections import defaultdict

import numpy as np
import pytest

from herder.evaluate import KneserNey
from herder.evaluate.ngram import _discounts


def naive(documents, vocabulary, order):
    """Modified Kneser-Ney by its definition, with dictionaries: returns p(w, context)."""
    count = [defaultdict(int) for _ in range(order + 1)]
    for document in documents:
        padded = ["<"] * (order - 1) + list(document)
        for i in range(order - 1, len(padded)):
            count[order][tuple(padded[i - order + 1 : i + 1])] += 1
    for n in range(order - 1, 0, -1):  # different tokens that precede each shorter n-gram
        for gram in count[n + 1]:
            count[n][gram[1:]] += 1
    discounts = [None] + [_discounts(np.array(list(count[n].values()))) for n in range(1, order + 1)]

    def p(w, context):
        n = len(context) + 1
        below = p(w, context[1:]) if context else 1 / vocabulary
        after = {g[-1]: c for g, c in count[n].items() if g[:-1] == context}
        total = sum(after.values())
        if total == 0:
            return below
        taken = sum(discounts[n][min(c, 3)] for c in after.values())
        return (after.get(w, 0) - discounts[n][min(after.get(w, 0), 3)] + taken * below) / total

    return p


@pytest.fixture(scope="module")
def documents():
    draw = random.Random(0)
    return [[min(int(draw.expovariate(0.5)), 9) for _ in range(draw.randint(0, 30))] for _ in range(40)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_definition(documents, order):
    model, p = KneserNey(documents, 12, order), naive(documents, 12, order)
    test = [[0, 1, 2, 3, 0, 0, 1, 11, 0, 5, 1], [10, 10], [], [0]]
    for document, nats in zip(test, model.nats(test), strict=True):
        padded = ("<",) * (order - 1) + tuple(document)
        expected = [-math.log(p(w, padded[i : i + order - 1])) for i, w in enumerate(document)]
        np.testing.assert_allclose(nats, expected, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_of_all_tokens_sum_to_one(documents, order):
    model = KneserNey(documents, 12, order)
    for context in ([], [0], [0, 1, 0], [11, 11, 11, 11, 11], [9, 0, 0, 1, 2, 0]):
        assert model.distribution(context).sum() == pytest.approx(1, abs=1e-12)
        assert model.distribution(context).min() > 0


def test_the_distribution_is_what_documents_are_scored_by(documents):
    model = KneserNey(documents, 12, 4)
    nats = model.nats([[3, 0, 1, 0]])[0]
    for i, w in enumerate([3, 0, 1, 0]):
        assert nats[i] == pytest.approx(-math.log(model.distribution([3, 0, 1, 0][:i])[w]))


def test_discounts_are_chen_and_goodmans():
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4] * 1 + [9])
    y = 10 / 18
    np.testing.assert_allclose(_discounts(counts), [0, 1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5])


def test_a_longer_context_helps_where_it_decides():
    text = [[0, 1, 2, 0, 3, 4] * 20]  # what follows 0 is decided by the token before it
    per_token = [float(np.mean(KneserNey(text, 5, order).nats(text)[0])) for order in (1, 2, 3)]
    assert per_token[0] > per_token[1] > per_token[2]


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="document 1 holds an id outside 0 to 4"):
        KneserNey([[1], [5]], 5)
    with pytest.raises(ValueError, match="no tokens"):
        KneserNey([[]], 5)
