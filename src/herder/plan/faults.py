"""Interruptions to expect and the share of time that trains all the same (paper 3.3.4, table 5).

The one design decision: interruptions are a Poisson process with one rate per GPU-hour, from the paper's 54 days on 16,384
GPUs, so that the count of another cluster or length follows; what each one costs is an input, and printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TABLE_5 = {
    "faulty GPU": 148,
    "HBM3 memory": 72,
    "software bug": 54,
    "network switch or cable": 35,
    "host maintenance": 32,
    "GPU SRAM": 19,
    "GPU system processor": 17,
    "NIC": 7,
    "NCCL watchdog": 7,
    "silent data corruption": 6,
    "thermal interface and sensor": 6,
    "SSD": 3,
    "power supply": 3,
    "server chassis": 2,
    "IO expansion board": 2,
    "dependency": 2,
    "CPU": 2,
    "system memory": 2,
}
"""Unexpected interruptions of 54 days by cause; they sum to 419."""

PLANNED = 47
"""Planned interruptions of the same 54 days (firmware, configuration, data)."""

GPU_HOURS = 54 * 24 * 16_384
RATE = (sum(TABLE_5.values()) + PLANNED) / GPU_HOURS
"""Interruptions per GPU-hour, planned and unexpected."""

MOST = 10_000
"""Interruptions simulated a run: the share of time is known to a thousandth long before."""


@dataclass(frozen=True)
class Costs:
    """What an interruption and a checkpoint cost. The paper publishes neither: these are assumptions, and inputs."""

    restart_seconds: float = 600.0
    """From the interruption to the first new step: notice, replace the node, start, load."""
    storage_bytes_per_second: float = 2e12
    """Sustained bandwidth of the checkpoint store (paper 3.3.1: Tectonic, 2 TB/s)."""
    checkpoint_seconds: float = 0.0
    """Seconds that training waits for a checkpoint; 0 means until all of it is written to the store."""


@dataclass(frozen=True)
class Faults:
    """Interruptions over a run and their price. `effective` is a mean with its central 95% of simulated runs."""

    interruptions: float
    hours_between: float
    by_cause: dict[str, float]
    effective: float
    effective_low: float
    effective_high: float
    checkpoint_every_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: float
    restart_seconds: float


def expected(gpus: int, hours: float) -> dict[str, float]:
    """Interruptions to expect by cause, "planned" among them."""
    share = gpus * hours / GPU_HOURS
    return {name: count * share for name, count in {**TABLE_5, "planned": PLANNED}.items()}


def checkpoint_interval(checkpoint_seconds: float, seconds_between: float) -> float:
    """Seconds of training between checkpoints that lose least in all: Young's sqrt(2 C M)."""
    return math.sqrt(2 * checkpoint_seconds * seconds_between)


def simulate(
    gpus: int, hours: float, checkpoint_bytes: float, costs: Costs | None = None, *, runs: int = 200, seed: int = 0
) -> Faults:
    """Monte Carlo of `runs` runs of `hours` on the clock.

    After each interruption the job restarts, then trains and writes checkpoints in turn; work since the last finished
    checkpoint is lost, and an interruption can hit a restart. Of runs with more than `MOST` interruptions so many are
    simulated. Raises ValueError for costs or sizes that are not positive.
    """
    costs = costs or Costs()
    sizes = {"gpus": gpus, "hours": hours, "storage_bytes_per_second": costs.storage_bytes_per_second}
    for name, value in sizes.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be above 0")
    if min(costs.restart_seconds, costs.checkpoint_seconds) < 0:
        raise ValueError("restart_seconds and checkpoint_seconds must not be negative")
    between = 3600 / (RATE * gpus)
    write = costs.checkpoint_seconds or checkpoint_bytes / costs.storage_bytes_per_second
    every = max(checkpoint_interval(write, between), 1.0)
    generator = np.random.default_rng(seed)
    seconds = min(3600 * hours, MOST * between)
    shares = [_effective(generator, seconds, between, every, write, costs.restart_seconds) for _ in range(runs)]
    low, high = np.quantile(shares, [0.025, 0.975])
    causes = expected(gpus, hours)
    return Faults(
        interruptions=sum(causes.values()),
        hours_between=between / 3600,
        by_cause=causes,
        effective=float(np.mean(shares)),
        effective_low=float(low),
        effective_high=float(high),
        checkpoint_every_seconds=every,
        checkpoint_seconds=write,
        checkpoint_bytes=checkpoint_bytes,
        restart_seconds=costs.restart_seconds,
    )


def _effective(
    generator: np.random.Generator, seconds: float, between: float, every: float, write: float, restart: float
) -> float:
    """Share of `seconds` that is training kept, in one simulated run."""
    moments = np.sort(generator.uniform(0, seconds, generator.poisson(seconds / between)))
    edges = np.concatenate(([0.0], moments, [seconds]))
    spans = np.diff(edges)
    spans[1:] = np.maximum(spans[1:] - restart, 0)
    kept = np.floor(spans / (every + write)) * every
    kept[-1] += min(spans[-1] % (every + write), every)  # the last stretch ends with the run, not with an interruption
    return float(kept.sum() / seconds)
