"""The mixing law (paper 3.1.2: scaling-law experiments choose the data mix): held-out loss of each domain by the mix.

The form is that of Data Mixing Laws (Ye et al. 2024, arXiv:2403.16952): L_i(r) = c_i + k_i exp(sum_j t_ij r_j) for shares r of
the sources. Shares sum to one, so log k_i is the same as a constant in every t_ij and is left out: one exponent for each source
and one floor remain for each domain. The runs that it is fitted to are a simplex lattice (Scheffe 1958).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares, minimize

from herder.records import Measure
from herder.scaling.isoflop import widen

FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)
"""Where fits start: the floor c as a share of the least loss seen."""
REPLICATES = 200


def lattice(sources: Sequence[str], degree: int, least: float = 0.0) -> list[dict[str, float]]:
    """Every mix whose shares are multiples of 1 / degree, drawn inwards so that no share is below `least`.

    Raises ValueError for fewer than two sources, or a `least` that they cannot all have.
    """
    n = len(sources)
    if n < 2:
        raise ValueError(f"a mix is searched over two sources or more; there {'is' if n == 1 else 'are'} {n}")
    if degree < 1 or not 0 <= least < 1 / n:
        raise ValueError(f"degree is {degree} and least {least}; degree must be 1 or more, least from 0 to below 1/{n}")
    counts = (c for c in product(range(degree, -1, -1), repeat=n) if sum(c) == degree)
    return [{s: least + (1 - n * least) * c / degree for s, c in zip(sources, row, strict=True)} for row in counts]


@dataclass(frozen=True)
class MixLaw:
    """theta [domains, 1 + sources]: the floor c and the exponents t of each domain. `replicates` are bootstrap draws of it."""

    sources: tuple[str, ...]
    domains: tuple[str, ...]
    theta: np.ndarray
    replicates: np.ndarray
    runs: int
    error: np.ndarray
    """Standard deviation of the runs about the law, by domain, in nats."""

    def losses(self, mix: Mapping[str, float]) -> dict[str, float]:
        """Predicted loss of each domain, in nats per token."""
        return dict(zip(self.domains, _losses(self.theta, self._shares(mix)).tolist(), strict=True))

    def gain(self, mix: Mapping[str, float], over: Mapping[str, float], weights: Mapping[str, float]) -> Measure:
        """By how much the weighted loss of `mix` lies below that of `over`, with the 95% interval of the law."""
        w = self._weights(weights)
        value, *drawn = (
            w @ (_losses(theta, self._shares(over)) - _losses(theta, self._shares(mix)))
            for theta in (self.theta, *self.replicates)
        )
        low, high = np.percentile(drawn, [2.5, 97.5])
        factor = widen(self.runs - 1 - len(self.sources))
        ends = value - factor * max(0.0, value - low), value + factor * max(0.0, high - value)
        return Measure(float(value), self.runs, float(ends[0]), float(ends[1]), "nats per token")

    def best(
        self, weights: Mapping[str, float], most: Mapping[str, float] | None = None, least: float = 0.0
    ) -> dict[str, float]:
        """The mix of least weighted loss; `most` bounds shares from above, `least` all of them from below.

        Raises ValueError where the bounds leave no mix, or a weight names no domain.
        """
        return dict(zip(self.sources, self._best(self.theta, weights, most, least).tolist(), strict=True))

    def best_interval(
        self, weights: Mapping[str, float], most: Mapping[str, float] | None = None, least: float = 0.0
    ) -> dict[str, Measure]:
        """Each share of the best mix with its 95% interval over the bootstrap: wide where the loss is flat."""
        value = self._best(self.theta, weights, most, least)
        drawn = np.stack([self._best(theta, weights, most, least) for theta in self.replicates])
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        ends = zip(self.sources, value, np.minimum(low, value), np.maximum(high, value), strict=True)
        return {name: Measure(float(v), self.runs, float(lo), float(hi), "%") for name, v, lo, hi in ends}

    def _best(self, theta, weights, most, least) -> np.ndarray:
        n, w = len(self.sources), self._weights(weights)
        high = np.array([min(1.0, (most or {}).get(name, 1.0)) for name in self.sources])
        if high.sum() < 1 - 1e-9 or (high < least).any() or n * least > 1:
            raise ValueError(
                f"no mix keeps every share between {least:g} and its bound ({', '.join(f'{h:.3g}' for h in high)}); "
                "lower the least share, allow more epochs, or plan fewer tokens"
            )

        def loss(r):
            return float(w @ _losses(theta, r))

        def slope(r):
            return (w * np.exp(theta[:, 1:] @ r)) @ theta[:, 1:]

        starts = [np.full(n, 1 / n), *(0.2 / n + 0.8 * np.eye(n))]
        sums = {"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones(n)}
        found = [
            minimize(loss, np.clip(s, least, high), jac=slope, bounds=[(least, h) for h in high], constraints=sums)
            for s in starts
        ]
        good = [f for f in found if abs(f.x.sum() - 1) < 1e-6] or found
        best = np.clip(min(good, key=lambda f: f.fun).x, least, high)
        return best / best.sum()

    def _shares(self, mix: Mapping[str, float]) -> np.ndarray:
        shares = np.array([mix.get(name, 0.0) for name in self.sources])
        return shares / shares.sum()

    def _weights(self, weights: Mapping[str, float]) -> np.ndarray:
        if unknown := [name for name in weights if name not in self.domains]:
            raise ValueError(f"weight {unknown[0]!r} names no held-out domain; domains are {', '.join(self.domains)}")
        w = np.array([weights.get(name, 0.0) for name in self.domains])
        if not (w >= 0).all() or not w.sum() > 0:
            raise ValueError(f"domain weights are {dict(weights)}; they must be 0 or more, and not all 0")
        return w / w.sum()


def fit_mix(mixes: Sequence[Mapping[str, float]], losses: Sequence[Mapping[str, float]], seed: int = 0) -> MixLaw:
    """The law of runs with these mixes and these held-out losses (nats per token) by domain.

    Raises ValueError for runs too few for the constants, or whose domains differ.
    """
    sources = tuple(sorted({name for mix in mixes for name, share in mix.items() if share > 0}))
    domains = tuple(sorted(losses[0])) if losses else ()
    if any(tuple(sorted(row)) != domains for row in losses) or not domains:
        raise ValueError("the runs of a mix search must be measured on the same held-out domains, at least one")
    shares = np.array([[mix.get(name, 0.0) for name in sources] for mix in mixes])
    shares /= shares.sum(1, keepdims=True)
    need = len(sources) + 2
    if len(np.unique(shares.round(9), axis=0)) < need:
        raise ValueError(f"a mixing law over {len(sources)} sources needs {need} different mixes; there are fewer")
    observed = np.array([[row[name] for name in domains] for row in losses])
    if not np.isfinite(observed).all() or not (observed > 0).all():
        raise ValueError("a held-out loss of the mix search is not a positive finite number; look at its runs")
    theta = np.stack([_fit(shares, observed[:, i]) for i in range(len(domains))])
    fitted = _losses(theta, shares)
    free = max(1, len(shares) - need + 1)
    residuals = (observed - fitted) * math.sqrt(len(shares) / free)
    rng = np.random.default_rng(seed)
    replicates = []
    for _ in range(REPLICATES):  # residuals of a run stay together: its domains share its luck
        drawn = fitted + residuals[rng.integers(len(shares), size=len(shares))]
        replicates.append([_fit(shares, drawn[:, i], theta[i]) for i in range(len(domains))])
    error = np.sqrt(((observed - fitted) ** 2).sum(0) / free)
    return MixLaw(sources, domains, theta, np.array(replicates), len(shares), error)


def _losses(theta: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[..., domains] for shares [..., sources]."""
    return theta[:, 0] + np.exp(shares @ theta[:, 1:].T)


def _fit(shares: np.ndarray, loss: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """(c, t_1 ... t_m) of one domain by least squares: from several starts within bounds, or from one near the solution."""

    def off(theta):
        return theta[0] + np.exp(np.minimum(shares @ theta[1:], 300.0)) - loss

    def slopes(theta):
        rise = np.exp(np.minimum(shares @ theta[1:], 300.0))
        return np.column_stack([np.ones(len(shares)), rise[:, None] * shares])

    if start is not None:
        return least_squares(off, start, jac=slopes, method="lm", max_nfev=60).x
    top = float(loss.min()) * (1 - 1e-6)
    bounds = [0.0, *[-30.0] * shares.shape[1]], [top, *[30.0] * shares.shape[1]]
    starts = []
    for floor in FLOORS:
        exponents = np.linalg.lstsq(shares, np.log(loss - floor * top), rcond=None)[0]
        starts.append(np.array([max(floor * top, 1e-9), *np.clip(exponents, -29, 29)]))
    return min((least_squares(off, s, jac=slopes, bounds=bounds) for s in starts), key=lambda f: f.cost).x
