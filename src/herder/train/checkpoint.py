"""Checkpoints of a training run (paper 3.3.1, 3.3.4): whole or absent, verified on load, written beside the training.

Tensors have names that do not depend on the layout, so what one layout saved any other loads. Training is blocked while its
tensors are copied to a buffer that every save re-uses; a thread with a process group of its own writes. The one design decision:
whatever the ranks decide together (the save before is done, or its storage has stalled) all decide in the same round of
messages, so no fault of one rank's disk leaves the others waiting.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from herder.train.ranks import Ranks, attempt, result
from herder.train.staging import Plan, Planner, Staging, Tensors
from herder.train.storage import INDEX, Damaged, Index, Reader, Writer, checksum, index_text, verify

__all__ = ["Checkpoints", "Saved", "checkpoints", "checksum", "load_checkpoint", "save_checkpoint", "save_tensors"]

STALL_SECONDS = 600.0
"""Seconds without a byte written, on any rank, after which storage counts as stalled."""
_POLL_SECONDS = 0.1


class Checkpoints:
    """The checkpoints of one run in one folder. Every rank makes one and calls the same methods in the same order.

    `keep`: how many are kept. `stalled_after`: seconds without progress after which saving is given up until the storage
    answers again. `waited` sums the seconds that saves waited for the one before, `skipped` counts saves left out.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        *,
        asynchronous: bool = True,
        group: dist.ProcessGroup | None = None,
        stalled_after: float = STALL_SECONDS,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ):
        if keep < 1:
            raise ValueError(f"checkpoints kept is {keep}; at least 1 must be")
        self.folder, self.keep, self.stalled_after, self.warn = Path(folder), keep, stalled_after, warn
        self.ranks = Ranks(group)
        self.asynchronous = asynchronous
        self.behind = self.ranks.another() if asynchronous else self.ranks
        self.waited, self.skipped = 0.0, 0
        self._plan: Plan | None = None
        self._staging: Staging | None = None
        self._job: _Job | None = None
        self._stuck = False

    def save(self, step: int, tensors: Tensors, facts: dict) -> float:
        """Saves DTensors' shards and plain tensors (the same on all ranks) with plain facts; returns the seconds it blocked.

        On return the tensors may change. Raises OSError where the save before could not be written (on every rank alike);
        a stalled one is reported, and this save is left out. `facts` come back with `step` among them.
        """
        start = time.monotonic()
        facts = json.loads(json.dumps({**facts, "step": step}))
        free = self._settle()
        self.waited += time.monotonic() - start
        if not free:
            self.skipped += 1
            self._say(
                f"step {step}: nothing was written to {self.folder} for {self.stalled_after:g} s; training goes on "
                "without this checkpoint, look at the storage"
            )
            return time.monotonic() - start
        writer = Writer(self.folder / f"step-{step:08d}", facts)
        if self._plan is None or not self._plan.fits(self.ranks, tensors):
            self._plan, self._staging = Plan(self.ranks, tensors, writer), None
        plan, planner = self._plan, Planner(tensors)
        if not self.asynchronous:
            _write(self.ranks, writer, plan, planner, lambda: _prune(self.folder, step, self.keep))
            return time.monotonic() - start
        trouble = None
        try:
            self._staging = self._staging or Staging(plan.mine, tensors)
            self._staging.fill(planner)
        except Exception as error:  # told by the writer's thread to all, or the others would wait there for this rank
            trouble = error

        def work() -> None:
            _write(self.behind, writer, plan, planner, lambda: _prune(self.folder, step, self.keep), trouble)

        self._job = _Job(writer, work)
        self._job.start()
        return time.monotonic() - start

    def wait(self) -> None:
        """Until the last save is on disk. Raises OSError where it could not be written (full disk, stalled storage)."""
        self._stuck = False  # what is waited for gets its whole time
        if not self._settle():
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"nothing was written for {self.stalled_after:g} s and the last checkpoint is not whole; look at the storage",
                str(self.folder),
            )

    def load_latest(self, into: Tensors, warn: Callable[[str], None] | None = None) -> dict | None:
        """Fills `into` (any layout) in place from the newest checkpoint that passes its checksums; returns its facts.

        None where there is none. Damaged ones are named by `warn` on the first rank and passed over; a sound one of another
        model raises ValueError.
        """
        say = self._say if warn is None else lambda text: warn(text) if self.ranks.rank == 0 else None
        try:
            self.wait()
        except OSError as error:
            say(f"{error}; the checkpoint before it is used")
        for path in self.ranks.first(lambda: checkpoints(self.folder)[::-1]):
            try:
                return load_checkpoint(path, into, group=self.ranks.group)
            except Damaged as error:
                say(f"{error}; trying the one before")
        return None

    def close(self) -> None:
        """Waits for the last save, then gives back the buffers and the process group."""
        try:
            self.wait()
        finally:
            if not self._stuck:
                if self.behind is not self.ranks:
                    self.behind.close()
                self._staging, self.behind = None, self.ranks

    def _settle(self) -> bool:
        """Waits until no rank writes; False where storage stalls. Every rank leaves in the same round with the same answer.

        Raises what the writer met. The first rank's clock decides, and it has seen the bytes of all.
        """
        seen, since = -1.0, time.monotonic()
        stalled = False
        while True:
            job = self._job
            if job is not None:
                job.done.wait(0.0 if seen < 0 else _POLL_SECONDS)
            busy = job is not None and not job.done.is_set()
            written = float(job.writer.written) if job is not None else 0.0
            decided = float(stalled and self.ranks.rank == 0)
            busy_ranks, written, decided = self.ranks.add(float(busy), written, decided)
            if not busy_ranks:
                break
            if decided:
                self._stuck = True
                return False
            if written != seen and not (self._stuck and seen < 0):
                seen, since = written, time.monotonic()
            stalled = self._stuck or time.monotonic() - since > self.stalled_after
            seen = max(seen, written)
        self._job, self._stuck = None, False
        if job is not None and job.error is not None:
            raise job.error
        return True

    def _say(self, text: str) -> None:
        if self.ranks.rank == 0:
            self.warn(text)


