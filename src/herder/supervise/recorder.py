"""Which rank and which collective held everybody up, and who is slow: PyTorch's Flight Recorder, dumped and compared
(paper 3.3.4: the flight recorder, and tools that rank suspicious process groups).

The one design decision: dumps are JSON, taken from the recorder inside each rank by the watch's thread while the main thread
hangs, with the members of every group and the rank's own phase beside; the analysis is a pure function of those files.
gloo and NCCL are read alike; gloo records no point-to-point operations, so there the phase names what a rank waits in.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

BUFFER = "TORCH_FR_BUFFER_SIZE"
ENTRIES = 2000
"""Collectives that each rank remembers."""
BACKGROUND = "background"
"""Description of groups whose collectives no step waits for, such as the writer's of checkpoints."""
_FIELDS = ("profiling_name", "collective_seq_id", "p2p_seq_id", "is_p2p", "retired", "state", "process_group")
_FIELDS += ("input_sizes", "output_sizes", "time_created_ns", "time_discovered_started_ns", "duration_ms")


def dump(folder: Path, rank: int, beat: dict) -> None:
    """Writes `folder/rank-00005.json`: this rank's recorded collectives, groups and whereabouts. Callable from any thread."""
    import torch.distributed as dist
    from torch._C import _distributed_c10d as c10d

    entries, groups = [], {}
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        if hasattr(c10d, name):
            with contextlib.suppress(RuntimeError):
                entries += json.loads(getattr(c10d, name)()).get("entries", [])
    if dist.is_initialized():
        world = dist.distributed_c10d._world
        for group, ranks in list(world.pg_group_ranks.items()):
            groups[world.pg_names[group]] = {"desc": group.group_desc, "ranks": sorted(ranks)}
    entries = [{k: e[k] for k in _FIELDS if k in e} for e in entries]
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"rank-{rank:05d}.json.part"
    part.write_text(json.dumps({"beat": beat, "groups": groups, "entries": entries}))
    os.replace(part, part.with_suffix(""))


def read_dumps(folder: Path) -> dict[int, dict]:
    """Dumps of a folder by rank."""
    return {(d := json.loads(p.read_text()))["beat"]["rank"]: d for p in sorted(folder.glob("rank-*.json"))}


@dataclass(frozen=True)
class Missing:
    """`ranks` never joined collective number `number` of `group`, in which `waiting` wait."""

    ranks: tuple[int, ...]
    waiting: tuple[int, ...]
    collective: str
    number: int
    group: str
    members: tuple[int, ...]

    def __str__(self) -> str:
        who = f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {_list(self.ranks)}"
        return (
            f"{who} never joined {self.collective} #{self.number} of group {self.group} (ranks {_list(self.members)})"
        )


@dataclass(frozen=True)
class Finding:
    """`culprits` wait for nobody; `missing` says what each hung collective lacks; `mismatched` are ranks that called
    different collectives under one number."""

    culprits: tuple[int, ...]
    missing: tuple[Missing, ...]
    mismatched: tuple[str, ...]

    def sentences(self, beats: dict[int, dict], states: dict[int, str] | None = None) -> list[str]:
        """What to print: for every culprit the collective that it never joined, and where it was last seen."""
        said = []
        for rank in self.culprits:
            held = next((m for m in self.missing if rank in m.ranks), None)
            text = (
                f"rank {rank} never joined {str(held).partition(' never joined ')[2]}" if held else f"rank {rank} hangs"
            )
            if beat := beats.get(rank):
                text += (
                    f", last seen in step {beat['step']}, phase {beat['phase']}, on {beat['host']} (pid {beat['pid']})"
                )
            if states and rank in states:
                text += f"; its process is {states[rank]}"
            said.append(text)
        said += [str(m) for m in self.missing if not set(m.ranks) & set(self.culprits)]
        return said + list(self.mismatched)

    def to_json(self) -> dict:
        return asdict(self)


