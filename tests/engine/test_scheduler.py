"""The scheduler on simulated pages: every sequence reads back its own tokens, no block leaks, and nobody starves."""

import random

import pytest
from engine.paging import Machine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from herder.engine.scheduler import Scheduler, Sequence


class Traffic(RuleBasedStateMachine):
    """Anything that may happen, in any order; then everything is finished."""

    @initialize(
        size=st.integers(1, 4),
        blocks=st.integers(8, 24),
        slots=st.integers(1, 5),
        budget=st.integers(0, 8),
        overcommit=st.sampled_from([1.0, 1.0, 1.3, 3.0]),
        patience=st.integers(1, 20),
        drafts=st.sampled_from([0, 3]),
        seed=st.integers(0, 9999),
    )
    def start(self, size, blocks, slots, budget, overcommit, patience, drafts, seed):
        self.scheduler = Scheduler(
            blocks, size, max_sequences=slots, token_budget=slots + budget, overcommit=overcommit, patience=patience
        )
        self.machine = Machine(self.scheduler, seed, drafts=drafts)
        self.most, self.promised = blocks * size, overcommit == 1
        self.sequences, self.priorities = [], set()

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=16),
        limit=st.integers(0, 8),
        needed=st.integers(0, 15),
        priority=st.sampled_from([0, 0, 0, 1, -7]),
        client=st.sampled_from("abc"),
        group=st.sampled_from([None, None, "g", "h"]),
        namespace=st.sampled_from(["", "", "x"]),
        copies=st.integers(1, 3),
    )
    def add(self, tokens, limit, needed, copies, **settings):
        tokens = tokens[: max(1, self.most - limit)]
        limit = min(limit, self.most - len(tokens))
        needed = len(tokens) - 1 if limit else min(needed, len(tokens) - 1)
        self.priorities.add(settings["priority"])
        for _ in range(copies):
            self.sequences.append(self.machine.add(tokens, limit, needed, **settings))

    @rule(finish_first=st.booleans())
    def step(self, finish_first):
        step = self.machine.step(finish_first=finish_first)
        assert step.spans or not len(self.scheduler)

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 30), under_way=st.booleans())
    def cancel(self, index, under_way):
        sequence = self.sequences[index % len(self.sequences)]
        if under_way:
            self.machine.step(meanwhile=lambda: self.scheduler.cancel(sequence))
        else:
            self.scheduler.cancel(sequence)
        assert sequence.state == "finished"
        assert not sequence.blocks

    @rule(under_way=st.booleans())
    def forget(self, under_way):
        if under_way:
            self.machine.step(meanwhile=self.machine.forget)
        else:
            self.machine.forget()

    @invariant()
    def sound(self):
        if hasattr(self, "machine"):
            self.machine.check_references()
            self.machine.check_pages()
            assert len(self.scheduler) == sum(s.state != "finished" for s in self.sequences)
            assert self.scheduler.waiting == sum(s.state == "waiting" for s in self.sequences)
            if self.promised:
                blocks, running = self.scheduler.blocks, self.scheduler.running
                owed = sum(blocks.pages(self.machine.most(s)) - len(s.blocks) for s in running)
                assert owed <= blocks.available, "more was promised than there is"
                assert len(self.priorities) > 1 or not self.scheduler.preemptions

    def teardown(self):
        if hasattr(self, "machine"):
            self.machine.run()
            scheduler = self.scheduler
            assert scheduler.blocks.references == [0] * scheduler.blocks.count
            assert not scheduler.schedule().spans
            assert not any((scheduler._waiting._levels, scheduler._waiting._groups, scheduler._waiting._paused))
            scheduler.forget()
            assert scheduler.blocks.cached == 0
            assert scheduler.blocks.available == scheduler.blocks.count


def test_every_sequence_reads_back_its_own_tokens_whatever_happens():
    run_state_machine_as_test(Traffic, settings=settings(max_examples=150, stateful_step_count=50))


@pytest.mark.long
def test_every_sequence_reads_back_its_own_tokens_in_long_traffic():
    run_state_machine_as_test(Traffic, settings=settings(max_examples=300, stateful_step_count=100))