def save_checkpoint(path: Path, tensors: Tensors, facts: dict, *, group: dist.ProcessGroup | None = None) -> None:
    """Writes one checkpoint to `path`, whole or not at all; every rank of the group calls it. Raises OSError on a full disk."""
    ranks, writer = Ranks(group), Writer(Path(path), json.loads(json.dumps(facts)))
    _write(ranks, writer, Plan(ranks, tensors, writer), Planner(tensors), lambda: None)


def load_checkpoint(path: Path, into: Tensors, *, group: dist.ProcessGroup | None = None) -> dict:
    """Fills `into`, of any layout, in place; every rank of the group calls it. Returns the facts.

    Raises the same ValueError on every rank where the checkpoint is damaged, or where a tensor is missing, left over, or of
    another shape or dtype; `into` is then as it was.
    """
    path, ranks = Path(path), Ranks(group)
    index = Index.from_text(ranks.first(lambda: index_text(path)), path)
    ranks.agree(lambda: verify(path, list(index.files.values())[ranks.rank :: ranks.size]))
    ranks.agree(lambda: _check_fit(path, index.metadata, into))
    _check_unasked(ranks, path, index.metadata, into)
    ranks.agree(lambda: _read(Reader(path, index), into))
    return index.facts


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run's folder, oldest first."""
    found = [p for p in Path(folder).glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / INDEX).exists()]
    return sorted(found, key=_step)