def _list(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{ranks[0]}, {ranks[1]} ... {ranks[-1]}"


def analyse(dumps: dict[int, dict], world: int, silent: frozenset[int] = frozenset()) -> Finding:
    """Who holds the others up. `silent` ranks gave no sign of life; like ranks without a dump, they have joined nothing that
    others still wait in."""
    groups = {name: g for d in dumps.values() for name, g in d["groups"].items()}
    calls = {rank: _calls(d) for rank, d in dumps.items()}
    missing, mismatched, waits = [], [], defaultdict(set)
    for name in sorted({name for per_rank in calls.values() for name in per_rank}):
        members = tuple(groups.get(name, {}).get("ranks") or sorted(r for r in calls if name in calls[r]))
        heard = {r: calls[r].get(name, {}) for r in members if r in calls and r not in silent}
        open_ = {n: r for r, entries in heard.items() for n, e in entries.items() if not e["retired"]}
        for number in sorted(open_):
            waiting = tuple(r for r in heard if number in heard[r] and not heard[r][number]["retired"])
            absent = tuple(r for r in members if r not in heard or max(heard[r], default=0) < number)
            entry = heard[waiting[0]][number]
            what, desc = entry["profiling_name"].partition(":")[2] or entry["profiling_name"], _describe(groups, name)
            if absent:
                missing.append(Missing(absent, waiting, what, number, desc, members))
                for rank in waiting:
                    waits[rank] |= set(absent)
            mismatched += _mismatches(number, desc, {r: heard[r][number] for r in waiting})
    culprits = set().union(*waits.values()) - set(waits) if waits else set()
    culprits |= {r for r in range(world) if r in silent or (r not in dumps and not waits)}
    return Finding(tuple(sorted(culprits)), tuple(missing), tuple(mismatched))


def _describe(groups: dict, name: str) -> str:
    desc = groups.get(name, {}).get("desc") or ""
    return {"": name, "undefined": name, "default_pg": "world"}.get(desc, desc.removeprefix("mesh_"))


def _calls(dump: dict) -> dict[str, dict[int, dict]]:
    """Collectives of one rank: group name -> number -> entry."""
    calls: dict[str, dict[int, dict]] = defaultdict(dict)
    for entry in dump["entries"]:
        if not entry["is_p2p"]:
            calls[entry["process_group"][0]][entry["collective_seq_id"]] = entry
    return calls


def _mismatches(number: int, group: str, entries: dict[int, dict]) -> list[str]:
    """Ranks wait in one number of one group with different calls: a bug or other data, and no broken machine."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for rank, e in entries.items():
        kinds[f"{e['profiling_name'].partition(':')[2]} of {e.get('input_sizes')}"].append(rank)
    if len(kinds) < 2:
        return []
    told = "; ".join(f"ranks {_list(tuple(ranks))} call {kind}" for kind, ranks in kinds.items())
    return [f"collective #{number} of group {group} is not the same everywhere: {told}"]


@dataclass(frozen=True)
class Pace:
    """How a rank keeps up within a group: seconds it was busy between the first and last collective seen by all, seconds the
    group's collectives waited for nobody but it, and busy time over the group's median."""

    rank: int
    group: str
    busy: float
    waited: float
    ratio: float


def stragglers(dumps: dict[int, dict], window: float = float("inf"), least: int = 4) -> list[Pace]:
    """Paces of all ranks by process group over the last `window` seconds, slowest first; groups with fewer than `least`
    collectives in common are left out.

    What a rank did not spend waiting for the last one to arrive it spent itself. Arrival is when the collective was called
    (gloo) or began on the device (NCCL), less the host's clock offset; where the recorder has a duration, the wait is its
    excess over the shortest, which is the last arrival's.
    """
    groups = {name: g for d in dumps.values() for name, g in d["groups"].items()}
    calls = {rank: _calls(d) for rank, d in dumps.items()}
    paces = []
    for name in sorted({name for per_rank in calls.values() for name in per_rank}):
        members = [r for r in groups.get(name, {}).get("ranks", sorted(calls)) if r in calls]
        if groups.get(name, {}).get("desc") == BACKGROUND:
            continue
        common = sorted(set.intersection(*(set(calls[r][name]) for r in members))) if len(members) > 1 else []
        if common:
            last = {n: max(_arrival(calls[r][name][n], dumps[r]) for r in members) for n in common}
            common = [n for n in common if last[n] >= max(last.values()) - window]
        if len(common) < least:
            continue
        times = {r: [_arrival(calls[r][name][n], dumps[r]) for n in common] for r in members}
        waits = {r: sum(_waits(calls, name, common[1:], times, r)) for r in members}
        span = max(t[-1] for t in times.values()) - min(t[0] for t in times.values())
        busy = {r: max(span - waits[r], 0.0) for r in members}
        middle = statistics.median(busy.values()) or 1e-9
        paces += [Pace(r, _describe(groups, name), busy[r], waits[r], busy[r] / middle) for r in members]
    return sorted(paces, key=lambda p: -p.ratio)


def _arrival(entry: dict, dump: dict) -> float:
    at = entry.get("time_discovered_started_ns") or entry["time_created_ns"]
    return at / 1e9 - dump["beat"].get("clock", 0.0)


def _waits(calls: dict, name: str, numbers: list[int], times: dict[int, list[float]], rank: int) -> list[float]:
    waits = []
    for index, number in enumerate(numbers, 1):
        durations = [calls[r][name][number].get("duration_ms") for r in times]
        if all(durations):
            waits.append((calls[rank][name][number]["duration_ms"] - min(durations)) / 1e3)
        else:
            waits.append(max(t[index] for t in times.values()) - times[rank][index])
    return waits
