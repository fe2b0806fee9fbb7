"""Steps, their addresses, and the runner: what is missing is computed, what exists is reused, and both are said.

A step's address is `<name>-<hash8>` over its name, version, identity fields and its inputs' addresses. Its folder is written
as `<address>.part` and renamed when it is whole, with `step.json` beside the data; a killed run leaves the `.part`, and the
step's function continues from what it finds there. Code is not hashed: the hash of its source is recorded, and drift said.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import inspect
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import herder
from herder import launch, progress
from herder.config import digest, encode
from herder.records import Measure

SCRATCH = "checkpoints"
"""A folder of a step's output that is only there to continue from: it goes once the step is whole."""

FORMAT = 1
"""Version of the layout of run directories; another one is refused with a sentence."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: `run(config, inputs, out)` writes files into `out` and returns its headline numbers."""

    name: str
    run: Callable[[Any, dict[str, Path], Path], dict]
    config: Any
    inputs: dict[str, Step] = field(default_factory=dict)
    version: int = 1

    @property
    def identity(self) -> dict:
        return {
            "name": self.name,
            "version": self.version,
            "config": encode(self.config),
            "inputs": {key: step.address for key, step in sorted(self.inputs.items())},
        }

    @property
    def address(self) -> str:
        return f"{self.name}-{digest(self.identity)}"


def ordered(last: Sequence[Step]) -> list[Step]:
    """Every step that these need, each once, inputs first."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.address not in found:
            for needed in step.inputs.values():
                visit(needed)
            found[step.address] = step

    for step in last:
        visit(step)
    return list(found.values())


def execute(
    recipe: str, config: Any, last: Sequence[Step], root: Path, until: str | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Runs what is missing of the graph that ends in `last`; returns the run's folder, which holds `run.json`.

    Raises ValueError for a step name that does not exist, a run directory of another version, or a locked step.
    """
    steps = ordered(last)
    if until is not None:
        chosen = [s for s in steps if s.name == until] or [s for s in steps if s.name.startswith(until)]
        if not chosen:
            raise ValueError(f"--until {until!r} names no step; the steps are {', '.join(s.name for s in steps)}")
        steps = ordered(chosen)
    root = Path(root)
    check_format(root)
    run = root / f"{recipe}-{digest([s.address for s in steps])}"
    with launch.group(root):
        if launch.rank() == 0:
            run.mkdir(parents=True, exist_ok=True)
        started, rows = time.time(), {}
        console = progress.Console(len(steps))
        for number, pack in _packs(steps):
            rows |= _together(pack, root, console, number) if len(pack) > 1 else _one(pack[0], root, console, number)
            if launch.rank() == 0:
                # What an earlier call made counts as there, so stopping this one never makes the run look shorter.
                there = [s for s in steps if s.address in rows or (root / s.address / "step.json").exists()]
                listed = [
                    {"name": s.name, "address": s.address, **(rows.get(s.address) or _reused(root, s))} for s in there
                ]
                _write_json(run / "run.json", _describe(recipe, config, overrides, listed, started))
    return run


def _reused(root: Path, step: Step) -> dict:
    return {"reused": True, "seconds": read_json(root / step.address / "step.json")["seconds"]}


def _packs(steps: Sequence[Step]) -> Iterator[tuple[int, list[Step]]]:
    """(number of the first, steps) of neighbours that run beside each other (`launch.packed`); any other step is alone."""
    pack: list[Step] = []
    for number, step in enumerate(steps, 1):
        joins = getattr(step.run, "packed", False) and launch.world_size() == 1
        made = {s.address for s in pack}
        if pack and (not joins or any(needed.address in made for needed in step.inputs.values())):
            yield number - len(pack), pack
            pack = []
        if joins:
            pack.append(step)
        else:
            yield number, [step]
    if pack:
        yield len(steps) + 1 - len(pack), pack


def _together(pack: Sequence[Step], root: Path, console: progress.Console, first: int) -> dict[str, dict]:
    """Makes what is missing of a pack in local processes; the rows of `_one`. The seconds of each are its share of the wall."""
    rows, missing = {}, []
    for number, step in enumerate(pack, first):
        if (root / step.address).exists():
            rows |= _one(step, root, console, number)
        else:
            missing.append((number, step))
    processes = min(launch.local_processes(), len(missing))
    if processes <= 1:
        for number, step in missing:
            rows |= _one(step, root, console, number)
        return rows
    with contextlib.ExitStack() as locks:
        tasks = []
        for _, step in missing:
            locks.enter_context(_locked(root, root / step.address))
            part = root / (step.address + ".part")
            part.mkdir(parents=True, exist_ok=True)
            tasks.append((step.run, step.config, {k: root / s.address for k, s in step.inputs.items()}, part))
        resumed = any(any(part.iterdir()) for *_, part in tasks)
        console.started(first, f"{pack[0].name}+{len(pack) - 1}", resumed)
        with progress.showing(console):
            for done, (index, made) in enumerate(launch.map_local(_work, tasks, processes), 1):
                number, step = missing[index]
                numbers, seconds, memory = made
                _finish(step, tasks[index][-1], root / step.address, numbers, seconds / processes, memory)
                console.finished(number, step.name, seconds / processes, numbers)
                progress.report(done, len(missing), "steps")
                rows[step.address] = {"reused": False, "seconds": seconds / processes}
    return rows


