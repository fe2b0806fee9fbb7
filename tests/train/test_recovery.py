"""Faults in a real run: what was transient leaves no trace, what stays is skipped or named."""

import gc
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from train.toy import mixture, run, shards

from herder.supervise import BrokenDevice
from herder.train import NextToken
from herder.train.checkpoint import Checkpoints
from herder.train.faults import FaultConfig
from herder.train.meter import Metrics, read_metrics
from herder.train.objective import Loss, mean_log_loss
from herder.train.replica import Replica


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "train"
    shards(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    return run(folder, tmp_path_factory.mktemp("undisturbed"))[0]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


class Disturbed(NextToken):
    """Calls `fault(step, time)` at the beginning of a step's computation; `time` counts the computations of that step."""

    def __init__(self, mixture, fault):
        super().__init__(mixture)
        self.fault, self.times = fault, {}

    def batch(self, step):
        self.times[step] = self.times.get(step, 0) + 1
        self.now = self.fault(step, self.times[step])
        return super().batch(step)

    def loss(self, outputs, rows):
        loss = mean_log_loss(outputs, rows)
        return Loss(loss.sum * (1.0 if self.now is None else self.now), loss.weight)


def flip(slot):
    """Flips a bit of the run's own state, as a cosmic ray would."""
    replica = next(o for o in gc.get_objects() if type(o) is Replica and not getattr(o, "dead", False))
    tensor = next(t for name, t in replica.state().items() if name.startswith(slot) and t.numel() > 1)
    tensor.view(torch.int32).flatten()[3] ^= 1 << 20


@pytest.mark.parametrize("slot", ["master/", "optim/"])
def test_a_flipped_bit_is_named_and_leaves_no_trace(folder, tmp_path, capsys, undisturbed, slot):
    gc.collect()
    objective = Disturbed(mixture(folder), lambda step, time: flip(slot) if (step, time) == (6, 1) else None)
    weights, _ = run(folder, tmp_path, objective=objective)
    said = capsys.readouterr().err
    assert f"rank 0: {slot}" in said
    assert "back from step 7 to 0" in said
    assert same(weights, undisturbed)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(12))


def test_the_same_bit_without_the_watch_changes_the_result(folder, tmp_path, undisturbed):
    gc.collect()
    objective = Disturbed(mixture(folder), lambda step, time: flip("master/") if (step, time) == (6, 1) else None)
    weights, _ = run(folder, tmp_path, objective=objective, faults=FaultConfig(at_rest=False))
    assert not same(weights, undisturbed)


def test_a_device_found_wrong_twice_stops_the_run(folder, tmp_path):
    gc.collect()
    objective = Disturbed(mixture(folder), lambda step, time: flip("optim/") if step == 6 else None)
    with pytest.raises(BrokenDevice, match=r"the device of rank 0 on .* computes wrongly"):
        run(folder, tmp_path, objective=objective)


def test_a_fault_that_outlives_the_second_computation_but_not_the_replay_is_not_skipped(
    folder, tmp_path, capsys, undisturbed
):
    objective = Disturbed(mixture(folder), lambda step, time: float("nan") if step == 5 and time <= 2 else None)
    weights, numbers = run(folder, tmp_path, objective=objective, checkpoint_seconds=0)
    assert "back from step 5 to 5" in capsys.readouterr().err  # a checkpoint after every step
    assert numbers["skipped_batches"] == 0
    assert same(weights, undisturbed)


def test_a_wrong_step_is_caught_by_computing_it_twice(folder, tmp_path, capsys, undisturbed):
    """1.001 times the loss: finite, no spike, and without a second look in the weights for ever."""
    wrong = Disturbed(mixture(folder), lambda step, time: 1.001 if (step, time) == (7, 1) else None)
    weights, _ = run(folder, tmp_path / "seen", objective=wrong, faults=FaultConfig(rerun_every=4))
    assert "rank 0: step 7 computed twice gave other bits" in capsys.readouterr().err
    assert same(weights, undisturbed)
    wrong = Disturbed(mixture(folder), lambda step, time: 1.001 if (step, time) == (7, 1) else None)
    weights, _ = run(folder, tmp_path / "unseen", objective=wrong)
    assert not same(weights, undisturbed)


def test_a_device_that_never_gives_the_same_bits_is_broken(folder, tmp_path):
    wrong = Disturbed(mixture(folder), lambda step, time: 1 + time / 1000 if step == 7 else None)
    with pytest.raises(BrokenDevice, match="step 7 computed twice gave other bits"):
        run(folder, tmp_path, objective=wrong, faults=FaultConfig(rerun_every=4))


def test_a_second_look_changes_nothing_in_a_sound_run(folder, tmp_path, undisturbed):
    assert same(run(folder, tmp_path, faults=FaultConfig(rerun_every=1))[0], undisturbed)


def test_a_full_disk_stops_the_saving_and_not_the_training(folder, tmp_path, capsys, monkeypatch, undisturbed):
    real, full = Checkpoints.save, lambda step: 3 <= step <= 9

    def save(self, step, tensors, facts):
        if full(step):
            raise OSError(28, os.strerror(28), str(self.folder))
        return real(self, step, tensors, facts)

    monkeypatch.setattr(Checkpoints, "save", save)
    weights, _ = run(folder, tmp_path / "on", checkpoint_seconds=0)
    assert (
        "step 3: a checkpoint could not be written (No space left on device); training goes on"
        in capsys.readouterr().err
    )
    assert same(weights, undisturbed)
    with pytest.raises(OSError, match="No space"):
        run(folder, tmp_path / "off", checkpoint_seconds=0, faults=FaultConfig(stop_when_full=True))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", 0, [])
    metrics.write({"step": 0})
    room, metrics.file = metrics.file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    metrics.write({"step": 1})
    metrics.file.close()
    metrics.file = room
    metrics.write({"step": 2})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]


COPIES = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from train.toy import mixture, run, shards
    from train.test_recovery import Disturbed, flip
    from herder import launch
    from herder.train.faults import FaultConfig
    def job(folder, out):
        bad = lambda step, time: flip("optim/") if launch.rank() == 1 and (step, time) == (6, 1) else None
        faults = FaultConfig(at_rest=False, replicas_every=4)
        shards(folder)
        for name, fault in (("sound", lambda step, time: None), ("bad", bad)):
            objective = Disturbed(mixture(folder), fault)
            weights, _ = run(folder, out / name, dtype="float32", objective=objective, faults=faults)
            if launch.rank() == 0:
                import torch
                from safetensors.torch import save_file
                save_file(weights, out / f"{name}.safetensors")
    if __name__ == "__main__":
        launch.run_local(job, (Path(sys.argv[1]), Path(sys.argv[2])), 3)
""")


@pytest.mark.long
def test_a_copy_that_differs_from_the_others_is_named_and_replayed(folder, tmp_path):
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(COPIES)
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, str(script), str(folder), str(tmp_path), tests]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    assert "rank 1: its copy of" in done.stderr
    assert "rank 0: its copy" not in done.stderr
    assert "back from step 8 to" in done.stderr
    assert same(load_file(tmp_path / "sound.safetensors"), load_file(tmp_path / "bad.safetensors"))
