"""The two-step forecast of a downstream score (paper 3.2.1, figure 4).

First, the normalised negative log-likelihood of the correct answer, in nats per character, is a line in log FLOPs; only
the scaling-law models, trained alike, fit it. Then accuracy is a sigmoid of that NLL, fitted to them and to extra models
(the paper took the Llama 2 family), since the small ones alone hardly leave chance. The sigmoid runs from the chance level,
an argument, to 1: the points settle its place and steepness, and would fit noise with its ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from herder.records import Measure, read_jsonl
from herder.scaling.isoflop import LARGEST, REPLICATES

LEAST_MODELS, LEAST_SCORES = 3, 4
STEPS = 30
"""Steps of the replicates' fits; they start at the fit of the real scores and seldom need ten."""


@dataclass(frozen=True, slots=True)
class Score:
    """One model on one benchmark: training FLOPs, NLL per character of correct answers, accuracy 0..1.

    An `extra` model serves the second step only: its recipe differs, so its FLOPs say nothing about ours.
    """

    nll_per_character: float
    accuracy: float
    flops: float = math.nan
    extra: bool = False


@dataclass(frozen=True)
class Forecast:
    """NLL = intercept + slope log10 C, accuracy = chance + (1 - chance) / (1 + exp(steepness (NLL - middle))).

    `line` and `sigmoid` are (intercept, slope) and (middle, steepness); the replicates are bootstrap draws of both with the
    residuals (`errors`) of a further model.
    """

    line: tuple[float, float]
    sigmoid: tuple[float, float]
    chance: float
    models: int
    scores: int
    replicates: dict[str, np.ndarray]

    def nll(self, flops: float) -> Measure:
        """NLL per character of a model of that budget, with the 95% interval for one model."""
        drawn, value = self._nll(flops)
        return Measure(value, self.models, *_ends(drawn), "nats per character")

    def accuracy(self, flops: float) -> Measure:
        """Accuracy of a model of that budget, with the 95% interval for one model."""
        drawn, value = self._nll(flops)
        middle, steepness = self.replicates["sigmoid"].T
        expected = self._accuracy(value, *self.sigmoid)
        spread = self._accuracy(drawn, middle, steepness) + self.replicates["errors"][:, 1]
        low, high = _ends(spread)
        return Measure(float(expected), self.scores, max(0.0, low), min(1.0, high), "%")

    def _nll(self, flops: float) -> tuple[np.ndarray, float]:
        if not 0 < flops < math.inf:
            raise ValueError(f"flops is {flops}; it must be a positive finite number")
        x = math.log10(flops)
        lines = self.replicates["line"]
        return lines[:, 0] + lines[:, 1] * x + self.replicates["errors"][:, 0], self.line[0] + self.line[1] * x

    def _accuracy(self, nll, middle, steepness):
        return self.chance + (1 - self.chance) * expit(-steepness * (nll - middle))


def forecast_file(path: Path, chance: float, budgets: Sequence[float], seed: int = 0) -> dict:
    """Fits the scores of a JSONL file and forecasts models of these FLOPs; plain JSON: line, sigmoid, forecasts.

    Each line has nll_per_character and accuracy, and flops unless `extra` is true. Raises ValueError naming file and line for a
    row that is none, and for scores that fit no forecast.
    """
    path, scores = Path(path), []
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; give a JSONL file with nll_per_character, accuracy and flops on each line"
        )
    try:
        for row in read_jsonl(path):
            scores.append(_score(row))
    except (RecursionError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}, row {len(scores) + 1}: {error}") from None
    found = fit_forecast(scores, chance, seed)
    rows = [
        {"flops": c, "nll_per_character": found.nll(c).to_json(), "accuracy": found.accuracy(c).to_json()}
        for c in budgets
    ]
    return {
        "models": found.models,
        "extra_models": found.scores - found.models,
        "chance": chance,
        "line": {"formula": "nll = intercept + slope log10(flops)", "intercept": found.line[0], "slope": found.line[1]},
        "sigmoid": {
            "formula": "accuracy = chance + (1 - chance) / (1 + exp(steepness (nll - middle)))",
            "middle": found.sigmoid[0],
            "steepness": found.sigmoid[1],
        },
        "forecasts": rows,
    }


def _score(row: dict) -> Score:
    values = {}
    for name in ("nll_per_character", "accuracy", *(() if row.get("extra") is True else ("flops",))):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
            raise ValueError(
                f"`{name}` is {'missing' if value is None else repr(value)[:40]}; it must be a finite number"
            )
        values[name] = float(value)
    return Score(**values, extra=row.get("extra") is True)


