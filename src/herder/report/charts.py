"""Draws the report's charts as inline SVG: curves, bars and intervals, and words for numbers.

No plotting library: the page needs shapes that follow the reader's colours (CSS classes) and a few kilobytes each. Text
goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from herder.records import Measure

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 380, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 34


def count(number: float | None) -> str:
    """12345 -> '12,345', 2_340_000 -> '2.34M': exact below a million, then three digits."""
    if number is None or not abs(number) < 1e300:
        return "–"
    return plain(number) if abs(number) < 999_500 else short(number)


def short(number: float) -> str:
    """Three digits and a letter: '2.34M', '48K'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}".replace("e+03", "000") + letter
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes in decimal units: '182 MB'."""
    text = short(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1].replace('B', 'G')}B"


def plain(number: float) -> str:
    """Four significant digits, no exponent where a reader can do without."""
    if not math.isfinite(number):
        return "∞" if number > 0 else "−∞" if number < 0 else "–"
    if number == int(number) and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e15 else f"{number:.4g}"


def duration(seconds: float | None) -> str:
    if seconds is None or not abs(seconds) < 1e15:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def share(part: float) -> str:
    return f"{part * 100:.1f}%"


def value(m: Measure | str) -> str:
    """The number of a Measure with its unit."""
    if isinstance(m, str):
        return m
    if m.unit == "%":
        return share(m.value)
    return f"{m.value:.3f} {m.unit}".strip() if m.n and abs(m.value) < 100 else f"{plain(m.value)} {m.unit}".strip()


def interval(m: Measure | str) -> str:
    """'41.0 to 52.3, n = 300', or nothing where the number has no sampling error."""
    if isinstance(m, str) or not m.n:
        return ""
    low, high = (
        f"{e * 100:.1f}" if m.unit == "%" else f"{e:.3f}" if abs(e) < 100 else plain(e) for e in (m.low, m.high)
    )
    return f"{low} to {high}, n = {m.n:,}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    span = high - low
    if not span > 1e-300:
        return [low]
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(tick: float) -> str:
    if tick and (abs(tick) < 1e-3 or abs(tick) >= 1e15):
        return f"{tick:.0e}".replace("e-0", "e-").replace("e+", "e")
    return short(tick) if abs(tick) >= 1e4 else f"{tick:,.6g}"


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """At most about `most` points: the mean of each run of neighbours, the first and the last as they are."""
    points = sorted(points)
    size = math.ceil(len(points) / most)
    if size <= 1:
        return points
    chunks = (points[i : i + size] for i in range(0, len(points), size))
    means = [tuple(sum(axis) / len(chunk) for axis in zip(*chunk, strict=True)) for chunk in chunks]
    return [points[0], *means[1:-1], points[-1]]


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
    """Running mean over `window` points on either side; fewer at the start, where a loss falls too fast to be averaged."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    ends = [(i - min(window, i), min(len(points), i + 1 + min(window, i))) for i in range(len(points))]
    return [(x, (sums[end] - sums[start]) / (end - start)) for (x, _), (start, end) in zip(points, ends, strict=True)]


def line_chart(curves: Sequence[Points], span: tuple[float, float], axis: str, label: str, most: int = 240) -> Markup:
    """Curves over one pair of axes, x from `span[0]` to `span[1]`. Long curves are drawn as their running mean; a single one
    keeps its values as a faint line beneath.

    `axis` names x; `label` describes the chart to those who do not see it.
    """
    curves = [thin(points, most) for points in curves if points]
    if not curves:
        return Markup("")
    low, high = visible([p for points in curves for p in points])
    left, right = span
    left = 0.0 if 0 < left < 0.1 * right else left

    def at(x: float, y: float) -> tuple[float, float]:
        y = min(max(y, low), high)
        return (
            LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT),
            _height(y, low, high),
        )

    body = _frame(label, axis, low, high, [(at(tick, low)[0], tick) for tick in ticks(left, right, 4)])
    for number, points in enumerate(curves):
        if len(points) >= 60:
            if len(curves) == 1:
                body.append(curve([at(*p) for p in points], "raw"))
            points = smooth(points, len(points) // 30)
        body.append(curve([at(*p) for p in points], f"line s{number % 6}"))
    return _svg(body)


def log_chart(
    series: Sequence[tuple[Points, str]], axis: str, label: str, spans: Sequence[tuple[float, float, float, str]] = ()
) -> Markup:
    """Points over a logarithmic x. A series with "line" in its CSS class is joined, another is dots; `spans` are (x, low, high,
    class): intervals, of which one that leaves the chart is cut. Points that are not positive in x are left out."""
    series = [([(x, y) for x, y in points if x > 0 and math.isfinite(y)], css) for points, css in series]
    every = [p for points, _ in series for p in points]
    if not every:
        return Markup("")
    low, high = visible([*every, *((x, e) for x, a, b, _ in spans for e in (a, b) if math.isfinite(e))])
    ends = [math.log(x) for x, _ in every]
    left, width = min(ends), (max(ends) - min(ends)) or 1.0
    left, width = left - 0.04 * width, 1.08 * width

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - left) / width
        return LEFT + share * (WIDTH - LEFT - RIGHT), _height(min(max(y, low), high), low, high)

    body = _frame(
        label, axis, low, high, [(at(x, low)[0], x) for x in log_ticks(math.exp(left), math.exp(left + width))]
    )
    for points, css in series:
        if "line" in css:
            body.append(
                Markup('<path class="{}" d="M{}"/>').format(
                    css, "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*p) for p in points))
                )
            )
        else:
            body += [
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(css, *at(*p)) for p in points
            ]
    for x, bottom, top, css in spans:
        (across, y), (_, end) = at(x, bottom), at(x, top)
        body.append(Markup(f'<path class="line {css}" d="M{across:.1f} {y:.1f}V{end:.1f}"/>'))
    return _svg(body)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with their multiples by 2 and 5 where there are few, thinned where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) <= 6:
            return found or [low]
    return found[:: math.ceil(len(found) / 6)]


