"""IsoFLOP curves and the law of compute-optimal training (paper 3.2.1, figures 2 and 3).

Training runs of one budget form a curve of loss over tokens; a parabola in log tokens gives its minimum; a power law
tokens*(C) = A C^alpha goes through the minima. Nothing is rounded on the way: alpha 0.537 in place of 0.53727 is 1.6% of the
tokens at 3.8e25 FLOPs, and the paper's printed (0.53, 0.29) is 37%. How many parameters a budget buys depends on how FLOPs
are counted, so the count is an argument (the paper's own 402B on 16.55T tokens in 3.8e25 FLOPs is 5.71 ND, not 6 ND).
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import stats

from herder.records import Measure, read_jsonl

SAME_BUDGET = 0.05
"""Runs whose FLOPs differ by less than this share are one curve: whole steps never meet a budget exactly."""
LEAST_CURVES = 2
SMALLEST, LARGEST = 1e-9, 1e45
"""No count of FLOPs and no loss lies beyond these; what does is an error, and would overflow."""
REPLICATES = 1000
FLAT = 1e-12
"""A curve that bends by less than this share of its loss is flat: what is left of it is rounding."""


@dataclass(frozen=True, slots=True)
class Point:
    """One training run: parameters, tokens seen, training FLOPs, final validation loss (nats per token)."""

    params: float
    tokens: float
    flops: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """The points of one budget and their parabola.

    `tokens` and `loss` are its minimum, `curvature` the half second derivative of the loss by log tokens. Where there is
    no usable minimum `refused` says why, and those three are NaN.
    """

    flops: float
    points: tuple[Point, ...]
    tokens: float = math.nan
    loss: float = math.nan
    curvature: float = math.nan
    refused: str = ""

    def loss_at(self, tokens: float) -> float:
        """The parabola's loss when this budget is spent on so many tokens."""
        return self.loss + self.curvature * math.log(tokens / self.tokens) ** 2


class FlopCount(Protocol):
    """How the FLOPs of a token give the parameters of a model."""

    @property
    def name(self) -> str: ...

    def params(self, flops_per_token: float) -> float: ...


@dataclass(frozen=True)
class PerParameter:
    """`factor` FLOPs for each parameter and token: 6 ND is three passes of a multiplication and an addition."""

    factor: float

    @property
    def name(self) -> str:
        return f"{self.factor:.3g}ND"

    def params(self, flops_per_token: float) -> float:
        return flops_per_token / self.factor


class Shape(Protocol):
    """What is needed of a `herder.model.LlamaConfig`."""

    @property
    def n_params(self) -> int: ...

    def flops_per_token(self, context: float, training: bool = True) -> float: ...


@dataclass(frozen=True)
class OfShapes:
    """The exact count of real shapes, attention over `context` visible tokens included.

    Between two shapes both logarithms are interpolated; beyond the last one its FLOPs per parameter stay as they are.
    """

    shapes: tuple[Shape, ...]
    context: float
    name: str = "shapes"

    def params(self, flops_per_token: float) -> float:
        if not self.shapes:
            raise ValueError("OfShapes needs at least one shape")
        pairs = sorted((s.flops_per_token(self.context), s.n_params) for s in self.shapes)
        flops, params = np.log(np.array(pairs, float)).T
        wanted = math.log(flops_per_token) if flops_per_token > 0 else -math.inf
        inside = min(max(wanted, flops[0]), flops[-1])
        return math.exp(min(np.interp(inside, flops, params) + wanted - inside, 700.0))


CHINCHILLA, PAPER = PerParameter(6.0), PerParameter(5.71)
"""The usual count, and the one by which the paper's 402B and 16.55T tokens make 3.8e25 FLOPs."""


