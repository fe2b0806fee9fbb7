"""Where a step runs: one process, several local processes, or under torchrun. Rank 0 alone writes files.

Local processes are for machines where several one-thread processes beat one process of several threads (measured on a
2-core CPU: 7,500 tokens/s against 6,600, and 1,637 against 692 on a busy machine).
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import multiprocessing as mp
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from herder import supervise

_START_TIMEOUT = datetime.timedelta(minutes=2)  # a process that died while it started must not be waited for longer
_CONTROL_TIMEOUT = datetime.timedelta(days=7)  # a rank may wait for another's whole step


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def keep_memory() -> None:
    """Has glibc keep freed blocks instead of giving them back: activations of a CPU step are freed and asked for again every
    step, and the page faults cost 6% of it (measured). Nothing where the C library is another."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


@contextlib.contextmanager
def children_ignore_interrupts() -> Iterator[None]:
    """Processes started inside leave Ctrl-C to this one, from their first instruction on: they inherit the disposition."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def distributed(run: Callable) -> Callable:
    """Marks a step's function as one that every rank calls; any other is called on rank 0 while the rest wait."""
    run.distributed = True
    return run


def packed(run: Callable) -> Callable:
    """Marks a step's function as small: steps of such functions that do not need each other run beside each other, each in a
    local process of one thread (`map_local`). Under torchrun every rank calls it, one step after the other."""
    run.packed = True
    return distributed(run)


def local_processes() -> int:
    """How many processes of one thread this machine works with: its cores, or one where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def group(*folders: Path) -> Iterator[None]:
    """The process group that torchrun's environment describes, for as long as the context lasts; nothing for one process.

    Before a rank joins, its device, its memory and `folders` are tried; under `herder launch` it also says where it is, and
    what ends it. Raises BrokenDevice for a machine that computes wrongly or cannot write.
    """
    seen = supervise.begin()
    if world_size() == 1 and seen.folder is None:
        yield
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    try:
        if world_size() > 1:
            _join_checked(seen, folders)
        seen.enter("idle", "")
        yield
        seen.enter("done", "")
    except supervise.BrokenDevice as error:
        seen.refuse(str(error), supervise.BROKEN)
        raise
    except RuntimeError as error:
        if seen.folder is None or not _lost_peers(error):
            raise
        print(f"rank {rank()}: lost another rank ({str(error).splitlines()[0][:120]})", file=sys.stderr, flush=True)
        os._exit(supervise.LOST_PEERS)  # a group with a member gone cannot be taken down in order
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_checked(seen: supervise.Watch, folders: tuple[Path, ...]) -> None:
    import torch
    import torch.distributed as dist

    from herder.supervise import health

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    seen.enter("checks")
    found = health.check(f"cuda:{torch.cuda.current_device()}" if cuda else "cpu", folders)
    if found.problems:
        raise supervise.BrokenDevice(f"rank {rank()} does not join: " + "; ".join(found.problems))
    for note in found.notes:
        seen.event("note", text=f"rank {rank()}: {note}")
    seen.enter("joining")
    start = seen.start_timeout or _CONTROL_TIMEOUT.total_seconds()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=start))
    offset = health.clock_offsets()[rank()]
    seen.clock(offset)
    if abs(offset) > health.CLOCK_SECONDS:
        seen.event("clock", text=f"rank {rank()}: its clock is {offset:+.1f} s off rank 0's; only times in logs suffer")
    set_timeout(None)


def groups() -> list:
    """The process groups that there are now."""
    import torch.distributed as dist

    return list(dist.distributed_c10d._world.pg_map) if dist.is_initialized() else []


def set_timeout(seconds: float | None, some: list | None = None) -> None:
    """How long the collectives of these process groups (all) may take from now on; None for as long as a stage takes."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    limit = datetime.timedelta(seconds=seconds) if seconds else _CONTROL_TIMEOUT
    for one in groups() if some is None else some:
        _set_pg_timeout(limit, one)


def _lost_peers(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError | supervise.LostPeer) or "gloo" in str(error)


def broadcast(value: Any) -> Any:
    """Rank 0's value on every rank (plain data)."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run_local(function: Callable[..., Any], args: tuple, processes: int) -> Any:
    """Calls `function(*args)` in `processes` processes joined by gloo; this one is rank 0, and its result is returned.

    One thread each. Where torchrun has already made a group, or one process is asked for, it is a plain call.
    """
    if world_size() > 1 or processes <= 1:
        with group():
            return function(*args)
    import torch
    import torch.distributed as dist

    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="herder-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "STORE": f"{folder}/store"}
        probe.close()
        others = [
            context.Process(target=_other, args=(r, processes, address, os.getpid(), function, args), daemon=True)
            for r in range(1, processes)
        ]
        before, threads = dict(os.environ), torch.get_num_threads()
        try:
            with children_ignore_interrupts():
                for process in others:
                    process.start()
            _join(0, processes, address)
            result = function(*args)
            for process in others:
                process.join(timeout=60)
            return result
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for process in others:
                if process.is_alive():
                    process.terminate()
            os.environ.clear()
            os.environ.update(before)
            torch.set_num_threads(threads)


def map_local(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[tuple[int, Any]]:
    """(index, function(item)) of every item, in the order they finish, from processes of one thread that share no group.

    A process takes the next item when it has done one, so the longest should come first. Raises what `function` raised;
    ValueError where a process was killed.
    """
    context = mp.get_context("spawn")
    waiting, workers = deque(enumerate(items)), {}
    try:
        with children_ignore_interrupts(), _environment(OMP_NUM_THREADS="1"):
            for _ in range(min(processes, len(items))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, os.getpid(), function), daemon=True)
                process.start()
                theirs.close()  # so that reading from a dead process ends
                workers[ours] = process
        for ours in workers:
            ours.send(waiting.popleft())
        busy = set(workers)
        while busy:
            for ours in wait(list(busy)):
                try:
                    index, result, error = ours.recv()
                except EOFError:
                    workers[ours].join()
                    raise ValueError(
                        f"a local process ended with exit code {workers[ours].exitcode} (-9: killed, often for want of "
                        "memory); free some and run the same command to continue"
                    ) from None
                if error is not None:
                    raise error
                yield index, result
                if waiting:
                    ours.send(waiting.popleft())
                else:
                    busy.remove(ours)
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that processes started inside inherit."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, parent: int, function: Callable[[Any], Any]) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        index, item = connection.recv()
        try:
            connection.send((index, function(item), None))
        except Exception as error:
            if not isinstance(error, ValueError | OSError | FloatingPointError):
                traceback.print_exc()  # ours to mend: the exception alone does not say where
            connection.send((index, None, error))


def _join(number: int, processes: int, address: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(processes), **address)
    torch.set_num_threads(1)
    store = dist.FileStore(address["STORE"], processes)
    store.set_timeout(_START_TIMEOUT)
    dist.init_process_group(
        "gloo", store=store, rank=number, world_size=processes, timeout=datetime.timedelta(minutes=10)
    )


def _other(number: int, processes: int, address: dict[str, str], parent: int, function: Callable, args: tuple) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _join(number, processes, address)
    try:
        function(*args)
    except ValueError as error:  # rank 0 has met it too and tells it as a sentence
        print(f"rank {number}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "onnection" not in str(error):
            raise
        raise SystemExit(supervise.LOST_PEERS) from None  # another rank has left, stopped or failed, and has told why


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, killed or not: an orphan must not train on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
