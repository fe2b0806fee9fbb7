"""What is evaluated: choice by log-likelihood, generated answers, bits per byte (paper sections 5.1 and 3.2.1).

A task is a frozen dataclass of its items and settings, so its identity is its data. The one design decision: `run` turns
items into plain rows that hold everything needed to judge them again, and `measures` reads rows alone, so an interrupted
evaluation and a finished one give the same numbers.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import ClassVar

import numpy as np

from herder.engine import Engine, Sampling
from herder.evaluate.quality import fault
from herder.records import Measure
from herder.tokenizer import ChatFormat, Tokenizer

NUMBER = r"(?P<answer>-?\d[\d,]*(?:\.\d+)?)"
"""Pattern of a number, with thousands separators."""


@dataclass(frozen=True)
class ChoiceItem:
    """A context, its options, and the index of the right one."""

    context: str
    options: tuple[str, ...]
    gold: int
    id: str = ""

    def __post_init__(self):
        if not 0 <= self.gold < len(self.options):
            raise ValueError(
                f"item {self.id or self.context[:40]!r}: gold {self.gold} is none of {len(self.options)} options"
            )


@dataclass(frozen=True)
class ChoiceTask:
    """The option of highest log-likelihood wins; ties go to the lowest index.

    Trailing spaces of the context move to the continuation. Measures: `acc` (the task's own number), `acc_norm` (log-
    likelihood per character of the option), and the nats per character of the right option, the quantity that forecasts
    accuracy (section 3.2.1). A context that is too long loses its beginning.
    """

    name: str
    items: tuple[ChoiceItem, ...]
    delimiter: str = " "
    bos: bool | None = None
    """Whether begin_of_text comes first; None as the tokenizer's publisher has it (Llama 3 yes, SmolLM2 no)."""

    def run(self, engine: Engine, chat: ChatFormat | None, items: Sequence[tuple[int, ChoiceItem]]) -> Iterator[dict]:
        bos = engine.tokenizer.add_bos if self.bos is None else self.bos
        pairs = [
            split_continuation(engine.tokenizer, item.context, self.delimiter + option, bos, engine.context + 1)
            for _, item in items
            for option in item.options
        ]
        scores = iter(engine.score([context for context, _ in pairs], [continuation for _, continuation in pairs]))
        for index, item in items:
            logprobs = [float(np.sum(next(scores), dtype=np.float64)) for _ in item.options]
            each = [value / max(1, len(option)) for value, option in zip(logprobs, item.options, strict=True)]
            choice, choice_norm = int(np.argmax(logprobs)), int(np.argmax(each))
            yield {
                "item": index,
                "id": item.id,
                "prompt": item.context,
                "output": item.options[choice],
                "gold": item.options[item.gold],
                "score": float(choice == item.gold),
                "score_norm": float(choice_norm == item.gold),
                "logprob": logprobs,
                "nats_per_character": -each[item.gold],
                "parsed": True,
            }

    def measures(self, rows: list[dict]) -> dict[str, Measure]:
        n = len(rows)
        return {
            self.name: Measure.share(sum(r["score"] for r in rows), n),
            f"{self.name}/acc_norm": Measure.share(sum(r["score_norm"] for r in rows), n),
            f"{self.name}/nats_per_character": Measure.mean([r["nats_per_character"] for r in rows]),
        }


@dataclass(frozen=True)
class GenerationItem:
    """A prompt (text, or messages as dictionaries) and its accepted answers. `meta` may hold the `tools` that messages call."""

    prompt: str | tuple[dict, ...]
    gold: tuple[str, ...]
    id: str = ""
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationTask:
    """The model answers; the answer is extracted and compared.

    `pattern` is a regular expression with a group "answer": its last match counts, since a model that reasons names
    other candidates first; None takes the whole text. What does not match is unparsed: it scores 0 and is counted as
    such. `normalised` compares after `normalise`, otherwise characters must be equal. Measures: the share of right
    answers, `/unparsed`, and `/answers_well` (`evaluate.fault` finds nothing to complain of). Subclasses may judge
    otherwise by overriding `judge`.
    """

    name: str
    items: tuple[GenerationItem, ...]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0, max_tokens=128, logprobs=True))
    pattern: str | None = None
    normalised: bool = True

    def __post_init__(self):
        if self.pattern is not None and "answer" not in re.compile(self.pattern).groupindex:
            raise ValueError(f'task {self.name}: pattern {self.pattern!r} has no group "answer"; write (?P<answer>...)')
        if self.sampling.n != 1:
            raise ValueError(f"task {self.name}: n is {self.sampling.n}; a generation task scores one answer an item")

    def judge(self, item: GenerationItem, text: str) -> tuple[str | None, float]:
        """(the extracted answer or None, its score from 0 to 1) of one output."""
        answer = extract(text, self.pattern)
        if answer is None:
            return None, 0.0
        return answer, float(any(matches(answer, gold, self.normalised) for gold in item.gold))

    def run(
        self, engine: Engine, chat: ChatFormat | None, items: Sequence[tuple[int, GenerationItem]]
    ) -> Iterator[dict]:
        prompts = [_prompt_ids(engine.tokenizer, chat, item) for _, item in items]
        for at, done in engine.completed(prompts, self.sampling):
            index, item = items[at]
            answer, score = self.judge(item, done.text)
            yield {
                "item": index,
                "id": item.id,
                "prompt": item.prompt,
                "output": done.text,
                "answer": answer,
                "gold": list(item.gold),
                "score": score,
                "logprob": math.fsum(done.logprobs) if done.logprobs is not None else None,
                "parsed": answer is not None,
                "tokens": len(done.ids),
                "stop_reason": done.stop_reason,
                "fault": fault(done, engine.tokenizer, turn=not isinstance(item.prompt, str)),
            }

    def measures(self, rows: list[dict]) -> dict[str, Measure]:
        n = len(rows)
        return {
            self.name: Measure.share(math.fsum(r["score"] for r in rows), n),
            f"{self.name}/unparsed": Measure.share(sum(not r["parsed"] for r in rows), n),
            f"{self.name}/answers_well": Measure.share(sum(not r["fault"] for r in rows), n),
        }


