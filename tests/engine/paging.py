"""A machine that computes scheduled steps on simulated pages, and checks after each that nothing was mixed up.

What a model leaves in a page at position p depends on all tokens up to p, on the adapter and on the weights; so that is what
is written here: (weights' version, hash of the namespace and the tokens up to p). A sequence must read back exactly its own.
"""

import random

from herder.engine.scheduler import Scheduler, Sequence, Step


class Machine:
    def __init__(self, scheduler: Scheduler, seed: int = 0, vocabulary: int = 3, drafts: int = 0):
        self.scheduler, self.random, self.vocabulary, self.drafts = scheduler, random.Random(seed), vocabulary, drafts
        self.pages = [[None] * scheduler.blocks.size for _ in range(scheduler.blocks.count)]
        self.version = 0
        self.started: dict[Sequence, int] = {}  # the version that it runs with since it was admitted last
        self.outputs: dict[Sequence, list[int]] = {}  # positions whose output was handed out
        self.lengths: dict[Sequence, int] = {}  # of prompts
        self.needed: dict[Sequence, int] = {}  # as asked for
        self.hashes: dict[Sequence, list[int]] = {}
        self.preemptions = 0  # before the step
        self.decoding: dict[Sequence, int] = {}  # sequences with one token left, and what they had computed
        self.computed = 0

    def add(self, tokens, limit=0, needed=None, **settings) -> Sequence:
        sequence = Sequence([*tokens], limit, len(tokens) - 1 if needed is None else needed, **settings)
        self.scheduler.add(sequence)
        self.outputs[sequence], self.lengths[sequence], self.needed[sequence] = [], len(tokens), sequence.needed
        return sequence

    def forget(self) -> None:
        self.version += 1
        self.scheduler.forget()

    def step(self, meanwhile=lambda: None, finish_first: bool = False) -> Step:
        """One step; `meanwhile` is called while it is computed."""
        scheduler = self.scheduler
        before = {sequence: sequence.computed for sequence in scheduler.running}
        for sequence in scheduler.running:
            sequence.drafts = self.tokens(self.random.randint(0, self.drafts))
        self.decoding = {s: computed for s, computed in before.items() if len(s.tokens) - computed == 1}
        self.preemptions = scheduler.preemptions
        step = scheduler.schedule()
        for sequence in scheduler.running:
            if before.get(sequence) is None or sequence.computed < before[sequence]:
                self.started[sequence] = self.version
        self.check_step(step)
        self.write(step)
        self.check_pages()
        if not step.spans:
            meanwhile()
            return step
        tables = {block for sequence in scheduler.running for block in sequence.blocks}
        meanwhile()
        held = {block for block in range(scheduler.blocks.count) if scheduler.blocks.references[block]}
        assert tables | {source for source, _ in step.copies} <= held, "a page of a step under way was let go"
        valid, done = [], []
        for span in step.spans:
            valid.append(self.answer(*span))
            if self.complete(span.sequence, span.start + valid[-1]):
                done.append(span.sequence)
        if finish_first:
            for sequence in done:
                scheduler.finish(sequence)
        scheduler.commit(step, valid)
        for sequence in done:
            scheduler.finish(sequence)
        self.check_references()
        return step

    def run(self, most: int = 10_000) -> int:
        """Steps until everything is finished."""
        for count in range(most):
            if not len(self.scheduler):
                return count
            assert self.step().spans, "sequences are unfinished, yet nothing is computed"
        raise AssertionError(f"not finished within {most} steps")

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self.vocabulary) for _ in range(count)]

    def most(self, sequence: Sequence) -> int:
        """Positions that it may come to compute: all but the last token it may get."""
        return self.lengths[sequence] + max(sequence.limit - 1, 0)

    def check_step(self, step: Step) -> None:
        scheduler = self.scheduler
        assert sum(span.count for span in step.spans) <= scheduler.token_budget
        assert len(scheduler.running) <= scheduler.max_sequences
        assert len({span.sequence for span in step.spans}) == len(step.spans)
        decoding = [span.start == self.decoding.get(span.sequence) for span in step.spans]
        if (
            scheduler.preemptions == self.preemptions
        ):  # a preempted sequence may come back in the same step, as a prompt
            assert decoding == sorted(decoding, reverse=True), "decodes come first"
        if scheduler.preemptions == self.preemptions and not scheduler._slack:
            assert sum(decoding) == len(self.decoding), "a decode was passed by"
        for sequence, start, count in step.spans:
            assert sequence.state == "running"
            assert start == sequence.computed
            assert count > 0
            assert start + count <= min(len(sequence.tokens) + len(sequence.drafts), self.most(sequence))
            assert len(sequence.blocks) * scheduler.blocks.size >= start + count

    def write(self, step: Step) -> None:
        for source, target in step.copies:
            self.pages[target] = [*self.pages[source]]
        for sequence, start, count in step.spans:
            size, values = self.scheduler.blocks.size, self.values(sequence)
            for draft in sequence.drafts:
                values = [*values, hash((values[-1], draft))]
            for p in range(start, start + count):
                self.pages[sequence.blocks[p // size]][p % size] = (self.version, values[p])
            self.computed += count

    def values(self, sequence: Sequence) -> list[int]:
        """What stands for the tokens up to each position."""
        values = self.hashes.setdefault(sequence, [])
        for token in sequence.tokens[len(values) :]:
            values.append(hash((values[-1] if values else sequence.namespace, token)))
        return values

    def check_pages(self) -> None:
        size = self.scheduler.blocks.size
        for sequence in self.scheduler.running:
            values, oldest = self.values(sequence), self.started[sequence]
            for p in range(sequence.computed):
                version, value = self.pages[sequence.blocks[p // size]][p % size]
                assert value == values[p], "read back what is not its own"
                assert version >= oldest, "shared with what older weights computed"

    def answer(self, sequence: Sequence, start: int, count: int) -> int:
        """Appends what the model says, hands out the outputs that are wanted -> how many positions are valid."""
        known = len(sequence.tokens)
        proposed = max(start + count - known, 0)
        accepted = self.random.randint(0, proposed)
        wanted = [p for p in range(start, min(start + count, known + accepted)) if p >= sequence.needed]
        if sequence.state == "finished":
            return count - proposed if self.random.random() < 0.5 else 0
        self.outputs[sequence] += wanted
        if sequence.limit and start + count >= known:
            drafts = sequence.drafts[:proposed]
            refused = drafts[accepted : accepted + 1]
            other = [token for token in range(self.vocabulary) if [token] != refused]
            sequence.tokens += [*drafts[:accepted], self.random.choice(other)]
        return count - proposed + accepted

    def complete(self, sequence: Sequence, computed: int) -> bool:
        if sequence.state == "finished":
            return False
        end = self.lengths[sequence] + sequence.limit
        if len(sequence.tokens) < end or computed < end - bool(sequence.limit):
            return False
        first, last = self.needed[sequence], end - bool(sequence.limit)
        assert self.outputs[sequence] == [*range(first, last)], "an output is missing, or came twice"
        return True

    def check_references(self) -> None:
        """Between steps: as many references as tables hold a block, and every other block is to be had."""
        blocks, held = self.scheduler.blocks, [0] * self.scheduler.blocks.count
        for sequence in self.scheduler.running:
            for block in sequence.blocks:
                held[block] += 1
        assert blocks.references == held
        assert blocks.available == held.count(0)