@dataclass(frozen=True)
class Law:
    """tokens*(C) = exp(log_a) C^alpha through the minima of `curves`.

    `replicates` holds (alpha, log_a) of each bootstrap replicate; it is empty where the points leave no way to judge
    the noise, and then intervals are infinite. `widening` is Student's factor for the few degrees of freedom.
    """

    curves: tuple[Curve, ...]
    alpha: float
    log_a: float
    replicates: np.ndarray
    widening: float

    @property
    def used(self) -> tuple[Curve, ...]:
        return tuple(curve for curve in self.curves if not curve.refused)

    def measure_alpha(self) -> Measure:
        return Measure(self.alpha, self._n, *self._interval(self.replicates[:, 0], self.alpha))

    def measure_a(self) -> Measure:
        low, high = self._interval(self.replicates[:, 1], self.log_a)
        return Measure(exp(self.log_a), self._n, exp(low), exp(high))

    def tokens(self, flops: float) -> Measure:
        """Compute-optimal tokens at any budget, with the 95% interval of the law (not of a single run)."""
        x = math.log(positive("flops", flops))
        value = self.log_a + self.alpha * x
        low, high = self._interval(self.replicates @ [x, 1.0], value)
        return Measure(exp(value), self._n, exp(low), exp(high), "tokens")

    def params(self, flops: float, count: FlopCount = CHINCHILLA) -> Measure:
        """N*(C): what the rest of the budget buys, as `count` counts. More tokens leave fewer parameters."""
        tokens = self.tokens(flops)
        value, low, high = (count.params(flops / t) if t else math.inf for t in (tokens.value, tokens.high, tokens.low))
        return Measure(value, self._n, low, high, "parameters")

    @property
    def _n(self) -> int:
        return sum(len(curve.points) for curve in self.used)

    def _interval(self, replicates: np.ndarray, value: float) -> tuple[float, float]:
        if not len(replicates):
            return -math.inf, math.inf
        low, high = np.percentile(replicates, [2.5, 97.5])
        return value - self.widening * max(0.0, value - low), value + self.widening * max(0.0, high - value)


def read_points(path: Path) -> list[Point]:
    """Points of a JSONL file with the fields params, tokens, flops and loss; others are ignored.

    Raises ValueError naming file and line for a row whose fields are missing or not positive finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a JSONL file with params, tokens, flops and loss on each line")
    points = []
    try:
        for number, row in enumerate(read_jsonl(path)):
            try:
                points.append(Point(*(_number(row, name) for name in Point.__slots__)))
            except ValueError as error:
                raise ValueError(f"{path}, line {_line(path, number)}: {error}") from None
    except (RecursionError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        why = "nested too deep" if isinstance(error, RecursionError) else "a number of thousands of digits"
        raise ValueError(f"{path}, line {_line(path, len(points))}: {why}; mend or delete the line") from None
    if not points:
        raise ValueError(f"{path} holds no points; write params, tokens, flops and loss on each line")
    return points


def fit_curves(points: Iterable[Point]) -> list[Curve]:
    """One curve for each budget, smallest first, each with its minimum or the sentence why it has none."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: p.flops):
        if groups and point.flops <= groups[-1][0].flops * (1 + SAME_BUDGET):
            groups[-1].append(point)
        else:
            groups.append([point])
    return [_fit_curve(tuple(sorted(group, key=lambda p: p.tokens))) for group in groups]


def fit_law(points: Sequence[Point], seed: int = 0, replicates: int = REPLICATES) -> Law:
    """Parabolas, minima and the power law through them, with a bootstrap of the whole procedure.

    Raises ValueError where fewer than two curves have a minimum.
    """
    curves = tuple(fit_curves(points))
    used = [curve for curve in curves if not curve.refused]
    if len(used) < LEAST_CURVES:
        why = "; ".join(curve.refused for curve in curves if curve.refused)
        raise ValueError(
            f"a power law needs minima at {LEAST_CURVES} budgets or more, and these points give {len(used)}"
            + (f" ({why})" if why else "; train at another budget")
        )
    x, y = np.log([c.flops for c in used]), np.log([c.tokens for c in used])
    alpha, log_a = (float(v[0]) for v in _lines(x, y[None], np.ones((1, len(used)), bool)))
    found, widening = _bootstrap(used, y - log_a - alpha * x, np.random.default_rng(seed), replicates)
    return Law(curves, alpha, log_a, found, widening)


def widen(freedom: int) -> float:
    """By how much Student's 95% interval is wider than the normal one, for so many degrees of freedom."""
    return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def positive(name: str, value: object) -> float:
    """`value` as a float; ValueError naming it where it is no number, or none that a training run could have."""
    number = float(value) if isinstance(value, float) or (type(value) is int and abs(value) < LARGEST) else math.nan
    if not SMALLEST < number < LARGEST:
        raise ValueError(f"`{name}` is {_short(value)}; it must be a positive finite number (up to {LARGEST:.0e})")
    return number


def exp(x: float) -> float:
    """math.exp, infinite where that overflows."""
    return math.exp(x) if x < 709 else math.inf


