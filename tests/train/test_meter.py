"""The meter against clocks and counts of its own: rates, waiting, restarts, collectives, energy."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from herder.model import SHAPES
from herder.train import meter as module
from herder.train.devices import CPU_WATTS, reported_gpu
from herder.train.meter import Meter

CONFIG = SHAPES["miniature"]
CPU = ("cpu", torch.float32)


def step(meter, seconds=0.05, **waits):
    meter.start_step()
    for what, wait in waits.items():
        with meter.waiting(what):
            time.sleep(wait)
    time.sleep(seconds)
    return meter.row(1000, 100.0)


def test_rates_follow_from_positions_and_time(tmp_path):
    row = step(Meter(CONFIG, *CPU, tmp_path), 0.1)
    assert row["seconds"] >= 0.1
    assert row["tokens_per_second"] == pytest.approx(1000 / row["seconds"])
    assert row["tflops"] == pytest.approx(CONFIG.flops_per_token(100.0) * 1000 / row["seconds"] / 1e12)
    assert row["mfu"] == pytest.approx(row["tflops"] * 1e12 / module.matmul_peak(*CPU))
    assert 0.01 < row["memory_gib"] < 100


def test_waiting_is_told_by_kind_and_outside_of_steps_too(tmp_path):
    meter = Meter(CONFIG, *CPU, tmp_path)
    row = step(meter, data=0.05, communication=0.1)
    with meter.waiting("checkpoint"):
        time.sleep(0.05)
    assert 0.05 <= row["data_wait"] <= row["seconds"] - 0.1
    assert row["communication_share"] == pytest.approx(0.1 / row["seconds"], rel=0.3)
    told = meter.headline()
    assert told["checkpoint_wait_seconds"] >= 0.05
    assert told["data_wait_share"] == pytest.approx(row["data_wait"] / row["seconds"])


def test_lost_steps_and_the_time_between_restarts_lower_effective_time(tmp_path):
    first = Meter(CONFIG, *CPU, tmp_path)
    step(first)
    checkpoint = json.loads(json.dumps(first.state()))
    step(first, 0.2)  # lost: the checkpoint is older
    first.headline()
    spent = json.loads((tmp_path / "clock.json").read_text())
    again = Meter(CONFIG, *CPU, tmp_path)
    again.load(checkpoint)
    row = step(again)
    assert row["seconds"] < 0.2
    assert row["effective_time"] < row["seconds"] / (row["seconds"] + 0.2) * 1.01
    assert again.energy_kwh * 3.6e6 > spent["joules"] >= 0.25 * CPU_WATTS


def test_a_clock_set_back_does_not_make_more_than_all_time_effective(tmp_path):
    (tmp_path / "clock.json").write_text(json.dumps({"started": time.time() + 1e6, "alive": 10.0, "joules": 0.0}))
    meter = Meter(CONFIG, *CPU, tmp_path)
    meter.load({"seconds": 5.0, "waits": meter.waits, "share": 0.0})
    assert step(meter)["effective_time"] == pytest.approx(0.5, abs=0.02)


def test_energy_and_carbon_follow_from_power_and_time(tmp_path):
    meter = Meter(CONFIG, *CPU, tmp_path, kg_per_kwh=0.5)
    row = step(meter, 0.1)
    told = meter.headline()
    assert row["energy_kwh"] == pytest.approx(CPU_WATTS * torch.get_num_threads() * row["seconds"] / 3.6e6, rel=0.3)
    assert told["carbon_kg"] == pytest.approx(0.5 * told["energy_kwh"])
    assert "assumed" in told["power"]


def test_only_devices_with_a_known_peak_are_recognised():
    assert reported_gpu("NVIDIA H100 80GB HBM3").bf16 == 989.4e12
    assert reported_gpu("NVIDIA H100 PCIe") is None


COLLECTIVES = textwrap.dedent("""
    import json, sys, time
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from herder import launch
    from herder.model import SHAPES
    from herder.train import meter as module
    module.FIRST_SAMPLE = 1

    def job(out):
        meter = module.Meter(SHAPES["miniature"], "cpu", torch.float32, out, sample=True)
        rows = []
        for step in range(3):
            dist.barrier()
            meter.start_step()
            there = out / f"first-rank-is-there-{step}"
            if launch.rank() == 0:
                time.sleep(0.1)
                there.touch()
            else:  # a straggler, however long the first rank's profiler took to start: that one waits inside the collective
                while not there.exists():
                    time.sleep(0.01)
                time.sleep(0.6)
            dist.all_reduce(torch.ones(1000))
            rows.append(meter.row(1000, 100.0))
        return rows

    if __name__ == "__main__":
        print(json.dumps([row["communication_share"] for row in launch.run_local(job, (Path(sys.argv[1]),), 2)]))
""")


def test_collectives_inside_a_step_are_found_and_timed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(COLLECTIVES)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    shares = json.loads(done.stdout)
    assert shares[0] == 0  # not sampled
    assert 0.1 < shares[1] < 0.95  # at least 0.6 seconds, beside 0.1 and the start of the profiler
    assert shares[2] == shares[1]
    assert "profiler_start" not in done.stderr
