"""How the next token is chosen: greedy, temperature, top-k, top-p, min-p, repetition penalty, row by row in one batch.

The one design decision: a row needs a single uniform number per token, drawn from a stream of its own (keyed by seed,
prompt and sample index) and put through the inverse of the row's cumulative distribution. So a request's tokens depend
on the request alone, not on its place in a batch, on the batch's size or on the device.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

_LOWEST_TEMPERATURE = 1e-6
_BELOW_ONE = 1 - 1e-12
_SHORTLIST = 256
"""Tokens looked at first under top-p and min-p; ordering a whole vocabulary of 4,096 took half of a decoding step."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt. Temperature 0 is greedy; the filters apply after temperature, in the order named here.

    top_k 0, top_p 1 and min_p 0 are off; min_p keeps tokens at least that share as likely as the likeliest. `stop_ids`
    None means the tokenizer's own. `n` asks for that many independent samples of each prompt. `logprobs` asks for the
    log-probability of each token under the model itself (before temperature, penalty and filters).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 128
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None
    n: int = 1
    logprobs: bool = False

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field.name} is {value!r}; it must be a whole number")
            if field.type == "float" and (not isinstance(value, int | float) or not math.isfinite(value)):
                raise ValueError(f"{field.name} is {value!r}; it must be a finite number")
        for name, fine, rule in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("n", self.n >= 1, "at least 1"),
        ):
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule}")
        if self.stop_ids is not None:
            object.__setattr__(self, "stop_ids", tuple(sorted({int(i) for i in self.stop_ids})))

    @property
    def filtered(self) -> bool:
        """Whether some tokens are cut off before drawing."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)


def uniforms(seed: int, prompt: Sequence[int], index: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the random stream of sample `index` of a prompt."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16, key=f"{seed},{index}".encode()[-64:])
    key = np.frombuffer(digest.digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def pick(logits: torch.Tensor, settings: list[Sampling], draws: list[float], seen: list[set[int]]) -> torch.Tensor:
    """The next token of each row: (rows, V) fp32 logits, which may be overwritten -> (rows,) int64.

    `draws` holds one uniform number per row; `seen` each row's ids so far (read only under a repetition penalty).
    """
    for row, sampling in enumerate(settings):
        if sampling.repetition_penalty != 1:
            ids = torch.tensor(sorted(seen[row]), device=logits.device)
            scores = logits[row, ids]
            penalty = sampling.repetition_penalty
            logits[row, ids] = torch.where(scores > 0, scores / penalty, scores * penalty)
    chosen, groups = logits.argmax(-1), {}
    for row, sampling in enumerate(settings):
        if sampling.temperature > 0:
            # Equal scores are ordered by the selection's algorithm: a row must get the same one in every batch.
            groups.setdefault((sampling.filtered, sampling.top_k), []).append(row)
    for rows in groups.values():
        part = logits if len(rows) == len(settings) else logits[rows]
        chosen[rows] = _draw(part, [settings[r] for r in rows], [draws[r] for r in rows])
    return chosen


def _draw(logits: torch.Tensor, settings: list[Sampling], draws: list[float]) -> torch.Tensor:
    """One draw for each row; the rows share `top_k`, and whether they filter at all."""

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    logits = logits - logits.max(-1, keepdim=True).values
    p = torch.softmax(logits / column([s.temperature for s in settings]).clamp_min(_LOWEST_TEMPERATURE), -1)
    u = column(draws, torch.float64).clamp_max(_BELOW_ONE)
    if not settings[0].filtered:
        return _invert(p, u)
    top_p, min_p = column([s.top_p for s in settings]), column([s.min_p for s in settings])
    top_k, vocabulary = settings[0].top_k, p.shape[-1]
    most = min(top_k or _SHORTLIST, vocabulary)
    short, order = p.topk(most, -1)
    if top_k:
        short = short / short.sum(-1, keepdim=True)
    place = order.gather(-1, _invert(_cut(short, top_p, min_p), u)[:, None])[:, 0]
    if not top_k and most < vocabulary:
        # Only rows whose last token in the shortlist would be kept as well need the whole vocabulary in order.
        flat = ((short.sum(-1, keepdim=True) < top_p) & (short[:, -1:] >= min_p * short[:, :1]))[:, 0]
        if flat.any():
            long, order = p[flat].sort(dim=-1, descending=True, stable=True)
            place[flat] = order.gather(-1, _invert(_cut(long, top_p[flat], min_p[flat]), u[flat])[:, None])[:, 0]
    return place


def _cut(p: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Zeroes what top-p and min-p cut off; p is (rows, tokens), falling."""
    p = p * (p.cumsum(-1) - p < top_p)  # a token stays while the mass before it is short of top_p
    return p * (p >= min_p * p[:, :1])


def _invert(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The place in each row where the cumulative mass passes the share u of the whole."""
    mass = p.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, u * mass[:, -1:], right=True).clamp_max(p.shape[-1] - 1)[:, 0]