@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_heavy_traffic_leaks_nothing(seed):
    """Dozens of sequences over a cache far too small for them, with prefixes in common, refused drafts and cancellations."""
    chance = random.Random(seed)
    scheduler = Scheduler(30, 4, max_sequences=8, token_budget=24, overcommit=chance.choice([1, 1.5, 4]), patience=16)
    machine = Machine(scheduler, seed, drafts=3)
    prefix, alive = machine.tokens(30), []
    for _ in range(60):
        tokens = prefix[: chance.randint(0, 30)] + machine.tokens(chance.randint(1, 10))
        group = chance.choice([None, "g"])
        alive.append(
            machine.add(
                tokens, chance.randint(0, 30), priority=chance.randint(0, 2), client=chance.choice("ab"), group=group
            )
        )
        machine.step(finish_first=chance.random() < 0.5)
        if chance.random() < 0.1:
            scheduler.cancel(chance.choice(alive))
    machine.run()
    assert scheduler.blocks.available == 30
    assert scheduler.reused_tokens > 0


# What is shared


def test_samples_of_one_prompt_compute_it_once():
    machine = Machine(Scheduler(200, 16, max_sequences=16, token_budget=64), vocabulary=1000)
    prompt = machine.tokens(100)
    for _ in range(16):
        machine.add(prompt, limit=8, group="prompt")
    machine.run()
    assert (
        machine.computed == 100 + 15 + 16 * 7
    )  # the prompt, its last token for each of the others, what was generated


def test_choices_of_a_question_share_its_context():
    """Four choices of five tokens after a context of 40: about a third of the tokens."""
    machine = Machine(Scheduler(200, 16, max_sequences=16, token_budget=512), vocabulary=1000)
    context, choices = machine.tokens(40), [machine.tokens(5) for _ in range(4)]
    for choice in choices:
        machine.add([*context, *choice[:-1]], needed=39, group=0)
    assert machine.run() == 2
    assert machine.computed == 44 + 3 * 5
    assert 4 * 44 / machine.computed > 2.9


def test_others_pass_those_who_wait_for_their_group():
    machine = Machine(Scheduler(200, 16, max_sequences=16, token_budget=32), vocabulary=1000)
    prompt = machine.tokens(100)
    leader, follower = (machine.add(prompt, 4, group="g") for _ in range(2))
    other = machine.add(machine.tokens(3), 4)
    machine.step()
    assert (leader.state, follower.state) == ("running", "waiting")
    while leader.computed < leader.needed:
        machine.step()
    machine.step()
    assert other.computed > 0
    assert follower.computed >= 100


def test_a_group_goes_on_without_its_leader():
    machine = Machine(Scheduler(200, 16, max_sequences=16, token_budget=32), vocabulary=1000)
    prompt = machine.tokens(100)
    leader, *followers = (machine.add(prompt, 4, group="g") for _ in range(4))
    machine.step()
    machine.scheduler.cancel(leader)
    machine.run()
    assert all(len(machine.outputs[follower]) == 4 for follower in followers)
    assert machine.computed == 100 + 2 + 3 * 3  # the leader's blocks were found again


def test_a_group_goes_on_while_its_leader_waits_again():
    machine = Machine(Scheduler(200, 16, max_sequences=3, token_budget=32), vocabulary=1000)
    prompt = machine.tokens(100)
    leader = machine.add(prompt, 4, group="g", priority=1)
    machine.step()
    for _ in range(3):
        machine.add(machine.tokens(4), 4, priority=-1)
    followers = [machine.add(prompt, 4, group="g") for _ in range(3)]
    machine.step()
    assert leader.state == "waiting"
    machine.run()
    assert followers[0].state == "finished"
    assert machine.computed == 100 + 3 + 4 * 3 + 3 * (4 + 3)


def test_a_group_computes_an_evicted_prefix_once_more_and_no_oftener():
    machine = Machine(Scheduler(12, 4, max_sequences=4, token_budget=24), vocabulary=1000)
    prompt = machine.tokens(20)
    leader, *later = (machine.add(prompt, 1, group="g") for _ in range(3))
    machine.step()
    assert leader.state == "finished"
    machine.add(machine.tokens(44), 1, priority=-1)  # takes all blocks but the prompt's first
    machine.run()
    assert all(machine.outputs[sequence] == [19] for sequence in later)
    assert machine.computed == 20 + 44 + 16 + 1


