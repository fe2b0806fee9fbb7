"""Draws the graph of steps as inline SVG, boxes in lanes by the paper's stages, arrows that never cross a box.

Boxes stand on a grid; columns and rows are separated by gaps, and an arrow runs through gaps only: down from its source, along
the gap below it, down the gap left of its target, and in. Each source has its own track in a gap, so lines that run together
come from one box. An arrow is left out where a longer path implies it (transitive reduction; the step's details list all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from herder.report.charts import duration
from herder.report.read import Step

BOX_HEIGHT, GAP_X, GAP_Y, LANE_TOP, LANE_BOTTOM = 46, 40, 22, 26, 10
SIBLINGS = 4
"""From this many steps on, those with the same inputs and the same consumers (a sweep) become one box."""


@dataclass
class Box:
    """One step, or several siblings, with its cell (column, row) once laid out."""

    title: str
    lane: str
    names: list[str]
    seconds: float
    reused: bool
    broken: bool
    inputs: set[int] = field(default_factory=set)
    column: int = 0
    row: int = 0
    x: float = 0
    y: float = 0


def families(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps in order; siblings (same stage, inputs and consumers) together where they are many."""
    consumers: dict[str, set[str]] = {}
    for step in steps:
        for source in step.inputs.values():
            consumers.setdefault(source, set()).add(step.address)
    groups: dict[tuple, list[Step]] = {}
    for step in steps:
        key = (step.stage, frozenset(step.inputs.values()), frozenset(consumers.get(step.address, ())))
        groups.setdefault(key, []).append(step)
    out = []
    for group in groups.values():
        out += [group] if len(group) >= SIBLINGS else [[step] for step in group]
    place = {step.address: i for i, step in enumerate(steps)}
    return sorted(out, key=lambda family: place[family[0].address])


def family_title(family: Sequence[Step]) -> str:
    if len(family) == 1:
        return family[0].title
    same = [len(set(letters)) == 1 for letters in zip(*(step.title for step in family), strict=False)]
    prefix = family[0].title[: [*same, False].index(False)].rstrip("-_. 0123456789")
    return f"{prefix or 'sibling steps'} × {len(family)}"


def draw(steps: Sequence[Step], columns: int, width: int) -> Markup:
    """The graph of steps as SVG, at most `columns` boxes a row and `width` pixels wide."""
    boxes = make_boxes(steps)
    if not boxes:
        return Markup("")
    lanes = place(boxes, columns)
    used = max(box.column for box in boxes) + 1
    box_width = min(250.0, (width - GAP_X * used - 14) / used)
    tops, height = row_tops(boxes, lanes)
    for box in boxes:
        box.x, box.y = GAP_X + box.column * (box_width + GAP_X), tops[box.row]
    total = sum(box.seconds for box in boxes) or 1.0
    body = [lane_band(name, members, box_width) for name, members in lanes.items()]
    lines = arrows(boxes, box_width, tops)
    height = max([height, *(y + 4 for points in lines for _, y in points)])
    body += [
        Markup(f'<path class="arrow" marker-end="url(#arrow{columns})" d="{rounded(points)}"/>') for points in lines
    ]
    body += [draw_box(box, box_width, total) for box in boxes]
    wide = GAP_X + used * (box_width + GAP_X) - GAP_X + 14
    head = Markup(
        f'<svg class="graph columns{columns}" viewBox="0 0 {wide:.0f} {height:.0f}" width="{wide:.0f}" role="img">'
        "<title>Graph of the steps</title>"
        f'<defs><marker id="arrow{columns}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
        'markerUnits="userSpaceOnUse"><path class="head" d="M0 .6 7.4 4 0 7.4z"/></marker></defs>'
    )
    return head + Markup("").join(body) + Markup("</svg>")


def make_boxes(steps: Sequence[Step]) -> list[Box]:
    boxes: list[Box] = []
    place_of: dict[str, int] = {}
    for family in families(steps):
        box = Box(
            family_title(family), family[0].stage, [s.name for s in family], sum(s.seconds or 0.0 for s in family),
            all(s.reused for s in family), any(s.problem for s in family),
        )  # fmt: skip
        # Only earlier boxes count as inputs: a damaged file cannot make a circle.
        box.inputs = {place_of[source] for step in family for source in step.inputs.values() if source in place_of}
        place_of |= {step.address: len(boxes) for step in family}
        boxes.append(box)
    above: list[set[int]] = []
    for box in boxes:
        above.append(set(box.inputs).union(*(above[i] for i in box.inputs)))
        box.inputs -= set().union(*(above[i] for i in box.inputs))
    return boxes


def place(boxes: Sequence[Box], columns: int) -> dict[str, list[Box]]:
    """Gives every box its cell, and returns the lanes. In a lane, depth goes right and wraps; short lanes share a row."""
    lanes: dict[str, list[Box]] = {}
    for box in boxes:
        lanes.setdefault(box.lane, []).append(box)
        box.column = max((boxes[i].column + 1 for i in box.inputs if boxes[i].lane == box.lane), default=0)
    row = start = tallest = 0
    for members in lanes.values():
        stacks: list[list[Box]] = [[] for _ in range(max(box.column for box in members) + 1)]  # by depth in the lane
        for box in members:
            stacks[box.column].append(box)
        if start and start + len(stacks) > columns:
            row, start, tallest = row + tallest, 0, 0
        first = row
        for wrap in range(0, len(stacks), columns):
            wrapped = stacks[wrap : wrap + columns]
            for column, stack in enumerate(wrapped):
                for height, box in enumerate(stack):
                    box.column, box.row = start + column, first + height
            first += max(map(len, wrapped))
        tallest, start = max(tallest, first - row), start + min(len(stacks), columns)
    return lanes