@dataclass(frozen=True)
class TextItem:
    text: str
    id: str = ""


@dataclass(frozen=True)
class BitsPerByteTask:
    """Bits per UTF-8 byte over whole documents, each after begin_of_text: comparable between tokenizers.

    A document longer than the context is scored in windows that begin with the last half context of what went before.
    """

    name: str
    items: tuple[TextItem, ...]
    unit: ClassVar[str] = "bits/byte"

    def run(self, engine: Engine, chat: ChatFormat | None, items: Sequence[tuple[int, TextItem]]) -> Iterator[dict]:
        contexts, continuations, windows = [], [], []
        for _, item in items:
            ids = [engine.tokenizer.document_ids[0], *engine.tokenizer.encode(item.text)]
            parts = document_windows(ids, engine.context)
            contexts += [context for context, _ in parts]
            continuations += [continuation for _, continuation in parts]
            windows.append(len(parts))
        scores = iter(engine.score(contexts, continuations))
        for (index, item), count in zip(items, windows, strict=True):
            values = [next(scores) for _ in range(count)]
            nats = -math.fsum(float(np.sum(v, dtype=np.float64)) for v in values)
            size = len(item.text.encode("utf-8", errors="replace"))
            yield {
                "item": index,
                "id": item.id,
                "prompt": item.text[:200],
                "output": None,
                "gold": None,
                "score": nats / math.log(2) / size if size else None,
                "logprob": -nats,
                "parsed": True,
                "bytes": size,
                "tokens": sum(map(len, values)),
            }

    def measures(self, rows: list[dict]) -> dict[str, Measure]:
        bits = [-r["logprob"] / math.log(2) for r in rows]
        return {self.name: Measure.ratio(bits, [r["bytes"] for r in rows], self.unit)}


Task = ChoiceTask | GenerationTask | BitsPerByteTask
Item = ChoiceItem | GenerationItem | TextItem


def split_continuation(
    tokenizer: Tokenizer, context: str, continuation: str, bos: bool, longest: int
) -> tuple[list[int], list[int]]:
    """Ids of the context and of what follows it, at most `longest` together (the context is cut on its left).

    The whole is encoded at once and cut where the context's own ids end, so that the boundary merges as in running text.
    """
    kept = context.rstrip(" ")
    whole = tokenizer.encode(context + continuation)
    cut = min(len(tokenizer.encode(kept)), len(whole) - 1)
    before, after = whole[:cut], whole[cut:]
    bos = bos or not before  # something must come before what is scored
    room = longest - len(after) - bos
    if room < (not bos):
        raise ValueError(
            f"{continuation[:40]!r} has {len(after)} tokens; the model scores {longest - 1} at most, "
            "take one with a longer context"
        )
    return [tokenizer.document_ids[0]] * bos + before[max(0, len(before) - room) :], after


def document_windows(ids: list[int], context: int) -> list[tuple[list[int], list[int]]]:
    """Cuts a document's ids (begin_of_text first) into (seen, scored) windows that score every id after the first once."""
    windows, start = [], 1
    while start < len(ids):
        seen = ids[:1] if start == 1 else ids[max(0, start - (context + 1) // 2) : start]
        end = start + context + 1 - len(seen)
        windows.append((seen, ids[start:end]))
        start = end
    return windows


def extract(text: str, pattern: str | None) -> str | None:
    """The last match's group "answer", stripped; the whole text where the pattern is None; None where nothing matches."""
    if pattern is None:
        return text.strip()
    answers = [match["answer"] for match in re.finditer(pattern, text)]
    return answers[-1].strip() if answers and answers[-1] is not None else None


def normalise(text: str) -> str:
    """Case, compatible forms of characters, white space, and punctuation and symbols at both ends do not matter."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    edge = {c for c in text if unicodedata.category(c)[0] in "PS"} - {"-", "+"}
    return text.strip("".join(edge) + " ")


def matches(answer: str, gold: str, normalised: bool) -> bool:
    """Whether an answer equals the gold one; with `normalised`, numbers are compared by value ("1,000.0" is 1000)."""
    if not normalised:
        return answer == gold
    a, b = normalise(answer), normalise(gold)
    if a == b:
        return True
    x, y = _number(a), _number(b)
    return x is not None and x == y


def _number(text: str) -> Decimal | None:
    if not re.fullmatch(r"[+-]?[\d,]*\.?\d+", text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _prompt_ids(tokenizer: Tokenizer, chat: ChatFormat | None, item: GenerationItem) -> list[int]:
    if isinstance(item.prompt, str):
        return tokenizer.encode(item.prompt, bos=tokenizer.add_bos) or [tokenizer.bos_id]
    return (chat or ChatFormat(tokenizer)).encode(item.prompt, item.meta.get("tools"), add_generation_prompt=True).ids
