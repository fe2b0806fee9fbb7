"""The launcher's eyes on one node: reads the ranks' heartbeats, names who died, hangs, is late or slow, and kills what hangs.

The one design decision: it never repairs anything. It records what it saw with the time, says it, and kills processes; the
elastic agent beside it restarts them. Time-outs compare readings of one machine's monotonic clock, so clocks that differ or
jump change nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from herder.supervise import recorder, watch

if TYPE_CHECKING:
    from herder.supervise.agent import Launch

TICK = 0.1
DUMP_SECONDS = 3.0
"""How long ranks have to hand over their recorded collectives; one that shows no life for half of it is silent."""
SETTLED_SECONDS = 5.0
"""After a failure, by when every process of that attempt has shown itself or ended."""
_STATES = {
    "T": "stopped",
    "t": "being traced",
    "D": "waiting for a disk or device",
    "Z": "dead",
    "X": "dead",
    "": "gone",
}


class Monitor:
    """`start` begins to look, `finish(code)` writes `launch.json` and returns the launch's exit code."""

    def __init__(self, config: Launch, folder: Path):
        self.config, self.folder, self.code = config, folder, None
        self.log = config.log if config.node_range[1] == 1 else config.log / watch.host()  # nodes may share the folder
        self.begun, self.wall = time.monotonic(), time.time()
        self.starts, self.hangs, self.serial = 0, 0, 0
        self.pids: dict[int, int] = {}  # rank -> process of the present generation
        self.known: set[int] = set()
        self.attempt, self.failed, self.failed_at, self.first_seen = -1, True, self.begun, self.begun
        self.best, self.in_a_row, self.productive = -1, 0, 0.0
        self.best_before = -2  # the furthest step when the last generation failed
        self.read, self.size, self.said_late, self.slow = 0, 0, set(), set()
        self.next_report, self.asked, self.lost_at = self.begun + config.report_every, None, None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="herder-monitor")

    def start(self) -> None:
        with contextlib.suppress(OSError):
            self.log.mkdir(parents=True, exist_ok=True)
            (self.log / "events.jsonl").unlink(missing_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def say(self, kind: str, text: str, **facts) -> None:
        """Records an event of the launcher's own and prints it."""
        line = {"event": kind, "wall": time.time(), "time": time.monotonic(), "text": text, **facts}
        with contextlib.suppress(OSError), open(self.folder / "events.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"herder launch: {text}", file=sys.stderr, flush=True)

    def finish(self, code: int) -> int:
        self.stop()
        self._look()  # what happened since the last look
        if code and self.code is None and not self.failed:
            self._fail("death", "a process ended with an error", {})
        seconds = time.monotonic() - self.begun
        code = self.code if self.code is not None else code
        summary = {
            "code": code,
            "seconds": round(seconds, 3),
            "productive_seconds": round(self.productive, 3),
            "effective": round(self.productive / seconds, 4),
            "starts": self.starts,
            "last_step": self.best,
        }
        with contextlib.suppress(OSError):
            part = self.log / "launch.json.part"
            part.write_text(json.dumps(summary, indent=1) + "\n")
            os.replace(part, self.log / "launch.json")
        return code

    def _run(self) -> None:
        while not self._end.wait(TICK):
            with contextlib.suppress(OSError):  # a full disk or a process that goes while it is looked at
                self._look()

    def _look(self) -> None:
        beats = watch.read_beats(self.folder)
        self._forward()
        self._meet(beats)
        self._refusals()
        if self.failed:
            return
        self.best = max([self.best, *(b["step"] for b in beats.values())])
        self.productive = max([self.productive, *(b["productive"] for b in beats.values())])
        self._deaths(beats)
        if not self.failed:
            self._overdue(beats)
        if not self.failed:
            self._pace(beats)

    def _forward(self) -> None:
        """Copies new events to the log folder; those of ranks that carry a text are printed."""
        path = self.folder / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self.size:
            return
        self.size, events = size, watch.read_events(self.folder)
        for event in events[self.read :]:
            with contextlib.suppress(OSError), open(self.log / "events.jsonl", "a") as file:
                file.write(json.dumps(event) + "\n")
            if "rank" in event and "text" in event and event.get("phase") is not None:
                print(f"herder launch: {event['text']}", file=sys.stderr, flush=True)
        self.read = len(events)

    def _meet(self, beats: dict[int, dict]) -> None:
        """Processes of a later attempt than the one that failed begin a new generation; where the nodes have changed the agent
        counts no attempt, and time tells."""
        fresh = {r: b["pid"] for r, b in beats.items() if b["pid"] not in self.known}
        if self.failed:
            since = time.monotonic() - self.failed_at
            fresh = {
                r: pid for r, pid in fresh.items() if beats[r]["attempt"] > self.attempt or since > SETTLED_SECONDS
            }
        if fresh and self.failed:
            self.pids, self.failed, self.lost_at = {}, False, None
            self.starts += 1
            self.first_seen, self.said_late, self.slow, self.asked = time.monotonic(), set(), set(), None
            self.next_report = self.first_seen + self.config.report_every
        self.pids |= fresh
        self.known |= set(fresh.values())
        self.attempt = max([self.attempt, *(beats[r]["attempt"] for r in fresh)])

    def _refusals(self) -> None:
        for path in sorted(self.folder.glob("refused-*.json")):
            found = json.loads(path.read_text())
            if self.code is None:
                self.code = found["code"]
                self.failed = True
                broken = f"{found['host']} must be replaced: " if self.code == watch.BROKEN else ""
                self.say("refused", broken + found["sentence"], rank=found["rank"], host=found["host"])
                if broken:
                    with contextlib.suppress(OSError), open(self.config.log / "broken-hosts", "a") as file:
                        file.write(found["host"] + "\n")
                self._stop_agent()

    def _deaths(self, beats: dict[int, dict]) -> None:
        ended = {r: s for r, pid in self.pids.items() if (s := _status(pid)) is not None}
        dead = {r: s for r, s in ended.items() if s != "code 0" and not (s == "gone" and beats[r]["phase"] == "done")}
        first = {r: s for r, s in dead.items() if s != f"code {watch.LOST_PEERS}"}
        if not dead:
            return
        if not first:  # these lost a peer: its own end may not have been seen yet
            self.lost_at = self.lost_at or time.monotonic()
            if time.monotonic() - self.lost_at < 1.0:
                return
        who = first or dead
        told = []
        for rank, status in sorted(who.items()):
            b = beats[rank]
            told.append(f"rank {rank} died ({status}) in step {b['step']}, phase {b['phase']}, on {b['host']}")
        self._fail("death", "; ".join(told), {"ranks": sorted(who)})

    def _overdue(self, beats: dict[int, dict]) -> None:
        limits = {"start": self.config.start_timeout, "step": self.config.step_timeout}
        now = time.monotonic()
        here = {r: beats[r] for r in self.pids if r in beats}
        if any(b["limit"] == "start" and b["step"] < 0 for b in here.values()) or len(here) < self.config.nproc:
            self._late(here, now)
            return
        late = [r for r, b in here.items() if b["limit"] and now - b["window"] > limits[b["limit"]]]
        if late:
            self._hang(here, late)

    def _late(self, here: dict[int, dict], now: float) -> None:
        """Ranks that have not joined: said at a quarter of the time-out, given up at the whole."""
        ahead = {"joining", "idle", "done"}
        behind = [r for r, b in here.items() if b["limit"] == "start" and b["phase"] not in ahead]
        absent = sorted(set(range(self.config.nproc)) - {b["local_rank"] for b in here.values()})
        waited = now - self.first_seen
        names = [f"rank {r} (phase {here[r]['phase']}, {_state(here[r]['pid'])})" for r in behind]
        names += [f"the process of local rank {n} (no sign of life)" for n in absent]
        who = ", ".join(names) or f"ranks {recorder._list(tuple(here))}"
        if waited > self.config.start_timeout:
            facts = {"ranks": behind, "absent": absent}
            self._kill([*self.pids.values(), *_children()])
            self._fail("late", f"not ready within {self.config.start_timeout:.0f} s of the start: {who}", facts)
        elif names and waited > self.config.start_timeout / 4 and who not in self.said_late:
            self.said_late.add(who)
            facts = {"ranks": behind, "absent": absent}
            rest = self.config.start_timeout - waited
            self.say("waiting", f"after {waited:.0f} s still waiting for {who}, for {rest:.0f} s more", **facts)

    def _hang(self, here: dict[int, dict], late: list[int]) -> None:
        seconds = max(time.monotonic() - here[r]["window"] for r in late)
        self.hangs += 1
        folder, silent = self._dumps(here)
        report = self.config.log / f"hang-{self.hangs}"
        with contextlib.suppress(OSError):
            if folder.exists():
                shutil.copytree(folder, report, dirs_exist_ok=True)
        dumps = recorder.read_dumps(report) or recorder.read_dumps(folder)
        finding = recorder.analyse(dumps, max(here) + 1, silent)
        states = {r: _state(b["pid"]) for r, b in here.items()}
        said = finding.sentences(here, states) or [_longest(here, late)]
        with contextlib.suppress(OSError):
            report.mkdir(exist_ok=True)
            facts = {"sentences": said, "beats": here, "states": states, **finding.to_json()}
            (report / "report.json").write_text(json.dumps(facts, indent=1))
        self._kill(self.pids.values())
        culprits = list(finding.culprits)
        self._fail("hang", f"no progress for {seconds:.1f} s: " + "; ".join(said), {"ranks": culprits, "late": late})

    def _dumps(self, here: dict[int, dict]) -> tuple[Path, frozenset[int]]:
        """Asks every rank for its recorded collectives; returns where they lie, and the ranks that showed no life since."""
        folder, start = self._ask(), time.monotonic()
        while True:
            time.sleep(TICK)
            beats, waited = watch.read_beats(self.folder), time.monotonic() - start
            silent = frozenset(r for r, b in here.items() if beats.get(r, b)["alive"] == b["alive"])
            answered = set(recorder.read_dumps(folder)) if folder.exists() else set()
            if waited > DUMP_SECONDS or (waited > DUMP_SECONDS / 2 and answered >= set(here) - silent):
                return folder, silent

    def _ask(self) -> Path:
        self.serial += 1
        with open(self.folder / "ask", "ab") as file:
            file.write(b".")
        return self.folder / f"dump-{self.serial}"

    def _pace(self, beats: dict[int, dict]) -> None:
        """Now and then compares when the ranks arrive in their collectives, and names who keeps the others waiting."""
        now, here = time.monotonic(), {r: beats[r] for r in self.pids if r in beats}
        if self.asked is None:
            training = here and all(b["limit"] == "step" for b in here.values())
            if self.config.report_every and training and now > self.next_report:
                self.asked = (self._ask(), now)
            return
        folder, since = self.asked
        dumps = recorder.read_dumps(folder) if folder.exists() else {}
        if len(dumps) < len(here) and now - since < DUMP_SECONDS:
            return
        self.asked, self.next_report = None, now + self.config.report_every
        paces = recorder.stragglers(dumps, self.config.report_every)
        with contextlib.suppress(OSError):
            rows = [vars(p) | {"seconds": here[p.rank]["seconds"]} for p in paces if p.rank in here]
            (self.log / "pace.json").write_text(json.dumps(rows, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        behind = {p.rank: p for p in reversed(paces) if p.ratio > self.config.slow}
        for rank, p in sorted(behind.items()):
            if rank not in self.slow:
                text = (
                    f"rank {rank} is slow: {p.ratio:.1f} x as busy as the median of group {p.group}, which waits for it"
                )
                self.say("slow", f"{text} (on {here[rank]['host']})", ranks=[rank], group=p.group, ratio=p.ratio)
        self.slow = set(behind)

    def _fail(self, kind: str, text: str, facts: dict) -> None:
        """This generation is over. The agent restarts it, unless too many in a row have come no further."""
        self.failed, self.failed_at = True, time.monotonic()
        self.in_a_row = self.in_a_row + 1 if self.best <= self.best_before else 1
        self.best_before = self.best
        self.say(kind, text, at_step=self.best, **facts)
        if self.in_a_row > self.config.restarts:
            why = f"{self.in_a_row} times in a row without a new step" if self.config.restarts else "--restarts is 0"
            self.code = 1
            self.say("gave_up", f"not restarted: {why}; the last good checkpoint is kept, mend the cause and run again")
            self._stop_agent()

    def _kill(self, pids) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _stop_agent(self) -> None:
        self._kill([p for p in self.pids.values() if _state(p) == "stopped"])  # they would not hear the agent's signal
        os.kill(os.getpid(), signal.SIGTERM)  # the agent ends its processes and raises in the main thread


def _status(pid: int) -> str | None:
    """None while a process runs; else how it ended, "gone" where the agent has already fetched that."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None if _state(pid) not in ("gone", "dead") else "gone"
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return f"code {found.si_status}"
    return signal.Signals(found.si_status).name


def _state(pid: int) -> str:
    """What the kernel says a process is doing."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = "" if not _exists(pid) else "?"
    return _STATES.get(letter, "running")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _children() -> list[int]:
    """Ranks that this process has started, also those that have not written a heartbeat (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            ours = int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if ours and b"LOCAL_RANK=" in (path.parent / "environ").read_bytes():
                found.append(int(path.parent.name))
    return found


def _longest(here: dict[int, dict], late: list[int]) -> str:
    """For a hang without a recorded collective: the rank that has not moved for longest."""
    rank = min(late, key=lambda r: (here[r]["step"], here[r]["since"]))
    b = here[rank]
    where = f"since step {b['step']}, phase {b['phase']}, on {b['host']}"
    return f"rank {rank} has not moved for longest, {where} ({_state(b['pid'])})"
