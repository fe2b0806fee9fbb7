"""Runs the drill: an undisturbed run, then the same run with faults at random (seeded) moments, under `herder launch`.

The one design decision: faults come from outside by process id (SIGKILL, SIGSTOP, a file cut short, a full file system) while
the run is where a heartbeat says it is, and what came of them is read from the launcher's log. Nothing is assumed: detection
time is between two readings of one clock, and equality is of every bit of the final weights and moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from herder.config import digest, override
from herder.drill.inject import Injector, Small
from herder.steps import machine
from herder.supervise.agent import Launch, launch, read_summary
from herder.supervise.watch import read_events
from herder.train import Layout
from herder.train.checkpoint import Saved

FAULTS = ("kill", "hang", "slow", "flip", "truncate", "full")
SHORT = ("kill", "hang", "flip")
DETECTED = {
    "kill": ("death",),
    "hang": ("hang",),
    "slow": ("slow",),
    "flip": ("corrupt",),
    "truncate": ("checkpoint",),
    "full": ("storage",),
}
"""Events of the launcher's log that count as having seen a fault."""
MEANS = {
    "death": "exit of the process",
    "hang": "heartbeats, flight recorder",
    "slow": "arrival in collectives",
    "corrupt": "sums over the state's bits",
    "checkpoint": "checksums on load",
    "storage": "error of the write",
}


@dataclass(frozen=True)
class Drill:
    """`together`: all faults in one run, one after the other; else one run each."""

    faults: tuple[str, ...] = FAULTS
    nproc: int = 8
    layout: Layout = field(default_factory=lambda: Layout(micro_batch=1, shard=1))
    steps: int = 240
    together: bool = False
    seed: int = 0
    step_timeout: float = 8.0
    checkpoint_seconds: float = 2.0
    replicas_every: int = 20
    rerun_every: int = 0

    def __post_init__(self):
        for fault in self.faults:
            if fault not in FAULTS:
                raise ValueError(f"fault {fault!r} is not known; faults are {', '.join(FAULTS)}")
        if self.steps < 40:
            raise ValueError(f"steps is {self.steps}; a drill needs at least 40 for its faults to find a checkpoint")
        self.layout.on(self.nproc)


