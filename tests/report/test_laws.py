"""The card of a scaling sweep: curves, forecast, over-training, and a sentence for what is damaged."""

import json

import pytest

from herder.report import write_report
from herder.report.charts import log_chart, log_ticks
from herder.report.laws import scaling_card
from herder.report.read import parse_scaling


def measure(value, low=None, high=None):
    return {"value": value, "n": 16, "low": low or value, "high": high or value, "unit": ""}


def scaling():
    points = [
        {"tokens": t, "loss": loss, "params": 1e5, "flops": 1e12} for t, loss in ((1e5, 5.2), (4e5, 5.0), (1.6e6, 5.3))
    ]
    return {
        "curves": [
            {"flops": 1e12, "tokens": 3.6e5, "loss": 4.99, "curvature": 0.13, "refused": "", "points": points},
            {
                "flops": 3e12,
                "tokens": None,
                "loss": None,
                "curvature": None,
                "refused": "no <minimum>",
                "points": points,
            },
        ],
        "alpha": measure(0.53, 0.4, 0.6),
        "A": measure(0.3),
        "target": {"flops": 4e13, "params": 3.2e6, "loss": measure(4.2, 4.0, 4.4), "bits_per_byte": measure(2.0)},
        "overtraining": {
            "params": 3.2e6,
            "rows": [
                {"times_optimal": t, "loss": measure(4 - t / 99), "optimal_loss": measure(3.9)} for t in (1, 10, 100)
            ],
        },
    }


def test_a_sweep_has_three_charts_its_law_and_why_a_curve_has_no_minimum():
    card = scaling_card(parse_scaling(scaling()))
    assert [title for title, _ in card["charts"]][1:] == [
        "Least loss of each budget, and the forecast",
        "3.2M parameters past their optimum",
    ]
    curves = str(card["charts"][0][1])
    assert curves.count("<circle") == 7  # six points, one minimum
    assert curves.count('class="line') == 1
    assert dict(card["rows"])["alpha"].low == 0.4
    assert card["refused"] == ["no <minimum>"]


def test_the_interval_of_the_forecast_is_drawn_to_scale():
    wide, narrow = scaling(), scaling()
    narrow["target"]["loss"] = measure(4.2, 4.19, 4.21)
    spans = []
    for data in (wide, narrow):
        path = str(scaling_card(parse_scaling(data))["charts"][1][1]).rpartition('d="M')[2].partition('"')[0]
        top, bottom = path.split(" ")[1].split("V")
        spans.append(abs(float(top) - float(bottom)))
    assert spans[0] > 10 * spans[1] > 0


def test_ticks_of_a_logarithm_are_few_and_inside():
    for low, high in ((1, 100), (1.3e5, 2.7e6), (1e11, 4e13), (1, 1e30), (3, 4)):
        ticks = log_ticks(low, high)
        assert 1 <= len(ticks) <= 7
        assert all(0.99 * low <= t <= 1.01 * high for t in ticks)
    assert log_chart([([(0.0, 1.0)], "s0")], "x", "nothing") == ""


@pytest.fixture
def page(run):
    folder = next(run.parent.glob("3_scaling/forecast-*"))

    def write(text):
        (folder / "scaling.json").write_text(text)
        return write_report(run).read_text()

    return write


def test_the_page_shows_the_card_escaped(page):
    html = page(json.dumps(scaling()))
    assert 'id="scaling"' in html
    assert "IsoFLOP" in html
    assert "no &lt;minimum&gt;" in html


@pytest.mark.parametrize(
    "change",
    [
        {"curves": [{"flops": -1, "points": []}]},
        {"curves": 7},
        {"curves": [{"flops": 1e12, "points": [{"tokens": "many", "loss": 3}]}]},
        {"target": {"loss": "none"}},
        {"overtraining": {"rows": [{"times_optimal": 0}]}},
    ],
)
def test_a_damaged_sweep_is_a_sentence_in_place(page, change):
    assert "scaling.json cannot be read" in page(json.dumps(scaling() | change))
    assert "scaling.json cannot be read" in page(json.dumps(scaling())[:-9])


def test_a_sweep_without_any_curve_still_has_a_card(page):
    html = page(json.dumps({"refused": "a power law needs minima", "target": {"refused": "8 points are needed"}}))
    assert "a power law needs minima" in html
    assert "8 points are needed" in html
