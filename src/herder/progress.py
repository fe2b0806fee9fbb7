"""One progress display for a whole run: stage, rate, loss, time left.

Library functions call `report(...)`; whoever runs them chooses where it shows by `showing(display)`. Without a display the
calls cost nothing, so functions stay importable and quiet.
"""

from __future__ import annotations

import contextlib
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


class Lines:
    """A display for logs and pipes: a line at most every `every` seconds."""

    def __init__(self, write, every: float = 10.0):
        self.write, self.every = write, every
        self.stage, self.started, self.last = "", time.monotonic(), 0.0

    def start(self, stage: str) -> None:
        self.stage, self.started, self.last = stage, time.monotonic(), time.monotonic()

    def update(self, done: float, total: float | None, unit: str, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.write(f"  {self.stage}: {describe(done, total, unit, numbers, now - self.started)}")


def describe(done: float, total: float | None, unit: str, numbers: dict[str, float], seconds: float) -> str:
    """One line: '1,200/4,000 pages, 310 pages/s, loss 3.21, 0:09 left'."""
    parts = [f"{done:,.0f}" + (f"/{total:,.0f}" if total else "") + (f" {unit}" if unit else "")]
    parts += [f"{name.replace('_', ' ')} {value:,.4g}" for name, value in numbers.items()]
    if total and done and seconds > 1:
        left = seconds * (total - done) / done
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return ", ".join(parts)