def drill(config: Drill, out: Path) -> dict:
    """Runs everything in `out` and returns the results, which also lie there as `drill.json`. Called in the main thread.

    Raises ValueError where the undisturbed run fails, which is no drill's fault.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    base = _run(config, (), out / "undisturbed")
    if base["code"]:
        raise ValueError(f"the undisturbed run ended with code {base['code']}; see {out / 'undisturbed'}")
    rows, runs = [], [base]
    for faults in [config.faults] if config.together else [(fault,) for fault in config.faults]:
        found = _run(config, faults, out / "-".join(faults))
        equal = not found["code"] and same_bits(out / "undisturbed/final", Path(found["out"]) / "final")
        found["equal"] = equal
        rows += [{**row, "effective": found["effective"], "equal": equal} for row in found.pop("rows")]
        runs.append(found)
        shutil.rmtree(found["out"], ignore_errors=True)
    result = {
        "config": {**asdict(config), "layout": str(config.layout.on(config.nproc))},
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.monotonic() - start, 1),
        "undisturbed": base,
        "faults": rows,
        "runs": runs[1:],
    }
    part = out / "drill.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, out / "drill.json")
    return result


def _run(config: Drill, faults: tuple[str, ...], out: Path) -> dict:
    shutil.rmtree(out, ignore_errors=True)
    plans = plan(config, faults)
    log, work = out.with_name(out.name + ".log"), out
    out.mkdir(parents=True)
    small = None
    if "full" in faults:
        small = Small(out)
        if not small.mounted:
            row = {"fault": "full", "detected": False, "not_run": small.why}
            return {"out": str(out), "code": 0, "effective": None, "rows": [row], "equal": None}
    beats = Path(tempfile.mkdtemp(prefix="herder-drill-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    spec = {
        "out": str(work),
        "steps": config.steps,
        "seed": config.seed,
        "layout": asdict(config.layout),
        "checkpoint_seconds": config.checkpoint_seconds,
        "replicas_every": config.replicas_every,
        "rerun_every": config.rerun_every,
        "flips": [p for p in plans if p["fault"] == "flip"],
    }
    (beats / "spec.json").write_text(json.dumps(spec))
    injector = Injector(beats, work / "checkpoints", [p for p in plans if p["fault"] != "flip"], small)
    launched = Launch(
        nproc=config.nproc,
        name=f"drill-{digest(spec)}",
        start_timeout=300.0,
        step_timeout=config.step_timeout,
        report_every=2.0 if "slow" in faults else 0.0,
        log=log,
    )
    shutil.rmtree(log, ignore_errors=True)
    try:
        injector.start()
        program = ["-m", "herder.drill.worker", str(beats / "spec.json")]
        code = launch(launched, program, beats)
    finally:
        injector.stop()
        shutil.rmtree(beats, ignore_errors=True)
    events = read_events(log)
    injected = injector.done + [e | {"time": e["at"]} for e in events if e["event"] == "injected"]
    rows = [outcome(one, events, injected) for one in sorted(injected, key=lambda i: i["time"])]
    missed = set(faults) - {row["fault"] for row in rows}
    rows += [{"fault": fault, "detected": False, "not_run": "the run ended before its step"} for fault in missed]
    summary = read_summary(log)
    kept = out
    if small is not None:  # what lies on the small file system goes with it
        kept = out.with_name(out.name + ".kept")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        if (out / "final").exists():
            shutil.copytree(out / "final", kept / "final")
        small.unmount()
        shutil.rmtree(out, ignore_errors=True)
    return {"out": str(kept), **summary, "code": code, "rows": rows}


def plan(config: Drill, faults: tuple[str, ...]) -> list[dict]:
    """When and where each fault strikes: random steps of the run's middle, in their own stretch each, and random ranks."""
    rng = random.Random(f"{config.seed} {faults}")
    low, high = config.steps // 4, config.steps * 7 // 8
    width = (high - low) // max(1, len(faults))
    plans = []
    for index, fault in enumerate(faults):
        step = low + index * width + rng.randrange(max(1, width // 2))
        plans.append(
            {"fault": fault, "step": step, "rank": rng.randrange(config.nproc), "seed": rng.randrange(1 << 30)}
        )
    return plans


def outcome(fault: dict, events: list[dict], injected: list[dict]) -> dict:
    """Whether the log shows that this fault was seen, by what, after how long, and how many steps were computed again.

    An event counts from the injection on, until the next fault.
    """
    after = min((i["time"] for i in injected if i["time"] > fault["time"]), default=float("inf"))
    mine = [e for e in events if fault["time"] <= e["time"] < after]
    told = [e for e in mine if e["event"] in DETECTED[fault["fault"]]]
    right = [e for e in told if set(fault["ranks"]) <= set(e.get("ranks", fault["ranks"]))]
    seen, named = next(iter(right or told), None), bool(right)
    back = next((e for e in mine if e["event"] == "loaded"), None)
    before = [e for e in mine if e["event"] in ("death", "hang", "corrupt", "late")]
    lost = max(0, before[0].get("at_step", before[0].get("step")) - back["at_step"]) if back and before else 0
    return {
        "fault": fault["fault"],
        "step": fault["step"],
        "ranks": fault["ranks"],
        "detected": seen is not None,
        "by": MEANS[seen["event"]] if seen else "",
        "named": named,
        "seconds": round(seen["time"] - fault["time"], 2) if seen else None,
        "steps_lost": lost,
        "said": seen["text"] if seen else "",
    }


def same_bits(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors to the last bit."""
    one, other = Saved(a), Saved(b)
    if sorted(one.names()) != sorted(other.names()):
        return False
    return all(
        torch.equal(one.tensor(n).flatten().view(torch.uint8), other.tensor(n).flatten().view(torch.uint8))
        for n in one.names()
    )


def table(result: dict) -> str:
    """The drill's results as a Markdown table."""
    base = result["undisturbed"]
    lines = [
        f"{result['config']['nproc']} ranks ({result['config']['layout']}), {result['config']['steps']} steps; undisturbed "
        f"{base['seconds']:.0f} s, effective {base['effective']:.0%}",
        "",
        "| fault | step | rank | seen by | named | seconds to see | steps lost | effective time | weights equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["faults"]:
        if "not_run" in r:
            lines.append(f"| {r['fault']} | - | - | not run: {r['not_run']} | - | - | - | - | - |")
            continue
        ranks = ", ".join(map(str, r["ranks"])) or "-"
        seen = r["by"] or "**not seen**"
        seconds = "-" if r["seconds"] is None else f"{r['seconds']:.2f}"
        answers = ["yes" if r[key] else "**no**" for key in ("named", "equal")]
        lines.append(
            f"| {r['fault']} | {r['step']} | {ranks} | {seen} | {answers[0]} | {seconds} | {r['steps_lost']} | "
            f"{r['effective']:.0%} | {answers[1]} |"
        )
    return "\n".join(lines)


def prepared(
    short: bool = False, faults: tuple[str, ...] = (), nproc: int = 8, layout: str = "", steps: int = 0, seed: int = 0
) -> Drill:
    """A drill from the command line's words. `layout` is "tp=2,shard=2"; what it leaves out is as in plain copies."""
    chosen = Layout(micro_batch=1, shard=0 if layout else 1)
    for setting in filter(None, layout.split(",")):
        chosen = override(chosen, [setting])
    if short:
        return Drill(faults or SHORT, nproc, chosen, steps or 90, True, seed, checkpoint_seconds=1.0)
    return Drill(faults or FAULTS, nproc, chosen, steps or 400, seed=seed)
