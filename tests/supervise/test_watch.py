"""Heartbeats: what a rank writes, another process reads."""

import json
import os
import subprocess
import sys
import time

from herder.supervise import watch


def test_a_beat_tells_step_phase_and_limit_and_adds_up_the_time_of_phases(tmp_path):
    seen = watch.Watch(tmp_path, rank=3)
    seen.step(7, productive=1.5)
    seen.enter("compute", "step")
    time.sleep(0.05)
    seen.enter("communication")
    beat = watch.read_beats(tmp_path)[3]
    assert (beat["step"], beat["phase"], beat["limit"], beat["productive"]) == (7, "communication", "step", 1.5)
    assert beat["seconds"]["compute"] >= 0.05
    assert beat["window"] < beat["since"]  # the step's time-out goes on over its phases


def test_the_beat_shows_life_while_the_main_thread_does_nothing(tmp_path):
    watch.Watch(tmp_path, rank=0)
    before = watch.read_beats(tmp_path)[0]
    time.sleep(3 * watch._TICK)
    after = watch.read_beats(tmp_path)[0]
    assert after["alive"] > before["alive"]
    assert after["since"] == before["since"]


def test_a_beat_caught_while_it_is_written_is_not_read(tmp_path):
    beat = {"n": 8, "rank": 1, "step": 3, "m": 8}
    path = tmp_path / "rank-00001.beat"
    path.write_text(json.dumps(beat))
    assert watch.read_beats(tmp_path) == {1: beat}
    path.write_text(json.dumps(beat | {"m": 7}))
    assert watch.read_beats(tmp_path) == {}


def test_without_a_launcher_nothing_is_written_and_time_is_still_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(watch.FOLDER, raising=False)
    seen = watch.Watch()
    seen.enter("compute", "step")
    seen.enter("idle")
    seen.event("anything", text="x")
    assert not seen.refuse("no", 2)
    assert "compute" in seen.seconds
    assert list(tmp_path.iterdir()) == []


def test_events_are_lines_and_one_cut_short_is_left_out(tmp_path):
    seen = watch.Watch(tmp_path, rank=2)
    seen.event("loaded", at_step=40)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "cut')
    [event] = watch.read_events(tmp_path)
    assert (event["event"], event["at_step"], event["rank"]) == ("loaded", 40, 2)


PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; from herder.supervise import begin; begin(); time.sleep(60)"])
while not os.path.exists(os.environ["HERDER_WATCH"] + "/rank-00000.beat"): pass
print(child.pid, flush=True)
os._exit(0)
"""


def test_a_rank_whose_launcher_is_gone_ends(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        env={**os.environ, watch.FOLDER: str(tmp_path)},
        stdout=subprocess.PIPE,
        timeout=60,
    )
    pid, end = int(done.stdout), time.monotonic() + 20
    while time.monotonic() < end and os.path.exists(f"/proc/{pid}") and "Z" not in _state(pid):
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in _state(pid)


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
