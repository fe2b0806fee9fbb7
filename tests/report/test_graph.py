"""The graph of steps: no arrow crosses a box, whatever the graph; implied arrows are left out; sweeps are one box."""

import itertools
import random
import re

import pytest

from herder.report.graph import draw, families, family_title
from herder.report.read import Step


def step(name: str, *inputs: str) -> Step:
    return Step(name, name, seconds=1.0, inputs={f"in{i}": source for i, source in enumerate(inputs)})


def drawn(steps: list[Step], columns: int):
    svg = str(draw(steps, columns, 1112 if columns > 2 else 380))
    box = r'translate\(([\d.-]+) ([\d.-]+)\)"><title>[^<]*</title>(?:<rect[^>]* x="4"[^>]*>)?'
    box += r'<rect class="[^"]*" width="([\d.]+)" height="([\d.]+)"'
    boxes = [tuple(map(float, found)) for found in re.findall(box, svg)]
    size = tuple(map(float, re.search(r'viewBox="0 0 (\d+) (\d+)" width', svg).groups()))
    arrows = []
    for path in re.findall(r'class="arrow"[^>]* d="([^"]+)"', svg):
        # a corner's curve stays inside the triangle of its three points: take its control point as a corner of the line
        arrows.append([tuple(map(float, p.split()[:2])) for p in re.split("[MLQ]", path)[1:]])
    return boxes, arrows, size


def random_steps(seed: int) -> list[Step]:
    rng = random.Random(seed)
    steps: list[Step] = []
    for i in range(rng.randrange(5, 31)):
        stage = f"{min(8, i * 8 // 30 + rng.randrange(2))}_stage"
        sources = rng.sample(steps, min(len(steps), rng.randrange(4)))
        steps.append(step(f"{stage}/step-{i}", *(s.name for s in sources)))
    return steps


@pytest.mark.parametrize("columns", [5, 2])
@pytest.mark.parametrize("seed", range(25))
def test_no_arrow_crosses_a_box_and_no_box_another(seed, columns):
    boxes, arrows, (width, height) = drawn(random_steps(seed), columns)
    for i, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert not any(abs(x - a) < w and abs(y - b) < h for a, b, _, _ in boxes[:i])
    for points in arrows:
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        for (x1, y1), (x2, y2) in itertools.pairwise(points):
            for x, y, w, h in boxes:
                inside = (
                    min(x1, x2) < x + w - 0.5
                    and max(x1, x2) > x + 0.5
                    and min(y1, y2) < y + h - 0.5
                    and max(y1, y2) > y + 0.5
                )
                assert not inside, (points, (x, y))


def test_every_arrow_joins_a_source_to_its_consumer():
    steps = [step("1_a/x"), step("1_a/y", "1_a/x"), step("2_b/z", "1_a/x"), step("3_c/w", "1_a/y", "2_b/z")]
    boxes, arrows, _ = drawn(steps, 5)

    def box_at(point) -> int:
        return next(
            i
            for i, (x, y, w, h) in enumerate(boxes)
            if x - 2 <= point[0] <= x + w + 1 and y - 1 <= point[1] <= y + h + 1
        )

    assert {(box_at(a[0]), box_at(a[-1])) for a in arrows} == {(0, 1), (0, 2), (1, 3), (2, 3)}


def test_an_arrow_that_a_longer_path_implies_is_left_out():
    steps = [step("1_a/x"), step("1_a/y", "1_a/x"), step("1_a/z", "1_a/y", "1_a/x")]
    assert len(drawn(steps, 5)[1]) == 2


def test_an_input_that_comes_later_or_is_itself_makes_no_circle():
    steps = [step("1_a/x", "1_a/y", "1_a/x", "nowhere"), step("1_a/y", "1_a/x")]
    assert len(drawn(steps, 5)[1]) == 1


def test_a_sweep_is_one_box_and_unlike_steps_are_not():
    sweep = [step(f"3_scaling/dim-{d}", "2_tokens") for d in (64, 96, 128, 160)]
    steps = [
        step("2_tokens"),
        *sweep,
        step("3_scaling/forecast", *(s.name for s in sweep)),
        step("4_pretrain", "3_scaling/forecast"),
    ]
    assert [len(family) for family in families(steps)] == [1, 4, 1, 1]
    assert family_title(families(steps)[1]) == "dim × 4"
    assert len(drawn(steps, 5)[0]) == 4
    assert [len(family) for family in families(steps[:4])] == [1, 1, 1, 1]  # three are shown as they are


def test_steps_of_one_name_are_told_apart_by_their_addresses():
    steps = [Step("1_a/x", "1_a/x-1"), Step("1_a/x", "1_a/x-2"), Step("1_a/y", "1_a/y-1", inputs={"x": "1_a/x-1"})]
    boxes, arrows, _ = drawn(steps, 5)
    assert len(boxes) == 3
    assert arrows[0][0][1] == boxes[0][1] + boxes[0][3] / 2


def test_two_steps_without_address_do_not_collide():
    assert len(drawn([Step("a", ""), Step("b", "")], 5)[0]) == 2
