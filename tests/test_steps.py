"""Steps: addresses, reuse, resumption, locks, and what is said about artifacts."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace

import pytest

from herder import steps
from herder.config import runtime
from herder.records import Measure
from herder.steps import Step, execute, find_artifact, find_run, lineage, ordered, read_json


@dataclass(frozen=True)
class Config:
    text: str = "x"
    workers: int = runtime(1)


def write(config, inputs, out):
    (out / "text").write_text("".join((p / "text").read_text() for p in inputs.values()) + config.text)
    return {"length": len(config.text), "share": Measure.share(1, 4)}


def graph(first="a", second="b"):
    one = Step("1_one/write", write, Config(first))
    return Step("2_two/write", write, Config(second), {"one": one})


def test_an_address_follows_identity_and_inputs_and_nothing_else():
    assert graph().address == graph().address
    assert graph().address.startswith("2_two/write-")
    assert graph(first="c").address != graph().address
    assert replace(graph(), version=2).address != graph().address
    assert replace(graph(), config=Config("b", workers=9)).address == graph().address


def test_each_step_runs_once_inputs_first():
    shared = Step("1_one/write", write, Config())
    left, right = (Step(f"2_{n}", write, Config(n), {"one": shared}) for n in "ab")
    last = Step("3_end", write, Config(), {"l": left, "r": right})
    assert [s.name for s in ordered([last])] == ["1_one/write", "2_a", "2_b", "3_end"]


def test_a_second_run_reuses_and_says_so(tmp_path, capsys):
    run = execute("toy", Config(), [graph()], tmp_path)
    assert not any(row["reused"] for row in read_json(run / "run.json")["steps"])
    assert "reused" not in capsys.readouterr().err
    again = execute("toy", Config(), [graph()], tmp_path)
    assert again == run
    assert all(row["reused"] for row in read_json(run / "run.json")["steps"])
    assert capsys.readouterr().err.count("reused") == 2


def test_a_changed_field_makes_only_what_depends_on_it(tmp_path):
    execute("toy", Config(), [graph()], tmp_path)
    run = execute("toy", Config(), [graph(second="z")], tmp_path)
    assert [row["reused"] for row in read_json(run / "run.json")["steps"]] == [True, False]
    assert (tmp_path / graph(second="z").address / "text").read_text() == "az"


def test_step_json_records_what_was_made(tmp_path):
    execute("toy", Config(), [graph()], tmp_path)
    record = read_json(tmp_path / graph().address / "step.json")
    assert record["identity"] == {"text": "b", "type": "Config"}
    assert record["runtime"] == {"workers": 1}
    assert record["inputs"] == {"one": graph().inputs["one"].address}
    assert record["numbers"]["share"]["n"] == 4
    assert record["seconds"] >= 0
    assert record["source_hash"]


def test_a_failed_step_leaves_no_artifact_and_continues_from_its_part(tmp_path):
    def fragile(config, inputs, out):
        if not (out / "half").exists():
            (out / "half").write_text("done")
            raise OSError(28, "No space left on device")
        return {"found": (out / "half").read_text()}

    step = Step("1_fragile", fragile, Config())
    with pytest.raises(OSError, match="No space"):
        execute("toy", Config(), [step], tmp_path)
    assert not (tmp_path / step.address).exists()
    execute("toy", Config(), [step], tmp_path)
    assert read_json(tmp_path / step.address / "step.json")["numbers"] == {"found": "done"}


def test_a_stopped_second_run_does_not_make_the_run_look_shorter(tmp_path, monkeypatch):
    run = execute("toy", Config(), [graph()], tmp_path)
    monkeypatch.setattr(steps, "_drift", lambda step, record: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute("toy", Config(), [graph()], tmp_path)
    assert len(read_json(run / "run.json")["steps"]) == 2


def test_what_a_step_continued_from_goes_once_it_is_whole(tmp_path):
    def trains(config, inputs, out):
        (out / "checkpoints").mkdir()
        (out / "model").write_text("weights")
        return {}

    step = Step("1_trains", trains, Config())
    execute("toy", Config(), [step], tmp_path)
    assert not (tmp_path / step.address / "checkpoints").exists()
    assert (tmp_path / step.address / "model").exists()


def test_until_stops_at_a_step_and_an_unknown_one_is_named(tmp_path):
    run = execute("toy", Config(), [graph()], tmp_path, until="1_one")
    assert [row["name"] for row in read_json(run / "run.json")["steps"]] == ["1_one/write"]
    with pytest.raises(ValueError, match="1_one/write, 2_two/write"):
        execute("toy", Config(), [graph()], tmp_path, until="9_none")


def test_changed_code_is_reported_not_hashed(tmp_path, capsys, monkeypatch):
    execute("toy", Config(), [graph()], tmp_path)
    monkeypatch.setattr(steps, "source_hash", lambda function: "other")
    execute("toy", Config(), [graph()], tmp_path)
    assert "has changed since" in capsys.readouterr().err


def test_a_run_directory_of_another_format_is_refused(tmp_path):
    (tmp_path / "herder.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        execute("toy", Config(), [graph()], tmp_path)


SLOW = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from herder.steps import Step, execute
    def run(config, inputs, out):
        (out / "started").write_text("")
        time.sleep(60)
        return {}
    execute("slow", None, [Step("1_slow", run, None)], Path(sys.argv[1]))
""")


