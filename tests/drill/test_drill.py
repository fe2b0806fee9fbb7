"""The drill: its plan, its bookkeeping, and one short run with faults injected for real."""

import json
from dataclasses import replace

import pytest
import torch

from herder.drill import FAULTS, Drill, drill, prepared, table
from herder.drill.run import outcome, plan, same_bits
from herder.drill.worker import ROWS, SHAPE, Rule
from herder.train.checkpoint import save_checkpoint


def test_faults_strike_in_order_after_a_quarter_of_the_run_and_follow_the_seed():
    config = Drill(together=True)
    plans = plan(config, FAULTS)
    steps = [p["step"] for p in plans]
    assert steps == sorted(steps)
    assert config.steps / 4 <= steps[0]
    assert steps[-1] < config.steps
    assert all(0 <= p["rank"] < config.nproc for p in plans)
    assert plan(config, FAULTS) == plans
    assert plan(replace(config, seed=1), FAULTS) != plans


def events(*rows):
    return [{"event": kind, "time": time, **facts} for kind, time, facts in rows]


def test_an_outcome_is_read_from_the_log_between_a_fault_and_the_next():
    kill = {"fault": "kill", "step": 20, "ranks": [3], "time": 100.0}
    flip = {"fault": "flip", "step": 40, "ranks": [1], "time": 200.0}
    log = events(
        ("death", 100.5, {"ranks": [3], "at_step": 21, "text": "rank 3 died"}),
        ("loaded", 110.0, {"at_step": 16}),
        ("corrupt", 200.25, {"ranks": [2], "step": 40, "text": "rank 2: ..."}),
        ("loaded", 201.0, {"at_step": 36}),
    )
    row = outcome(kill, log, [kill, flip])
    assert (row["detected"], row["named"], row["seconds"], row["steps_lost"]) == (True, True, 0.5, 5)
    row = outcome(flip, log, [kill, flip])
    assert (row["detected"], row["named"], row["seconds"], row["steps_lost"]) == (True, False, 0.25, 4)


def test_what_the_log_does_not_show_was_not_seen():
    slow = {"fault": "slow", "step": 20, "ranks": [3], "time": 100.0}
    row = outcome(slow, events(("slow", 99.0, {"ranks": [3], "text": ""})), [slow])
    assert (row["detected"], row["named"], row["seconds"]) == (False, False, None)


def test_one_bit_of_one_tensor_is_a_difference(tmp_path):
    tensors = {"master/a": torch.zeros(3), "optim/step/a": torch.tensor(1.0)}
    save_checkpoint(tmp_path / "a", tensors, {})
    save_checkpoint(tmp_path / "b", {name: t.clone() for name, t in tensors.items()}, {})
    save_checkpoint(tmp_path / "c", tensors | {"master/a": torch.tensor([0.0, -0.0, 0.0])}, {})
    assert same_bits(tmp_path / "a", tmp_path / "b")
    assert not same_bits(tmp_path / "a", tmp_path / "c")


def test_the_victims_rows_are_a_function_of_the_step_alone(tmp_path):
    one, other = (Rule(50, 0, [], tmp_path) for _ in range(2))
    assert one.batch(7) == other.batch(7) != one.batch(8)
    other.skips = (3,)
    assert other.batch(7) == one.batch(8)
    rows = one.rows(one.batch(7))
    assert rows.tokens.shape[0] == ROWS
    assert torch.equal(rows.tokens[:, 1:], rows.targets[:, :-1])
    assert int(rows.tokens.max()) < SHAPE.vocab_size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"faults": ("fire",)}, "'fire' is not known"),
        ({"steps": 10}, "at least 40"),
        ({"layout": "tp=3"}, "does not divide the 8 processes"),
        ({"layout": "tp"}, "has no '='"),
    ],
)
def test_a_drill_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        prepared(**change)


@pytest.mark.long
def test_a_short_drill_sees_every_fault_and_loses_nothing(tmp_path):
    """Four ranks that cut the matrices in two and shard the state; the benchmark runs eight with whole copies."""
    config = prepared(short=True, nproc=4, faults=("kill", "flip", "hang"), layout="tp=2,shard=2", steps=60)
    result = drill(config, tmp_path)
    assert [row["fault"] for row in result["faults"]] == ["kill", "flip", "hang"]
    for row in result["faults"]:
        assert row["detected"], row
        assert row["named"], row
        assert row["equal"], row
    assert json.loads((tmp_path / "drill.json").read_text()) == json.loads(json.dumps(result))
    assert "| kill |" in table(result)
