"""What a run costs: GPU-hours, energy, carbon and price (model cards of Llama 3 and 3.1).

The one design decision: carbon intensity and price are inputs with no hidden correction; energy is the GPUs' rated power
times their hours, as the model cards count it. The cards' totals then tell their intensity: 2,290 t for 7.7M hours at 700 W is
0.425 kg/kWh, 11,390 t for 39.3M hours 0.414.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from herder.train.devices import KG_PER_KWH


@dataclass(frozen=True)
class Prices:
    """Inputs of the bill."""

    kg_per_kwh: float = KG_PER_KWH
    dollars_per_gpu_hour: float = 2.0
    """An assumption: rented H100s cost two to four dollars an hour."""


@dataclass(frozen=True)
class Cost:
    """GPU-hours, energy in kWh, carbon dioxide equivalent in metric tons, price in dollars."""

    gpu_hours: float
    energy_kwh: float
    carbon_tons: float
    dollars: float


def cost(gpu_hours: float, watts: float, prices: Prices | None = None) -> Cost:
    """The bill of so many GPU-hours at `watts` a GPU. Raises ValueError for an input that is negative or not finite."""
    prices = prices or Prices()
    inputs = {"gpu_hours": gpu_hours, "watts": watts, **vars(prices)}
    for name, value in inputs.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be a number of at least 0")
    energy = gpu_hours * watts / 1000
    return Cost(gpu_hours, energy, energy * prices.kg_per_kwh / 1000, gpu_hours * prices.dollars_per_gpu_hour)
