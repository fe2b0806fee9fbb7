"""Whether a quantized model may take the place of its reference (paper section 6.2: distributions over many responses, not
benchmarks, which hide what quantization breaks).

Two questions are asked of log-probabilities under both models: how much perplexity rises on held-out text, and how far the
distribution of log-likelihood over responses moves. The one design decision: both are judged by one number, the rise that the
scheme is allowed. The distribution may move no further than if every response had lost exactly that much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import ks_2samp

from herder.records import Measure

RISES = {"int8": 0.01, "fp8": 0.01, "int4": 0.08}
"""The rise of perplexity that each scheme may cost, as a share."""
RESAMPLES = 2000
SWAPS = 200
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Shift:
    """How the log-likelihood of responses (nats per token, the mean of each) changes from the reference to the other model.

    `difference` is its mean with a 95% interval, `sd` the spread of the differences and `quantiles` where they lie;
    `distance` is the two-sample Kolmogorov-Smirnov statistic between both distributions, `allowed` what it may be.
    """

    difference: Measure
    sd: float
    quantiles: dict[float, float]
    distance: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found. `perplexity` is the quantized model's over the reference's; `reason` is empty where it passed."""

    scheme: str
    limit: float
    perplexity: Measure
    responses: Shift
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason

    def to_json(self) -> dict:
        r = self.responses
        return {
            "scheme": self.scheme,
            "limit": self.limit,
            "passed": self.passed,
            "reason": self.reason,
            "perplexity_ratio": self.perplexity.to_json(),
            "responses": {
                "difference": r.difference.to_json(),
                "sd": r.sd,
                "quantiles": {str(q): value for q, value in r.quantiles.items()},
                "distance": r.distance,
                "allowed": r.allowed,
            },
        }


class Scorer(Protocol):
    """What the gate needs of an engine."""

    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probabilities of each continuation's tokens."""


def gate(
    reference: Scorer,
    quantized: Scorer,
    scheme: str,
    rows: Sequence[Sequence[int]],
    responses: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Verdict:
    """Scores held-out `rows` (from their second token on) and `responses` (prompt, response) with both and judges.

    Responses should be many and the reference's own, as they would be served. Raises ValueError as `judge` does.
    """
    _limit(scheme)
    contexts = [*(row[:1] for row in rows), *(prompt for prompt, _ in responses)]
    continuations = [*(row[1:] for row in rows), *(response for _, response in responses)]
    ours, theirs = (engine.score(contexts, continuations) for engine in (reference, quantized))
    count = len(rows)
    return judge(scheme, (ours[:count], theirs[:count]), (ours[count:], theirs[count:]))


def judge(
    scheme: str,
    rows: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    responses: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
) -> Verdict:
    """The verdict from log-probabilities alone, each a pair (reference, quantized) of one array per row or response.

    Refused is what rises by more than `RISES` allows, and what too few rows leave open: the whole interval must lie below.
    Raises ValueError for an unknown scheme and for arrays that do not belong together.
    """
    limit = _limit(scheme)
    perplexity, shift = perplexity_ratio(*rows), response_shift(*responses, rise=limit)
    reason = ""
    if perplexity.value > 1 + limit:
        reason = f"perplexity rises by {perplexity.value - 1:.2%}; {scheme} may cost {limit:.0%}"
    elif not perplexity.high <= 1 + limit:
        reason = (
            f"perplexity may rise by up to {perplexity.high - 1:.2%} and {scheme} may cost {limit:.0%}; "
            "give more rows to narrow the interval"
        )
    elif shift.distance > shift.allowed:
        reason = (
            f"the distribution of log-likelihood over responses moves by {shift.distance:.3f} (Kolmogorov-Smirnov); "
            f"losing {limit:.0%} on each would move it by {shift.allowed:.3f}"
        )
    return Verdict(scheme, limit, perplexity, shift, reason)


def perplexity_ratio(reference: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0) -> Measure:
    """The other model's perplexity over the reference's on the same rows, with a 95% interval from resampling whole rows."""
    _check_pairs(reference, other, "row")
    lost = np.array(
        [np.sum(a, dtype=np.float64) - np.sum(b, dtype=np.float64) for a, b in zip(reference, other, strict=True)]
    )
    tokens = np.array([len(a) for a in reference], dtype=np.float64)
    rng, ratios = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        again = rng.integers(0, len(lost), len(lost))
        ratios.append(lost[again].sum() / tokens[again].sum())
    low, high = np.exp(np.quantile(ratios, (0.025, 0.975)))
    return Measure(float(np.exp(lost.sum() / tokens.sum())), len(lost), float(low), float(high))


def response_shift(
    reference: Sequence[np.ndarray], other: Sequence[np.ndarray], *, rise: float, seed: int = 0
) -> Shift:
    """How the log-likelihood of responses moves, beside how far a rise of perplexity by `rise` on each would move it.

    Of few or very similar responses some distance is chance: what 95% of random exchanges between the two models reach is
    allowed as well.
    """
    _check_pairs(reference, other, "response")
    ours, theirs = (np.array([np.mean(x, dtype=np.float64) for x in rows]) for rows in (reference, other))
    difference = theirs - ours
    rng, chance = np.random.default_rng(seed), []
    for _ in range(SWAPS):
        swap = rng.random(len(ours)) < 0.5
        chance.append(distance(np.where(swap, theirs, ours), np.where(swap, ours, theirs)))
    allowed = max(distance(ours, ours - math.log1p(rise)), float(np.quantile(chance, 0.95)))
    quantiles = dict(zip(QUANTILES, np.quantile(difference, QUANTILES).tolist(), strict=True))
    return Shift(
        Measure.mean(difference.tolist()), float(difference.std(ddof=1)), quantiles, distance(ours, theirs), allowed
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov statistic: the largest difference between the shares below any value."""
    return float(ks_2samp(a, b, method="asymp").statistic)


def _limit(scheme: str) -> float:
    if scheme not in RISES:
        raise ValueError(f"scheme {scheme!r} has no gate; choose one of {', '.join(RISES)}")
    return RISES[scheme]


def _check_pairs(reference: Sequence[np.ndarray], other: Sequence[np.ndarray], what: str) -> None:
    if len(reference) != len(other):
        raise ValueError(
            f"the reference has {len(reference)} {what}s and the quantized model {len(other)}; score the same"
        )
    if len(reference) < 2:
        raise ValueError(f"{len(reference)} {what}s tell nothing of their spread; give at least 2")
    for index, (a, b) in enumerate(zip(reference, other, strict=True)):
        if len(a) != len(b) or len(a) == 0:
            raise ValueError(
                f"{what} {index} has {len(a)} and {len(b)} log-probabilities; both models score the same tokens"
            )
        if not np.isfinite(a).all():
            raise ValueError(f"{what} {index} has log-probabilities that are not finite under the reference model")
        if not np.isfinite(b).all():
            raise ValueError(f"{what} {index} has log-probabilities that are not finite under the quantized model")
