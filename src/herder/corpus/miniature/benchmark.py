"""Invented question and answer items, so that a contamination check has something to find that no real text contains.

Half of the items are leaked into pages. Leaked and clean items come from different templates: a check by n-grams must not be
blamed for wording that the two share.
"""

from __future__ import annotations

import random
from typing import NamedTuple

ITEMS_PER_TEMPLATE = 4


class Item(NamedTuple):
    """One multiple-choice question; `answer` is an index into `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    leaked: bool

    def text(self) -> str:
        """The item as a page shows it, one line."""
        letters = "ABCD"
        options = " ".join(f"{letters[i]}) {choice}" for i, choice in enumerate(self.choices))
        return f"{self.question} {options} Answer: {letters[self.answer]}"


_PLACES = (
    "Orlen",
    "Vastrup",
    "Quellmore",
    "Tashvid",
    "Brunnhaven",
    "Ilmaris",
    "Corvanto",
    "Desmyr",
    "Fenwold",
    "Garrowby",
)
_PEOPLE = ("Mirel", "Tovan", "Jessamy", "Okkert", "Lindra", "Pavlin", "Rosmund", "Ansgarde", "Velika", "Hobart")

_TEMPLATES = (
    "The clock tower of {place} strikes {a} times at noon and {b} times at dusk. How often does it strike in {c} days?",
    "{person} fills {a} baskets with {b} pears each and gives {c} pears to the miller of {place}. How many pears remain?",
    "In the harbour of {place} every ferry carries {a} wagons, {b} ferries leave each hour. How many wagons leave in {c} hours?",
    "A weaver named {person} makes {a} ells of cloth on the first day and {b} ells more than that on the second. "
    "How many ells is that in both days, if {c} ells are spoiled?",
    "Which number stands on the last lantern of {person} if the first shows {a}, each next one {b} more, and {c} hang there?",
    "The orchard of {place} has {a} rows of {b} trees, and a storm fells {c} of them. How many trees still stand?",
    "{person} walks from {place} to the mill at {a} steps a minute for {b} minutes, then rests, then takes {c} more steps. "
    "How many steps are walked in all?",
    "A choir in {place} has {a} benches with {b} singers on each; {c} singers are ill tonight. How many voices are heard?",
    "For her birthday {person} buys {a} boxes, each holding {b} candles, and finds {c} old candles at home. Total candles?",
    "Counting the geese near {place}, one farmer sees {a} flocks of {b} birds before {c} birds fly off. What is his final count?",
    "If a printer at {place} sets {a} pages daily during {b} days but must discard {c} of those pages, what is left?",
    "{person} reads {a} chapters of {b} pages; then {c} further pages follow in an appendix. Give the number of pages read.",
    "A baker from {place} bakes {a} trays with {b} rolls on every tray, while {c} rolls burn. Determine the good rolls.",
    "Suppose {person} owns {a} shelves, puts {b} jars onto each shelf and later breaks {c} jars. State how many jars are whole.",
    "The museum of {place} welcomes {a} classes of {b} pupils, of whom {c} arrive late. Work out the punctual pupils.",
    "Each of the {a} carts {person} rents can bear {b} stones, yet {c} stones are lost on the road. Find the stones delivered.",
)
_VALUES = (
    lambda a, b, c: (a + b) * c, lambda a, b, c: a * b - c, lambda a, b, c: a * b * c, lambda a, b, c: 2 * a + b - c,
    lambda a, b, c: a + b * (c - 1), lambda a, b, c: a * b - c, lambda a, b, c: a * b + c, lambda a, b, c: a * b - c,
    lambda a, b, c: a * b + c, lambda a, b, c: a * b - c, lambda a, b, c: a * b - c, lambda a, b, c: a * b + c,
    lambda a, b, c: a * b - c, lambda a, b, c: a * b - c, lambda a, b, c: a * b - c, lambda a, b, c: a * b - c,
)  # fmt: skip


def benchmark_items(seed: int) -> list[Item]:
    """The items, 4 of each of 16 templates; those of the first half of the templates are the leaked ones."""
    rng = random.Random(f"benchmark/{seed}")
    items = []
    for number, (template, value) in enumerate(zip(_TEMPLATES, _VALUES, strict=True)):
        for copy in range(ITEMS_PER_TEMPLATE):
            a, b, c = rng.randrange(11, 40), rng.randrange(6, 30), rng.randrange(3, 10)
            question = template.format(place=rng.choice(_PLACES), person=rng.choice(_PEOPLE), a=a, b=b, c=c)
            right = value(a, b, c)
            wrong = rng.sample([right + d for d in (-7, -3, -1, 2, 4, 9, 12) if right + d > 0], 3)
            choices = [right, *wrong]
            rng.shuffle(choices)
            leaked = number < len(_TEMPLATES) // 2
            items.append(
                Item(f"item-{number:02d}-{copy}", question, tuple(map(str, choices)), choices.index(right), leaked)
            )
    return items