def test_the_next_turn_of_a_dialogue_computes_only_what_is_new():
    machine = Machine(Scheduler(64, 16, max_sequences=4, token_budget=64), vocabulary=1000)
    first = machine.add(machine.tokens(30), 12)
    machine.run()
    before = machine.computed
    machine.add([*first.tokens, *machine.tokens(10)], 1)
    machine.run()
    assert machine.computed - before == 10 + 1  # the last token generated had never been read


def test_new_weights_share_nothing_with_old_ones():
    machine = Machine(Scheduler(64, 4, max_sequences=4, token_budget=64), vocabulary=1000)
    prompt = machine.tokens(20)
    machine.add(prompt, 6)
    machine.step()
    machine.forget()
    machine.add(prompt, 6)  # beside the one that still runs with what the old weights computed
    machine.run()
    assert machine.scheduler.reused_tokens == 0
    machine.add(prompt, 6)
    machine.run()
    assert machine.scheduler.reused_tokens == 19


# Memory


def test_more_run_at_once_where_more_is_promised_and_all_finish():
    most = {}
    for overcommit in (1.0, 2.0):
        machine = Machine(Scheduler(20, 4, max_sequences=16, token_budget=64, overcommit=overcommit), vocabulary=1000)
        sequences = [machine.add(machine.tokens(8), 24) for _ in range(10)]
        most[overcommit] = 0
        while len(machine.scheduler):
            machine.step()
            most[overcommit] = max(most[overcommit], len(machine.scheduler.running))
        assert all(len(machine.outputs[sequence]) == 24 for sequence in sequences)
        assert (machine.scheduler.preemptions > 0) == (overcommit > 1)
    assert most[1.0] == 2 < most[2.0]


def test_blocks_given_back_in_a_step_are_not_for_newcomers():
    machine = Machine(Scheduler(8, 4, max_sequences=4, token_budget=64, overcommit=3), vocabulary=1000)
    first, second = machine.add(machine.tokens(12), 20), machine.add(machine.tokens(16), 16)
    while first.computed < 16:
        machine.step()
    assert machine.scheduler.blocks.available == 0
    newcomer = machine.add(machine.tokens(3), 1, priority=1)
    machine.step()
    assert (first.computed, second.state, newcomer.state) == (17, "waiting", "waiting")
    machine.run()


def test_a_preempted_sequence_keeps_its_tokens_and_finds_its_blocks_again():
    machine = Machine(Scheduler(100, 4, max_sequences=1, token_budget=64), vocabulary=1000)
    low = machine.add(machine.tokens(20), 20, priority=1)
    for _ in range(10):
        machine.step()
    tokens = [*low.tokens]
    machine.add(machine.tokens(4), 3)
    machine.run()
    assert low.tokens[:30] == tokens
    assert machine.computed == 20 + 19 + 4 + 2  # nothing twice


def test_the_source_of_a_copy_is_not_kept_at_the_cost_of_others():
    machine = Machine(Scheduler(5, 4, max_sequences=4, token_budget=64), vocabulary=1000)
    known = machine.tokens(2)
    machine.add(known, 1)
    machine.run()
    old = machine.add(machine.tokens(4), 5, priority=1)  # needs its second block in the next step
    machine.step()
    machine.add([*known, *machine.tokens(9)], 2)  # needs all others, that of `known` too
    machine.step()
    assert old.computed == 5
    assert machine.scheduler.reused_tokens == 0


def test_pages_of_a_step_under_way_are_not_given_away():
    machine = Machine(Scheduler(8, 4, max_sequences=4, token_budget=64), vocabulary=1000)
    sequence = machine.add(machine.tokens(16), 8)
    machine.step()
    step = machine.scheduler.schedule()
    held = [*sequence.blocks]
    machine.scheduler.cancel(sequence)
    assert all(machine.scheduler.blocks.references[block] for block in held)
    machine.scheduler.commit(step, [1])
    assert machine.scheduler.blocks.available == 8


