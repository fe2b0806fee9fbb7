"""The guard against non-finite values and spikes (paper 3.3.4: a run goes on through interruptions).

It looks before the update is applied, so a bad step leaves no trace in the weights: the same batch is computed once more, and
only what recurs is skipped and recorded.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class GuardConfig:
    """A loss above the median of the last `window` steps by `loss_sigmas` deviations, with a gradient norm above
    `grad_factor` times its median, is a spike; before `window` steps nothing is called one."""

    window: int = 64
    loss_sigmas: float = 6.0
    grad_factor: float = 5.0


class Guard:
    """`check` returns None for a sound step, or the reason not to apply it. State is plain data for the checkpoint."""

    def __init__(self, config: GuardConfig, history: list[tuple[float, float]] | None = None):
        self.config = config
        self.history: deque[tuple[float, float]] = deque(map(tuple, history or []), maxlen=config.window)

    def check(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "loss is not finite"
        if not math.isfinite(grad_norm):
            return "gradient is not finite"
        if len(self.history) == self.config.window:
            losses, norms = zip(*self.history, strict=True)
            # The trend of a falling loss is not noise: deviations are those of neighbouring steps.
            noise = statistics.pstdev(b - a for a, b in itertools.pairwise(losses)) / math.sqrt(2)
            high = statistics.median(losses) + self.config.loss_sigmas * max(noise, 1e-3)
            if loss > high and grad_norm > self.config.grad_factor * statistics.median(norms):
                return f"loss {loss:.3f} above {high:.3f} with gradient norm {grad_norm:.2f}"
        return None

    def accept(self, loss: float, grad_norm: float) -> None:
        self.history.append((loss, grad_norm))
