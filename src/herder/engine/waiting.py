"""Who waits, and who of them is next: by priority, then by what the client was served, then by arrival.

Clients of one priority take turns by tokens: the next sequence is one of the client that was served least. A client that
had nothing waiting starts at what the least served of those who wait has, so that nobody saves up a claim (virtual token
counters, Sheng et al. 2024). The one design decision: sequences that wait for another of their group to compute their
common prefix are set aside, so that they neither block the queue nor are looked at in every step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from herder.engine.sequence import Sequence

_AWAY = 128
"""Accounts kept of clients that have nothing waiting: of those that were served most. The others start at the floor."""


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


@dataclass(slots=True)
class _Level:
    """One priority: who waits, by client in order of arrival, and the tokens computed for each client."""

    members: int = 0  # unfinished sequences
    lines: dict[str, list[Sequence]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    floor: int = 0  # what the least served client that waits has, or that waited last
    # (served, arrival of the first in line, client), and which of them counts for a client: accounts grow while it waits.
    heap: list[tuple[int, int, str]] = field(default_factory=list)
    entries: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def put(self, sequence: Sequence) -> None:
        client = sequence.client
        if client not in self.lines:
            self.least()
            self._close_accounts()
            self.served[client] = max(self.served.get(client, 0), self.floor)
            self.lines[client] = []
        insort(self.lines[client], sequence, key=_arrival)
        self._enter(client)

    def remove(self, sequence: Sequence) -> None:
        self.least()
        client, line = sequence.client, self.lines[sequence.client]
        del line[bisect_left(line, sequence.arrival, key=_arrival)]
        if line:
            self._enter(client)
        else:
            del self.lines[client], self.entries[client]

    def least(self) -> Sequence | None:
        """The first in line of the client that was served least."""
        while self.heap:
            entry = self.heap[0]
            served, _, client = entry
            if self.entries.get(client) is entry and served == self.served[client]:
                self.floor = max(self.floor, served)
                return self.lines[client][0]
            heappop(self.heap)
            if self.entries.get(client) is entry:
                del self.entries[client]
                self._enter(client)
        return None

    def charge(self, client: str, tokens: int) -> None:
        self.served[client] = self.served.get(client, self.floor) + tokens

    def _enter(self, client: str) -> None:
        entry = (self.served[client], self.lines[client][0].arrival, client)
        if self.entries.get(client) != entry:
            self.entries[client] = entry
            heappush(self.heap, entry)
            if len(self.heap) > 2 * (len(self.entries) + _AWAY):  # what counts no more and has not come to the top
                self.heap = sorted(self.entries.values())

    def _close_accounts(self) -> None:
        if len(self.served) > 2 * (len(self.lines) + _AWAY):
            away = sorted((c for c in self.served if c not in self.lines), key=self.served.__getitem__)
            for client in away[:-_AWAY]:
                del self.served[client]


@dataclass(slots=True)
class _Group:
    """Unfinished sequences that share a prefix; `leader` computes it, or did so last."""

    members: int = 0
    leader: Sequence | None = None
    digests: list[bytes] = field(default_factory=list)
    aside: list[Sequence] = field(default_factory=list)

    def prefix_under_way(self) -> bool:
        leader = self.leader
        return leader is not None and leader.state == "running" and leader.computed < leader.needed


class Waiting:
    """The queue, with the accounts of clients and groups."""

    def __init__(self):
        self._levels: dict[int, _Level] = {}
        self._groups: dict[Hashable, _Group] = {}
        self._paused: set[Hashable] = set()  # groups with sequences set aside
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, sequence: Sequence) -> None:
        """A new sequence comes."""
        self._levels.setdefault(sequence.priority, _Level()).members += 1
        if sequence.group is not None:
            self._groups.setdefault(sequence.group, _Group()).members += 1
        self.put(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence that does not wait (any more) is finished."""
        level, group = self._levels[sequence.priority], self._groups.get(sequence.group)
        level.members -= 1
        if not level.members:
            del self._levels[sequence.priority]
        if group is not None:
            group.members -= 1
            if not group.members:
                del self._groups[sequence.group]

    def step_down(self, sequence: Sequence) -> None:
        """A sequence is about to stop running. If it has not computed its group's prefix, another one has to."""
        group = self._groups.get(sequence.group)
        if group is not None and group.leader is sequence and group.prefix_under_way():
            group.leader = None

    def put(self, sequence: Sequence) -> None:
        """A sequence begins to wait."""
        self._levels[sequence.priority].put(sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no more."""
        group = self._groups.get(sequence.group)
        if group is not None and sequence in group.aside:
            group.aside.remove(sequence)
        else:
            self._levels[sequence.priority].remove(sequence)
        self._count -= 1

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Tokens of a sequence were computed, on its client's account."""
        self._levels[sequence.priority].charge(sequence.client, tokens)

    @property
    def priority(self) -> int | None:
        """The most urgent priority that waits (set aside are those that wait for their group); None where nobody does."""
        return min((priority for priority, level in self._levels.items() if level.lines), default=None)

    def first(self) -> Sequence | None:
        """Who is next, of those that need not wait for their group."""
        while (priority := self.priority) is not None:
            level = self._levels[priority]
            sequence = level.least()
            group = self._groups.get(sequence.group)
            if group is None or not group.prefix_under_way():
                return sequence
            level.remove(sequence)
            group.aside.append(sequence)
            self._paused.add(sequence.group)
        return None

    def resume_groups(self) -> None:
        """Puts those back whose common prefix is computed, or will not be by the one they waited for."""
        for name in [*self._paused]:
            group = self._groups.get(name)
            if group is not None and group.prefix_under_way():
                continue
            self._paused.remove(name)
            if group is not None:
                for sequence in group.aside:
                    self._levels[sequence.priority].put(sequence)
                group.aside = []

    def lead(self, sequence: Sequence, matched: int) -> None:
        """A sequence starts to run with its first `matched` blocks known. It computes the prefix for its group if nobody
        has yet, or if the block that comes next was computed for the group and has been evicted since."""
        group, after = self._groups.get(sequence.group), slice(matched + 1, matched + 2)
        if group is not None and (
            group.leader is None or (sequence.digests[after] and sequence.digests[after] == group.digests[after])
        ):
            group.leader, group.digests = sequence, sequence.digests
