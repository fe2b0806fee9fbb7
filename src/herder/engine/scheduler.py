"""Which positions of which sequences are computed in the next step: continuous batching over paged blocks (paper section 6).

A step takes one token of every sequence that decodes (and its drafts), then chunks of prompts with what is left of the
budget, the most urgent first. A sequence is admitted if the blocks that it and those running may come to need are there
(`overcommit` 1), or are likely to be (above); where they run out, the least urgent gives its blocks back and computes
them again later, from its tokens and from what of its blocks is still cached.

The one design decision: nobody starves because the sequence that was passed by for `patience` steps goes before all others
until it is finished, one such elder at a time. Adding age to priorities would turn them around as soon as the queue is long.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, abc

from herder.engine.blocks import Blocks, Match
from herder.engine.sequence import Sequence, Span, Step
from herder.engine.waiting import Waiting

__all__ = ["Scheduler", "Sequence", "Span", "Step"]


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank


class Scheduler:
    """Plans steps over `blocks` pages of `block_size` positions. One step at a time: schedule, compute, commit.

    `max_sequences` run at once, `token_budget` positions are computed in a step at most; a step always has room for one
    token of each. `overcommit` is how many times the blocks may be promised; `patience` is in steps. Calls must not overlap.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int = 16,
        *,
        max_sequences: int,
        token_budget: int,
        overcommit: float = 1.0,
        patience: int = 64,
    ):
        if max_sequences < 1:
            raise ValueError(f"max_sequences is {max_sequences}; it must be at least 1")
        if token_budget < max_sequences:
            raise ValueError(
                f"token_budget is {token_budget}; a step decodes one token of each of max_sequences = {max_sequences}, "
                "give it at least as many"
            )
        if not 1 <= overcommit < math.inf:
            raise ValueError(
                f"overcommit is {overcommit}; it must be a finite number of at least 1 (1: no promise is broken)"
            )
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1 step")
        self.blocks = Blocks(blocks, block_size)
        self.max_sequences, self.token_budget, self.patience = max_sequences, token_budget, patience
        self.running: list[Sequence] = []  # the most urgent first
        self.steps = self.computed_tokens = self.reused_tokens = self.preemptions = 0
        self._slack = int((overcommit - 1) * blocks)
        self._waiting = Waiting()
        self._unfinished: dict[Sequence, None] = {}  # in order of arrival
        self._arrivals = 0
        self._elder: Sequence | None = None
        self._next_elder = 0  # the first step in which there may be another
        self._step: Step | None = None  # scheduled and not yet committed
        self._pinned: list[int] = []  # sources of its copies
        self._leaving: list[Sequence] = []  # finished while it was computed
        self._spare = self._drafting = 0  # tokens left for prompts and for drafts in the step that is being planned

    def __len__(self) -> int:
        """Sequences that are not finished."""
        return len(self._unfinished)

    @property
    def waiting(self) -> int:
        """Sequences that are not finished and do not run."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Raises ValueError where it could never run."""
        length, limit, size = len(sequence.tokens), sequence.limit, self.blocks.size
        if sequence.arrival >= 0:
            raise ValueError("the sequence was added before; make a new one")
        if not length:
            raise ValueError("the sequence has no tokens; give at least the token of begin_of_text")
        if limit < 0:
            raise ValueError(f"limit is {limit}; it must be at least 0")
        if not 0 <= sequence.needed < length:
            raise ValueError(f"needed is {sequence.needed}; it must be a position of the {length} tokens")
        positions = length + max(limit - 1, 0)  # the last token is handed out, never read
        if self.blocks.pages(positions) > self.blocks.count:
            raise ValueError(
                f"{length} tokens and up to {limit} new ones need {self.blocks.pages(positions)} blocks of {size} positions, "
                f"the cache has {self.blocks.count}; shorten the prompt, ask for fewer tokens or give the cache more memory"
            )
        sequence.positions, sequence.arrival, sequence.served = positions, self._arrivals, self.steps
        sequence.rank = (sequence.priority, self._arrivals)
        self._arrivals += 1
        self._unfinished[sequence] = None
        self._waiting.enter(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence in any phase; nothing happens if it is finished. A step under way keeps its pages until commit."""
        if sequence.arrival < 0:
            raise ValueError("the sequence was never added")
        if sequence.state == "finished":
            return
        if sequence.state == "waiting":
            self._waiting.remove(sequence)
        else:
            self._waiting.step_down(sequence)
            self.running.remove(sequence)
            if self._step is None:
                self.blocks.release(sequence)
            else:
                self._leaving.append(sequence)
        sequence.state = "finished"
        self._waiting.leave(sequence)
        del self._unfinished[sequence]
        if sequence is self._elder:
            self._elder, self._next_elder = None, self.steps + self.patience

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence that has all it was to get."""
        self.cancel(sequence)

    def forget(self) -> None:
        """Empties the prefix cache. What runs goes on with its pages, and shares none of them from now on."""
        self.blocks.forget()

    def schedule(self) -> Step:
        """The next step, to be committed before the following one; one without spans (nothing to do) is not committed."""
        if self._step is not None:
            raise RuntimeError("commit the last step before scheduling another")
        self.steps += 1
        self._appoint_elder()
        self._waiting.resume_groups()
        self._divide_budget()
        step, chunks = Step([], []), []
        order, place = [*self.running], 0
        newcomer = self._next()
        while newcomer is not None or place < len(order):
            sequence = order[place] if place < len(order) else None
            if newcomer is not None and (sequence is None or newcomer.rank < sequence.rank):
                if self._admit(newcomer, step):
                    self._compute(newcomer, min(_left(newcomer), self._spare), chunks)
                    newcomer = self._next()
                else:
                    newcomer = None  # whoever is first waits for room, and nobody overtakes
                continue
            place += 1
            left, preemptions = _left(sequence), self.preemptions
            if sequence.state != "running" or not left:
                continue
            if left == 1:
                self._compute(sequence, 1 + min(_drafts(sequence), self._drafting), step.spans, decoding=True)
            elif self._spare:
                self._compute(sequence, min(left, self._spare), chunks)
            if self.preemptions > preemptions:
                newcomer = None  # blocks ran out; those given back are not for others to take
        step.spans.extend(chunks)
        if step.spans:
            self._step = step
        return step

    def commit(self, step: Step, valid: abc.Sequence[int]) -> None:
        """Takes the result of a step: `valid` says for each span how many of its positions hold tokens that stay.

        That is all of a prompt's chunk, and 1 + the accepted drafts of a decoding step. The new tokens have been appended
        before. A step that failed is committed with zeros, its sequences cancelled first.
        """
        if step is not self._step:
            raise RuntimeError("the step is not the one that was scheduled last, or it was committed before")
        if len(valid) != len(step.spans) or not all(0 <= n <= s.count for n, s in zip(valid, step.spans, strict=True)):
            raise ValueError(
                f"{[*valid]} of {[s.count for s in step.spans]} positions are valid; give one number for each"
            )
        for (sequence, start, _), count in zip(step.spans, valid, strict=True):
            if start + count > len(sequence.tokens) and sequence.state == "running":
                raise ValueError(f"{count} positions are valid from {start} on; append their tokens before the commit")
        for (sequence, start, _), count in zip(step.spans, valid, strict=True):
            if count := min(count, len(sequence.tokens) - start):
                sequence.computed = start + count
                self.blocks.settle(sequence)
        for sequence in self._leaving:
            self.blocks.release(sequence)
        for block in self._pinned:
            self.blocks.drop(block)
        self._leaving, self._pinned, self._step = [], [], None

    def _appoint_elder(self) -> None:
        """The sequence that came first, of those passed by often enough, goes before all others from now on."""
        if self._elder is not None or self.steps < self._next_elder:
            return
        self._next_elder = self.steps + max(1, self.patience // 4)  # when to look again
        for sequence in self._unfinished:
            if sequence.stalled + self.steps - sequence.served > self.patience:
                self._elder, sequence.rank = sequence, (-math.inf, sequence.arrival)
                if sequence.state == "running":
                    self.running.remove(sequence)
                    self.running.insert(0, sequence)
                return

    def _divide_budget(self) -> None:
        """One token for each sequence that decodes; drafts get half of the rest at most where a prompt waits for it."""
        tokens, drafts, prompts = self.token_budget, 0, bool(self._waiting)
        for sequence in self.running:
            left = _left(sequence)
            if left == 1:
                tokens -= 1
                drafts += _drafts(sequence)
            elif left:
                prompts = True
        self._drafting = min(drafts, tokens // 2 if prompts else tokens)
        self._spare = tokens - self._drafting

    def _next(self) -> Sequence | None:
        """Who is to be admitted next, if anybody could be."""
        elder = self._elder
        if elder is not None and elder.state == "waiting":
            return elder
        return None if self._crowded(self._waiting.priority) else self._waiting.first()

    def _crowded(self, priority: int | None) -> bool:
        """Whether a newcomer of this priority finds no place or no token, and nobody to take them from."""
        full = len(self.running) >= self.max_sequences or not self._spare
        return priority is None or (full and self.running[-1].priority <= priority)

    def _compute(self, sequence: Sequence, count: int, spans: list[Span], decoding: bool = False) -> None:
        """Adds a span of up to `count` positions, as many as there are blocks for."""
        count = self._hold(sequence, count)
        if not count:
            return
        if decoding:
            self._drafting -= count - 1
        else:
            self._spare -= count
        spans.append(Span(sequence, sequence.computed, count))
        sequence.stalled += self.steps - sequence.served - 1
        sequence.served = self.steps
        self.computed_tokens += count
        self._waiting.charge(sequence, count)

    def _hold(self, sequence: Sequence, count: int) -> int:
        """Allocates blocks for the next `count` positions -> how many have one. Takes other's blocks for the first only."""
        blocks, size = sequence.blocks, self.blocks.size
        while len(blocks) * size < sequence.computed + count:
            if self.blocks.available:
                blocks.append(self.blocks.allocate())
            elif len(blocks) * size > sequence.computed:
                return len(blocks) * size - sequence.computed
            else:
                last = self.running[-1]
                if last.rank <= sequence.rank:
                    return 0
                self._preempt(last)
        return count

    def _preempt(self, sequence: Sequence) -> None:
        """A running sequence waits again. Its tokens stay; what it had computed is found again as far as it stays cached."""
        assert sequence.served != self.steps  # its turn comes after that of all who may take its place
        self._waiting.step_down(sequence)
        sequence.needed = max(sequence.needed, sequence.computed)
        self.running.remove(sequence)
        self.blocks.release(sequence)
        sequence.state = "waiting"
        self._waiting.put(sequence)
        self.preemptions += 1

    def _admit(self, sequence: Sequence, step: Step) -> bool:
        """Starts a waiting sequence with what is known of it, if there is room or can be made -> whether it runs."""
        if self._crowded(sequence.priority):
            return False  # the usual answer, without looking for a match
        match = self.blocks.match(sequence, min(sequence.needed, len(sequence.tokens) - 1))
        if not self._fits(sequence, match) and not self._make_room(sequence, match):
            return False
        self._waiting.remove(sequence)
        sequence.state = "running"
        insort(self.running, sequence, key=_rank)
        self.blocks.adopt(sequence, match.blocks)
        if match.source is not None:
            self._copy(sequence, match, step)
        self._waiting.lead(sequence, len(match.blocks))
        self.reused_tokens += sequence.computed
        return True

    def _copy(self, sequence: Sequence, match: Match, step: Step) -> None:
        """Starts the sequence's next block as a copy, unless keeping the source until the commit takes what others need."""
        blocks = self.blocks
        if not blocks.references[match.source]:
            needed = blocks.pages(len(sequence.tokens)) - len(sequence.blocks)
            if blocks.available - 1 < max(needed, self._owed() - self._slack):
                return
        blocks.take(match.source)
        self._pinned.append(match.source)
        sequence.blocks.append(blocks.allocate())
        sequence.computed += match.length
        step.copies.append((match.source, sequence.blocks[-1]))

    def _fits(self, sequence: Sequence, match: Match, without: abc.Sequence[Sequence] = ()) -> bool:
        """Whether a waiting sequence could start now, if those in `without` did not run."""
        blocks, references = self.blocks, self.blocks.references
        tokens = self._spare + sum(_left(victim) == 1 for victim in without)
        others = len(self.running) - len(without)
        if not tokens or others >= self.max_sequences:
            return False
        given = Counter(block for victim in without for block in victim.blocks)
        available = blocks.available + sum(references[block] == n for block, n in given.items())
        shared = sum(references[block] > given[block] for block in match.blocks)
        if blocks.pages(sequence.positions) - shared + self._owed(without) > available + self._slack:
            return False
        # Promised more than there is: at least its tokens must fit, and one more block of each that runs.
        return not self._slack or blocks.pages(len(sequence.tokens)) - shared + others <= available

    def _owed(self, without: abc.Sequence[Sequence] = ()) -> int:
        """Blocks that running sequences may come to need beyond those they hold."""
        pages = self.blocks.pages
        return sum(pages(s.positions) - len(s.blocks) for s in self.running if s not in without)

    def _make_room(self, sequence: Sequence, match: Match) -> bool:
        """Preempts sequences of lower priority, the least urgent first and no more than it takes -> whether it helped."""
        victims = [v for v in reversed(self.running) if v.rank > sequence.rank and v.priority > sequence.priority]
        if not victims or not self._fits(sequence, match, victims):
            return False
        enough = next(n for n in range(1, len(victims) + 1) if self._fits(sequence, match, victims[:n]))
        for victim in victims[:enough]:
            self._spare += _left(victim) == 1
            self._preempt(victim)
        return True


def _left(sequence: Sequence) -> int:
    """Positions of its tokens that are still to be computed."""
    return min(len(sequence.tokens), sequence.positions) - sequence.computed


def _drafts(sequence: Sequence) -> int:
    """Drafts that may be verified: none whose token could not be handed out."""
    return min(len(sequence.drafts), sequence.positions - len(sequence.tokens))