def test_two_processes_are_told_apart_and_a_killed_one_frees_the_lock(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        step = Step("1_slow", write, None)
        while not list(tmp_path.glob("1_slow-*.part/started")):
            time.sleep(0.05)
        with pytest.raises(ValueError, match=f"another herder process \\(pid {first.pid}"):
            execute("slow", None, [step], tmp_path)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    config = Config("after")
    execute("slow", None, [replace(step, config=config)], tmp_path)
    with steps._locked(tmp_path, tmp_path / step.address):
        pass


def test_lineage_and_differences_are_told(tmp_path):
    execute("toy", Config(), [graph()], tmp_path)
    execute("toy", Config(), [graph(second="z")], tmp_path)
    folder = tmp_path / graph(second="z").address
    assert [(d, r["name"]) for d, r in lineage(tmp_path, folder)] == [(0, "2_two/write"), (1, "1_one/write")]
    sibling, fields = steps.why(tmp_path, folder)
    assert sibling == graph().address
    assert fields == [("config.text", "z", "b")]
    assert steps.why(tmp_path, tmp_path / graph().inputs["one"].address) is None


def test_artifacts_and_runs_are_found_by_short_names(tmp_path):
    run = execute("toy", Config(), [graph()], tmp_path)
    assert find_artifact(tmp_path, "2_two") == tmp_path / graph().address
    assert find_run(tmp_path, "toy") == run
    with pytest.raises(ValueError, match="runs there: toy-"):
        find_run(tmp_path, "nothing")
    with pytest.raises(ValueError, match="names no finished step"):
        find_artifact(tmp_path, "7_x")


def test_a_damaged_step_json_is_named(tmp_path):
    execute("toy", Config(), [graph()], tmp_path)
    (tmp_path / graph().address / "step.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        execute("toy", Config(), [graph()], tmp_path)


TORCHRUN = textwrap.dedent("""
    import sys
    from pathlib import Path
    from herder import launch
    from herder.steps import Step, execute
    def alone(config, inputs, out):
        (out / f"rank{launch.rank()}").write_text("")
        return {}
    @launch.distributed
    def together(config, inputs, out):
        import torch, torch.distributed as dist
        assert (inputs["alone"] / "rank0").exists()
        x = torch.ones(1)
        dist.all_reduce(x)
        (out / f"rank{launch.rank()}").write_text("")
        dist.barrier()
        return {"sum": float(x)}
    one = Step("1_alone", alone, None)
    execute("ranks", None, [Step("2_together", together, None, {"alone": one})], Path(sys.argv[1]))
""")


def test_under_torchrun_rank_0_records_what_all_ranks_computed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    alone, together = find_artifact(tmp_path, "1_alone"), find_artifact(tmp_path, "2_together")
    assert sorted(p.name for p in alone.glob("rank*")) == ["rank0"]
    assert sorted(p.name for p in together.glob("rank*")) == ["rank0", "rank1"]
    assert read_json(together / "step.json")["numbers"] == {"sum": 2.0}
