"""Drafts for speculative decoding: tokens that may come next, for the engine to verify in one step.

Which draft is proposed changes how fast a text appears and never the text: a token is a pure function of its position's logits,
number and settings (`sample.choose`), so the engine chooses at every drafted position and keeps going while the choice equals
the draft. The one design decision: a proposer learns how its last draft fared from the tokens it is shown next, so the engine
reports nothing back, and a draft that a budget cut short misleads nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LONGEST_REST = 32
"""Tokens after which a proposer that was always wrong tries again."""


class Proposer(Protocol):
    """Proposes tokens for one request; the engine makes one for each by `fresh`."""

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that may follow `tokens` (prompt and what was generated); empty where it has no idea."""

    def fresh(self) -> Proposer:
        """A proposer with the same settings that has seen nothing."""


class Width:
    """How many tokens are worth drafting: doubles when all were right, shrinks to what was right, and rests when none was."""

    def __init__(self, most: int):
        self.most, self.now = most, most
        self._draft: list[int] = []
        self._from = self._silent_until = self._misses = 0

    def learn(self, tokens: Sequence[int]) -> int:
        """Judges the last draft by the tokens that came; the number of tokens to propose now."""
        came = list(tokens[self._from : self._from + len(self._draft)])
        right = next((i for i, (a, b) in enumerate(zip(self._draft, came, strict=False)) if a != b), len(came))
        if came and right == len(came):
            self.now, self._misses = min(self.most, 2 * self.now), 0
        elif right:
            self.now, self._misses = right, 0
        elif came:
            self.now, self._misses = max(1, self.now // 2), self._misses + 1
            if self.now == 1:
                self._silent_until = len(tokens) + min(LONGEST_REST, 2**self._misses)
        self._draft = []
        return self.now if len(tokens) >= self._silent_until else 0

    def proposed(self, tokens: Sequence[int], draft: list[int]) -> list[int]:
        """Remembers a draft until its tokens come."""
        self._draft, self._from = draft, len(tokens)
        return draft


class PromptLookup:
    """Proposes what followed the last time the newest tokens stood in the same sequence.

    Of the last `longest` to `shortest` tokens the longest run that occurred before is continued, by at most `count` tokens; where
    that continuation reaches the present it repeats itself. Serves one request: tokens may only be appended between calls. Each
    token is entered once, into one table per length, so a proposal costs the same at any length of the text.
    """

    def __init__(self, *, longest: int = 4, shortest: int = 2, count: int = 8):
        for name, value, fine, rule in (
            ("shortest", shortest, shortest >= 1, "at least 1"),
            ("longest", longest, longest >= shortest, f"at least shortest, {shortest}"),
            ("count", count, count >= 1, "at least 1"),
        ):
            if not fine:
                raise ValueError(f"{name} is {value}; prompt lookup needs {name} to be {rule}")
        self.longest, self.shortest, self.count = longest, shortest, count
        self._width = Width(count)
        self._entered = 0
        self._after: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}

    def fresh(self) -> PromptLookup:
        return PromptLookup(longest=self.longest, shortest=self.shortest, count=self.count)

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """At most `count` tokens that may follow `tokens`; fewer after drafts that were wrong."""
        width = self._width.learn(tokens)
        for n, after in self._after.items():
            # The run that ends with the last token has no continuation yet.
            for end in range(max(self._entered, n), len(tokens)):
                after[tuple(tokens[end - n : end])] = end
        self._entered = max(self._entered, len(tokens))
        if not width:
            return []
        for n, after in self._after.items():
            start = after.get(tuple(tokens[-n:])) if len(tokens) > n else None
            if start is not None:
                return self._width.proposed(tokens, _continued(tokens, start, width))
        return []


def _continued(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; beyond the present the draft follows itself."""
    draft = list(tokens[start : start + count])
    period = len(draft)
    while len(draft) < count:
        draft.append(draft[len(draft) - period])
    return draft
