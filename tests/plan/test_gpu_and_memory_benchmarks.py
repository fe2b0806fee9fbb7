"""The scripts that measure speed on a GPU and memory on ranks, run small: what they write, and that the plan's memory holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name, *arguments, out):
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.long
def test_memory_of_layouts_is_planned_within_a_tenth_of_what_is_measured(tmp_path):
    """Three of the ten that the script measures: FSDP, context parallelism with recomputation, interleaving with TP."""
    rows = run("memory.py", "--only", "1", "5", "8", out=tmp_path / "memory.json")["layouts"]
    assert len(rows) == 3
    for row in rows:
        assert row["planned"] == pytest.approx(row["measured"], rel=0.1), row["layout"]


@pytest.mark.long
def test_the_speed_of_one_device_is_measured_through_the_trainer_and_profiled(tmp_path):
    found = run("gpu.py", "--tiny", out=tmp_path / "gpu.json")["variants"]
    plain = found["bf16"]
    assert plain["tokens_per_second"] > 0
    assert plain["mfu"] > 0
    assert sum(plain["profile"]["shares"].values()) == pytest.approx(1, abs=0.01)
    assert plain["profile"]["shares"]["matrix products"] > 0
    assert plain["profile"]["longest"]
    assert set(found) == {"bf16", "bf16, compiled", "fp8, compiled"}
