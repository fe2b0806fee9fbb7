"""Scores changed by what was said and by wish: repetition, presence and frequency penalties, and logit bias.

The one design decision: all rows that have a penalty are changed together, as one flat list of places, and rows without are not
touched, so what one request asks for costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from herder.engine.sample import Sampling


class Past(NamedTuple):
    """What penalties look at: the ids of the prompt (read under a repetition penalty), and how often each id was generated."""

    prompt: Collection[int]
    counts: Mapping[int, int]


def change(logits: torch.Tensor, settings: Sequence[Sampling], past: Sequence[Past | None]) -> None:
    """Applies each row's penalties, then its bias, to (rows, V) fp32 logits in place; `past` may be None where there are none."""
    rows = [row for row, s in enumerate(settings) if s.penalised and past[row] is not None]
    if repeated := [row for row in rows if settings[row].repetition_penalty != 1]:
        ids = [_as_array(past[row].prompt) for row in repeated] + [_as_array(past[row].counts) for row in repeated]
        place = _places(repeated * 2, ids, logits)
        factor = _flat([settings[row].repetition_penalty for row in repeated] * 2, ids, logits)
        scores = logits.take(place)  # an id of both prompt and answer is computed twice, with one result
        logits.put_(place, torch.where(scores > 0, scores / factor, scores * factor))
    if counted := [row for row in rows if past[row].counts]:
        ids = [_as_array(past[row].counts) for row in counted]
        place = _places(counted, ids, logits)
        often = torch.tensor([n for row in counted for n in past[row].counts.values()], device=logits.device)
        frequency = _flat([settings[row].frequency_penalty for row in counted], ids, logits)
        presence = _flat([settings[row].presence_penalty for row in counted], ids, logits)
        logits.put_(place, logits.take(place) - frequency * often - presence * (often > 0))
    biased = [(row, i, bias) for row, s in enumerate(settings) for i, bias in s.logit_bias]
    if biased:
        place, ids, values = (torch.tensor(column, device=logits.device) for column in zip(*biased, strict=True))
        logits[place, ids] += values


def _as_array(ids: Collection[int]) -> np.ndarray:
    return _kept_array(ids) if isinstance(ids, frozenset) else np.fromiter(ids, np.int64, len(ids))


@lru_cache(256)
def _kept_array(ids: frozenset[int]) -> np.ndarray:
    """A prompt's ids stay the same at every step, and may be many."""
    return np.fromiter(ids, np.int64, len(ids))


def _places(rows: Sequence[int], ids: Sequence[np.ndarray], logits: torch.Tensor) -> torch.Tensor:
    """Where each row's ids stand in the (rows, V) logits read as one line; indexing by pairs takes longer."""
    flat = np.concatenate([row * logits.shape[-1] + i for row, i in zip(rows, ids, strict=True)])
    return torch.from_numpy(flat).to(logits.device)


def _flat(values: Sequence[float], ids: Sequence[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """Each value as often as its row has ids."""
    return torch.from_numpy(np.repeat(np.array(values, np.float32), [len(i) for i in ids])).to(like.device)
