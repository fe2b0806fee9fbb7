"""What a run does about wrong numbers (paper 3.3.4: interruptions of all kinds, silent data corruption among them).

A non-finite value or a spike is looked at before the update is applied: the step is computed again in place; what recurs
takes the run back to the last good checkpoint, where the same batches are replayed; only what recurs there is skipped and
recorded. So a transient fault leaves no trace. Corruption that shows no symptom is looked for in three ways: the state may
not change between two updates (sums over its bits), copies of the state on different ranks must agree, and a step computed
twice must give the same bits. The one design decision: nothing is repaired from a guess. Whatever was wrong, the state comes
from a checkpoint, and the same rank found wrong again is a broken device.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from herder.train.data import data_step

BAD_BATCHES = 16
"""Bad batches in a row after which the run gives up: by then it is not the data."""


@dataclass(frozen=True)
class GuardConfig:
    """A loss above the median of the last `window` steps by `loss_sigmas` deviations, with a gradient norm above
    `grad_factor` times its median, is a spike; before `window` steps nothing is called one."""

    window: int = 64
    loss_sigmas: float = 6.0
    grad_factor: float = 5.0


@dataclass(frozen=True)
class FaultConfig:
    """How closely a run watches itself. None of it changes what an undisturbed run computes."""

    at_rest: bool = True
    """Sums of the state's bits are taken after each update and compared before the next."""
    replicas_every: int = 50
    """Steps between comparisons of the state's copies across ranks, where a layout keeps copies (0: never)."""
    rerun_every: int = 0
    """Steps between steps that are computed twice and compared bit for bit (0: never); 50 costs 2% of the time. On CUDA it
    turns on deterministic algorithms."""
    strikes: int = 2
    """Times that one rank may be found wrong within `strike_steps` steps before its device counts as broken."""
    strike_steps: int = 1000
    stop_when_full: bool = False
    """A checkpoint that cannot be written (full disk, stalled storage) stops the run; else it goes on and says so."""
    storage_seconds: float = 600.0
    """How long the final state waits for room before the run gives up."""


class Guard:
    """`check` returns None for a sound step, or the reason not to apply it. State is plain data for the checkpoint."""

    def __init__(self, config: GuardConfig, history: list[tuple[float, float]] | None = None):
        self.config = config
        self.history: deque[tuple[float, float]] = deque(map(tuple, history or []), maxlen=config.window)

    def check(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "loss is not finite"
        if not math.isfinite(grad_norm):
            return "gradient is not finite"
        if len(self.history) == self.config.window:
            losses, norms = zip(*self.history, strict=True)
            # The trend of a falling loss is not noise: deviations are those of neighbouring steps.
            noise = statistics.pstdev(b - a for a, b in itertools.pairwise(losses)) / math.sqrt(2)
            high = statistics.median(losses) + self.config.loss_sigmas * max(noise, 1e-3)
            if loss > high and grad_norm > self.config.grad_factor * statistics.median(norms):
                return f"loss {loss:.3f} above {high:.3f} with gradient norm {grad_norm:.2f}"
        return None

    def accept(self, loss: float, grad_norm: float) -> None:
        self.history.append((loss, grad_norm))


class Rewind(Exception):
    """The run goes back to its last good checkpoint and replays the batches since; the message says why."""


class Course:
    """What becomes of a bad step: "again" in place, then "rewind", and "skip" where it recurs after the replay.

    It outlives rewinds, and every rank has its own: all see the same numbers and come to the same answer.
    """

    def __init__(self) -> None:
        self.replayed: set[int] = set()

    def judge(self, step: int, skips: Sequence[int], attempt: int, reason: str) -> Literal["again", "rewind", "skip"]:
        """Raises ValueError where skipping has not helped for many batches in a row."""
        index = data_step(step, skips)
        if attempt == 0:
            return "again"
        if index not in self.replayed:
            self.replayed.add(index)
            return "rewind"
        before = next(n for n in itertools.count() if index - 1 - n not in skips)
        if before + 1 >= BAD_BATCHES:
            raise ValueError(f"step {step}: {BAD_BATCHES} batches in a row are bad ({reason}); lower the learning rate")
        return "skip"


@torch.no_grad()
def fingerprint(tensors: Iterable[torch.Tensor]) -> list[int]:
    """One number for each tensor (of a DTensor, for this rank's shard): the sum of its bits read as whole numbers, modulo
    2^64. A single flipped bit always changes it; it costs one read of memory (24 GB/s on one CPU core, measured)."""
    sums = []
    for tensor in tensors:
        local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().contiguous()
        size = local.numel() * local.element_size()
        words = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))
        width, kind = next((width, kind) for width, kind in words if size % width == 0)
        if local.storage_offset() * local.element_size() % width:
            local = local.clone()  # where it lies must not matter: copies on other ranks lie elsewhere
        sums.append(local.view(-1).view(kind).sum(dtype=torch.int64))
    if not sums:
        return []
    return torch.stack([s.to(sums[0].device) for s in sums]).tolist()


