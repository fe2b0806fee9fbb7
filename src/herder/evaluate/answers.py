"""How likely a model finds the answers of given dialogues: what supervised fine-tuning lowers (paper 4.1.3).

The one design decision: bits per byte of the assistant's own text, from the ids and the mask that training uses, so the figure
compares models with other tokenizers and needs no judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from herder.engine import Engine
from herder.records import Dialogue, Measure
from herder.tokenizer import ChatFormat


@dataclass(frozen=True)
class AnswerItem:
    """One dialogue; `messages` and `tools` as in `Dialogue`."""

    messages: tuple[dict, ...]
    tools: tuple[dict, ...] | None = None
    id: str = ""

    @classmethod
    def of(cls, dialogue: Dialogue) -> AnswerItem:
        return cls(tuple(dialogue.messages), dialogue.tools and tuple(dialogue.tools), dialogue.id)


@dataclass(frozen=True)
class AnswersTask:
    """Bits per UTF-8 byte of every assistant message, its end token included, given all that comes before it.

    A dialogue beyond the context loses what does not fit at its end; one with no answer inside counts nothing.
    """

    name: str
    items: tuple[AnswerItem, ...]

    def run(self, engine: Engine, chat: ChatFormat | None, items: Sequence[tuple[int, AnswerItem]]) -> Iterator[dict]:
        chat = chat or ChatFormat(engine.tokenizer)
        rows = []
        for _, item in items:
            turn = chat.encode(list(item.messages), tools=item.tools and list(item.tools))
            ids, mask = turn.ids[: engine.context + 1], turn.loss_mask[: engine.context + 1]
            first = mask.index(1) if 1 in mask else len(ids)
            rows.append((ids, mask, first))
        scores = iter(engine.score([ids[:first] for ids, _, first in rows], [ids[first:] for ids, _, first in rows]))
        for (index, item), (ids, mask, first) in zip(items, rows, strict=True):
            values, inside = next(scores), np.array(mask[first:], dtype=bool)
            answer = [i for i, m in zip(ids, mask, strict=True) if m]
            nats = -float(np.sum(values[inside], dtype=np.float64))
            size = len(engine.tokenizer.decode_bytes(answer, special=False))
            yield {
                "item": index,
                "id": item.id,
                "prompt": str(item.messages[0].get("content"))[:200],
                "output": None,
                "gold": None,
                "score": nats / math.log(2) / size if size else None,
                "logprob": -nats,
                "parsed": True,
                "bytes": size,
                "tokens": len(answer),
            }

    def measures(self, rows: list[dict]) -> dict[str, Measure]:
        scored = [r for r in rows if r["bytes"]]
        if not scored:
            raise ValueError(f"{self.name}: none of {len(rows)} dialogues has an answer within the model's context")
        bits = [-r["logprob"] / math.log(2) for r in scored]
        return {self.name: Measure.ratio(bits, [r["bytes"] for r in scored], "bits/byte")}