def fit_forecast(scores: Sequence[Score], chance: float, seed: int = 0, replicates: int = REPLICATES) -> Forecast:
    """Fits both steps. `chance` is the accuracy of guessing (0.25 for four choices).

    Raises ValueError for too few models, scores that are no numbers, or scores in which better NLL is not better accuracy.
    """
    models = _check(scores, chance)
    rng = np.random.default_rng(seed)
    x, nll = np.log10([s.flops for s in models]), np.array([s.nll_per_character for s in models])
    design = np.stack([np.ones_like(x), x - x.mean()], 1)
    level, slope = solution = np.linalg.lstsq(design, nll, rcond=None)[0]
    if slope >= 0:
        raise ValueError("NLL per character does not fall with FLOPs, so there is nothing to extrapolate; check scores")
    first = _residuals(nll - design @ solution, design)
    noise = _draw(rng, first, len(x) - 2, replicates)
    draws = (design @ solution + noise[:, :-1]) @ np.linalg.pinv(design).T
    lines = np.stack([draws[:, 0] - draws[:, 1] * x.mean(), draws[:, 1]], 1)

    all_nll, accuracy = np.array([[s.nll_per_character, s.accuracy] for s in scores], float).T
    share = (accuracy - chance) / (1 - chance)
    sigmoid = _fit_sigmoid(all_nll, share)
    fitted, slopes = _sigmoid(sigmoid[None], all_nll)
    second = _residuals(share - fitted[0], slopes[0])
    scatter = _draw(rng, second, len(share) - 2, replicates)
    drawn = _refit(sigmoid, all_nll, fitted + scatter[:, :-1])
    errors = np.stack([noise[:, -1], (1 - chance) * scatter[:, -1]], 1)
    bootstrap = {"line": lines, "sigmoid": drawn, "errors": errors}
    line = float(level - slope * x.mean()), float(slope)
    return Forecast(line, (float(sigmoid[0]), float(sigmoid[1])), chance, len(models), len(scores), bootstrap)


def _check(scores: Sequence[Score], chance: float) -> list[Score]:
    """The scaling-law models among the scores; ValueError where a step could not be fitted."""
    if not 0 <= chance < 1:
        raise ValueError(f"chance is {chance}; it must be from 0 to below 1")
    models = [s for s in scores if not s.extra]
    for number, s in enumerate(scores, 1):
        if not math.isfinite(s.nll_per_character) or not 0 <= s.accuracy <= 1:
            raise ValueError(f"score {number}: NLL must be finite and accuracy from 0 to 1; found {s}")
        if not s.extra and not 0 < s.flops < math.inf:
            raise ValueError(f"score {number}: a scaling-law model needs positive flops; found {s.flops}")
    budgets = len({s.flops for s in models})
    if budgets < LEAST_MODELS:
        raise ValueError(
            f"the line in log FLOPs needs scaling-law models of {LEAST_MODELS} budgets; there are {budgets}"
        )
    if len(scores) < LEAST_SCORES:
        raise ValueError(f"the sigmoid needs {LEAST_SCORES} models, extra ones counted; there are {len(scores)}")
    if max(s.accuracy for s in scores) <= chance:
        raise ValueError(f"no model scores above chance ({chance:.3g}); add extra models that do")
    return models


def _fit_sigmoid(nll: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(middle, steepness) by least squares, from several starts."""
    spread = max(float(np.ptp(nll)), 1e-6)
    fits = [
        least_squares(
            lambda theta: _sigmoid(theta[None], nll)[0][0] - share,
            [float(nll.mean()) + shift * spread, rate / spread],
            jac=lambda theta: _sigmoid(theta[None], nll)[1][0],
            x_scale=[spread, 1 / spread],
        )
        for shift in (-1.0, 0.0, 1.0)
        for rate in (1.0, 4.0)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    if best.x[1] <= 0:
        raise ValueError("accuracy does not rise as NLL per character falls, so no sigmoid fits; check the scores")
    return best.x


def _sigmoid(theta: np.ndarray, nll: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares above chance [rows, points] and their derivatives [rows, points, 2] for (middle, steepness) [rows, 2]."""
    middle, steepness = theta[:, :1], theta[:, 1:]
    value = expit(-steepness * (nll - middle))
    bend = value * (1 - value)
    return value, np.stack([bend * steepness, -bend * (nll - middle)], -1)


def _refit(start: np.ndarray, nll: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Levenberg-Marquardt on all replicates [rows, points] at once: each row keeps its own damping."""
    theta = np.tile(start, (len(share), 1))
    damping = np.full(len(share), 1e-3)
    value, slopes = _sigmoid(theta, nll)
    cost = ((share - value) ** 2).sum(1)
    for _ in range(STEPS):
        normal = np.einsum("rpi,rpj->rij", slopes, slopes)
        scale = np.einsum("rii->ri", normal) + 1e-12
        normal = normal + damping[:, None, None] * scale[:, :, None] * np.eye(2)
        step = np.linalg.solve(normal, np.einsum("rpi,rp->ri", slopes, share - value)[..., None])[..., 0]
        tried, tried_slopes = _sigmoid(theta + step, nll)
        tried_cost = ((share - tried) ** 2).sum(1)
        better = tried_cost <= cost
        theta[better] += step[better]
        value[better], slopes[better], cost[better] = tried[better], tried_slopes[better], tried_cost[better]
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
    return theta


def _residuals(residuals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Residuals divided by sqrt(1 - leverage) and centred: as large as the noise they come from."""
    leverage = np.einsum("ij,ji->i", slopes, np.linalg.pinv(slopes))
    wide = residuals / np.sqrt(np.maximum(1 - leverage, 1e-3))
    return wide - wide.mean()


def _draw(rng: np.random.Generator, residuals: np.ndarray, freedom: int, rows: int) -> np.ndarray:
    """Draws of the residuals [rows, points + 1], the last for a further model.

    Each row has its own scale, as unsure as few degrees of freedom leave it: intervals come out as wide as Student's.
    """
    scale = np.sqrt(freedom / rng.chisquare(freedom, (rows, 1)))
    return scale * rng.choice(residuals, (rows, len(residuals) + 1))


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