def _height(y: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _frame(label: str, axis: str, low: float, high: float, across: Sequence[tuple[float, float]]) -> list[Markup]:
    """Title, grid and axes; `across` are (pixel, value) of the ticks of x."""
    body = [Markup("<title>{}</title>").format(label)]
    for tick in ticks(low, high):
        y = _height(tick, low, high)
        body.append(Markup(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'))
        body.append(Markup(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{tick_label(tick)}</text>'))
    for x, tick in across:
        body.append(
            Markup(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick_label(tick)}</text>')
        )
    body.append(Markup(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'))
    body.append(
        Markup('<text class="unit" x="{}" y="{}" text-anchor="end">{}</text>').format(WIDTH - RIGHT, HEIGHT - 3, axis)
    )
    return body


def _svg(body: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">{}</svg>').format(
        WIDTH, HEIGHT, Markup("").join(body)
    )


def visible(points: Points) -> tuple[float, float]:
    """The range of y to draw: all of it, unless the highest 3% are outliers that would flatten the rest."""
    ys = sorted(y for _, y in points)
    low, high = ys[0], ys[-1]
    most = ys[int(0.97 * (len(ys) - 1))]
    if len(ys) >= 60 and high - low > 3 * (most - low) > 0:
        high = most + 0.35 * (most - low)
    if 0 < low < 0.15 * high:
        low = 0.0
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (low - margin if low else 0.0), high + margin


def curve(points: Points, css: str) -> Markup:
    if len(points) == 1:
        return Markup(f'<circle class="{css}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>')
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = ""
    if len(points) <= 12 and "raw" not in css:
        dots = "".join(f'<circle class="{css} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in points)
    return Markup(f'<path class="{css}" d="{path}"/>{dots}')


def bar(start: float, end: float, css: str = "fill") -> Markup:
    """A bar from `start` to `end` (shares of the cell's width), at least a hair wide."""
    start, end = (min(max(e, 0.0), 1.0) * 100 for e in (start, end))
    return Markup(
        '<svg class="bar" width="100%" height="14" aria-hidden="true"><rect class="track" width="100%" height="100%" rx="3"/>'
        f'<rect class="{css}" x="{min(start, 99.6):.2f}%" width="{max(end - start, 0.4):.2f}%" height="100%" rx="3"/></svg>'
    )


def whisker(m: Measure, low: float, high: float, css: str = "fill") -> Markup:
    """A bar to the value and a whisker over its 95% interval, on a scale from `low` to `high`."""
    span = (high - low) or 1.0
    at = [min(max((e - low) / span, 0.0), 1.0) * 100 for e in (m.value, m.low, m.high)]
    text = (
        '<svg class="bar whisker" width="100%" height="18" aria-hidden="true"><rect class="track" y="2" width="100%" height="14" '
        f'rx="3"/><rect class="{css}" y="2" width="{max(at[0], 0.4):.2f}%" height="14" rx="3"/>'
    )
    if m.n:
        ends = "".join(f'<line x1="{e:.2f}%" x2="{e:.2f}%" y1="5" y2="13"/>' for e in at[1:])
        text += f'<line x1="{at[1]:.2f}%" x2="{at[2]:.2f}%" y1="9" y2="9"/>{ends}'
    return Markup(text + "</svg>")


def scale(measures: Sequence[Measure]) -> tuple[float, float]:
    """The scale that rows of one table share: 0 to 1 for shares, else 0 (or the lowest end) to the highest end."""
    if measures and all(m.unit == "%" and 0 <= m.value <= 1 for m in measures):
        return 0.0, 1.0
    ends = [e for m in measures for e in (m.value, m.low, m.high) if math.isfinite(e)]
    return min([0.0, *ends]), max([0.0, *ends]) * 1.02
