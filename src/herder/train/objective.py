"""The contract between an objective and the trainer, and the first objective: next-token prediction.

An objective is data plus two pure functions. `batch(step)` names the rows of a step (a pure function of the step, so any rank
can take its share), `rows(items)` packs them, `loss(outputs, rows)` turns what the model said into a sum and a weight. It
declares which outputs it needs and never sees the model: the trainer computes them under any layout, and divides the
accumulated gradient once by the global weight. Rows of one segment never straddle micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch

from herder.train.data import Mixture, Slice

Output = Literal["token_log_probs", "segment_sums"]


@dataclass(frozen=True)
class Rows:
    """Packed rows. All (R, T): `tokens`, `targets` int64; `weights` fp32, 0 where there is nothing to predict; `doc_ids` int64,
    which differ between neighbouring documents. `segments` int64 names the segment of each target for `segment_sums`, -1 for
    none, numbered from 0 within a row. `columns` (R, ...) hold what was computed before (reference log-probabilities)."""

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    doc_ids: torch.Tensor
    segments: torch.Tensor | None = None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def micro_batches(self, rows: int) -> Iterator[Rows]:
        for start in range(0, len(self), rows):
            yield self.map(lambda t, s=start: t[s : s + rows])

    def to(self, device: torch.device | str) -> Rows:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def map(self, change) -> Rows:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        columns = {name: change(t) for name, t in values.pop("columns").items()}
        return Rows(**{name: None if t is None else change(t) for name, t in values.items()}, columns=columns)

    @property
    def select(self) -> torch.Tensor:
        """Flat indices of the positions that predict something: where the head is evaluated."""
        return self.weights.flatten().nonzero().flatten()


@dataclass(frozen=True)
class Outputs:
    """`token_log_probs` (selected,) fp32 in the order of `Rows.select`; `segment_sums` (R, segments) fp32, each the sum of
    weight times log-probability over a segment's targets."""

    token_log_probs: torch.Tensor | None = None
    segment_sums: torch.Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """Sum of losses (with graph), the weight it stands for, and sums to be logged (divided by the global weight)."""

    sum: torch.Tensor
    weight: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)

    def sums(self, positions: int, pairs: int, metrics: Sequence[str]) -> torch.Tensor:
        """(4 + metrics,) float64, to be added over micro-batches and ranks: weight, loss, positions, pairs of positions that
        see each other, the metrics."""
        values = [self.weight, self.sum, positions, pairs, *(self.metrics[name] for name in metrics)]
        device = self.sum.device
        return torch.stack([torch.as_tensor(v, device=device).detach().double() for v in values])


class Objective(Protocol):
    """See the module's docstring. `metrics` names the sums that every `Loss` carries; `skips` are data steps left out."""

    needs: frozenset[Output]
    metrics: tuple[str, ...]
    steps: int
    skips: Sequence[int]

    def batch(self, step: int) -> Sequence[Any]: ...
    def rows(self, items: Sequence[Any]) -> Rows: ...
    def loss(self, outputs: Outputs, rows: Rows) -> Loss: ...


class NextToken:
    """Cross-entropy of the next token on a mixture of sources; nothing is predicted across a document's end."""

    needs: frozenset[Output] = frozenset({"token_log_probs"})
    metrics: tuple[str, ...] = ()

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    @property
    def steps(self) -> int:
        return self.mixture.steps

    @property
    def skips(self) -> Sequence[int]:
        return self.mixture.skips

    @skips.setter
    def skips(self, skips: Sequence[int]) -> None:
        self.mixture.skips = tuple(skips)

    def batch(self, step: int) -> list[Slice]:
        return self.mixture.batch(step)

    def rows(self, items: Sequence[Slice]) -> Rows:
        read = [self.mixture.read(item) for item in items]
        tokens = torch.from_numpy(np.stack([t for t, _ in read]))
        documents = torch.from_numpy(np.stack([d for _, d in read]))
        weights = (documents[:, 1:] == documents[:, :-1]).float()
        return Rows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, documents[:, :-1].contiguous())

    def loss(self, outputs: Outputs, rows: Rows) -> Loss:
        return mean_log_loss(outputs, rows)


def mean_log_loss(outputs: Outputs, rows: Rows) -> Loss:
    """Weighted negative log-likelihood of the targets."""
    weights = rows.weights.flatten()[rows.select]
    return Loss(-(outputs.token_log_probs * weights).sum(), weights.sum())
