"""The launcher over real processes: deaths, hangs, late ranks, refusals; each told with its rank, and what follows."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from herder.supervise.agent import Launch, read_summary
from herder.supervise.watch import read_events

LAUNCH = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from herder.supervise.agent import Launch, launch
    options = json.loads(sys.argv[1])
    sys.exit(launch(Launch(**options | {"log": Path(options["log"])}), sys.argv[2:]))
""")
TRAINING = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from herder import launch, supervise
out, rank = Path(sys.argv[1]), launch.rank()
first = not (out / f"was-here-{rank}").exists()
(out / f"was-here-{rank}").write_text("")
BEFORE
with launch.group(out):
    seen, saved = supervise.begin(), out / "saved"
    begin = int(saved.read_text()) if saved.exists() else 0
    for step in range(begin, 12):
        seen.step(step, productive=0.1 * step)
        seen.enter("compute", "step")
        DURING
        dist.all_reduce(torch.ones(3))
        if rank == 0 and step % 4 == 3:
            saved.write_text(str(step + 1))
    seen.enter("idle", "")
    (out / f"done-{rank}").write_text(str(begin))
"""


def launched(tmp_path, program, before="pass", during="pass", **options):
    """Exit code, events and what was printed of a launch of two ranks of `program`."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program).replace("BEFORE", before).replace("DURING", during))
    options = {"nproc": 2, "start_timeout": 120.0, "step_timeout": 60.0, "log": str(tmp_path / "log"), **options}
    command = [sys.executable, "-c", LAUNCH, json.dumps(options), str(script), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return done.returncode, read_events(tmp_path / "log"), done.stderr


def of(events, kind):
    return [e for e in events if e["event"] == kind]


@pytest.mark.long
def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    code, events, _ = launched(
        tmp_path, TRAINING, during="if first and rank == 1 and step == 6: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert code == 0
    [death] = of(events, "death")
    assert death["ranks"] == [1]
    assert "rank 1 died (SIGKILL) in step 6, phase compute" in death["text"]
    assert (tmp_path / "done-0").read_text() == (tmp_path / "done-1").read_text() == "4"
    summary = read_summary(tmp_path / "log")
    assert (summary["starts"], summary["last_step"]) == (2, 11)
    assert 0 < summary["effective"] < 1


@pytest.mark.long
def test_a_stopped_rank_is_named_with_the_collective_that_it_never_joined(tmp_path):
    code, events, _ = launched(
        tmp_path,
        TRAINING,
        during="if first and rank == 1 and step == 6: os.kill(os.getpid(), signal.SIGSTOP)",
        step_timeout=3.0,
    )
    assert code == 0
    [hang] = of(events, "hang")
    assert hang["ranks"] == [1]
    for part in (
        "rank 1 never joined all_reduce #",
        "of group world",
        "step 6, phase compute",
        "its process is stopped",
    ):
        assert part in hang["text"]
    report = json.loads((tmp_path / "log/hang-1/report.json").read_text())
    assert report["missing"][0]["waiting"] == [0]


@pytest.mark.long
def test_a_late_rank_is_waited_for_and_named_and_a_clock_that_differs_is_only_told(tmp_path):
    before = "if rank == 1: time.sleep(20); wall = time.time; time.time = lambda: wall() + 3600"
    code, events, _ = launched(tmp_path, TRAINING, before=before, start_timeout=60.0)
    assert code == 0
    waiting = of(events, "waiting")
    assert any("rank 1 (phase start" in e["text"] for e in waiting)
    assert of(events, "late") == []
    [clock] = of(events, "clock")
    assert clock["rank"] == 1
    assert "+3600" in clock["text"]


@pytest.mark.long
def test_a_rank_that_never_starts_is_given_up_and_named(tmp_path):
    code, events, _ = launched(tmp_path, TRAINING, before="if first and rank == 1: time.sleep(600)", start_timeout=15.0)
    assert code == 0
    [late] = of(events, "late")
    assert late["ranks"] == [1]
    assert "not ready within 15 s of the start: rank 1 (phase start" in late["text"]


REFUSING = """
from herder.supervise import begin, USER_ERROR
import sys, time
begin().refuse("steps is -1; it must be at least 1", USER_ERROR)
time.sleep(60)
"""


def test_what_the_user_must_mend_is_said_once_and_not_tried_again(tmp_path):
    code, events, printed = launched(tmp_path, REFUSING)
    assert code == 2
    assert printed.count("steps is -1; it must be at least 1") == 1
    assert len(of(events, "refused")) == 1
    assert read_summary(tmp_path / "log")["starts"] == 1


FAILING = """
import os
from herder.supervise import begin
begin()
open(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"start-{os.getpid()}"), "w").close()
raise RuntimeError("no such device")
"""


def test_a_program_that_gets_nowhere_is_given_up_after_the_restarts(tmp_path):
    code, events, printed = launched(tmp_path, FAILING, nproc=1, restarts=1)
    assert code == 1
    assert len(list(tmp_path.glob("start-*"))) == 2
    assert "not restarted: 2 times in a row without a new step" in printed
    assert of(events, "error")[0]["error"] == "RuntimeError: no such device"


SICK = """
import sys
from pathlib import Path
from herder import launch
from herder.supervise import health
if launch.rank() == 1:
    health.arithmetic = lambda device: "7 of 65536 elements of a float32 matrix product are wrong on cpu"
with launch.group(Path(sys.argv[1])):
    pass
"""


@pytest.mark.long
def test_a_device_that_computes_wrongly_does_not_join_and_its_node_is_to_be_replaced(tmp_path):
    code, events, printed = launched(tmp_path, SICK)
    assert code == 76
    assert "must be replaced: rank 1 does not join: 7 of 65536 elements" in printed
    assert (tmp_path / "log/broken-hosts").read_text().strip() == of(events, "refused")[0]["host"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": "two"}, "neither a number"),
        ({"nodes": "4:2", "rdzv": "a:1"}, "MIN <= MAX"),
        ({"nodes": "2"}, "--rdzv HOST:PORT"),
        ({"nproc": 0}, "--nproc is 0"),
        ({"step_timeout": 0.0}, "--step-timeout is 0.0"),
        ({"restarts": -1}, "--restarts is -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Launch(**options)


def test_a_folder_without_a_summary_is_named():
    with pytest.raises(ValueError, match=r"no launch\.json"):
        read_summary(Path("nowhere"))
