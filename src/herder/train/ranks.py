"""Small messages between the ranks that do something together, and errors that all of them raise alike.

The one design decision: what one rank meets every rank raises, so that none waits for another that has given up. Messages are
plain data over the CPU backend; with one process and no process group everything is a plain call.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from herder.supervise.recorder import BACKGROUND

_CONTROL_TIMEOUT = datetime.timedelta(days=7)
"""Of groups of their own: a slow disk is no fault, and who waits there watches for progress otherwise."""


class Ranks:
    """The ranks that save together; without a process group this process alone. Errors are raised on all ranks alike."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.on = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank, self.size = (dist.get_rank(group), dist.get_world_size(group)) if self.on else (0, 1)

    def another(self) -> Ranks:
        """The same ranks with a gloo group of their own, for another thread: its messages never mix with those of this one.

        Every rank of the world has to ask for it, in the same order as for any other group.
        """
        if self.size == 1:
            return self
        # without use_local_synchronization: torch then names the group after how many a rank has, which ranks of a mesh differ in
        members = dist.get_process_group_ranks(self.group or dist.group.WORLD)
        return Ranks(dist.new_group(members, timeout=_CONTROL_TIMEOUT, backend="gloo", group_desc=BACKGROUND))

    def close(self) -> None:
        """Gives up the group that `another` made."""
        if self.size > 1 and self.group is not None:
            dist.destroy_process_group(self.group)

    def add(self, *numbers: float) -> list[float]:
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def gather(self, value: Any) -> list | None:
        """Every rank's value on the first."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, group=self.group, group_dst=0)
        return values

    def scatter(self, values: list | None) -> Any:
        """Each rank's own of the first rank's values."""
        if self.size == 1:
            return values[0]
        box = [None]
        dist.scatter_object_list(box, values, group=self.group, group_src=0)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the first rank."""
        if self.size == 1:
            return work()
        box = [None]
        if self.rank == 0:
            box = [attempt(work)]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return result(box[0])

    def agree(self, work: Callable[[], Any]) -> Any:
        """Does `work` on every rank and returns this one's result; raises everywhere what the first failing rank met."""
        if self.size == 1:
            return work()
        mine = attempt(work)
        if self.add(float(mine[0] is not None))[0]:
            told: list[Outcome | None] = [None] * self.size
            dist.all_gather_object(told, mine if mine[0] else None, group=self.group)
            result(next(failure for failure in told if failure is not None))
        return mine[1]


Outcome = tuple[type[Exception] | None, Any]


def attempt(work: Callable[[], Any]) -> Outcome:
    """(None, result), or class and arguments of the error met: what `result` makes of it again on another rank."""
    try:
        return None, work()
    except ValueError as error:
        return type(error), error.args
    except OSError as error:
        return OSError, (error.errno, error.strerror, error.filename) if error.errno else error.args
    except Exception as error:
        return RuntimeError, (f"{type(error).__name__}: {error}",)


def result(outcome: Outcome) -> Any:
    """The result of an attempt, or its error raised."""
    kind, value = outcome
    if kind is not None:
        raise kind(*value)
    return value
