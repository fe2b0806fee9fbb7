"""Who goes first: priorities, patience, and clients that take turns."""

import pytest
from engine.paging import Machine

from herder.engine.scheduler import Scheduler


def test_an_urgent_sequence_takes_the_place_of_the_least_urgent_that_came_last():
    machine = Machine(Scheduler(100, 4, max_sequences=3, token_budget=8))
    low = [machine.add(machine.tokens(2), 20, priority=priority) for priority in (2, 3, 3)]
    machine.step()
    tokens = len(low[2].tokens)
    urgent = machine.add(machine.tokens(2), 5, priority=1)
    machine.step()
    assert urgent.state == "running"
    assert [sequence.state for sequence in low] == ["running", "running", "waiting"]
    assert len(low[2].tokens) == tokens
    machine.run()
    assert machine.scheduler.preemptions == 1
    assert [len(machine.outputs[sequence]) for sequence in low] == [20, 20, 20]


def test_an_urgent_sequence_takes_a_token_of_a_step_without_any_to_spare():
    machine = Machine(Scheduler(100, 4, max_sequences=3, token_budget=3))
    for _ in range(3):
        machine.add(machine.tokens(1), 20, priority=1)
    machine.step()
    urgent = machine.add(machine.tokens(1), 5)
    machine.step()
    assert len(urgent.tokens) == 2


def test_equals_do_not_take_each_others_place():
    machine = Machine(Scheduler(100, 4, max_sequences=2, token_budget=8))
    for _ in range(20):
        machine.add(machine.tokens(3), 10)
    machine.run()
    assert machine.scheduler.preemptions == 0


def test_nothing_is_preempted_where_it_would_not_make_room():
    machine = Machine(Scheduler(20, 4, max_sequences=4, token_budget=40))
    machine.add(machine.tokens(30), 9)
    machine.add(machine.tokens(9), 9, priority=5)  # all that may yield to the next
    machine.step()
    machine.add(machine.tokens(60), 9, priority=1)
    machine.step()
    assert machine.scheduler.preemptions == 0
    assert len(machine.scheduler.running) == 2


def test_what_sequences_share_makes_room_once():
    machine = Machine(Scheduler(20, 4, max_sequences=8, token_budget=64), vocabulary=1000)
    machine.add(machine.tokens(20), 5)  # 6 blocks
    prompt = machine.tokens(32)
    for _ in range(3):
        machine.add(prompt, 5, priority=2, group="g")  # 8 in common and one each: 11
    for _ in range(2):
        machine.step()
    assert len(machine.scheduler.running) == 4
    large = machine.add(machine.tokens(56), 4, priority=1)  # 15, of which 14 can be had
    machine.step()
    assert machine.scheduler.preemptions == 0
    machine.scheduler.cancel(large)
    machine.add(machine.tokens(52), 4, priority=1)  # 14
    machine.step()
    assert machine.scheduler.preemptions == 3


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("overcommit", [1, 4])
def test_nobody_starves_behind_ever_more_urgent_sequences(slots, overcommit):
    scheduler = Scheduler(24, 4, max_sequences=slots, token_budget=12, overcommit=overcommit, patience=20)
    machine = Machine(scheduler)
    patient = [machine.add(machine.tokens(20), 15, priority=10**9, client="old") for _ in range(3)]
    for count in range(1, 1500):
        while scheduler.waiting < 4:
            machine.add(machine.tokens(12), 6, priority=-count, client=f"new {count}")
        machine.step()
        if all(sequence.state == "finished" for sequence in patient):
            break
    # Each of the three: passed by for 20 steps and looked for 5 steps later, waits for a place, and runs.
    assert count <= 3 * (20 + 5 + 12 + 25)
    assert all(len(machine.outputs[sequence]) == 15 for sequence in patient)


def test_a_prompt_that_runs_does_not_starve_behind_more_urgent_prompts():
    scheduler = Scheduler(400, 4, max_sequences=4, token_budget=8, patience=10)
    machine = Machine(scheduler, vocabulary=1000)
    patient = machine.add(machine.tokens(40), 2, priority=1)
    machine.step()
    while patient.state != "finished":
        while scheduler.waiting + len(scheduler.running) < 4:
            machine.add(machine.tokens(60), 1)
        machine.step()
        assert scheduler.steps < 40


def test_short_turns_between_interruptions_do_not_reset_patience():
    scheduler = Scheduler(400, 4, max_sequences=1, token_budget=8, patience=20)
    machine = Machine(scheduler)
    patient = machine.add(machine.tokens(4), 40, priority=1)
    while patient.state != "finished":
        machine.step()
        if patient.state == "running" and not scheduler.waiting:
            machine.add(machine.tokens(4), 5)
        assert scheduler.steps < 20 + 10 + 10 + 40