def row_tops(boxes: Sequence[Box], lanes: dict[str, list[Box]]) -> tuple[list[float], float]:
    """The y of every row of boxes, and the height of all: rows that begin a lane leave room for its band and name."""
    starts = {min(box.row for box in members) for members in lanes.values()}
    tops, y = [], -GAP_Y - LANE_BOTTOM
    for row in range(max(box.row for box in boxes) + 1):
        y += GAP_Y + (LANE_TOP + LANE_BOTTOM if row in starts else 0)
        tops.append(y)
        y += BOX_HEIGHT
    return tops, y + LANE_BOTTOM + 2


def lane_band(name: str, members: Sequence[Box], box_width: float) -> Markup:
    left, right = min(b.x for b in members), max(b.x for b in members) + box_width
    top, bottom = min(b.y for b in members) - LANE_TOP, max(b.y for b in members) + BOX_HEIGHT + LANE_BOTTOM
    return Markup(
        f'<rect class="lane" x="{left - 10:.1f}" y="{top:.1f}" width="{right - left + 20:.1f}" '
        f'height="{bottom - top:.1f}" rx="10"/>'
        f'<text class="lane-name" x="{left:.1f}" y="{top + 17:.1f}">{{}}</text>'
    ).format(name.replace("_", " · ", 1))


def arrows(boxes: Sequence[Box], box_width: float, tops: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The corners of every arrow, from a side of its source to the left side of its target."""
    tracks: dict[tuple, dict[int, int]] = {}

    def track(gap: tuple, source: int) -> float:
        """The offset of a source's own track in a gap: 0, 5, -5, 10, ... pixels from its middle."""
        order = tracks.setdefault(gap, {})
        place = order.setdefault(source, len(order)) % 5
        return (place + 1) // 2 * 5 * (1 if place % 2 else -1)

    out = []
    for box in boxes:
        for source in sorted(box.inputs):
            start = boxes[source]
            end = (box.x - 1, box.y + BOX_HEIGHT / 2)
            exit_right = (start.x + box_width, start.y + BOX_HEIGHT / 2)
            if box.column == start.column + 1 and box.row == start.row:
                points = [exit_right, end]
            else:
                x = box.x - GAP_X / 2 - 2 + track(("column", box.column), source)
                if box.column == start.column + 1:
                    points = [exit_right, (x, exit_right[1]), (x, end[1]), end]
                else:
                    down, floor = start.x + box_width / 2, start.y + BOX_HEIGHT
                    below = tops[start.row + 1] if start.row + 1 < len(tops) else floor + GAP_Y
                    # Between lanes the line runs between their bands, inside a lane between its rows.
                    middle = GAP_Y / 2 + (LANE_BOTTOM if below - floor > GAP_Y else 0)
                    y = floor + middle + track(("row", start.row), source) * 0.8
                    points = [(down, floor), (down, y), (x, y), (x, end[1]), end]
            out.append(points)
    return out


def rounded(points: Sequence[tuple[float, float]], radius: float = 6) -> str:
    """An SVG path through points joined by horizontal and vertical lines, with rounded corners."""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        r = min(radius, *(max(abs(p[0] - x), abs(p[1] - y)) / 2 for p in (before, after)))

        def towards(p: tuple[float, float], x: float = x, y: float = y, r: float = r) -> str:
            step = lambda a, b: a + (r if b > a else -r if b < a else 0)  # noqa: E731
            return f"{step(x, p[0]):.1f} {step(y, p[1]):.1f}"

        path.append(f"L{towards(before)}Q{x:.1f} {y:.1f} {towards(after)}")
    return "".join([*path, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def draw_box(box: Box, width: float, total: float) -> Markup:
    mark = "unreadable" if box.broken else "↻ reused" if box.reused else ""
    css = "box" + (" broken" if box.broken else " reused" if box.reused else "")
    room = int((width - 20) / 7.4)
    title = box.title if len(box.title) <= room else box.title[: room - 1] + "…"
    stack = f'<rect class="{css}" x="4" y="-4" width="{width:.1f}" height="{BOX_HEIGHT}" rx="7"/>' * (
        len(box.names) > 1
    )
    spent = max(0.0, min(1.0, box.seconds / total)) * (width - 20)
    return Markup(
        f'<g transform="translate({box.x:.1f} {box.y:.1f})"><title>{{names}}</title>{stack}'
        f'<rect class="{css}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="7"/>'
        '<text class="name" x="10" y="18">{title}</text><text class="seconds" x="10" y="34">{seconds}</text>'
        f'<text class="mark" x="{width - 10:.1f}" y="34" text-anchor="end">{{mark}}</text>'
        f'<rect class="spent" x="10" y="39.5" width="{spent:.1f}" height="2.5" rx="1.2"/></g>'
    ).format(names=", ".join(box.names), title=title, seconds=duration(box.seconds), mark=mark)
