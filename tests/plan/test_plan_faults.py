"""Interruptions and effective time against the paper's counts and against arithmetic."""

import math

import pytest

from herder.plan.faults import TABLE_5, Costs, checkpoint_interval, expected, simulate


def test_the_paper_s_54_days_are_predicted_again():
    causes = expected(16_384, 54 * 24)
    assert sum(causes.values()) == pytest.approx(466)
    assert causes["faulty GPU"] == pytest.approx(148)
    assert sum(TABLE_5.values()) == 419


def test_half_the_gpus_see_half_the_interruptions():
    assert sum(expected(8192, 54 * 24).values()) == pytest.approx(233)


def test_effective_time_agrees_with_the_closed_form():
    """Each interruption costs the restart and on average half an interval; each interval costs a checkpoint."""
    made = simulate(16_384, 54 * 24, 5.7e12, Costs(restart_seconds=300))
    between = 3600 * made.hours_between
    lost = (300 + made.checkpoint_every_seconds / 2) / between + made.checkpoint_seconds / made.checkpoint_every_seconds
    assert made.effective == pytest.approx(1 - lost, abs=0.005)
    assert made.effective_low < made.effective < made.effective_high


def test_longer_restarts_keep_the_share_that_an_exponential_says():
    """A second trains where no interruption lies in the restart before it: exp(-restart / time between)."""
    fast, slow = (simulate(16_384, 1000, 5.7e12, Costs(restart_seconds=s)).effective for s in (60, 1860))
    assert slow / fast == pytest.approx(math.exp(-1800 / (3600 * 54 * 24 / 466)), abs=0.01)


def test_a_run_of_a_million_years_is_simulated_in_a_moment():
    assert 0.9 < simulate(16_384, 1e10, 5.7e12, runs=3).effective < 1


def test_the_interval_is_the_one_that_loses_least():
    def loss(every):
        return 30 / every + every / 2 / 10_000

    best = checkpoint_interval(30, 10_000)
    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best))


def test_one_gpu_for_an_hour_is_hardly_ever_interrupted():
    made = simulate(1, 1, 1e9)
    assert made.interruptions < 1e-4
    assert made.effective > 0.99


@pytest.mark.parametrize("costs", [Costs(restart_seconds=-1), Costs(storage_bytes_per_second=0)])
def test_costs_that_make_no_sense_are_refused(costs):
    with pytest.raises(ValueError, match=r"restart_seconds|storage_bytes_per_second"):
        simulate(8, 10, 1e9, costs)
