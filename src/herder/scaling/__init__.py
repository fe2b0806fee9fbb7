"""Scaling laws (paper 3.2.1): how many tokens and parameters a budget is worth, and what a bigger model will score.

`fit_file` reads the points of an IsoFLOP sweep and fits everything; `fit_law` and `fit_loss` are its two laws, `fit_forecast`
the two-step forecast of a benchmark, `fit_mix` the mixing law. Needs numpy and scipy only: fitting does not load torch. The
graphs of runs that make the points are in `herder.scaling.sweep` and `herder.scaling.mix`, which recipes import.
"""

from herder.scaling.forecast import Forecast, Score, fit_forecast, forecast_file
from herder.scaling.isoflop import (
    CHINCHILLA,
    PAPER,
    Curve,
    FlopCount,
    Law,
    OfShapes,
    PerParameter,
    Point,
    fit_curves,
    fit_law,
    read_points,
)
from herder.scaling.loss import LossForm, fit_loss, optimal_tokens, overtraining, predict
from herder.scaling.mixing import MixLaw, fit_mix, lattice
from herder.scaling.report import fit_file, measured_count, plot, summary

__all__ = [
    "CHINCHILLA",
    "PAPER",
    "Curve",
    "FlopCount",
    "Forecast",
    "Law",
    "LossForm",
    "MixLaw",
    "OfShapes",
    "PerParameter",
    "Point",
    "Score",
    "fit_curves",
    "fit_file",
    "fit_forecast",
    "fit_law",
    "fit_loss",
    "fit_mix",
    "forecast_file",
    "lattice",
    "measured_count",
    "optimal_tokens",
    "overtraining",
    "plot",
    "predict",
    "read_points",
    "summary",
]
