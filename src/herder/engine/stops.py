"""Stop strings in text that arrives in pieces (every sampling step of paper section 4 ends its replies somewhere).

The one design decision: all strings are one automaton (Aho and Corasick, 1975), fed character by character. Its state says how
much of the text's end may still become a stop string, which is what has to be held back, so time is linear however the text is
cut and however many strings there are.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Passes text on until one of `strings` has appeared; what may be the beginning of one waits.

    The text stops where the first of them is complete, and of several that end there the longest counts. Feed it what
    `StreamDecoder` gives: then it sees whole characters only. `found` is the string that stopped it.
    """

    def __init__(self, strings: Iterable[str]):
        self._children, self._depths = [{}], [0]
        self._ends: list[str] = [""]
        for text in checked(strings):
            state = 0
            for character in text:
                if character not in self._children[state]:
                    self._children[state][character] = len(self._children)
                    self._children.append({})
                    self._depths.append(self._depths[state] + 1)
                    self._ends.append("")
                state = self._children[state][character]
            self._ends[state] = text
        self._fallback = self._links()
        self._state, self._held = 0, ""
        self.found: str | None = None

    def _links(self) -> list[int]:
        """For each state the longest of its proper ends that is a state too; states are numbered parents first."""
        links, level = [0] * len(self._children), [0]
        while level:
            following = []
            for state in level:
                for character, child in self._children[state].items():
                    links[child] = self._step(links[state], character, links) if state else 0
                    self._ends[child] = self._ends[child] or self._ends[links[child]]
                    following.append(child)
            level = following
        return links

    def _step(self, state: int, character: str, links: list[int]) -> int:
        while state and character not in self._children[state]:
            state = links[state]
        return self._children[state].get(character, 0)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is now safe to pass on, and whether a stop string is complete; nothing passes after that."""
        if self.found is not None:
            return "", True
        state, whole = self._state, self._held + text
        for at, character in enumerate(text, len(self._held) + 1):
            state = self._step(state, character, self._fallback)
            if self._ends[state]:
                self.found, self._held = self._ends[state], ""
                return whole[: at - len(self.found)], True
        self._state = state
        safe = len(whole) - self._depths[state]
        self._held = whole[safe:]
        return whole[:safe], False

    def finish(self) -> str:
        """What was held back, where the text ends without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held


def checked(strings: str | Iterable[str]) -> tuple[str, ...]:
    """Stop strings as a tuple; a single one may be given alone. Raises ValueError for what is no text or empty."""
    strings = (strings,) if isinstance(strings, str) else tuple(strings)
    for index, text in enumerate(strings):
        if not isinstance(text, str):
            raise ValueError(f"stop string {index} is {text!r}; it must be text")
        if not text:
            raise ValueError(f"stop string {index} is empty and would stop every answer at once; leave it out")
    return strings
