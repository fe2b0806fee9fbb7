import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from herder.engine import Engine, Sampling
from herder.engine.gate import RISES, distance, gate, judge, perplexity_ratio, response_shift
from herder.model import Llama, LlamaConfig


def models(rise, *, rows=400, tokens=60, noise=0.02, seed=0):
    """Log-probabilities of a reference, and of a model whose perplexity is `rise` higher, with noise of its own per token."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(-2.5, 0.4, rows)  # some texts are harder
    reference = [rng.normal(level, 1.0, tokens) for level in levels]
    other = [row - math.log1p(rise) + rng.normal(0, noise, tokens) for row in reference]
    return reference, other


@pytest.mark.parametrize("scheme", sorted(RISES))
def test_a_known_rise_is_refused_beyond_the_limit_and_passes_below_it(scheme):
    limit = RISES[scheme]
    good, bad = models(0.5 * limit), models(1.5 * limit)
    assert judge(scheme, good, good).passed
    refused = judge(scheme, bad, good)
    assert not refused.passed
    assert f"perplexity rises by {100 * (refused.perplexity.value - 1):.2f}%" in refused.reason
    assert f"{scheme} may cost {limit:.0%}" in refused.reason


def test_what_int4_may_cost_is_refused_for_int8():
    pair = models(0.05)
    assert judge("int4", pair, pair).passed
    assert not judge("int8", pair, pair).passed


def test_a_model_that_is_the_reference_passes_exactly():
    same, _ = models(0)
    verdict = judge("int8", (same, same), (same, same))
    assert verdict.passed
    assert (verdict.perplexity.value, verdict.perplexity.low, verdict.perplexity.high) == (1, 1, 1)
    assert verdict.responses.distance == 0


def test_responses_that_suffer_are_refused_where_perplexity_is_fine():
    verdict = judge("int8", models(0), models(0.2))
    assert verdict.perplexity.value < 1.01
    assert "distribution of log-likelihood over responses moves" in verdict.reason


def test_too_few_rows_are_refused_as_undecided():
    verdict = judge("int8", models(0, rows=3, tokens=5, noise=0.2), models(0))
    assert "give more rows" in verdict.reason or "perplexity rises" in verdict.reason
    assert not verdict.passed


def test_noise_between_similar_responses_is_no_shift():
    for seed in range(5):
        reference, other = models(0, rows=50, noise=0.1, seed=seed)
        shift = response_shift(reference, other, rise=1e-9)
        assert shift.allowed > 0
        assert shift.distance <= 2 * shift.allowed


def test_the_ratio_and_its_interval_are_those_of_the_rows():
    reference, other = models(0.04, rows=300, noise=0.3)
    measure = perplexity_ratio(reference, other)
    everything = np.concatenate(reference) - np.concatenate(other)
    assert measure.value == pytest.approx(math.exp(everything.mean()))
    standard_error = np.std([np.mean(a - b) for a, b in zip(reference, other, strict=True)], ddof=1) / math.sqrt(300)
    assert measure.low == pytest.approx(measure.value * math.exp(-1.96 * standard_error), rel=5e-4)
    assert measure.high == pytest.approx(measure.value * math.exp(1.96 * standard_error), rel=5e-4)
    assert measure.n == 300


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        measure = perplexity_ratio(*models(0.03, rows=40, tokens=10, noise=0.3, seed=seed), seed=seed)
        hits += measure.low <= 1.03 <= measure.high
    assert 48 <= hits <= 60


def test_the_distance_between_shifted_normals_is_the_known_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 40_000), rng.normal(0.5, 1, 40_000)
    assert distance(a, b) == pytest.approx(2 * norm.cdf(0.25) - 1, abs=0.01)


def test_differences_are_described():
    reference, other = models(0.05, noise=0.0)
    shift = response_shift(reference, other, rise=0.08)
    assert shift.difference.value == pytest.approx(-math.log(1.05))
    assert shift.sd == pytest.approx(0, abs=1e-9)
    assert list(shift.quantiles.values()) == pytest.approx([-math.log(1.05)] * len(shift.quantiles))


class Table:
    """Scores by a table: each token's log-probability is its own, changed by `change`."""

    def __init__(self, change):
        self.change, self.calls = change, []

    def score(self, contexts, continuations):
        self.calls += list(zip(contexts, continuations, strict=True))
        return [np.array([-1 - (7 * t % 11) / 10 + self.change for t in row], np.float32) for row in continuations]


def test_two_engines_are_scored_on_the_same_tokens():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, 30).tolist() for _ in range(20)]
    responses = [(rng.integers(0, 50, 4).tolist(), rng.integers(0, 50, 9).tolist()) for _ in range(20)]
    reference, quantized = Table(0), Table(-math.log(1.004))
    verdict = gate(reference, quantized, "int8", rows, responses)
    assert reference.calls == quantized.calls == [*((r[:1], r[1:]) for r in rows), *responses]
    assert verdict.passed
    assert verdict.perplexity.value == pytest.approx(1.004, abs=1e-5)
    assert not gate(reference, Table(-math.log(1.02)), "int8", rows, responses).passed
    assert json.loads(json.dumps(verdict.to_json()))["passed"] is True


def engine(tok, noise):
    """A model whose weights are off by this share of themselves."""
    model = Llama(LlamaConfig(tok.n_vocab, 32, 2, 2, 1, 64, max_seq_len=64)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator))
    return Engine(model, tok)


def test_a_model_with_weights_that_are_off_is_refused_on_the_references_own_text(tok):
    reference, prompt = engine(tok, 0), tok.encode("a", bos=True)
    answers = [done.ids for done in reference.generate([prompt], Sampling(n=60, max_tokens=30, stop_ids=()))]
    rows, responses = [prompt + ids for ids in answers[:30]], [(prompt, ids) for ids in answers[30:]]
    assert gate(reference, engine(tok, 0.001), "int8", rows, responses).passed
    verdict = gate(reference, engine(tok, 0.3), "int8", rows, responses)
    assert "perplexity rises" in verdict.reason
    assert verdict.responses.difference.high < 0


@pytest.mark.parametrize(
    ("scheme", "rows", "message"),
    [
        ("int2", ([np.zeros(3)] * 2, [np.zeros(3)] * 2), "scheme 'int2' has no gate; choose one of int8, fp8, int4"),
        ("int8", ([np.zeros(3)], [np.zeros(3)]), "give at least 2"),
        ("int8", ([np.zeros(3)] * 2, [np.zeros(3)] * 3), "2 rows and the quantized model 3"),
        ("int8", ([np.zeros(3)] * 2, [np.zeros(3), np.zeros(2)]), "row 1 has 3 and 2 log-probabilities"),
        ("int8", ([np.zeros(0)] * 2, [np.zeros(0)] * 2), "row 0 has 0 and 0"),
        ("int8", ([np.zeros(1)] * 2, [np.zeros(1), np.array([math.nan])]), "row 1 .* not finite under the quantized"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(scheme, rows, message):
    with pytest.raises(ValueError, match=message):
        judge(scheme, rows, models(0))
