"""The training loop: resumption, layouts, objectives, the guard."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from train.toy import mixture, run, shards

from herder.train import NextToken
from herder.train.checkpoint import checkpoints
from herder.train.faults import Guard, GuardConfig
from herder.train.meter import read_metrics
from herder.train.objective import Loss, mean_log_loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "train"
    shards(path)
    return path


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


class Stopping(NextToken):
    """Stops the run, as a crash would, when it comes to a step."""

    def __init__(self, mixture, stop):
        super().__init__(mixture)
        self.stop = stop

    def batch(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return super().batch(step)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder, tmp_path, kind, dtype):
    whole, numbers = run(folder, tmp_path / "whole", kind=kind, dtype=dtype)
    objective = Stopping(mixture(folder), 7)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "cut", kind=kind, dtype=dtype, objective=objective, checkpoint_seconds=0)
    resumed, again = run(folder, tmp_path / "cut", kind=kind, dtype=dtype)
    assert same(whole, resumed)
    assert again["loss"] == numbers["loss"]
    assert [row["step"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == list(range(12))


KILLED = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from train.toy import run
    run(Path(sys.argv[1]), Path(sys.argv[2]), steps=40, checkpoint_seconds=0)
    (Path(sys.argv[2]) / "done").write_text("")
""")


@pytest.mark.long
def test_kill_9_at_random_moments_changes_nothing(folder, tmp_path):
    whole, _ = run(folder, tmp_path / "whole", steps=40)
    tests = os.path.dirname(os.path.dirname(__file__))
    rng, kills = random.Random(0), 0
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "cut"), tests]
    for _ in range(30):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        before = len(checkpoints(tmp_path / "cut" / "checkpoints"))
        while process.poll() is None and len(checkpoints(tmp_path / "cut" / "checkpoints")) == before == 0:
            time.sleep(0.01)
        time.sleep(2.2 + rng.random() * 0.8 if kills else rng.random() * 0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "cut" / "done").exists() or kills == 6:
            break
    assert kills > 0
    resumed, _ = run(folder, tmp_path / "cut", steps=40)
    assert same(whole, resumed)


PROCESSES = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from train.toy import run
    from herder import launch
    def job(folder, out):
        return run(folder, out / "together", dtype="float32")[1]
    if __name__ == "__main__":
        launch.run_local(job, (Path(sys.argv[1]), Path(sys.argv[2])), 2)
""")


def test_two_processes_learn_what_one_does(folder, tmp_path):
    """Sums over ranks, one division by the global weight: equal up to the order of additions."""
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    tests = os.path.dirname(os.path.dirname(__file__))
    subprocess.run([sys.executable, str(script), str(folder), str(tmp_path), tests], check=True, timeout=120)
    run(folder, tmp_path / "alone", dtype="float32")
    together, alone = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("together", "alone"))
    assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-5)
    for a, b in zip(together, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a["tokens"] == b["tokens"]


def test_the_loss_falls_on_text_that_can_be_learned(folder, tmp_path):
    run(folder, tmp_path, steps=60)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < sum(losses[:5]) - 3


def test_metrics_hold_rates_and_every_step_once(folder, tmp_path):
    run(folder, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(12))
    for name in ("tokens_per_second", "tflops", "mfu", "lr", "grad_norm"):
        assert all(row[name] > 0 for row in rows)
    assert rows[-1]["tokens"] == 12 * 4 * 32


def test_micro_batches_do_not_change_the_gradient(folder, tmp_path):
    """The valid tokens of micro-batches differ; a mean of means would show here."""
    from train.toy import TINY

    from herder.model import Llama
    from herder.train.optim import OptimConfig
    from herder.train.replica import Replica

    objective, norms = NextToken(mixture(folder)), []
    for size in (1, 3, 4):
        model = Llama(TINY).init_weights(0)
        replica = Replica(model, OptimConfig(), torch.float32, size)
        replica.gradients(objective, objective.batch(0))
        norms.append(replica.flat.clone())
    assert torch.allclose(norms[0], norms[1], atol=1e-6)
    assert torch.allclose(norms[0], norms[2], atol=1e-6)


class Poisoned(NextToken):
    """Some batches give a loss that is not finite: always, or only the first time."""

    def __init__(self, mixture, bad, transient=False):
        super().__init__(mixture)
        self.bad, self.transient, self.asked = bad, transient, 0

    def batch(self, step):
        from herder.train.data import data_step

        self.now = data_step(step, self.skips) in self.bad
        if self.now and self.transient:
            self.asked += 1
            self.now = self.asked == 1
        return super().batch(step)

    def loss(self, outputs, rows):
        loss = mean_log_loss(outputs, rows)
        return Loss(loss.sum * (float("nan") if self.now else 1.0), loss.weight)


def test_a_transient_fault_leaves_no_trace(folder, tmp_path):
    whole, _ = run(folder, tmp_path / "whole")
    faulty, numbers = run(folder, tmp_path / "faulty", objective=Poisoned(mixture(folder), {4}, transient=True))
    assert same(whole, faulty)
    assert numbers["skipped_batches"] == 0


def test_a_batch_that_stays_bad_is_skipped_recorded_and_skipped_on_resumption(folder, tmp_path, capsys):
    weights, numbers = run(folder, tmp_path / "a", objective=Poisoned(mixture(folder), {4}))
    assert numbers["skipped_batches"] == 1
    assert "batch 4 is skipped" in capsys.readouterr().err
    clean = NextToken(mixture(folder))
    clean.skips = (4,)
    assert same(weights, run(folder, tmp_path / "b", objective=clean)[0])


def test_nothing_but_bad_batches_ends_the_run_with_a_reason(folder, tmp_path):
    with pytest.raises(ValueError, match="lower the learning rate"):
        run(folder, tmp_path, objective=Poisoned(mixture(folder), range(1000)))


def test_the_guard_calls_a_jump_a_spike_and_a_slope_none():
    guard = Guard(GuardConfig(window=16))
    for i in range(30):
        assert guard.check(5 - 0.05 * i, 1.0) is None
        guard.accept(5 - 0.05 * i, 1.0)
    assert "above" in guard.check(9.0, 30.0)
    assert guard.check(9.0, 1.0) is None  # a hard batch with an ordinary gradient is only hard
    assert guard.check(float("inf"), 1.0) == "loss is not finite"
    assert guard.check(3.0, float("nan")) == "gradient is not finite"


def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(folder, tmp_path, capsys):
    whole, _ = run(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "cut", objective=Stopping(mixture(folder), 7), checkpoint_seconds=0)
    newest = checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    file = next(newest.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert same(whole, run(folder, tmp_path / "cut")[0])
    assert newest.name in capsys.readouterr().err


def test_metrics_after_the_checkpoint_are_cut_on_resumption(tmp_path):
    from herder.train.meter import Metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(5)) + '{"step"')
    Metrics(path, 3, []).close()
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
