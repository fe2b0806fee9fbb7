"""Polyak averaging (paper 3.4.3): the mean of several states of one run, or of several models of one shape (4.1.5).

An average is a checkpoint like any other, computed tensor by tensor while it is read, so models of any size can be averaged
and written in any format without holding one in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from herder.convert import Checkpoint, open_checkpoint
from herder.tokenizer import Tokenizer


class Averaged(Checkpoint):
    """The weighted mean of checkpoints of one shape; the tokenizer is the last one's. `weights` are normalised.

    Raises ValueError for no checkpoint, weights that do not fit, or shapes that differ (the field is named).
    """

    def __init__(self, parts: Sequence[Checkpoint], weights: Sequence[float]):
        if not parts:
            raise ValueError("there is nothing to average; give at least one checkpoint or model")
        if len(weights) != len(parts) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"{len(parts)} models with weights {list(weights)}; give one for each, none below 0, one above"
            )
        self.config = parts[0].config
        for number, part in enumerate(parts[1:], 1):
            if part.config != self.config:
                differs = next(n for n, v in vars(part.config).items() if v != getattr(self.config, n))
                raise ValueError(
                    f"model {number} has {differs} {getattr(part.config, differs)}, model 0 has "
                    f"{getattr(self.config, differs)}; only models of one shape can be averaged"
                )
        total = float(sum(weights))
        self.parts = [(part, weight / total) for part, weight in zip(parts, weights, strict=True) if weight > 0]
        self.dtype = parts[0].dtype

    def names(self) -> list[str]:
        return self.parts[0][0].names()

    def stored(self, name: str) -> torch.dtype:
        return self.parts[0][0].stored(name)

    def tensor(self, name: str) -> torch.Tensor:
        total: torch.Tensor | None = None
        for part, weight in self.parts:
            tensor = part.tensor(name).float()
            total = tensor * weight if total is None else total.add_(tensor, alpha=weight)
        return total.to(self.stored(name))

    def tokenizer(self) -> Tokenizer:
        return self.parts[-1][0].tokenizer()


def average(models: Sequence[str | Path | Checkpoint], decay: float = 1.0) -> Averaged:
    """The mean of models, oldest first: uniform, or with `decay` below 1 each weighs that much of its successor.

    Models are open checkpoints, or folders and files in any format that can be read. `herder.convert.load` and `export` take
    the result.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; it must be above 0 and at most 1 (1 is the uniform mean)")
    parts = [open_checkpoint(model) if isinstance(model, str | Path) else model for model in models]
    return Averaged(parts, [decay ** (len(parts) - 1 - i) for i in range(len(parts))])
