"""Loss by parameters and tokens, and what training beyond the compute-optimal point brings (paper 3.2.1 and 3.4).

The form is the usual L(N, D) = E + A / N^a + B / D^b, fitted to all points of the sweep with a Huber loss on log L (the third
approach of the Chinchilla paper). The parabolas of `isoflop` hold along one budget only; a small model trained for long
leaves every budget of the sweep, so over-training is read from this form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from herder.records import Measure
from herder.scaling.isoflop import CHINCHILLA, SAME_BUDGET, FlopCount, Law, Point, exp, positive, widen

LEAST_POINTS = 8
HUBER = 1e-3
"""Residuals of log loss beyond this count linearly: a run that went wrong does not bend the surface."""
STARTS = tuple(product((0.2, 0.4, 0.7), (0.2, 0.4, 0.7), (0.3, 0.7)))
"""Exponents a and b, and the share of the least loss that E starts from: the fit has several minima."""
FIRST_LOOK, MOST_EVALUATIONS = 30, 1000
"""Every start is followed for the first number of evaluations, and the best one to its end."""
TIMES_OPTIMAL = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True)
class LossForm:
    """E + A / N^a + B / D^b, as theta = (log E, log A, log B, a, b) of parameters and tokens in units of `units`.

    `error` is the standard deviation of log loss about the form; `covariance` that of theta, linearised at the fit.
    """

    theta: np.ndarray
    units: tuple[float, float]
    error: float
    covariance: np.ndarray
    n: int

    def loss(self, params: float, tokens: float) -> Measure:
        """Predicted loss with the 95% interval for one run. A model far from the sweep gets the wide interval it deserves."""
        at = np.log([params / self.units[0]]), np.log([tokens / self.units[1]])
        value, slope = _log_loss(self.theta, *at)[0], _slopes(self.theta, *at)[0]
        half = 1.96 * widen(self.n - len(self.theta)) * math.sqrt(slope @ self.covariance @ slope + self.error**2)
        return Measure(exp(value), self.n, exp(value - half), exp(value + half), "nats")

    def constants(self) -> dict[str, float]:
        """E, A, B, a, b with N and D in parameters and tokens."""
        log_e, log_a, log_b, a, b = self.theta
        big = exp(log_a + a * math.log(self.units[0])), exp(log_b + b * math.log(self.units[1]))
        return {"E": exp(log_e), "A": big[0], "B": big[1], "a": float(a), "b": float(b)}


def fit_loss(points: Sequence[Point]) -> LossForm:
    """Fits the form to points of any budgets. Raises ValueError where they cannot settle its five constants."""
    sizes, lengths = len({p.params for p in points}), len({p.tokens for p in points})
    if len(points) < LEAST_POINTS or sizes < 3 or lengths < 3:
        raise ValueError(
            f"the loss form has 5 constants and needs {LEAST_POINTS} points with 3 sizes and 3 token counts or more; "
            f"there are {len(points)} with {sizes} and {lengths}"
        )
    params, tokens, loss = (np.log([getattr(p, name) for p in points]) for name in ("params", "tokens", "loss"))
    units = math.exp(params.mean()), math.exp(tokens.mean())
    params, tokens = params - params.mean(), tokens - tokens.mean()

    def fit(start: Sequence[float], evaluations: int):
        return least_squares(
            lambda theta: _log_loss(theta, params, tokens) - loss,
            start,
            jac=lambda theta: _slopes(theta, params, tokens),
            bounds=([-40, -40, -40, 0.01, 0.01], [40, 40, 40, 3, 3]),
            loss="huber",
            f_scale=HUBER,
            max_nfev=evaluations,
        )

    least, fits = float(loss.min()), []
    for a, b, share in STARTS:
        rest = math.log((1 - share) / 2) + least
        fits.append(fit([math.log(share) + least, rest, rest, a, b], FIRST_LOOK))
    best = fit(min(fits, key=lambda found: found.cost).x, MOST_EVALUATIONS)
    residuals, slopes = _log_loss(best.x, params, tokens) - loss, _slopes(best.x, params, tokens)
    error = math.sqrt(float(residuals @ residuals) / (len(points) - 5))
    return LossForm(best.x, units, error, error**2 * np.linalg.pinv(slopes.T @ slopes), len(points))


def predict(points: Sequence[Point], params: float, tokens: float, flops: float) -> Measure:
    """Loss of a run beyond the points, with an interval that knows how well the form extrapolates.

    The form is fitted to all points. Its own interval assumes that it is true; small runs may be too small for it. So the points
    of the largest budget are forecast from the others as well, and the error of that, per e-fold of FLOPs, is carried on to the
    distance of this run as a further standard deviation. Raises ValueError where either fit has too few points.
    """
    found = fit_loss(points).loss(params, tokens)
    top = max(point.flops for point in points) / (1 + SAME_BUDGET)
    known, left_out = [p for p in points if p.flops < top], [p for p in points if p.flops >= top]
    form = fit_loss(known)
    reached = max(point.flops for point in known)
    misses = [math.log(p.loss / form.loss(p.params, p.tokens).value) / math.log(p.flops / reached) for p in left_out]
    drift = math.sqrt(math.fsum(miss**2 for miss in misses) / len(misses))
    carried = 1.96 * widen(len(misses)) * drift * max(0.0, math.log(flops / max(p.flops for p in points)))
    below, above = (math.hypot(math.log(end / found.value), carried) for end in (found.low, found.high))
    return Measure(found.value, found.n, found.value * exp(-below), found.value * exp(above), "nats")


def overtraining(
    form: LossForm,
    law: Law,
    params: float,
    count: FlopCount = CHINCHILLA,
    times: Sequence[float] = TIMES_OPTIMAL,
) -> list[dict]:
    """A model of fixed size trained past its compute-optimal point: one row for each multiple of the optimal tokens.

    A row holds tokens, loss, `flops` spent, and beside it the compute-optimal model of the same budget with its loss: what
    the smaller model gives up for being cheaper to serve.
    """
    start = optimal_tokens(law, params, count)
    rows = []
    for multiple in times:
        tokens = start * multiple
        flops = tokens * flops_per_token(params, count)
        best = law.params(flops, count).value
        least = form.loss(best, law.tokens(flops).value)
        row = {"times_optimal": multiple, "tokens": tokens, "flops": flops, "loss": form.loss(params, tokens).to_json()}
        rows.append(row | {"optimal_params": best, "optimal_loss": least.to_json()})
    return rows


def optimal_tokens(law: Law, params: float, count: FlopCount = CHINCHILLA) -> float:
    """The tokens at which a model of `params` parameters is the compute-optimal one.

    From D = A (f D)^alpha, with f the FLOPs per token. Raises ValueError where alpha is 1 or more: then no budget fits.
    """
    if law.alpha >= 1:
        raise ValueError(
            f"alpha is {law.alpha:.3g}: the law puts all compute into tokens, so no size is ever too small"
        )
    log_tokens = (law.log_a + law.alpha * math.log(flops_per_token(params, count))) / (1 - law.alpha)
    return positive("optimal tokens", exp(log_tokens))


def flops_per_token(params: float, count: FlopCount) -> float:
    """The inverse of `count.params`, which rises with FLOPs: by bisection on the logarithm."""
    low, high = math.log(params), math.log(params) + 40.0
    low -= 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if count.params(math.exp(middle)) < params else (low, middle)
    return math.exp((low + high) / 2)


def _log_loss(theta: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(_terms(theta, params, tokens))


def _terms(theta: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logarithms of the three terms [3, points]."""
    log_e, log_a, log_b, a, b = theta
    return np.stack([np.full_like(params, log_e), log_a - a * params, log_b - b * tokens])


def _slopes(theta: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Derivatives of log loss by theta [points, 5]."""
    terms = _terms(theta, params, tokens)
    e, a, b = np.exp(terms - np.logaddexp.reduce(terms))
    return np.stack([e, a, b, -a * params, -b * tokens], 1)