class Seal:
    """State between two updates: `close` after one, `opened` names the tensors that changed before the next."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}

    def close(self, tensors: dict[str, torch.Tensor]) -> None:
        self.sums = dict(zip(tensors, fingerprint(tensors.values()), strict=True))

    def opened(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        if not self.sums:
            return []
        now = dict(zip(tensors, fingerprint(tensors.values()), strict=True))
        return [name for name, total in self.sums.items() if now.get(name, total) != total]

    def forget(self) -> None:
        """The state has been written into on purpose."""
        self.sums = {}


@dataclass(frozen=True)
class Damage:
    """What is wrong on which rank. `sure` is False where two copies differ and nothing tells which one is right."""

    rank: int
    what: str
    sure: bool = True

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.what}" + ("" if self.sure else " (or the other copy is wrong)")


def differing_copies(tensors: dict[str, torch.Tensor]) -> list[Damage]:
    """Compares every tensor's copies across ranks; every rank calls it and gets the same list.

    Copies of a DTensor lie along the mesh axes where it is replicated; plain tensors are copied on all ranks where no tensor
    is a DTensor, and are left out otherwise. The minority is wrong; of two that differ, both are named.
    """
    groups: dict[dist.ProcessGroup | None, list[str]] = {}
    cut = any(isinstance(t, DTensor) for t in tensors.values())
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            for axis, placement in enumerate(tensor.placements):
                if placement.is_replicate() and mesh.size(axis) > 1:
                    groups.setdefault(mesh.get_group(axis), []).append(name)
        elif not cut:
            groups.setdefault(None, []).append(name)
    found: list[Damage] = []
    for group, names in groups.items():
        mine = fingerprint(tensors[name] for name in names)
        copies: list[list[int]] = [[]] * dist.get_world_size(group)
        dist.all_gather_object(copies, mine, group=group)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        found += outvoted(dict(zip(ranks, copies, strict=True)), names)
    everyone: list[list[Damage]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, [(d.rank, d.what, d.sure) for d in found])
    return [Damage(*d) for d in sorted({tuple(d) for per_rank in everyone for d in per_rank})]


def outvoted(copies: dict[int, list[int]], names: Sequence[str]) -> list[Damage]:
    """Ranks whose sums differ from what most hold, with the first tensor that does."""
    wrong: dict[int, Damage] = {}
    for name, *sums in zip(names, *copies.values(), strict=True):
        votes = Counter(sums).most_common()
        if len(votes) == 1:
            continue
        sure = votes[0][1] > votes[1][1]
        for rank, total in zip(copies, sums, strict=True):
            if (not sure or total != votes[0][0]) and rank not in wrong:
                wrong[rank] = Damage(rank, f"its copy of {name} differs", sure)
    return list(wrong.values())


def verdict(first: list[list[int]], second: list[list[int]], third: list[list[int]]) -> tuple[list[int], bool]:
    """Of three computations of one step, each rank's own numbers: the ranks that did not repeat theirs, and whether any of
    them failed to do so again: a broken device, and no transient fault."""
    once = [r for r, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    again = [r for r, (b, c) in enumerate(zip(second, third, strict=True)) if b != c]
    return again or once, bool(again)


class Strikes:
    """Counts how often each rank was found wrong. It outlives rewinds; a restart forgets, since ranks may move."""

    def __init__(self, config: FaultConfig):
        self.config, self.seen = config, []

    def add(self, rank: int, step: int) -> bool:
        """True where this rank's device counts as broken."""
        self.seen = [(r, s) for r, s in self.seen if step - s <= self.config.strike_steps] + [(rank, step)]
        return sum(r == rank for r, _ in self.seen) >= self.config.strikes
