"""Judging bad steps and finding corruption: pure functions on numbers and bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herder.train.faults import BAD_BATCHES, Course, Damage, FaultConfig, Seal, Strikes, fingerprint, outvoted, verdict


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]),
    size=st.integers(1, 33),
    start=st.integers(0, 3),
    data=st.data(),
)
def test_any_single_flipped_bit_changes_the_fingerprint(dtype, size, start, data):
    whole = (torch.arange(size + start) * 37 % 101).to(dtype)
    tensor = whole[start:]  # also views that begin at an odd place
    [before] = fingerprint([tensor])
    octets = tensor.contiguous().view(torch.uint8).clone()
    place = data.draw(st.integers(0, octets.numel() - 1))
    octets[place] ^= 1 << data.draw(st.integers(0, 7))
    assert fingerprint([octets.view(dtype)]) != [before]
    assert fingerprint([tensor.clone()]) == [before]


def test_the_fingerprint_takes_scalars_and_strided_tensors():
    table = torch.arange(12.0).view(3, 4)
    assert fingerprint([table.t(), torch.tensor(2.0)]) == fingerprint([table.t().contiguous(), torch.tensor(2.0)])


def test_a_seal_names_the_tensor_that_changed_and_only_that():
    state, seal = {"a": torch.ones(8), "b": torch.zeros(3, 3)}, Seal()
    assert seal.opened(state) == []
    seal.close(state)
    assert seal.opened(state) == []
    state["b"][1, 2] = -0.0  # one bit, and equal to 0 for any comparison of numbers
    assert seal.opened(state) == ["b"]
    seal.forget()
    assert seal.opened(state) == []


def test_a_bad_step_is_computed_again_then_replayed_then_skipped():
    course = Course()
    assert course.judge(5, (), 0, "nan") == "again"
    assert course.judge(5, (), 1, "nan") == "rewind"
    assert course.judge(5, (), 0, "nan") == "again"  # on replay
    assert course.judge(5, (), 1, "nan") == "skip"
    assert course.judge(5, (5,), 0, "nan") == "again"  # the next batch in its place
    assert course.judge(5, (5,), 1, "nan") == "rewind"


def test_many_bad_batches_in_a_row_end_the_run():
    course, skips = Course(), tuple(range(7, 7 + BAD_BATCHES - 1))
    assert course.judge(7, skips, 1, "nan") == "rewind"
    with pytest.raises(ValueError, match="lower the learning rate"):
        course.judge(7, skips, 1, "nan")


def test_the_minority_of_copies_is_wrong_and_of_two_nobody_is_sure():
    assert outvoted({0: [1, 2], 4: [1, 2]}, ["a", "b"]) == []
    assert outvoted({0: [1, 2], 4: [1, 3], 8: [1, 2]}, ["a", "b"]) == [Damage(4, "its copy of b differs")]
    pair = outvoted({0: [1], 4: [2]}, ["a"])
    assert [(d.rank, d.sure) for d in pair] == [(0, False), (4, False)]


def test_a_transient_fault_is_told_from_a_broken_device():
    sound = [[10, 11], [20, 21], [30, 31]]
    once = [[10, 11], [99, 21], [30, 31]]
    other = [[10, 11], [98, 21], [30, 31]]
    assert verdict(once, sound, sound) == ([1], False)
    assert verdict(sound, once, other) == ([1], True)
    assert verdict(sound, once, sound) == ([1], True)  # three takes, three answers or two: it does not repeat itself
    assert verdict(sound, sound, sound) == ([], False)


def test_two_findings_on_one_rank_within_the_window_make_a_broken_device():
    strikes = Strikes(FaultConfig(strikes=2, strike_steps=100))
    assert not strikes.add(3, 10)
    assert not strikes.add(4, 20)
    assert not strikes.add(3, 200)  # the first is long past
    assert strikes.add(3, 250)
