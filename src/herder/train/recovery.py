"""The watchman of one run: looks for corruption around each update, decides what a bad step leads to, and keeps saving and
going back apart from the loop (paper 3.3.4).

The one design decision: whatever one rank sees is agreed on by all in the collective that ends a step anyway, so no rank goes
back alone, and an undisturbed step pays for two sums over its state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from herder import launch, supervise
from herder.supervise import health
from herder.train.checkpoint import Checkpoints
from herder.train.faults import (
    Course,
    Damage,
    FaultConfig,
    Rewind,
    Seal,
    Strikes,
    differing_copies,
    fingerprint,
    verdict,
)

RETRY_SECONDS = 2.0
"""Between attempts to write the final state to a full disk."""


class Recovery:
    """One run's. `replica` is a `Replica` or `Sharded`; every rank calls the same methods in the same order."""

    def __init__(self, config: FaultConfig, replica, folder: Path, keep: int, device: str):
        self.config, self.replica, self.device = config, replica, device
        self.rank, self.world, self.seen = launch.rank(), launch.world_size(), supervise.begin()
        self.course, self.seal, self.strikes = Course(), Seal(), Strikes(config)
        self.damaged: list[str] = []
        self.limit: supervise.Limit | None = None
        self.groups = launch.groups()  # before the writer of checkpoints makes its own, which may take its time
        self.checkpoints = Checkpoints(folder, keep, warn=lambda text: self.say("checkpoint", text))
        if config.rerun_every and device.startswith("cuda"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def say(self, kind: str, text: str, **facts) -> None:
        """Tells on the first rank, and leaves the event in the launcher's log."""
        if self.rank == 0:
            if self.seen.folder is None:
                print(text, file=sys.stderr)
            self.seen.event(kind, text=text, **facts)

    def enter(self, phase: str, limit: supervise.Limit | None = None) -> None:
        """The next phase; with a limit, its time-out holds from now on for heartbeats, and twice it for collectives."""
        self.seen.enter(phase, limit)
        if limit is not None and limit != self.limit and self.seen.folder is not None:
            self.limit = limit
            seconds = {"start": self.seen.start_timeout, "step": self.seen.step_timeout, "": 0.0}[limit]
            launch.set_timeout(2 * seconds or None, self.groups)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A phase within the computation of a step, as `Replica.waiting` tells it."""
        self.seen.enter(what)
        yield
        self.seen.enter("compute")

    def load(self) -> dict | None:
        """Fills the state from the newest good checkpoint; its facts, or None where there is none."""
        facts = self.checkpoints.load_latest(self.replica.state())
        if facts is not None:
            self.replica.restored()
            self.seal.forget()
            self.seen.event("loaded", at_step=facts["step"])
        return facts

    def save(self, step: int, facts: dict) -> None:
        """Saves a state whose copies agree. Where it cannot be written the run goes on and says so, if the config lets it."""
        self.compare(step)
        for _ in range(2):  # the error met is that of the save before; this one may have room again
            try:
                self.checkpoints.save(step, self.replica.state(), facts)
                return
            except OSError as error:
                if self.config.stop_when_full:
                    raise
                why = error.strerror or str(error)
                self.say(
                    "storage", f"step {step}: a checkpoint could not be written ({why}); training goes on without it"
                )

    def close(self) -> None:
        """Ends saving; what the last save met is said, since the final state follows."""
        self.enter("checkpoint", "start")
        try:
            self.checkpoints.close()
        except OSError as error:
            self.say("storage", f"the last checkpoint could not be written ({error.strerror or error})")

    def patiently(self, write: Callable[[], None], what: str) -> None:
        """Writes what the run cannot go on without, waiting for room on a full disk."""
        self.enter("checkpoint", "start")
        end = time.monotonic() + self.config.storage_seconds
        while True:
            try:
                return write()
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not full or self.config.stop_when_full or not launch.broadcast(time.monotonic() < end):
                    raise
                self.say("storage", f"the disk is full: waiting for room for the {what}")
                self.enter("storage", "")
                time.sleep(RETRY_SECONDS)

    def gradients(self, step: int, compute: Callable[[], list[float]]) -> list[float]:
        """This step's sums, with its gradient in the replica. Every `rerun_every` steps it is computed twice, and a third time
        where the two differ. Raises Rewind for a transient fault, BrokenDevice for one that stays."""
        every = self.config.rerun_every
        if not every or step % every != every - 1:
            return compute()
        takes = [self._take(compute), self._take(compute)]
        if not self._any(takes[0][:2] != takes[1][:2]):
            return takes[1][2]
        takes.append(self._take(compute))
        own = self._everyone([take[0] for take in takes])
        repeats = self._any(takes[1][:2] != takes[2][:2])
        ranks, again = verdict(*(list(one) for one in zip(*own, strict=True)))
        if repeats and not ranks:
            ranks, again = self._examine(), True
            if not ranks:
                raise ValueError(
                    f"step {step} gives other bits each time and no device fails its test; rerun_every needs a model whose "
                    "operations are deterministic"
                )
        if not ranks:
            raise self._rewind(
                f"step {step} computed twice gave other bits once; which rank, sums over ranks do not tell"
            )
        self._accuse(step, [Damage(r, f"step {step} computed twice gave other bits") for r in ranks], broken=again)
        raise AssertionError  # _accuse never returns

    def before_update(self) -> None:
        if self.config.at_rest:
            self.damaged = self.seal.opened(self._tensors())

    def after_update(self) -> None:
        if self.config.at_rest:
            self.seal.close(self._tensors())

    def agree(self, step: int, due: bool) -> bool:
        """Ends a step: whether a checkpoint is due, as the first rank says. Raises Rewind or BrokenDevice where any rank found
        its state changed between updates, or copies of it that differ."""
        flags = [float(due and self.rank == 0), float(bool(self.damaged))]
        if self.world > 1:
            both = torch.tensor(flags, device=self.device)
            dist.all_reduce(both, dist.ReduceOp.MAX)
            flags = both.tolist()
        if flags[1]:
            what = f"{self.damaged[0]} changed between two updates" if self.damaged else ""
            told = self._everyone(what)
            self.damaged = []
            self._accuse(step, [Damage(r, text) for r, text in enumerate(told) if text])
        if self.config.replicas_every and step % self.config.replicas_every == 0:
            self.compare(step)
        return bool(flags[0])

    def compare(self, step: int) -> None:
        """Raises Rewind or BrokenDevice where copies of the state differ between ranks."""
        if self.world > 1 and self.config.replicas_every and (found := differing_copies(self.replica.state())):
            self._accuse(step, found)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All that must not change between updates: masters, moments, and the copies that the model computes with."""
        state = self.replica.state()
        held = {t.data_ptr() for t in state.values()}
        computing = self.replica.model.named_parameters()
        return state | {f"compute/{n}": p.detach() for n, p in computing if p.data_ptr() not in held}

    def _take(self, compute: Callable[[], list[float]]) -> tuple[list[int], list[int], list[float]]:
        """One computation: this rank's own numbers before they are added up, its gradient's sums, the global sums."""
        self.replica.clear()
        self.replica.own = []
        sums = compute()
        own, self.replica.own = self.replica.own, None
        return own, fingerprint(p.grad for p in self.replica.masters.values()), sums

    def _accuse(self, step: int, found: list[Damage], broken: bool = False) -> None:
        """Says who is wrong; always raises. All ranks come here with the same findings."""
        text = "; ".join(map(str, found))
        broken_ranks = [d.rank for d in found if d.sure and (self.strikes.add(d.rank, step) or broken)]
        if broken_ranks:
            names = ", ".join(map(str, broken_ranks))
            self.say(
                "broken",
                f"step {step}: {text}; not for the first time: rank {names} must be replaced",
                ranks=broken_ranks,
            )
            if self.rank in broken_ranks:
                raise supervise.BrokenDevice(
                    f"the device of rank {self.rank} on {platform.node()} computes wrongly: {text}"
                )
            raise supervise.LostPeer(f"rank {names} is to be replaced")
        raise self._rewind(text, [d.rank for d in found])

    def _rewind(self, text: str, ranks: list[int] | None = None) -> Rewind:
        self.say("corrupt", text, ranks=ranks or [])
        return Rewind(text)

    def _examine(self) -> list[int]:
        """Ranks whose device fails its test of known answers."""
        kind = self.device if self.device == "cpu" else f"cuda:{torch.cuda.current_device()}"
        told = self._everyone(health.check(kind, (), rounds=4).problems)
        return [rank for rank, problems in enumerate(told) if problems]

    def _any(self, flag: bool) -> bool:
        if self.world == 1:
            return flag
        total = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(total, dist.ReduceOp.MAX)
        return bool(total)

    def _everyone(self, value: Any) -> list:
        """Every rank's value, on every rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values
