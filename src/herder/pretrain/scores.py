"""Held-out scores of a run, document by document, so that what comes after can be compared with what was before.

Paired differences of the same documents are ten times sharper than two separate intervals. The trainer measures (every rank
calls, under any layout); `heldout.json` in the step's folder carries the newest measurement to the next step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from herder import launch
from herder.model import Llama
from herder.model.attention import Packing
from herder.records import Measure
from herder.steps import read_json
from herder.train import Rows, TokenShards
from herder.train.heldout import added, my_part
from herder.train.outputs import compute

Scored = tuple[np.ndarray, list[int]]
"""(nats, bytes) of held-out documents."""
FILE = "heldout.json"
LEAST_BEYOND = 64
"""Tokens beyond the old context that a document must have to tell something about them."""


class Documents(Protocol):
    """Held-out documents: `nats` gives what each costs under a model, `bytes` what each stands for; `packed` are their rows."""

    bytes: list[int]
    packed: Rows

    def nats(self, model: Llama, together: bool = False) -> np.ndarray: ...


class Scores:
    """What the trainer calls to measure: bits per byte of every named set, for the curves; the documents' own into `out`.

    `tokens` is how many held-out tokens were asked for, so that a later step can take the same documents.
    """

    def __init__(self, sets: Mapping[str, Documents], out: Path, tokens: int):
        self.sets, self.out, self.tokens = sets, out, tokens

    def __call__(self, model: Llama) -> dict[str, float]:
        nats = {name: documents.nats(model, together=True) for name, documents in self.sets.items()}
        if launch.rank() == 0:
            data = {
                name: {"seq_len": held.packed.tokens.shape[1], "bytes": held.bytes, "nats": nats[name].tolist()}
                for name, held in self.sets.items()
            }
            part = self.out / f"{FILE}.part"
            part.write_text(json.dumps({"tokens": self.tokens, "sets": data}))
            os.replace(part, self.out / FILE)
        plain = {name: found for name, found in nats.items() if found.ndim == 1}
        return {f"{n}_bits_per_byte": bits_per_byte(found, self.sets[n].bytes).value for n, found in plain.items()}


def read_scores(folder: Path, name: str = "heldout") -> Scored:
    """(nats, bytes) of a set's documents, as `Scores` last wrote them."""
    found = read_json(folder / FILE)["sets"][name]
    return np.asarray(found["nats"]), found["bytes"]


def asked(folder: Path) -> tuple[int, int]:
    """What a step has measured its held-out documents with: tokens a row (the context it has learned), and tokens in all."""
    found = read_json(folder / FILE)
    return int(found["sets"]["heldout"]["seq_len"]), int(found["tokens"])


def bits_per_byte(nats: np.ndarray, size: list[int]) -> Measure:
    return Measure.ratio(nats / math.log(2), size, "bits per byte")


def change(before: Scored, after: Scored) -> Measure:
    """Bits per byte of `after` less those of `before`, both (nats, bytes) of the same documents; below 0 is better.

    Raises ValueError where the documents differ.
    """
    if before[1] != after[1]:
        raise ValueError(
            f"the two scores are of different held-out documents ({len(before[1])} and {len(after[1])}); give both steps the "
            "same tokens"
        )
    return bits_per_byte(after[0] - before[0], after[1])


class Beyond:
    """Held-out documents longer than the context `old`, one a row of `new` tokens: nats per token just before `old` and beyond
    it. "Just before" is the last half of the old context. `there` says whether there are any; raises ValueError where not."""

    @staticmethod
    def there(shards: TokenShards, old: int) -> bool:
        return any((np.diff(source.offsets) > old + LEAST_BEYOND).any() for source in shards.sources.values())

    def __init__(self, shards: TokenShards, old: int, new: int, max_tokens: int, rows: int = 4):
        self.old, self.rows = old, rows
        long = [
            (source, index)
            for source in shards.sources.values()
            for index in np.flatnonzero(np.diff(source.offsets) > old + LEAST_BEYOND)
        ]
        if not long:
            raise ValueError(
                f"no held-out document has more than {old + LEAST_BEYOND} tokens, so nothing tells whether a context beyond "
                f"{old} is used; hold out more, or longer documents"
            )
        rng = np.random.Generator(np.random.Philox(key=0))
        chosen = [long[i] for i in sorted(rng.permutation(len(long))[: max(1, max_tokens // new)])]
        self.bytes = [int(source.bytes[index]) for source, index in chosen]
        documents = [np.asarray(source.document(index), dtype=np.int64)[: new + 1] for source, index in chosen]
        whole = np.stack([np.pad(ids, (0, new + 1 - len(ids)), mode="edge") for ids in documents])
        weights = np.arange(new) < np.array([len(ids) - 1 for ids in documents])[:, None]
        tokens, numbers = torch.from_numpy(whole), np.repeat(np.arange(len(documents)), new).reshape(-1, new)
        self.packed = Rows(
            tokens[:, :-1].contiguous(),
            tokens[:, 1:].contiguous(),
            torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(numbers),
        )

    def nats(self, model: Llama, together: bool = False) -> np.ndarray:
        """(documents, 2): mean nats per token just before the old context's end, and beyond it (`together` as `HeldOut`'s)."""
        device, was_training = next(model.parameters()).device, model.training
        found = np.zeros(tuple(self.packed.tokens.shape))
        first, ranks = my_part(model) if together else (0, 1)
        model.eval()
        with torch.no_grad():
            for start in range(first * self.rows, len(found), ranks * self.rows):
                rows = self.packed.map(lambda t, s=start: t[s : s + self.rows])
                outputs = compute(model, rows.to(device), Packing.of(rows.doc_ids), frozenset({"token_log_probs"}))
                part = found[start : start + self.rows].reshape(-1)
                part[rows.select.numpy()] = -outputs.token_log_probs.cpu().double().numpy()
                found[start : start + self.rows] = part.reshape(-1, found.shape[1])
        model.train(was_training)
        found = added(found, ranks, device)
        there = self.packed.weights.numpy() > 0
        before = found[:, self.old // 2 : self.old].mean(1)
        beyond = found[:, self.old :].sum(1) / there[:, self.old :].sum(1)
        return np.stack((before, beyond), axis=1)