def test_a_queue_of_background_work_does_not_turn_priorities_around():
    """Long after all of it has lost patience, an urgent sequence waits for one of the background at most."""
    machine = Machine(Scheduler(400, 4, max_sequences=2, token_budget=8, patience=5))
    background = [machine.add(machine.tokens(4), 10, priority=1) for _ in range(30)]
    for _ in range(60):
        machine.step()
    urgent = machine.add(machine.tokens(4), 10)
    while urgent.state != "finished":
        machine.step()
        assert machine.scheduler.steps <= 60 + 10 + 10
    assert sum(sequence.state == "waiting" for sequence in background) > 10


def test_elders_do_not_take_every_turn():
    """One place, a queue of work that has lost patience, and urgent sequences all the time: both go on."""
    machine = Machine(Scheduler(400, 4, max_sequences=1, token_budget=8, patience=20))
    background = [machine.add(machine.tokens(4), 5, priority=1) for _ in range(50)]
    urgent = [machine.add(machine.tokens(4), 5) for _ in range(50)]
    for _ in range(200):
        machine.step()
    elders, others = (sum(sequence.state == "finished" for sequence in s) for s in (background, urgent))
    assert elders >= 5
    assert others >= 25


def served(machine: Machine, sequences) -> int:
    return sum(len(sequence.tokens) for sequence in sequences)


def test_clients_take_turns_by_tokens():
    """One client has a queue of long requests, another comes later with short ones."""
    machine = Machine(Scheduler(400, 4, max_sequences=4, token_budget=64, patience=10**6))
    greedy = [machine.add(machine.tokens(4), 40, client="greedy") for _ in range(40)]
    for _ in range(50):
        machine.step()
    before = served(machine, greedy)
    modest = [machine.add(machine.tokens(4), 10, client="modest") for _ in range(60)]
    start = served(machine, modest)
    for _ in range(200):
        machine.step()
    shares = served(machine, greedy) - before, served(machine, modest) - start
    assert min(shares) > 0.6 * max(shares)


def test_what_a_client_is_served_counts_while_it_waits():
    machine = Machine(Scheduler(400, 4, max_sequences=1, token_budget=64))
    first, second = (machine.add(machine.tokens(4), 20, client="a") for _ in range(2))
    other = machine.add(machine.tokens(4), 20, client="b")
    while first.state != "finished":
        machine.step()
    machine.step()
    assert (second.state, other.state) == ("waiting", "running")


def test_between_clients_that_were_served_the_same_the_first_to_come_is_first():
    machine = Machine(Scheduler(400, 4, max_sequences=1, token_budget=64))
    withdrawn = machine.add(machine.tokens(4), 5, client="a")
    other = machine.add(machine.tokens(4), 5, client="b")
    machine.add(machine.tokens(4), 5, client="a")
    machine.scheduler.cancel(withdrawn)
    machine.step()
    assert other.state == "running"


def test_who_was_away_has_saved_up_no_claim():
    machine = Machine(Scheduler(400, 4, max_sequences=2, token_budget=64, patience=10**6))
    machine.add(machine.tokens(4), 4, client="away")
    machine.run()
    busy = [machine.add(machine.tokens(4), 10, client="busy") for _ in range(80)]
    for _ in range(200):
        machine.step()
    before = served(machine, busy)
    back = [machine.add(machine.tokens(4), 10, client="away") for _ in range(80)]
    start = served(machine, back)
    for _ in range(100):
        machine.step()
    assert served(machine, busy) - before > 0.6 * (served(machine, back) - start)


def test_having_nothing_in_the_queue_forgives_no_debt():
    """A client that asks for one long answer after the other gets no more than one with a queue of short ones."""
    machine = Machine(Scheduler(400, 4, max_sequences=1, token_budget=64, patience=10**6))
    many = [machine.add(machine.tokens(4), 10, client="many") for _ in range(100)]
    one = [machine.add(machine.tokens(4), 40, client="one")]
    for _ in range(500):
        machine.step()
        if one[-1].state == "finished":
            one.append(machine.add(machine.tokens(4), 40, client="one"))
    generated = [sum(len(machine.outputs[sequence]) for sequence in s) for s in (many, one)]
    assert min(generated) > 0.6 * max(generated)


def test_accounts_of_clients_that_left_are_closed():
    machine = Machine(Scheduler(400, 4, max_sequences=4, token_budget=64))
    machine.add(machine.tokens(4), 1200, client="stays")
    for count in range(1000):
        machine.add(machine.tokens(2), 1, client=f"guest {count}")
        machine.step()
    (level,) = machine.scheduler._waiting._levels.values()
    assert len(level.served) < 300
    assert level.served["stays"] > 1000


def test_requests_withdrawn_while_they_wait_leave_nothing():
    machine = Machine(Scheduler(400, 4, max_sequences=1, token_budget=64))
    machine.add(machine.tokens(4), 100, client="busy")
    for _ in range(50):
        machine.step()
    machine.add(machine.tokens(4), 100, client="patient")
    for _ in range(2000):
        machine.scheduler.cancel(machine.add(machine.tokens(4), 10, client="busy"))
    (level,) = machine.scheduler._waiting._levels.values()
    assert level.served["busy"] > level.served["patient"]
    assert len(level.heap) < 600
