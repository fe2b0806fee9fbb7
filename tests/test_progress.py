"""The progress display."""

import io

from herder import progress
from herder.progress import Console, describe


def test_a_line_tells_where_it_is_how_long_and_how_fast():
    line = describe(250, 1000, "steps", {"loss": 3.2149, "tokens_per_second": 16394.2}, seconds=30)
    assert line == "250/1,000 steps, 1:30 left, loss 3.215, 16,394 tokens/s"


def test_reports_reach_the_display_only_while_it_shows():
    seen = []

    class Display:
        def update(self, *told):
            seen.append(told)

    progress.report(1, 2, "pages")
    with progress.showing(Display()):
        progress.report(2, 2, "pages", loss=1.0)
    progress.report(3, 2, "pages")
    assert seen == [(2, 2, "pages", {"loss": 1.0})]


def test_a_log_gets_lines_not_control_characters():
    out = io.StringIO()
    console = Console(2, out)
    console.started(1, "1_corpus/web", resumed=False)
    console.update(5, 5, "pages", {})
    console.finished(1, "1_corpus/web", 75.0, {"pages": 24000, "share": 0.5})
    assert out.getvalue().splitlines() == [
        "[1/2] 1_corpus/web: starts",
        "[1/2] 1_corpus/web: 5/5 pages",
        "[1/2] 1_corpus/web: done in 1:15; pages 24,000, share 0.5",
    ]


def test_a_resumed_stage_counts_its_rate_from_where_it_resumed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(1, out)
    console.started(1, "x", resumed=True)
    for seconds, done in ((20, 500), (40, 600)):
        now[0] = seconds
        console.update(done, 1000, "steps", {})
    # 100 steps took 20 seconds, so the 400 left take 80.
    assert out.getvalue().splitlines()[-1] == "x: 600/1,000 steps, 1:20 left".replace("x:", "[1/1] x:")
