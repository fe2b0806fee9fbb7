"""Speculation by a smaller model with the same tokenizer (Leviathan et al. 2023), verified without rejection sampling.

The one design decision: the draft model runs in an engine of its own, whose prefix cache keeps what it has read; a proposal
feeds it only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence

from herder.engine.engine import Engine
from herder.engine.sample import Sampling
from herder.engine.speculate import Proposer, Width
from herder.tokenizer import Tokenizer


class DraftModel(Proposer):
    """Proposes up to `count` greedy tokens of a small model. Raises ValueError where its tokenizer is not `tokenizer`."""

    def __init__(self, draft: Engine, tokenizer: Tokenizer, count: int = 4):
        if draft.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                "the draft model has another tokenizer than the model; its ids would mean other text, "
                "give a draft model that was trained with the same tokenizer"
            )
        self.draft, self._width = draft, Width(count)

    def propose(self, tokens: Sequence[int]) -> list[int]:
        count = min(self._width.ask(), self.draft.context - len(tokens))
        if count < 1:
            return []
        return self.draft.generate([tokens], Sampling(temperature=0, max_tokens=count, stop_ids=()))[0].ids

    def judged(self, proposed: int, accepted: int) -> None:
        self._width.judged(proposed, accepted)
