"""What computes one step of the engine, and the plain one: the model itself over its pages (paper section 6).

A step is flat: tokens of all sequences one after the other, new prompts, pieces of long ones and single tokens alike. The one
design decision: a runner knows rows, positions and block tables and nothing of requests, so kernels, devices and weight formats
change behind it and the scheduler, sampling and speculation never know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from herder.engine.cache import Pages
from herder.model import Llama


@dataclass(frozen=True, slots=True)
class Batch:
    """N tokens of one step. `spans` are (first row, rows, block table) of each sequence, whose rows stand at consecutive
    positions; `select` are the rows whose output is wanted; `adapters` name each span's, "" for the model alone."""

    tokens: list[int]
    positions: list[int]
    spans: list[tuple[int, int, list[int]]]
    select: list[int]
    adapters: list[str] = field(default_factory=list)


class Runner(Protocol):
    """Writes keys and values of a step's rows into the pages."""

    def run(self, batch: Batch) -> torch.Tensor:
        """(selected, dim) normalised last hidden states."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(selected, dim) -> (selected, V) fp32."""
        ...


class TorchRunner:
    """The model's own forward pass, on any device."""

    def __init__(self, model: Llama, pages: Pages):
        self.model, self.pages = model, pages
        self.device = next(model.parameters()).device

    def run(self, batch: Batch) -> torch.Tensor:
        tokens, positions, select = (
            torch.tensor(ids, dtype=torch.int64, device=self.device)
            for ids in (batch.tokens, batch.positions, batch.select)
        )
        attend = self.pages.attend(batch.spans, batch.positions)
        return self.model.hidden(tokens[None], positions=positions[None], attend=attend, select=select)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(hidden).float()
