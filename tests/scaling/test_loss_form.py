"""The loss form and over-training against the published constants of Chinchilla's third approach."""

import math

import numpy as np
import pytest

from herder.scaling import Point, fit_law, fit_loss, optimal_tokens, overtraining, predict


def chinchilla(params, tokens):
    return 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28


def sweep(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    points = []
    for flops in (1e19, 3e19, 1e20, 3e20, 1e21):
        for params in np.geomspace(0.3, 3, 7) * math.sqrt(flops / 120):
            tokens = flops / 6 / params
            points.append(Point(params, tokens, flops, chinchilla(params, tokens) * math.exp(rng.normal(0, noise))))
    return points


def test_the_published_constants_are_recovered():
    found = fit_loss(sweep()).constants()
    expected = {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28}
    assert {name: pytest.approx(value, rel=1e-2) for name, value in expected.items()} == found


def test_the_interval_of_a_further_run_covers_it():
    params, tokens = 1e9, 2e11
    seen = [fit_loss(sweep(0.002, seed)).loss(params, tokens) for seed in range(20)]
    assert sum(m.low <= chinchilla(params, tokens) <= m.high for m in seen) >= 18
    assert max(m.high - m.low for m in seen) < 0.5


def test_one_broken_run_does_not_bend_the_surface():
    points = sweep()
    points[3] = Point(points[3].params, points[3].tokens, points[3].flops, points[3].loss * 1.5)
    assert fit_loss(points).loss(1e9, 2e10).value == pytest.approx(chinchilla(1e9, 2e10), rel=5e-3)


def test_overtraining_lowers_the_loss_and_costs_more_than_the_optimal_model_would():
    points = sweep()
    rows = overtraining(fit_loss(points), fit_law(points), 4e8)
    losses = [row["loss"]["value"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    for row in rows:
        assert row["loss"]["value"] == pytest.approx(chinchilla(4e8, row["tokens"]), rel=1e-3)
        assert row["flops"] == pytest.approx(6 * 4e8 * row["tokens"])
    gaps = [row["loss"]["value"] - row["optimal_loss"]["value"] for row in rows]
    assert gaps[0] == pytest.approx(0, abs=1e-3)
    assert gaps == sorted(gaps)
    assert rows[0]["optimal_params"] == pytest.approx(4e8)
    assert rows[-1]["optimal_params"] > 2e9


def test_an_8b_model_is_compute_optimal_near_the_published_200_billion_tokens():
    points = []
    for flops in (6e18, 1e20, 1e22):
        for away in (-1, -0.5, 0, 0.5, 1):
            tokens = 0.299 * flops**0.53727 * math.exp(away)
            points.append(Point(flops / 6 / tokens, tokens, flops, 2 + away**2))
    assert optimal_tokens(fit_law(points), 8e9) == pytest.approx(200e9, rel=0.1)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="needs 8 points"):
        fit_loss(sweep()[:7])
    with pytest.raises(ValueError, match="3 sizes"):
        fit_loss([Point(1e8, 1e9 * i, 6e17 * i, 3 - 0.01 * i) for i in range(1, 12)])


def test_a_forecast_widens_where_small_runs_do_not_follow_the_form():
    """Losses that fall ever faster at small scale, as before the power law sets in: the form alone is sure, and wrong."""

    def points(bend):
        found = []
        for flops in (1e11, 2e11, 4e11, 8e11):
            for away in (0.35, 0.7, 1.4, 2.8):
                tokens = math.sqrt(flops / 6) * away
                params = flops / 6 / tokens
                found.append(Point(params, tokens, flops, late(params, tokens, bend)))
        return found

    def late(params, tokens, bend):
        plain = 1.5 + 300 * params**-0.4 + 300 * tokens**-0.4
        return plain - bend * math.log(params * tokens * 6 / 0.99e11) ** 1.5

    target = 1e6, 2e6, 1.2e13
    true_form, other = predict(points(0.0), *target), predict(points(0.03), *target)
    assert true_form.high - true_form.low < 0.02
    assert true_form.value == pytest.approx(late(*target[:2], 0.0), rel=1e-3)
    alone = fit_loss(points(0.03)).loss(*target[:2])
    assert not alone.low < late(*target[:2], 0.03) < alone.high
    assert other.low < late(*target[:2], 0.03) < other.high


def test_a_forecast_needs_budgets_below_the_largest():
    points = [Point(1e5 * 2**i, 1e11 / 6 / (1e5 * 2**i), 1e11, 3 + i % 3) for i in range(9)]
    with pytest.raises(ValueError, match="needs 8 points"):
        predict(points, 1e6, 2e6, 1.2e13)
