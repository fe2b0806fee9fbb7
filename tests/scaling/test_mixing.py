"""The mixing law against mixes whose law is known."""

import numpy as np
import pytest

from herder.scaling import fit_mix, lattice

SOURCES = ("code", "general", "multilingual")
FLOOR = {"code": 2.0, "general": 3.1, "multilingual": 2.7}
SLOPES = {"code": (-1.3, 0.4, 0.9), "general": (0.5, -0.6, 0.3), "multilingual": (0.8, 0.3, -1.1)}
WEIGHTS = {"general": 0.5, "code": 0.3, "multilingual": 0.2}


def loss(mix, noise=0.0, rng=None):
    shares = np.array([mix[s] for s in SOURCES])
    luck = rng.normal(0, noise) if rng is not None else 0.0
    return {d: FLOOR[d] + float(np.exp(shares @ np.array(SLOPES[d]))) + luck for d in FLOOR}


def weighted(mix):
    return sum(WEIGHTS[d] * value for d, value in loss(mix).items())


def fitted(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mixes = lattice(SOURCES, 3, 0.02)
    return fit_mix(mixes, [loss(mix, noise, rng) for mix in mixes], seed)


def test_a_lattice_holds_every_mix_of_its_degree_once():
    mixes = lattice(SOURCES, 3, 0.02)
    assert len({tuple(m.values()) for m in mixes}) == len(mixes) == 10
    assert all(sum(m.values()) == pytest.approx(1) and min(m.values()) >= 0.02 - 1e-12 for m in mixes)
    assert len(lattice(("a", "b", "c", "d"), 2)) == 10


def test_noise_free_runs_give_back_the_losses_and_the_best_mix():
    law = fitted()
    other = {"code": 0.21, "general": 0.34, "multilingual": 0.45}
    assert law.losses(other) == pytest.approx(loss(other), abs=1e-4)
    grid = min(lattice(SOURCES, 100), key=weighted)
    assert law.best(WEIGHTS) == pytest.approx(grid, abs=0.011)


def test_bounds_hold_and_cost_something():
    law = fitted()
    free = law.best(WEIGHTS)
    most = {"code": 0.6 * free["code"]}
    bound = law.best(WEIGHTS, most, 0.1)
    assert bound["code"] <= most["code"] + 1e-9
    assert min(bound.values()) >= 0.1 - 1e-9
    assert weighted(bound) > weighted(free)


def test_a_domain_that_counts_for_all_draws_the_mix_to_its_source():
    law = fitted()
    assert law.best({"code": 1.0})["code"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.long
def test_intervals_of_the_gain_cover_the_truth():
    default, chosen = dict.fromkeys(SOURCES, 1 / 3), {"code": 0.5, "general": 0.4, "multilingual": 0.1}
    truth, hits = weighted(default) - weighted(chosen), 0
    for seed in range(16):
        gain = fitted(0.01, seed).gain(chosen, default, WEIGHTS)
        hits += gain.low <= truth <= gain.high
        assert gain.high - gain.low < 0.1
    assert hits >= 13


def test_what_cannot_be_searched_is_a_sentence():
    mixes = lattice(SOURCES, 3, 0.02)
    losses = [loss(m) for m in mixes]
    with pytest.raises(ValueError, match="needs 5 different mixes"):
        fit_mix(mixes[:4], losses[:4])
    with pytest.raises(ValueError, match="same held-out domains"):
        fit_mix(mixes, [*losses[:-1], {"code": 1.0}])
    with pytest.raises(ValueError, match="not a positive finite number"):
        fit_mix(mixes, [*losses[:-1], dict.fromkeys(FLOOR, float("nan"))])
    with pytest.raises(ValueError, match="two sources or more"):
        lattice(("code",), 3)
    law = fitted()
    with pytest.raises(ValueError, match="names no held-out domain"):
        law.best({"maths": 1.0})
    with pytest.raises(ValueError, match="no mix keeps every share"):
        law.best(WEIGHTS, dict.fromkeys(SOURCES, 0.2))
