"""The mixing sampler (paper 3.1.2 and 3.4): which tokens make up a training step.

The rows of a step are a pure function of (seed, stage table, step, recorded skips). Each source is an endless stream: its
documents in a permutation keyed by (seed, source, epoch), one after the other. A row is a slice of one source's stream, so no
token is lost and none is seen twice in an epoch; which sources a step's rows come from follows the deficit between target and
realised tokens. Ranks, workers and micro-batches do not enter, so a run continues with the same data at any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from herder.config import at_least_one
from herder.train.shards import Source, TokenShards


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `rows` rows of `seq_len` tokens, with these shares of sources (they are normalised)."""

    steps: int
    rows: int
    seq_len: int
    mix: dict[str, float]

    def __post_init__(self):
        at_least_one(self, "steps", "rows", "seq_len")
        if not any(share > 0 for share in self.mix.values()) or any(share < 0 for share in self.mix.values()):
            raise ValueError(f"mix is {self.mix}; it needs a source with a share above 0, and none below")

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.seq_len


@dataclass(frozen=True)
class Slice:
    """One row: `length` tokens of a source's endless stream from token `start`, and the token that follows as last target."""

    source: str
    start: int
    length: int


class Mixture:
    """`batch(step)` gives the slices of a step, `read(slice)` their tokens. Raises ValueError for a mix that names no source.

    `before` tokens of each source were used by an earlier run of the same seed: this one goes on behind them.
    """

    def __init__(
        self,
        shards: TokenShards,
        stages: Sequence[Stage],
        seed: int,
        skips: Sequence[int] = (),
        before: Mapping[str, int] | None = None,
    ):
        self.stages, self.seed, self.skips = tuple(stages), seed, tuple(skips)
        self.names = sorted({name for stage in stages for name, share in stage.mix.items() if share > 0})
        for name in self.names:
            if name not in shards.sources:
                raise ValueError(
                    f"the mix names source {name!r}; the token shards have {', '.join(sorted(shards.sources))}"
                )
        self.streams = {name: _Stream(shards.sources[name], seed) for name in self.names}
        self.before = {name: int((before or {}).get(name, 0)) for name in self.names}
        # Tokens used before each data step, and those that the mix asks for by the table's last step.
        self._used = np.array([list(self.before.values())], dtype=np.int64)
        self._target = self._used[0].astype(np.float64)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, index: int) -> Stage:
        """The stage that holds this data step; the last one goes on for steps that replace skipped ones."""
        for stage in self.stages:
            if index < stage.steps:
                return stage
            index -= stage.steps
        return self.stages[-1]

    def index(self, step: int) -> int:
        """The data step behind a training step."""
        return data_step(step, self.skips)

    def batch(self, step: int) -> list[Slice]:
        """The slices of a training step, sources interleaved."""
        index = self.index(step)
        self._simulate(index + 1)
        length = self.stage(index).seq_len
        before, after = self._used[index], self._used[index + 1]
        slices = [
            Slice(name, int(start), length)
            for name, low, high in zip(self.names, before, after, strict=True)
            for start in range(low, high, length)
        ]
        order = np.random.Generator(np.random.Philox(key=_key(self.seed, "order", index))).permutation(len(slices))
        return [slices[i] for i in order]

    def _simulate(self, steps: int) -> None:
        """Extends the table of tokens used, step by step: each row goes to the source that lags its target most."""
        if len(self._used) > steps:
            return
        table, steps = list(self._used), max(steps, 2 * len(self._used))  # doubling keeps the copies linear in all
        for index in range(len(table) - 1, steps):
            stage = self.stage(index)
            shares = np.array([stage.mix.get(name, 0.0) for name in self.names])
            self._target = self._target + shares / shares.sum() * stage.tokens_per_step
            deficit = np.where(shares > 0, (self._target - table[-1]) / stage.seq_len, -np.inf)
            rows = np.floor(np.maximum(deficit, 0)).astype(np.int64)
            while rows.sum() > stage.rows:
                rows[np.argmin(np.where(rows > 0, deficit - rows, np.inf))] -= 1
            while rows.sum() < stage.rows:
                rows[np.argmax(deficit - rows)] += 1
            table.append(table[-1] + rows * stage.seq_len)
        self._used = np.stack(table)

    def used(self, steps: int) -> dict[str, int]:
        """Tokens of each source that training steps 0 to steps - 1 use."""
        self._simulate(self.index(max(steps - 1, 0)) + 1)
        totals = dict.fromkeys(self.names, 0)
        for step in range(steps):
            index = self.index(step)
            for name, count in zip(self.names, self._used[index + 1] - self._used[index], strict=True):
                totals[name] += int(count)
        return totals

    def read(self, piece: Slice) -> tuple[np.ndarray, np.ndarray]:
        """(length + 1 tokens, length + 1 document numbers): the last of each is only a target."""
        return self.streams[piece.source].read(piece.start, piece.length + 1)


def consumed(shards: TokenShards, tokens: dict[str, int], seed: int) -> Iterator[np.ndarray]:
    """The documents (ids) behind the first `tokens[source]` tokens of each source's stream, none twice, the last one cut."""
    for name, count in tokens.items():
        source = shards.sources[name]
        ids, documents = _Stream(source, seed).read(0, min(count, source.n_tokens))
        yield from np.split(ids, np.flatnonzero(np.diff(documents)) + 1)


def data_step(step: int, skips: Sequence[int]) -> int:
    """The data step that a training step uses: the step-th (from 0) that is not among the skipped ones."""
    for skipped in sorted(skips):
        step += skipped <= step
    return step


class _Stream:
    """A source's documents, permuted anew each epoch, as one endless sequence of tokens."""

    def __init__(self, source: Source, seed: int):
        self.source, self.seed = source, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            rng = np.random.Generator(np.random.Philox(key=_key(self.seed, self.source.name, epoch)))
            order = rng.permutation(self.source.n_documents)
            lengths = np.diff(self.source.offsets)[order]
            while len(self._epochs) > 1:  # a row touches two epochs at most
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = (order, np.concatenate(([0], np.cumsum(lengths))))
        return self._epochs[epoch]

    def read(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, documents = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            epoch, offset = divmod(start + filled, self.source.n_tokens)
            order, bounds = self._epoch(epoch)
            which = int(np.searchsorted(bounds, offset, side="right")) - 1
            piece = self.source.document(order[which])[
                offset - bounds[which] : offset - bounds[which] + length - filled
            ]
            tokens[filled : filled + len(piece)] = piece
            documents[filled : filled + len(piece)] = epoch * self.source.n_documents + which
            filled += len(piece)
        return tokens, documents


def _key(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")
