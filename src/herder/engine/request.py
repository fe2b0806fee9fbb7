"""What the engine keeps of one thing it was asked for: a continuation to generate, or positions whose outputs are read.

The one design decision: everything a continuation needs (random stream, limits, stops, counts, constraint) hangs on its request,
so its result is the same whatever shares the batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from herder.engine.constrain import Matcher
from herder.engine.sample import Sampling, uniforms
from herder.engine.sequence import Sequence
from herder.engine.speculate import Proposer
from herder.engine.stops import StopStrings
from herder.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation. `ids` include the stop id where there was one; `text` holds no special token and ends before a stop
    string.

    `stop_reason` is "stop" (a stop id, a stop string, or the end of what a constraint allows) or "length" (max_tokens or the
    context was reached); `version` counts the weight updates of the engine that produced it. `logprobs` are natural logarithms,
    one per id, where they were asked for; `top_logprobs` the likeliest ids with theirs, likeliest first.
    """

    ids: list[int]
    text: str
    stop_reason: str
    version: int
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step of a stream adds: ids, and the characters they complete. `stop_reason` is set on the last piece."""

    text: str
    ids: list[int]
    stop_reason: str | None = None


class Generation:
    """One continuation on its way. `pieces` are those that nobody has fetched yet; `stop_reason` is set once it is finished, and
    `error` where it could not be."""

    def __init__(
        self,
        index: int,
        sample: int,
        prompt: list[int],
        sampling: Sampling,
        limit: int,
        tokenizer: Tokenizer,
        *,
        matcher: Matcher | None = None,
        proposer: Proposer | None = None,
        adapter: str = "",
        priority: int = 0,
        client: str = "",
    ):
        self.index, self.sampling, self.limit, self.adapter = index, sampling, limit, adapter
        self.matcher, self.proposer = matcher, proposer
        self.sequence = Sequence(
            list(prompt),
            limit,
            len(prompt) - 1,
            priority=priority,
            client=client,
            group=(adapter, tuple(prompt)),
            namespace=adapter,
        )
        self.prompt_length = len(prompt)
        self.stop_ids = tokenizer.stop_ids if sampling.stop_ids is None else frozenset(sampling.stop_ids)
        self.draws = uniforms(sampling.seed, prompt, sample, limit) if sampling.temperature > 0 else None
        self.counts: Counter[int] | None = Counter() if sampling.penalised else None
        """How often each id was generated, where a penalty asks."""
        self.seen = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.stop_reason: str | None = None
        self.error: str | None = None
        self.pieces: deque[Piece] = deque()
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(sampling.stop) if sampling.stop else None
        self._text: list[str] = []

    @property
    def ids(self) -> list[int]:
        return self.sequence.tokens[self.prompt_length :]

    @property
    def generated(self) -> int:
        return len(self.sequence.tokens) - self.prompt_length

    @property
    def text(self) -> str:
        return "".join(self._text)

    def draw(self, ahead: int) -> float:
        """The uniform number of the token after the next `ahead` ones."""
        place = self.generated + ahead
        return 0.0 if self.draws is None or place >= self.limit else float(self.draws[place])

    def take(self, token: int, logprob: float | None, top: list[tuple[int, float]] | None) -> None:
        """Appends one token, and finishes the request where it is the last."""
        self.sequence.tokens.append(token)
        if self.counts is not None:
            self.counts[token] += 1
        if logprob is not None:
            self.logprobs.append(logprob)
        if top is not None:
            self.top_logprobs.append(top)
        if self.matcher is not None:
            self.matcher.advance(token)
        text, reason = self._decoder.push([token]), None
        if token in self.stop_ids or (self.matcher is not None and self.matcher.finished):
            reason = "stop"
        elif self.generated >= self.limit:
            reason = "length"
        if self._stops is not None:
            text, stopped = self._stops.push(text)
            if stopped:
                reason = "stop"
            elif reason is not None:
                text, stopped = self._end(text)
                reason = "stop" if stopped else reason
        elif reason is not None:
            text += self._decoder.finish()
        self.stop_reason = reason
        self._text.append(text)
        self.pieces.append(Piece(text, [token], reason))

    def _end(self, text: str) -> tuple[str, bool]:
        """What is still held back at the end, and whether a stop string lies in it."""
        more, stopped = self._stops.push(self._decoder.finish())
        return text + more + ("" if stopped else self._stops.finish()), stopped

    def completion(self, version: int) -> Completion:
        asked = self.sampling
        return Completion(
            self.ids,
            self.text,
            self.stop_reason,
            version,
            self.logprobs if asked.logprobs else None,
            self.top_logprobs if asked.top_logprobs else None,
        )


@dataclass(slots=True, eq=False)
class Reading:
    """Outputs of positions from `sequence.needed` on, as they are computed: `read(hidden)` turns (rows, dim) hidden states into
    (rows, ...) values."""

    sequence: Sequence
    read: Callable[[torch.Tensor, list[int]], torch.Tensor]
    targets: list[int]
    """One per position that is read, for `read`; empty where it needs none."""
    adapter: str = ""
    parts: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    taken: int = 0
    first: int = field(init=False)

    def __post_init__(self):
        self.first = self.sequence.needed  # the scheduler raises that one when it preempts