def _work(task: tuple[Callable, Any, dict[str, Path], Path]) -> tuple[dict, float, float]:
    """Calls a step's function; returns its numbers, its seconds with those of interrupted calls, and the peak of memory."""
    run, config, inputs, part = task
    before, clock = _earlier_seconds(part), time.monotonic()
    with _clock(part, before):
        numbers = run(config, inputs, part)
    return numbers, before + time.monotonic() - clock, peak_memory_mib()


def _one(step: Step, root: Path, console: progress.Console, number: int) -> dict[str, dict]:
    """Makes one step or reuses it; returns {address: {"reused", "seconds"}}."""
    final = root / step.address
    everywhere = getattr(step.run, "distributed", False)
    main = launch.rank() == 0
    record = launch.broadcast(_existing(final) if main else None)
    if record is not None:
        if main:
            console.reused(number, step.name, record, _drift(step, record))
        return {step.address: {"reused": True, "seconds": record["seconds"]}}
    if not (main or everywhere):
        launch.broadcast(None)  # rank 0 says when the step is done
        return {step.address: {"reused": False, "seconds": 0.0}}
    inputs = {key: root / needed.address for key, needed in step.inputs.items()}
    part = root / (step.address + ".part")
    seconds = 0.0
    with _locked(root, final) if main else contextlib.nullcontext():
        if main:
            part.mkdir(parents=True, exist_ok=True)
            console.started(number, step.name, resumed=any(part.iterdir()))
        if everywhere:
            launch.broadcast(None)  # the folder exists
        with progress.showing(console if main else None):
            if main:
                numbers, seconds, memory = _work((step.run, step.config, inputs, part))
            else:
                step.run(step.config, inputs, part)
        if main:
            _finish(step, part, final, numbers, seconds, memory)
            console.finished(number, step.name, seconds, numbers)
    if not everywhere:
        launch.broadcast(None)
    return {step.address: {"reused": False, "seconds": seconds}}


def _finish(step: Step, part: Path, final: Path, numbers: dict, seconds: float, memory: float) -> None:
    _write_json(part / "step.json", _record(step, numbers, seconds, memory))
    (part / ".seconds").unlink(missing_ok=True)
    os.replace(part, final)
    shutil.rmtree(final / SCRATCH, ignore_errors=True)


@contextlib.contextmanager
def _clock(part: Path, before: float) -> Iterator[None]:
    """Keeps the seconds spent so far on disk, so that a killed and resumed step reports its whole time."""
    stop, start = threading.Event(), time.monotonic()

    def tick() -> None:
        while not stop.wait(2.0):
            with contextlib.suppress(OSError):
                (part / ".seconds").write_text(str(before + time.monotonic() - start))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _earlier_seconds(part: Path) -> float:
    try:
        return float((part / ".seconds").read_text())
    except (OSError, ValueError):
        return 0.0


@contextlib.contextmanager
def _locked(root: Path, final: Path) -> Iterator[None]:
    """Holds the step's lock; the kernel frees it when the process ends, however it ends."""
    path = root / ".locks" / str(final.relative_to(root)).replace("/", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            raise ValueError(
                f"another herder process ({file.read().strip() or 'unknown'}) is making {final.name} in {final.parent}; "
                "wait for it, end it, or choose another --runs folder"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}, since {_now()}")
        file.flush()
        if final.exists():
            raise ValueError(
                f"another herder process has just finished {final.name}; run the command again to reuse it"
            )
        yield


def check_format(root: Path) -> None:
    """Refuses a run directory that another version of the layout wrote; marks a new one."""
    marker = root / "herder.json"
    if marker.exists():
        found = read_json(marker).get("format")
        if found != FORMAT:
            raise ValueError(
                f"{root} was written in run format {found}, this is herder {herder.__version__} with format {FORMAT}; "
                "choose another folder with --runs, or use the herder that wrote it"
            )
    elif launch.rank() == 0:
        root.mkdir(parents=True, exist_ok=True)
        _write_json(marker, {"format": FORMAT, "herder": herder.__version__})


def _existing(final: Path) -> dict | None:
    if not final.exists():
        return None
    return read_json(final / "step.json")


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError with a sentence where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; give a folder that herder wrote, or delete {path.parent} and run again"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is damaged; delete {path.parent} and run again") from None


def _write_json(path: Path, data: dict) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")
    os.replace(part, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Measure):
        return value.to_json()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in step.json")


