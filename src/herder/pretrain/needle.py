"""The needle in a haystack (paper 3.4.2, 5.2): a fact planted at a depth of a long text, asked for at its end.

The haystack is held-out text, the fact is a number drawn from the seed, so nothing but the context can give it. The model
answers by greedy generation through an engine, so the same test scores any model and any engine with that interface.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from herder.config import at_least_one
from herder.engine import Completion, Sampling
from herder.records import Measure
from herder.tokenizer import Tokenizer

FACT = "The secret number of {place} is {number}."
QUESTION = "The secret number of {place} is"
PLACES = ("Orrin Bay", "Velmora", "Kessel Ford", "Tarn Hollow", "Ashwick", "Quillane", "Dunmere", "Sorrel Gate")
DIGITS = 6


class Generates(Protocol):
    """What the test needs of an engine."""

    tokenizer: Tokenizer

    @property
    def context(self) -> int: ...
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]: ...


@dataclass(frozen=True)
class NeedleConfig:
    """The grid: each length (a share of the context) with each depth (0 is the beginning), `repeats` times."""

    lengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: int = 1
    seed: int = 0

    def __post_init__(self):
        at_least_one(self, "repeats")
        for name, low in (("lengths", 1e-9), ("depths", 0.0)):
            if not getattr(self, name) or any(not low <= share <= 1 for share in getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; give shares above 0 (depths: from 0) and at most 1")


@dataclass(frozen=True)
class NeedleScore:
    """`score` is the share of needles found; `cells` the same for each (tokens of the prompt's limit, depth)."""

    score: Measure
    cells: dict[tuple[int, float], Measure]

    def by_length(self) -> dict[int, Measure]:
        lengths = sorted({length for length, _ in self.cells})
        found = {n: [m for (length, _), m in self.cells.items() if length == n] for n in lengths}
        return {
            n: Measure.share(sum(m.value * m.n for m in cells), sum(m.n for m in cells)) for n, cells in found.items()
        }


def needle_test(engine: Generates, haystack: Sequence[Sequence[int]], config: NeedleConfig) -> NeedleScore:
    """Plants and asks; `haystack` is documents as token ids, used in turn and again where they are too few.

    Raises ValueError where the context is too short for the fact and the question, or the haystack is empty.
    """
    tokenizer, special = engine.tokenizer, engine.tokenizer.special_ids
    documents = [kept for document in haystack if (kept := [int(i) for i in document if int(i) not in special])]
    if not documents:
        raise ValueError("the haystack is empty; give held-out documents")
    grid = [
        (round(share * engine.context), depth, repeat)
        for share, depth, repeat in itertools.product(config.lengths, config.depths, range(config.repeats))
    ]
    prompts, numbers = [], []
    for index, (length, depth, repeat) in enumerate(grid):
        draw = random.Random(f"{config.seed}/{length}/{depth}/{repeat}")
        place, number = draw.choice(PLACES), str(draw.randrange(10 ** (DIGITS - 1), 10**DIGITS))
        hay = _endless(documents, index, tokenizer.encode("\n\n"))
        prompts.append(_prompt(tokenizer, hay, length - DIGITS - 1, depth, place, number))
        numbers.append(number)
    completions = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=DIGITS + 1))
    hits: dict[tuple[int, float], list[bool]] = {}
    for (length, depth, _), number, completion in zip(grid, numbers, completions, strict=True):
        hits.setdefault((length, depth), []).append(answers(completion.text, number))
    cells = {cell: Measure.share(sum(found), len(found)) for cell, found in hits.items()}
    return NeedleScore(Measure.share(sum(map(sum, hits.values())), len(grid)), cells)


def answers(text: str, number: str) -> bool:
    """Whether a text begins with this number and not with a longer one."""
    found = re.match(r"\s*(\d+)", text)
    return found is not None and found[1] == number


def _endless(documents: Sequence[list[int]], first: int, between: list[int]) -> Iterator[int]:
    """The tokens of the documents in turn, from the first-th on, for ever."""
    for index in itertools.count(first):
        yield from documents[index % len(documents)]
        yield from between


def _prompt(tokenizer: Tokenizer, hay: Iterator[int], length: int, depth: float, place: str, number: str) -> list[int]:
    """`length` tokens: hay with the fact at `depth` of it, then the question."""
    fact = tokenizer.encode("\n\n" + FACT.format(place=place, number=number) + "\n\n")
    question = tokenizer.encode("\n\n" + QUESTION.format(place=place))
    room = length - 1 - len(fact) - len(question)
    if room < 0:
        raise ValueError(
            f"a needle of {len(fact)} tokens and its question of {len(question)} do not fit into {length}; test at a longer "
            "context"
        )
    before = round(depth * room)
    filler = list(itertools.islice(hay, room))
    return [tokenizer.document_ids[0], *filler[:before], *fact, *filler[before:], *question]
