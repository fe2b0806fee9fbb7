"""Faults from outside: signals to one rank's process, a checkpoint cut short, a file system that fills up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

from herder.supervise.watch import read_beats

SLOW_SECONDS, SLOW_SHARE, SLOW_CYCLE = 12.0, 0.8, 0.1
"""How long a slow rank is slowed, the share of the time that it stands still, and the length of a cycle."""
FULL_SECONDS = 5.0
SMALL_MIB = 64


class Small:
    """A file system of its own, so small that it can be filled: a tmpfs on `folder`, which needs the right to mount."""

    def __init__(self, folder: Path):
        self.folder, self.ballast = folder, folder / "ballast"
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "herder-drill", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            self.mounted, self.why = done.returncode == 0, "mounting a small file system needs root"
        except FileNotFoundError:
            self.mounted, self.why = False, "there is no mount command here"

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.ballast, "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


class Injector:
    """Waits until the planned rank is seen in the planned step and strikes; `done` lists what was struck and when."""

    def __init__(self, beats: Path, checkpoints: Path, plans: list[dict], small: Small | None):
        self.beats, self.checkpoints, self.small = beats, checkpoints, small
        self.plans, self.done = plans, []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="herder-drill")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        for plan in self.plans:
            while not self._end.wait(0.01):
                beat = read_beats(self.beats).get(plan["rank"])
                if beat and beat["step"] >= plan["step"] and self._ready(plan):
                    time.sleep(random.Random(plan["seed"]).random() * 0.05)  # somewhere within a step
                    self._strike(plan, beat)
                    break

    def _ready(self, plan: dict) -> bool:
        """A checkpoint to go back to must exist, and two for one of them to be damaged."""
        return len(list(self.checkpoints.glob("step-*/checkpoint.json"))) >= (2 if plan["fault"] == "truncate" else 1)

    def _strike(self, plan: dict, beat: dict) -> None:
        fault, pid, ranks = plan["fault"], beat["pid"], [plan["rank"]]
        with contextlib.suppress(ProcessLookupError):
            if fault == "truncate":
                newest = sorted(p for p in self.checkpoints.glob("step-*") if (p / "checkpoint.json").exists())[-1]
                shard = max(newest.glob("*.safetensors"), key=lambda p: p.stat().st_size)
                os.truncate(shard, shard.stat().st_size // 2)
            if fault == "full":
                self.small.fill()
            now = time.monotonic()
            if fault in ("kill", "truncate"):
                os.kill(pid, signal.SIGKILL)
            if fault == "hang":
                os.kill(pid, signal.SIGSTOP)
            self.done.append(
                {
                    "fault": fault,
                    "step": beat["step"],
                    "ranks": [] if fault in ("truncate", "full") else ranks,
                    "time": now,
                }
            )
            if fault == "slow":
                self._slow(pid)
            if fault == "full":
                self._end.wait(FULL_SECONDS)
                self.small.free()

    def _slow(self, pid: int) -> None:
        end = time.monotonic() + SLOW_SECONDS
        try:
            while time.monotonic() < end and not self._end.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(SLOW_CYCLE * SLOW_SHARE)
                os.kill(pid, signal.SIGCONT)
                time.sleep(SLOW_CYCLE * (1 - SLOW_SHARE))
        finally:
            os.kill(pid, signal.SIGCONT)
