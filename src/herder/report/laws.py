"""Draws a scaling sweep on the report: IsoFLOP curves, what they forecast, over-training (paper 3.2.1, figures 2 and 3)."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from herder.records import Measure
from herder.report import charts

COLOURS = 6
ALONG = 40
"""Points of a drawn parabola."""


def scaling_card(data: dict[str, Any]) -> dict[str, Any]:
    """`charts` as (title, SVG), `legend` of budgets, `rows` of (label, Measure), `refused` sentences."""
    curves = data["curves"]
    drawn = [("IsoFLOP curves, minima circled", isoflop(curves))]
    if forecast := forecast_chart(curves, data["target"]):
        drawn.append(("Least loss of each budget, and the forecast", forecast))
    if data["past"]:
        drawn.append((f"{charts.count(data['size'])} parameters past their optimum", overtraining(data["past"])))
    names = {
        "loss": "forecast loss",
        "bits_per_byte": "forecast",
        "times_largest_point": "times the largest point's FLOPs",
    }
    rows = [
        *data["law"].items(),
        *((names.get(key, key), m) for key, m in data["target"].items() if key != "best_point"),
    ]
    refused = data["refused"] + [why for *_, why in curves if why]
    return {
        "charts": [(title, svg) for title, svg in drawn if svg],
        "legend": [f"{flops:.2g} FLOPs".replace("e+", "e") for flops, *_ in curves],
        "rows": [(label.replace("_", " "), m) for label, m in rows],
        "refused": refused,
    }


def isoflop(curves: list) -> Markup:
    """Loss over tokens for each budget, with the parabola where it has a minimum."""
    series = []
    for number, (_, points, least, _) in enumerate(curves):
        css = f"s{number % COLOURS}"
        series.append((points, css))
        if least:
            tokens, loss, bend = least
            first, last = math.log(points[0][0]), math.log(points[-1][0])
            logs = [first + (last - first) * i / (ALONG - 1) for i in range(ALONG)]
            series.append(([(math.exp(x), loss + bend * (x - math.log(tokens)) ** 2) for x in logs], f"line {css}"))
            series.append(([(tokens, loss)], f"least {css}"))
    return charts.log_chart(series, "tokens", "held-out loss in nats per token over training tokens, by budget")


def forecast_chart(curves: list, target: dict[str, Measure]) -> Markup:
    """The least loss of each budget over FLOPs, and the forecast with its interval at the target's."""
    if "loss" not in target or "flops" not in target:
        return Markup("")
    best = [(flops, least[1] if least else min(y for _, y in points)) for flops, points, least, _ in curves]
    flops, loss = target["flops"].value, target["loss"]
    series = [(best, "line s0"), (best, "s0"), ([(flops, loss.value)], "s3")]
    label = "least held-out loss in nats per token over training FLOPs, with the forecast of the target"
    return charts.log_chart(series, "FLOPs", label, [(flops, loss.low, loss.high, "s3")])


def overtraining(past: list[tuple[float, Measure, Measure]]) -> Markup:
    """Predicted loss of one size over multiples of its compute-optimal tokens, beside the optimal model of the same FLOPs."""
    series = [([(times, loss.value) for times, loss, _ in past], "line s0")]
    series.append(([(times, best.value) for times, _, best in past], "line s5"))
    label = "predicted loss over tokens as multiples of the compute-optimal ones; grey is the compute-optimal model"
    return charts.log_chart(series, "times the compute-optimal tokens", label)