def _record(step: Step, numbers: dict, seconds: float, memory: float) -> dict:
    return {
        "name": step.name,
        "address": step.address,
        "version": step.version,
        "identity": step.identity["config"],
        "runtime": encode(step.config, only="runtime") if dataclasses.is_dataclass(step.config) else {},
        "inputs": step.identity["inputs"],
        "git": git_commit(),
        "source_hash": source_hash(step.run),
        "finished": _now(),
        "seconds": round(seconds, 2),
        "peak_memory_mib": round(memory, 1),
        "host": platform.node(),
        "ranks": launch.world_size(),
        "numbers": numbers,
    }


def _describe(recipe: str, config: Any, overrides: Sequence[str], rows: list[dict], started: float) -> dict:
    return {
        "recipe": recipe,
        "config": encode(config, only="all"),
        "overrides": list(overrides),
        "herder": herder.__version__,
        "git": git_commit(),
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "machine": machine(),
        "steps": rows,
    }


def machine() -> dict:
    """What this machine is, for records of measurements."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    torch = sys.modules.get("torch")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "torch": torch.__version__ if torch else "",
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, and of the largest child that has ended."""
    scale = 2**10 if sys.platform != "darwin" else 2**20
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / scale


def git_commit() -> str:
    """The commit that the code runs from, "" where there is none."""
    try:
        where = Path(__file__).parent
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True, timeout=5
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def source_hash(function: Callable) -> str:
    """Hash of the module that holds a step's function, comments and layout left out."""
    try:
        tree = ast.dump(ast.parse(inspect.getsource(inspect.getmodule(function))))
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(tree.encode(), digest_size=8).hexdigest()


def _drift(step: Step, record: dict) -> str:
    if record.get("source_hash") and record["source_hash"] != source_hash(step.run):
        return f"its code ({step.run.__module__}) has changed since; delete the folder to make it anew"
    return ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def find_artifact(root: Path, name: str) -> Path:
    """A step's folder by path, address, or a name that only one finished step has. Raises ValueError with what is there."""
    path = Path(name)
    if (path / "step.json").exists():
        return path
    found = sorted(p.parent for p in Path(root).glob("**/step.json"))
    found = [p for p in found if not p.name.endswith(".part")]
    matches = [p for p in found if str(p.relative_to(root)) == name.rstrip("/")] or [
        p for p in found if str(p.relative_to(root)).startswith(name.rstrip("/"))
    ]
    if len(matches) == 1:
        return matches[0]
    choices = ", ".join(str(p.relative_to(root)) for p in (matches or found)[:12]) or "nothing yet"
    problem = "names several steps" if matches else "names no finished step"
    raise ValueError(f"{name!r} {problem} in {root}; there are: {choices}")


def find_run(root: Path, name: str) -> Path:
    """A run's folder by path, by name, or the newest run of a recipe. Raises ValueError with what is there."""
    if (Path(name) / "run.json").exists():
        return Path(name)
    runs = sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    matches = [p.parent for p in runs if p.parent.name == name or p.parent.name.rsplit("-", 1)[0] == name]
    if matches:
        return matches[-1]
    choices = ", ".join(p.parent.name for p in runs) or "none"
    raise ValueError(f"{name!r} is no run in {root}; runs there: {choices}. Make one with `herder run miniature`")


def lineage(root: Path, artifact: Path) -> list[tuple[int, dict]]:
    """(depth, step.json) of an artifact and of all it was made from, depth first."""
    record = read_json(artifact / "step.json")
    rows = [(0, record)]
    for address in record["inputs"].values():
        rows += [(depth + 1, r) for depth, r in lineage(root, root / address)]
    return rows


def differences(artifact: dict, sibling: dict) -> list[tuple[str, Any, Any]]:
    """(field, here, there) of every identity field in which two records of the same step differ."""

    def flat(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {
                k: v for name, inner in value.items() for k, v in flat(inner, f"{key}.{name}" if key else name).items()
            }
        return {key: value}

    sides = [
        flat({"version": r["version"], "config": r["identity"], "inputs": r["inputs"]}, "") for r in (artifact, sibling)
    ]
    keys = sorted(set(sides[0]) | set(sides[1]))
    return [(k, sides[0].get(k), sides[1].get(k)) for k in keys if sides[0].get(k) != sides[1].get(k)]


def why(root: Path, artifact: Path) -> tuple[str, list[tuple[str, Any, Any]]] | None:
    """The nearest sibling (same step, other address) and the fields that differ; None where there is no sibling."""
    record = read_json(artifact / "step.json")
    siblings = []
    for path in Path(root).glob("**/step.json"):
        other = read_json(path)
        if other["name"] == record["name"] and other["address"] != record["address"]:
            siblings.append((other["address"], differences(record, other)))
    return min(siblings, key=lambda s: (len(s[1]), s[0])) if siblings else None
