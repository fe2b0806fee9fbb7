"""What a sweep says, as JSON and as one picture (paper 3.2.1, figures 2 and 3)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from herder.scaling.isoflop import (
    CHINCHILLA,
    PAPER,
    Curve,
    FlopCount,
    Law,
    PerParameter,
    Point,
    fit_law,
    positive,
    read_points,
)
from herder.scaling.loss import fit_loss, overtraining

FLAGSHIP_FLOPS = 3.8e25
"""The budget of the paper's flagship model."""
DRAWN = (1e-30, 1e60)
"""Token counts that an axis can show; a law from two bad curves may leave them."""


def fit_file(
    path: Path,
    out: Path | None = None,
    budgets: Sequence[float] = (FLAGSHIP_FLOPS,),
    counts: Sequence[FlopCount] = (),
    seed: int = 0,
    size: float | None = None,
) -> dict:
    """Fits the points of a JSONL file (`read_points`); returns `summary`'s plain JSON.

    `counts` replaces the FLOP counts that turn tokens into parameters: 6 ND, the paper's 5.71 ND, and the one measured from
    the points; `size` is the model whose over-training is told, by default the largest that was trained. With `out`, a folder,
    scaling.json and scaling.png are written there. Raises ValueError for bad rows and for points that make no law.
    """
    points = read_points(Path(path))
    law = fit_law(points, seed)
    result = summary(points, law, budgets, counts, size)
    if out is not None:
        out = Path(out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; give a folder for scaling.json and scaling.png")
        out.mkdir(parents=True, exist_ok=True)
        plot(law, out / "scaling.png", budgets, result["overtraining"])
        write_json(result, out / "scaling.json")
    return result


def write_json(data: object, path: Path) -> None:
    """Writes JSON, whole or not at all; what is not finite is null."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def summary(
    points: Sequence[Point],
    law: Law,
    budgets: Sequence[float],
    counts: Sequence[FlopCount] = (),
    size: float | None = None,
) -> dict:
    """Curves with minima or the reason they have none, the law, its extrapolations, the loss form and over-training.

    Numbers with an interval are `Measure`s; nothing is rounded, and what is not finite is null.
    """
    measured = measured_count(points)
    result = {
        "points": len(points),
        "curves": [_curve(curve) for curve in law.curves],
        "alpha": law.measure_alpha().to_json(),
        "A": law.measure_a().to_json(),
        "flops_per_parameter_and_token": measured.factor,
        "budgets": [],
    }
    named = {c.name: c for c in counts} if counts else {CHINCHILLA.name: CHINCHILLA, PAPER.name: PAPER, "own": measured}
    for flops in budgets:
        params = {name: law.params(flops, count).to_json() for name, count in named.items()}
        result["budgets"].append({"flops": flops, "tokens": law.tokens(flops).to_json(), "params": params})
    size = max(point.params for point in points) if size is None else positive("size", size)
    try:
        form = fit_loss(points)
        told = {"params": size, "rows": overtraining(form, law, size, measured)}
    except ValueError as error:
        told = {"params": size, "refused": str(error)}
    else:
        constants = {"formula": "E + A / params^a + B / tokens^b", **form.constants()}
        told["loss_form"] = constants | {"error_of_log_loss": form.error}
    return _finite(result | {"overtraining": told})


def measured_count(points: Sequence[Point]) -> PerParameter:
    """FLOPs per parameter and token as the points themselves have it, in the geometric mean."""
    logs = [math.log(p.flops) - math.log(p.params) - math.log(p.tokens) for p in points]
    return PerParameter(math.exp(math.fsum(logs) / len(logs)))


def plot(law: Law, path: Path, budgets: Sequence[float] = (), overtrained: dict | None = None) -> None:
    """PNG: the IsoFLOP curves with their minima, the power law with its 95% band out to `budgets`, and where `summary` could
    tell it ("overtraining") the loss of one size trained past its optimum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = bool(overtrained and overtrained.get("rows"))
    figure = Figure(figsize=(18 if told else 12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, *right = figure.subplots(1, 3 if told else 2)
    _plot_curves(left, law.curves)
    _plot_law(middle, law, budgets)
    if told:
        _plot_overtraining(right[0], overtrained)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    os.replace(part, path)


def _plot_curves(axes, curves: Sequence[Curve]) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for curve, shade in zip(curves, shades, strict=True):
        tokens = np.array([p.tokens for p in curve.points])
        label = f"{curve.flops:.2g}" + (" (no minimum)" if curve.refused else "")
        losses = [p.loss for p in curve.points]
        axes.plot(tokens, losses, "x" if curve.refused else "o", color=shade, ms=4, label=label)
        if not curve.refused:
            along = np.geomspace(tokens[0], tokens[-1], 80)
            axes.plot(along, [curve.loss_at(t) for t in along], color=shade, lw=1)
            axes.plot(curve.tokens, curve.loss, "*", color="crimson", ms=9, zorder=3)
    axes.set(xscale="log", xlabel="training tokens", ylabel="validation loss (nats per token)")
    axes.set_title("IsoFLOP curves, minima as stars")
    axes.legend(title="FLOPs", fontsize=8, frameon=False, ncols=1 + (len(curves) > 6))


def _plot_law(axes, law: Law, budgets: Sequence[float]) -> None:
    known = [curve.flops for curve in law.used]
    along = np.geomspace(min([*known, *budgets]), max([*known, *budgets]), 60)
    measures = [law.tokens(flops) for flops in along]
    low, value, high = np.clip([(m.low, m.value, m.high) for m in measures], *DRAWN).T
    axes.plot(along, value, color="black", lw=1, label=_law_text(law))
    if len(law.replicates):
        axes.fill_between(along, low, high, color="black", alpha=0.15, lw=0, label="95% interval")
    axes.plot(known, [curve.tokens for curve in law.used], "*", color="crimson", ms=9, label="minima")
    for flops in budgets:
        tokens = law.tokens(flops).value
        axes.plot(
            flops,
            np.clip(tokens, *DRAWN),
            "D",
            color="tab:blue",
            ms=6,
            label=f"{tokens:.4g} tokens at {flops:.3g} FLOPs",
        )
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="compute-optimal tokens")
    axes.set_title("Power law through the minima")
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _plot_overtraining(axes, told: dict) -> None:
    rows = told["rows"]
    times, losses = [row["times_optimal"] for row in rows], [row["loss"] for row in rows]
    axes.plot(
        times, [m["value"] for m in losses], "o-", color="tab:blue", ms=4, label=f"{told['params']:.3g} parameters"
    )
    if all(m["low"] is not None and m["high"] is not None for m in losses):
        axes.fill_between(times, [m["low"] for m in losses], [m["high"] for m in losses], alpha=0.15, lw=0)
    best = [row["optimal_loss"]["value"] for row in rows]
    axes.plot(times, best, "--", color="black", lw=1, label="compute-optimal model of the same FLOPs")
    axes.set(xscale="log", xlabel="tokens, times the compute-optimal ones", ylabel="predicted loss (nats per token)")
    axes.set_title("One size trained past its optimum")
    axes.legend(fontsize=8, frameon=False)


def _law_text(law: Law) -> str:
    return f"tokens = {law.measure_a().value:.4g} C^{law.alpha:.5f}"


def _curve(curve: Curve) -> dict:
    numbers = {name: getattr(curve, name) for name in ("flops", "tokens", "loss", "curvature")}
    return {**numbers, "refused": curve.refused, "points": [asdict(point) for point in curve.points]}


def _finite(value):
    """The same JSON with null for every number that is none or infinite."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