def test_a_step_that_failed_leaves_nothing_behind():
    machine = Machine(Scheduler(16, 4, max_sequences=4, token_budget=64), vocabulary=1000)
    prompt = machine.tokens(14)
    sequence = machine.add(prompt, 8)
    step = machine.scheduler.schedule()
    machine.scheduler.cancel(sequence)
    machine.scheduler.commit(step, [0])
    assert (machine.scheduler.blocks.available, machine.scheduler.blocks.cached) == (16, 0)


def test_refused_drafts_are_forgotten_and_accepted_ones_kept():
    scheduler = Scheduler(16, 4, max_sequences=4, token_budget=64)
    sequence = Sequence([1, 2, 3], 10, 2)
    scheduler.add(sequence)
    step = scheduler.schedule()
    sequence.tokens.append(4)
    scheduler.commit(step, [3])
    sequence.drafts = [5, 6, 7]
    step = scheduler.schedule()
    assert [(start, count) for _, start, count in step.spans] == [(3, 4)]
    sequence.tokens += [5, 9]  # the first was right
    scheduler.commit(step, [2])
    assert sequence.computed == 5
    assert scheduler.schedule().spans[0].start == 5


def test_drafts_beyond_the_limit_are_not_computed():
    scheduler = Scheduler(16, 4, max_sequences=4, token_budget=64)
    sequence = Sequence([1, 2, 3], 3, 2)
    scheduler.add(sequence)
    step = scheduler.schedule()
    sequence.tokens.append(4)
    scheduler.commit(step, [3])
    sequence.drafts = [5, 6, 7]
    assert scheduler.schedule().spans[0].count == 2  # a draft and the token after it make three


def test_drafts_leave_room_for_prompts():
    machine = Machine(Scheduler(200, 4, max_sequences=8, token_budget=20))
    decoding = [machine.add(machine.tokens(1), 50) for _ in range(4)]
    machine.step()
    prompt = machine.add(machine.tokens(60), 1)
    for sequence in decoding:
        sequence.drafts = [0] * 10
    step = machine.scheduler.schedule()
    assert sum(span.count for span in step.spans) == 20
    assert step.spans[-1].sequence is prompt
    assert step.spans[-1].count == 8


# Wrong use


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_sequences": 0}, "max_sequences is 0"),
        ({"token_budget": 3}, "token_budget is 3; .* max_sequences = 4"),
        ({"overcommit": 0.5}, "overcommit is 0.5"),
        ({"overcommit": float("nan")}, "overcommit is nan"),
        ({"patience": 0}, "patience is 0"),
        ({"blocks": 0}, "0 blocks of 16"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Scheduler(**{"blocks": 8, "max_sequences": 4, "token_budget": 8, **settings})


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (Sequence([], 1, 0), "no tokens"),
        (Sequence([1], -1, 0), "limit is -1"),
        (Sequence([1, 2], 1, 2), "needed is 2"),
        (Sequence([1] * 20, 14, 19), "20 tokens and up to 14 new ones need 9 blocks of 4 positions, the cache has 8"),
    ],
)
def test_sequences_that_never_fit_are_refused(sequence, message):
    scheduler = Scheduler(8, 4, max_sequences=4, token_budget=8)
    with pytest.raises(ValueError, match=message):
        scheduler.add(sequence)
    assert not len(scheduler)


def test_the_largest_sequence_that_fits_runs_alone():
    machine = Machine(Scheduler(8, 4, max_sequences=4, token_budget=8))
    machine.add(machine.tokens(20), 13)
    machine.run()
    machine.add(machine.tokens(20), 13)
    machine.run()


def test_steps_alternate_with_commits():
    scheduler = Scheduler(8, 4, max_sequences=4, token_budget=8)
    assert scheduler.schedule().spans == []
    sequence = Sequence([1, 2], 1, 1)
    scheduler.add(sequence)
    with pytest.raises(ValueError, match="added before"):
        scheduler.add(sequence)
    step = scheduler.schedule()
    with pytest.raises(RuntimeError, match="commit the last step"):
        scheduler.schedule()
    with pytest.raises(ValueError, match="one number for each"):
        scheduler.commit(step, [3])
    scheduler.commit(step, [2])
    with pytest.raises(RuntimeError, match="committed before"):
        scheduler.commit(step, [2])
    with pytest.raises(ValueError, match="never added"):
        scheduler.cancel(Sequence([1], 1, 0))
