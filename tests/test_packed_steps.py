"""Packed steps: small ones run beside each other in processes of one thread, and each keeps an artifact of its own."""

import os
import signal
from dataclasses import dataclass

import pytest

from herder import launch
from herder.config import runtime
from herder.steps import Step, execute, read_json


@dataclass(frozen=True)
class Config:
    text: str = "x"
    fault: str = runtime("")


@launch.packed
def small(config, inputs, out):
    if config.fault == "refuses":
        raise ValueError(f"{config.text} cannot be; take another")
    if config.fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "text").write_text("".join((p / "text").read_text() for p in inputs.values()) + config.text)
    return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}


def gather(config, inputs, out):
    (out / "text").write_text(" ".join(sorted((p / "text").read_text() for p in inputs.values())))
    return {}


def last(texts="abcd", **faults):
    points = {t: Step(f"1_sweep/{t}", small, Config(t, faults.get(t, ""))) for t in texts}
    return Step("2_end", gather, Config(), points)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    monkeypatch.setattr(launch, "local_processes", lambda: 2)


def record(root, step):
    return read_json(root / step.address / "step.json")


def test_steps_of_a_sweep_share_two_other_processes_and_keep_their_own_artifacts(tmp_path):
    end = last()
    run = execute("toy", Config(), [end], tmp_path)
    assert (tmp_path / end.address / "text").read_text() == "a b c d"
    records = [record(tmp_path, step) for step in end.inputs.values()]
    assert len({r["numbers"]["pid"] for r in records} - {os.getpid()}) == 2
    assert {r["numbers"]["threads"] for r in records} == {"1"}
    assert [row["name"] for row in read_json(run / "run.json")["steps"]][:2] == ["1_sweep/a", "1_sweep/b"]


def test_a_bigger_sweep_makes_what_is_missing_only(tmp_path, capsys):
    execute("toy", Config(), [last("ab")], tmp_path)
    before = record(tmp_path, last("ab").inputs["a"])
    execute("toy", Config(), [last("abcd")], tmp_path)
    assert record(tmp_path, last("abcd").inputs["a"]) == before
    assert capsys.readouterr().err.count("reused") == 2


def test_a_step_waits_for_the_packed_step_that_it_needs(tmp_path):
    first = Step("1_sweep/a", small, Config("a"))
    second = Step("1_sweep/b", small, Config("b"), {"first": first})
    third = Step("1_sweep/c", small, Config("c"), {"first": first})
    execute("toy", Config(), [Step("2_end", gather, Config(), {"b": second, "c": third})], tmp_path)
    assert (tmp_path / second.address / "text").read_text() == "ab"


def test_what_a_step_refuses_is_told_and_what_others_made_stays(tmp_path):
    end = last("abcd", c="refuses")
    with pytest.raises(ValueError, match="c cannot be; take another"):
        execute("toy", Config(), [end], tmp_path)
    made = [name for name, step in end.inputs.items() if (tmp_path / step.address).exists()]
    assert set(made) & {"a", "b"}  # c began when one of them was done
    assert "c" not in made
    execute("toy", Config(), [last("abcd")], tmp_path)  # the fault is gone: the rest is made


def test_a_killed_process_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="exit code -9"):
        execute("toy", Config(), [last("ab", b="dies")], tmp_path)
