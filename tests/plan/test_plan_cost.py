"""The bill against the totals of the Llama 3 model cards."""

import pytest

from herder.plan import Prices, cost


@pytest.mark.parametrize(("hours", "intensity", "tons"), [(7.7e6, 0.425, 2290), (39.3e6, 0.414, 11_390)])
def test_carbon_of_the_model_cards(hours, intensity, tons):
    assert cost(hours, 700, Prices(kg_per_kwh=intensity)).carbon_tons == pytest.approx(tons, rel=0.001)


def test_price_and_energy_follow_from_the_hours():
    bill = cost(1000, 700, Prices(dollars_per_gpu_hour=2.5))
    assert (bill.energy_kwh, bill.dollars) == (700, 2500)


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="dollars_per_gpu_hour is -1"):
        cost(1, 700, Prices(dollars_per_gpu_hour=-1))
