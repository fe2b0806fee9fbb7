"""The heartbeat and phase timings of one rank (paper 3.3.4: a hang must be seen, and named, in minutes).

The one design decision: a rank writes where it is (step, phase, since when, which time-out applies) into a small file mapped
into memory, on a file system in memory, so a beat costs microseconds and never waits for storage; whoever supervises it
reads. Without `herder launch` there is no folder to write to and only the timings are kept.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Literal

FOLDER = "HERDER_WATCH"
"""Environment variable: the folder of heartbeats, set by the launcher for its processes."""
LIMITS = "HERDER_LIMITS"
"""Environment variable: seconds allowed to start, and to step."""
USER_ERROR, LOST_PEERS, BROKEN = 2, 75, 76
"""Exit codes: what the user mends (never restarted), the death of another rank, and a device that must be replaced."""
Limit = Literal["start", "step", ""]
_SIZE, _TICK = 2048, 0.25


class Watch:
    """One rank's beat. `enter` a phase, tell the `step`; `seconds` adds up the time spent in each phase."""

    def __init__(self, folder: Path | None = None, rank: int = 0):
        self.folder, self.rank = folder, rank
        self.seconds: dict[str, float] = {}
        self.start_timeout, self.step_timeout = (float(x) for x in os.environ.get(LIMITS, "0,0").split(","))
        now = time.monotonic()
        self._beat = {
            "rank": rank,
            "pid": os.getpid(),
            "host": host(),
            "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
            "attempt": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            "step": -1,
            "phase": "start",
            "since": now,
            "limit": "start",
            "window": now,
            "alive": now,
            "productive": 0.0,
            "clock": 0.0,
        }
        self._lock, self._count, self._asked = threading.Lock(), 0, 0
        if folder is not None:
            self._open(folder)
            threading.Thread(target=self._live, args=(os.getppid(),), daemon=True, name="herder-watch").start()

    def enter(self, phase: str, limit: Limit | None = None) -> None:
        """From now on this rank is in `phase`. `limit` changes which time-out applies, counted from now: "start", "step", or
        "" for none (a rank may wait for another's whole stage)."""
        now, beat = time.monotonic(), self._beat
        self.seconds[beat["phase"]] = self.seconds.get(beat["phase"], 0.0) + now - beat["since"]
        beat |= {"phase": phase, "since": now}
        if limit is not None:
            beat |= {"limit": limit, "window": now}
        self._write()

    def step(self, step: int, productive: float) -> None:
        """The training step that `enter` begins next. `productive` is the seconds that the steps so far have taken, each
        counted once however often it was computed."""
        self._beat |= {"step": step, "productive": productive}

    def clock(self, offset: float) -> None:
        """Seconds by which this host's clock is ahead of rank 0's."""
        self._beat["clock"] = offset
        self._write()

    def event(self, kind: str, **facts) -> None:
        """Adds a line to the launcher's log of events; nothing without a launcher. Never raises for a full disk."""
        if self.folder is None:
            return
        beat = {k: self._beat[k] for k in ("rank", "host", "step", "phase")}
        line = json.dumps({"event": kind, "wall": time.time(), "time": time.monotonic(), **beat, **facts})
        with contextlib.suppress(OSError), open(self.folder / "events.jsonl", "a") as file:
            file.write(line + "\n")

    def refuse(self, sentence: str, code: int) -> bool:
        """Tells the launcher not to start this again and why; False where there is no launcher to be told."""
        if self.folder is None:
            return False
        facts = {"rank": self.rank, "host": host(), "code": code, "sentence": sentence}
        path = self.folder / f"refused-{self.rank:05d}.json"
        path.with_suffix(".part").write_text(json.dumps(facts))
        os.replace(path.with_suffix(".part"), path)
        return True

    def _open(self, folder: Path) -> None:
        path = folder / f"rank-{self.rank:05d}.beat"
        path.with_suffix(".part").write_bytes(b" " * _SIZE)
        with open(path.with_suffix(".part"), "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._write()
        os.replace(path.with_suffix(".part"), path)

    def _write(self) -> None:
        """One line of JSON between two equal counters: a reader that sees different ones has caught us writing."""
        if self.folder is None:
            return
        with self._lock:
            self._count += 1
            text = json.dumps({"n": self._count, **self._beat, "seconds": self.seconds, "m": self._count})
            self._map[:] = text.encode().ljust(_SIZE - 1)[: _SIZE - 1] + b"\n"

    def _live(self, parent: int) -> None:
        """Shows that the process runs even where its main thread waits, dumps collectives when asked, ends an orphan."""
        while True:
            time.sleep(_TICK)
            if os.getppid() != parent:
                os._exit(1)  # the launcher is gone: nobody would restart or stop this process
            self._beat["alive"] = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                self._write()
                asked = len((self.folder / "ask").read_bytes())
                if asked > self._asked:
                    self._asked = asked
                    self._dump(asked)

    def _dump(self, serial: int) -> None:
        if "torch.distributed" in sys.modules:
            from herder.supervise.recorder import dump

            dump(self.folder / f"dump-{serial}", self.rank, dict(self._beat))


def host() -> str:
    """This node's name, as its scheduler knows it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


_watch: Watch | None = None


def begin() -> Watch:
    """The watch of this process, made at the first call from what the launcher left in the environment."""
    global _watch
    if _watch is None or (_watch.folder is not None and _watch._beat["pid"] != os.getpid()):
        folder = os.environ.get(FOLDER)
        _watch = Watch(Path(folder) if folder else None, int(os.environ.get("RANK", "0")))
    return _watch


def read_beats(folder: Path) -> dict[int, dict]:
    """The newest beat of every rank that has written one; torn ones are read again, and left out where they stay torn."""
    beats = {}
    for path in sorted(folder.glob("rank-*.beat")):
        for _ in range(20):
            with contextlib.suppress(OSError, ValueError):
                beat = json.loads(path.read_bytes())
                if beat["n"] == beat["m"]:
                    beats[beat["rank"]] = beat
                    break
            time.sleep(0.001)
    return beats


def read_events(folder: Path) -> list[dict]:
    """Lines of the log of events; one cut short is left out."""
    events = []
    with contextlib.suppress(OSError):
        for line in (folder / "events.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
    return events