class Saved:
    """A checkpoint read tensor by tensor in one process: for export, averaging and reports.

    Raises ValueError where it is damaged; a file's checksum is compared when the first tensor is read from it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.index = Index.from_text(index_text(self.path), self.path)
        self._tensors = self.index.metadata.state_dict_metadata
        self._verified: set[str] = set()

    @property
    def facts(self) -> dict:
        return self.index.facts

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> torch.Size:
        return self._entry(name).size

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).properties.dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, put together from its shards."""
        entry = self._entry(name)
        places = self.index.metadata.storage_data
        files = {places[MetadataIndex(name, chunk.offsets)].file for chunk in entry.chunks} - self._verified
        verify(self.path, [self.index.files[file] for file in sorted(files)])
        self._verified |= files
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        _read(Reader(self.path, self.index), {name: whole})
        return whole

    def _entry(self, name: str):
        if name not in self._tensors:
            raise ValueError(f"checkpoint {self.path} holds no tensor {name}")
        return self._tensors[name]


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Writes one safetensors file. A full disk raises OSError, as it does everywhere else."""
    try:
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


class _Job(threading.Thread):
    """One save's writing. A daemon: a stalled disk does not keep the process from ending."""

    def __init__(self, writer: Writer, work: Callable[[], None]):
        super().__init__(name="checkpoint-writer", daemon=True)
        self.writer, self.work, self.done = writer, work, threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


def _write(
    ranks: Ranks,
    writer: Writer,
    plan: Plan,
    planner: Planner,
    after: Callable[[], None],
    trouble: Exception | None = None,
) -> None:
    """Writes one checkpoint, on every rank; `after` is called on the first when it is whole.

    `trouble` is what this rank has met already. Raises the first failing rank's error on every rank; nothing half-written stays.
    """

    def shards() -> list:
        if trouble is not None:
            raise trouble
        return writer.write_data(plan.mine, planner).value()

    ranks.first(lambda: writer.set_up_storage_writer(True))
    outcomes = ranks.gather(attempt(shards))

    def finish() -> None:
        try:
            writer.finish(plan.metadata, [result(outcome) for outcome in outcomes])
        except BaseException:
            writer.discard()
            raise
        after()

    ranks.first(finish)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Removes all but the newest `keep` up to this step. Later ones are of a course that was left (a rewind), and go too."""
    whole = checkpoints(folder)
    past = [path for path in whole if _step(path) <= step]
    for path in [*past[:-keep], *(p for p in whole if _step(p) > step)]:
        (path / INDEX).unlink()  # first, so that a kill in between leaves no folder that looks whole
        shutil.rmtree(path)
    for path in folder.glob("step-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _check_fit(path: Path, metadata: Metadata, into: Tensors) -> None:
    """Raises ValueError naming the first tensor of this rank that the checkpoint lacks or holds in another shape or dtype."""
    for name, tensor in into.items():
        saved = metadata.state_dict_metadata.get(name)
        if saved is None:
            raise ValueError(f"checkpoint {path} is of another model: it lacks {name}")
        found, wanted = _kind(saved.size, saved.properties.dtype), _kind(tensor.shape, tensor.dtype)
        if found != wanted:
            raise ValueError(f"checkpoint {path} is of another model: {name} is {found} there, {wanted} here")


def _kind(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _check_unasked(ranks: Ranks, path: Path, metadata: Metadata, into: Tensors) -> None:
    """Raises ValueError naming the first tensor of the checkpoint that no rank has a place for."""
    names = sorted(metadata.state_dict_metadata)
    taken = ranks.add(*(float(name in into) for name in names)) if names else []
    for name, places in zip(names, taken, strict=True):
        if not places:
            raise ValueError(f"checkpoint {path} is of another model: it holds {name}, which this one does not have")


def _read(reader: Reader, into: Tensors) -> None:
    metadata, planner = (
        reader.read_metadata(),
        DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    )
    reader.set_up_storage_reader(metadata, False)
    planner.set_up_planner(into, metadata, False)
    reader.read_data(planner.create_local_plan(), planner).wait()
