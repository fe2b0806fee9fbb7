"""Charts and words for numbers."""

import math
import re

import pytest

from herder.records import Ledger, Measure
from herder.report import charts
from herder.report.page import funnel


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12, "12"), (9_999, "9,999"), (12_345, "12,345"), (999_999, "1M"), (2_345_678, "2.35M"), (8.03e9, "8.03B"),
     (1.5e13, "15T"), (math.inf, "–"), (0.25, "0.25")],
)  # fmt: skip
def test_counts(number, text):
    assert charts.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (761.2, "12 min 41 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds, text):
    assert charts.duration(seconds) == text


def test_intervals_show_percent_as_percent_and_exact_numbers_have_none():
    assert charts.interval(Measure.share(30, 100)) == "21.0 to 39.0, n = 100"
    assert charts.value(Measure.share(30, 100)) == "30.0%"
    assert charts.interval(Measure(5.0)) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.2, 8.1), (1e-5, 3e-3), (0, 13_107_200), (-4, 4), (5, 5)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = charts.ticks(low, high)
    assert 1 <= len(ticks) <= 11
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len({charts.tick_label(t) for t in ticks}) == len(ticks)


def test_thinning_keeps_the_ends_and_the_mean():
    points = [(float(i), math.sin(i / 50)) for i in range(5000)]
    thin = charts.thin(points, 240)
    assert len(thin) <= 240
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in points) / 5000, abs=0.01)


def test_smoothing_follows_a_straight_line_and_removes_noise():
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in charts.smooth(line, 5)[:95]] == pytest.approx([y for _, y in line[:95]])
    noise = [(float(i), (-1.0) ** i) for i in range(100)]
    assert max(abs(y) for _, y in charts.smooth(noise, 5)[5:]) < 0.2


def test_a_falling_curve_falls_on_the_chart_and_stays_in_its_frame():
    svg = str(
        charts.line_chart([[(float(i), 8 * math.exp(-i / 9) + 2) for i in range(40)]], (0, 39), "step", "a <loss>")
    )
    points = [
        tuple(map(float, p.split())) for p in re.split("[ML]", re.search(r'class="line s0" d="([^"]+)"', svg)[1])[1:]
    ]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # y grows downwards
    assert all(
        charts.LEFT <= x <= charts.WIDTH - charts.RIGHT and 0 <= y <= charts.HEIGHT - charts.BOTTOM for x, y in points
    )
    assert "a &lt;loss&gt;" in svg


def test_the_whisker_spans_the_interval():
    svg = str(charts.whisker(Measure(0.5, 10, 0.25, 0.75, "%"), 0, 1))
    assert '<line x1="25.00%" x2="75.00%"' in svg
    assert 'width="50.00%"' in svg
    assert "<line" not in str(charts.whisker(Measure(0.5), 0, 1))


def test_an_endless_interval_is_drawn_to_the_edge():
    assert '<line x1="0.00%" x2="100.00%"' in str(charts.whisker(Measure(0.5, 1, -math.inf, math.inf), 0, 1))


def test_the_funnel_accounts_for_everything_read():
    ledgers = [
        Ledger("a", 100, documents=60, removed={"short": 30}),
        Ledger("b", 50, documents=40, removed={"short": 5, "spam": 5}),
    ]
    rows = funnel(ledgers)
    assert [(r["label"], r["count"]) for r in rows] == [
        ("read", 150),
        ("short", 35),
        ("spam", 5),
        ("not accounted for", 10),
        ("kept", 100),
    ]
    assert sum(r["count"] for r in rows[1:]) == rows[0]["count"]