def _fit_curve(points: tuple[Point, ...]) -> Curve:
    flops = math.exp(math.fsum(math.log(p.flops) for p in points) / len(points))
    at = f"the curve at {flops:.3g} FLOPs"
    x, loss = _columns(points)
    if len(set(x)) < 3:
        return Curve(flops, points, refused=f"{at} has {len(set(x))} different token counts; a parabola needs 3")
    design, centre, scale = _design(x)
    c, b, a = np.linalg.lstsq(design, loss, rcond=None)[0]
    if a <= FLAT * abs(loss).max():
        return Curve(flops, points, refused=f"{at} is not convex, so it has no minimum; add runs or look for a bad one")
    at_minimum = -b / (2 * a)
    log_tokens = centre + scale * at_minimum
    if not x[0] <= log_tokens <= x[-1]:
        side, more = ("below", "fewer") if log_tokens < x[0] else ("above", "more")
        return Curve(
            flops, points, refused=f"{at} has its minimum {side} all of its points; add runs with {more} tokens"
        )
    lowest = c + b * at_minimum + a * at_minimum**2
    return Curve(flops, points, math.exp(log_tokens), float(lowest), float(a / scale**2))


def _bootstrap(
    curves: list[Curve], off_law: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, float]:
    """((alpha, log_a) of each replicate, Student's factor).

    Residuals are drawn, not points: a draw of 4 points often holds fewer than 3 different ones. They are pooled over the
    curves and divided by sqrt(1 - leverage), else a parabola through 4 points hides most of the noise. Where minima
    scatter about the law by more than that noise explains, the excess is drawn as well, from a normal distribution.
    """
    fits, pool = [], []
    for curve in curves:
        x, loss = _columns(curve.points)
        design, centre, scale = _design(x)
        solve = np.linalg.pinv(design)
        fitted = design @ (solve @ loss)
        free = 1 - np.einsum("ij,ji->i", design, solve)
        pool.append(((loss - fitted) / np.sqrt(np.maximum(free, 1e-9)))[free > 1e-6])
        fits.append((x, fitted, solve, centre, scale))
    residuals = np.concatenate(pool)
    freedom = sum(len(curve.points) - 3 for curve in curves)
    x, spare = np.log([c.flops for c in curves]), len(curves) - 2
    if not len(residuals) and not spare:
        return np.empty((0, 2)), 1.0
    minima = np.full((count, len(curves)), np.nan)
    for number, (log_tokens, fitted, solve, centre, scale) in enumerate(fits):
        noise = rng.choice(residuals, (count, len(fitted))) if len(residuals) else np.zeros((count, len(fitted)))
        _, b, a = solve @ (fitted + noise).T
        convex = a > FLAT * abs(fitted).max()
        found = centre - scale * b / (2 * np.where(convex, a, 1.0))
        kept = convex & (found >= log_tokens[0]) & (found <= log_tokens[-1])
        minima[kept, number] = found[kept]
    usable = ~np.isnan(minima)
    minima[~usable] = 0.0
    drawn = np.maximum(usable.sum(0), 1)
    variance = float(np.mean((minima**2).sum(0) / drawn - (minima.sum(0) / drawn) ** 2))
    excess = max(0.0, float(off_law @ off_law) / spare - variance) if spare else 0.0
    minima += rng.normal(0.0, math.sqrt(excess), minima.shape)
    enough = usable.sum(1) >= LEAST_CURVES
    factor = widen(spare if spare and (excess > variance or not len(residuals)) else freedom)
    return np.stack(_lines(x, minima[enough], usable[enough]), 1), factor


def _lines(x: np.ndarray, y: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts of least-squares lines, one for each row of y [rows, points], through the points it uses."""
    n = use.sum(1, keepdims=True)
    mean_x, mean_y = (use * x).sum(1, keepdims=True) / n, (use * y).sum(1, keepdims=True) / n
    away = use * (x - mean_x)
    slope = (away * (y - mean_y)).sum(1) / (away**2).sum(1)
    return slope, mean_y[:, 0] - slope * mean_x[:, 0]


def _columns(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    return np.log([p.tokens for p in points]), np.array([p.loss for p in points])


def _design(x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Powers 0, 1, 2 of x brought to -1..1, which keeps the fit exact to rounding; its centre and scale."""
    centre, scale = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    return np.vander((x - centre) / scale, 3, increasing=True), centre, scale


def _number(row: dict, name: str) -> float:
    if name not in row:
        raise ValueError(f"field `{name}` is missing")
    return positive(name, row[name])


def _line(path: Path, row: int) -> int | None:
    """The line on which the row of that index stands, blank ones counted."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        lines = (number for number, line in enumerate(file, 1) if line.strip())
        return next(islice(lines, row, None))


def _short(value: object) -> str:
    """A value as a message shows it; a number of thousands of digits cannot even be written."""
    if type(value) is int and abs(value) >= LARGEST:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:40]
