"""Drafts for speculative decoding: tokens that may come next, for the engine to verify in one step.

Which draft is proposed changes how fast a text appears and never the text: a token is a pure function of its position's logits,
number and settings (`sample.choose`), so the engine chooses at every drafted position and keeps going while the choice equals
the draft. The one design decision: a proposer sees tokens and verdicts only, never a model or a sequence of the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LONGEST_REST = 32
"""Steps after which a proposer that was always wrong tries again."""


class Proposer(Protocol):
    """Proposes tokens for one request."""

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that may follow `tokens` (prompt and what was generated); empty where it has no idea."""

    def judged(self, proposed: int, accepted: int) -> None:
        """Learns that of the last `proposed` drafted tokens that were verified the first `accepted` were right."""


class Width:
    """How many tokens are worth drafting: doubles when all were right, shrinks to what was right, and rests when none was."""

    def __init__(self, most: int):
        self.most = self.now = most
        self._misses = self._rest = 0

    def judged(self, proposed: int, accepted: int) -> None:
        if proposed == 0:
            return
        if accepted:
            self.now = min(self.most, 2 * self.now) if accepted == proposed else accepted
            self._misses = 0
        else:
            self.now = max(1, self.now // 2)
            self._misses += self.now == 1
            self._rest = min(LONGEST_REST, 2**self._misses) if self.now == 1 else 0

    def ask(self) -> int:
        """The number of tokens to propose in this step; 0 while resting."""
        self._rest = max(0, self._rest - 1)
        return 0 if self._rest else self.now


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

    def judged(self, proposed: int, accepted: int) -> None:
        self._width.judged(proposed, accepted)

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """At most `count` tokens that may follow `tokens`; fewer after drafts that were wrong."""
        for n, after in self._after.items():
            # The run that ends with the last token has no continuation yet.
            for end in range(max(self._entered, n), len(tokens)):
                after[tuple(tokens[end - n : end])] = end
        self._entered = max(self._entered, len(tokens))
        width = self._width.ask()
        for n, after in self._after.items():
            start = after.get(tuple(tokens[-n:])) if len(tokens) > n else None
            if start is not None:
                return _continued(tokens, start, width)
        return []


def _continued(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; beyond the present the draft follows itself."""
    draft = list(tokens[start : start + count])
    period = len(tokens) - start
    while len(draft) < count:
        draft.append(draft[len(draft) - period])
    return draft
