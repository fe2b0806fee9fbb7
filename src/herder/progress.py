"""One progress display for a whole run: stage, rate, loss, time left.

Library functions call `report(...)`; whoever runs them chooses where it shows by `showing(display)`. Without a display the
calls cost nothing, so functions stay importable and quiet.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Protocol


class Display(Protocol):
    def update(self, done: float, total: float | None, unit: str, numbers: dict[str, float]) -> None: ...


_display: Display | None = None


def report(done: float, total: float | None = None, unit: str = "", **numbers: float) -> None:
    """Tells how far the current stage is: `done` of `total` units, with numbers worth showing (loss, tokens_per_second)."""
    if _display is not None:
        _display.update(done, total, unit, numbers)


@contextlib.contextmanager
def showing(display: Display | None) -> Iterator[None]:
    global _display
    before, _display = _display, display
    try:
        yield
    finally:
        _display = before


def describe(done: float, total: float | None, unit: str, numbers: dict[str, float], seconds: float) -> str:
    """One line: '1,200/4,000 pages, 0:09 left, loss 3.21, 310 tokens/s'."""
    parts = [f"{done:,.0f}" + (f"/{total:,.0f}" if total else "") + (f" {unit}" if unit else "")]
    if total and done and seconds > 1:
        left = seconds * (total - done) / done
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    for name, value in numbers.items():
        shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
        rate = name.removesuffix("_per_second")
        parts.append(f"{shown} {rate}/s" if rate != name else f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


class Console:
    """The display of a run: a live line on a terminal, a line now and then in a log."""

    def __init__(self, steps: int, file=None):
        self.steps, self.file = steps, file or sys.stderr
        self.live = self.file.isatty()
        self.stage, self.started_at, self.last = "", 0.0, 0.0
        self.first: float | None = None

    def _say(self, text: str) -> None:
        clear = "\r\x1b[2K" if self.live else ""
        print(f"{clear}{text}", file=self.file, flush=True)

    def reused(self, number: int, name: str, record: dict, drift: str) -> None:
        note = f"  note: {drift}" if drift else ""
        self._say(
            f"[{number}/{self.steps}] {name}: reused, made {record['finished']} in {_clock(record['seconds'])}{note}"
        )

    def started(self, number: int, name: str, resumed: bool) -> None:
        self.stage, self.started_at, self.first = f"[{number}/{self.steps}] {name}", time.monotonic(), None
        self.last = self.started_at
        if resumed or not self.live:
            self._say(f"{self.stage}: {'continues where it stopped' if resumed else 'starts'}")

    def finished(self, number: int, name: str, seconds: float, numbers: dict) -> None:
        shown = ", ".join(f"{k} {_short(v)}" for k, v in list(numbers.items())[:6] if not isinstance(v, dict))
        self._say(f"[{number}/{self.steps}] {name}: done in {_clock(seconds)}" + (f"; {shown}" if shown else ""))

    def update(self, done: float, total: float | None, unit: str, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.live else 15.0) and done != total:
            return
        if self.first is None:  # a resumed stage starts beyond zero: its rate counts from here
            self.first, self.started_at = done, now
        self.last = now
        elapsed, fresh = now - self.started_at, done - self.first
        seconds = elapsed * done / fresh if fresh > 0 else 0.0
        text = f"{self.stage}: {describe(done, total, unit, numbers, seconds)}"
        if self.live:
            width = shutil.get_terminal_size().columns
            print(f"\r\x1b[2K{text[: width - 1]}", end="", file=self.file, flush=True)
        else:
            print(text, file=self.file, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds >= 60 else f"{seconds:.1f} s"


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
