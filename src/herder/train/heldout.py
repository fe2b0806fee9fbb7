"""Bits per byte on held-out documents, packed as in training: the measure that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from herder import launch
from herder.model import Llama
from herder.model.attention import Packing
from herder.records import Measure
from herder.train.objective import Rows
from herder.train.outputs import compute
from herder.train.shards import TokenShards


class HeldOut:
    """A fixed set of held-out documents; calling it with a model gives the mean and its interval over documents.

    Takes whole documents of every source, in order, as far as they fit into its share of `max_tokens`; where none fits, the
    shortest one.
    """

    def __init__(self, shards: TokenShards, seq_len: int, max_tokens: int, rows: int = 16):
        self.rows = rows
        total = sum(s.n_tokens for s in shards.sources.values())
        chosen = [
            (source, index)
            for source in shards.sources.values()
            for index in _fitting(np.diff(source.offsets), source.n_tokens * min(1.0, max_tokens / total))
        ]
        if not chosen:
            every = [(s, i) for s in shards.sources.values() for i in range(s.n_documents)]
            chosen = [min(every, key=lambda pair: len(pair[0].document(pair[1])))]
        tokens = [np.asarray(source.document(index), dtype=np.int64) for source, index in chosen]
        documents = [np.full(len(ids), number) for number, ids in enumerate(tokens)]
        self.bytes = [int(source.bytes[index]) for source, index in chosen]
        self.sources = [source.name for source, _ in chosen]
        self.packed = _pack(np.concatenate(tokens), np.concatenate(documents), seq_len)
        self.n_rows = len(self.packed)

    def __call__(self, model: Llama) -> Measure:
        """Bits per byte (nats of every token after begin_of_text, over ln 2 and the UTF-8 bytes). Where the model is cut over
        ranks, all of them must call."""
        return Measure.ratio(self.nats(model) / math.log(2), self.bytes, "bits per byte")

    @property
    def targets(self) -> np.ndarray:
        """Tokens (documents,) that a model has to predict."""
        return np.bincount(self.packed.doc_ids.flatten()[self.packed.select].numpy(), minlength=len(self.bytes))

    def nats(self, model: Llama, together: bool = False) -> np.ndarray:
        """Negative log-likelihood (documents,) of each document's tokens after begin_of_text.

        together: every rank calls; where each has a whole model, each measures its part of the rows.
        """
        device = next(model.parameters()).device
        nats, was_training = np.zeros(len(self.bytes)), model.training
        first, ranks = my_part(model) if together else (0, 1)
        model.eval()
        with torch.no_grad():  # inference tensors would stay in the buffers of sharded parameters
            for start in range(first * self.rows, self.n_rows, ranks * self.rows):
                rows = self.packed.map(lambda t, s=start: t[s : s + self.rows])
                outputs = compute(model, rows.to(device), Packing.of(rows.doc_ids), frozenset({"token_log_probs"}))
                np.subtract.at(nats, rows.doc_ids.flatten()[rows.select].numpy(), outputs.token_log_probs.cpu().numpy())
        model.train(was_training)
        return added(nats, ranks, device)


def my_part(model: Llama) -> tuple[int, int]:
    """(number, of how many) of the parts of a measurement that this rank does: all of it where a model is cut over ranks."""
    return (launch.rank(), launch.world_size()) if isinstance(model, Llama) else (0, 1)


def added(values: np.ndarray, ranks: int, device: torch.device) -> np.ndarray:
    """The sum over ranks that each did a part."""
    if ranks == 1:
        return values
    total = torch.from_numpy(values).to(device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


def _fitting(lengths: np.ndarray, quota: float) -> Iterator[int]:
    """Documents, in order, whose tokens fit together into the quota; one that does not is passed over."""
    for index, length in enumerate(lengths):
        if length <= quota:
            quota -= length
            yield index


def _pack(tokens: np.ndarray, documents: np.ndarray, seq_len: int) -> Rows:
    """Rows of seq_len positions; the end of the last row repeats the last token, with weight 0."""
    n = len(tokens) - 1
    count = -(-n // seq_len)
    pad = count * seq_len - n
    tokens = np.concatenate((tokens, np.full(pad, tokens[-1])))
    weights = np.concatenate((documents[1:] == documents[:-1], np.zeros(pad, dtype=bool)))
    documents = np.concatenate((documents[:-1], np.full(pad, documents[-1])))
    return Rows(
        torch.from_numpy(tokens[:-1].reshape(count, seq_len).copy()),
        torch.from_numpy(tokens[1:].reshape(count, seq_len).copy()),
        torch.from_numpy(weights.astype(np.float32).reshape(count, seq_len)),
        torch.from_numpy(documents.reshape(count, seq_len)),
    )
