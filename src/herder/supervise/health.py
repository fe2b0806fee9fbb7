"""What a rank must show before it joins, or joins again (paper 3.3.4: 78% of the interruptions were faulty hardware).

The one design decision: every check has a known right answer: whole numbers so small that fp32 and bf16 hold every product
and sum exactly, patterns of bits, bytes read back. No tolerance has to be chosen, and one wrong bit is enough.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}
FREE_BYTES = 1 << 26
"""Below this a step's own files do not fit; the plan knows what checkpoints need."""
CLOCK_SECONDS = 1.0
"""Clocks that differ by more are reported; nothing depends on them."""


class BrokenDevice(RuntimeError):
    """This rank's machine gives wrong answers: it must be replaced, not restarted."""


class LostPeer(RuntimeError):
    """Another rank is gone or must go; this one is sound and comes back with the restart."""


@dataclass(frozen=True)
class Health:
    """`problems` are reasons not to join, `notes` are worth saying; `seconds` is what the checks took."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def check(device: str, folders: tuple[Path, ...], rounds: int = 1) -> Health:
    """Arithmetic and memory of `device`, and whether `folders` can be written."""
    start, problems, notes = time.monotonic(), [], []
    for _ in range(rounds):
        problems += [p for p in (arithmetic(device), memory(device)) if p and p not in problems]
    for folder in folders:
        problem, note = disk(folder)
        problems += [problem] if problem else []
        notes += [note] if note else []
    return Health(tuple(problems), tuple(notes), time.monotonic() - start)


def arithmetic(device: str, inner: int = 256, tiles: int = 0) -> str:
    """Matrix products in fp32 and bf16 against whole-number arithmetic; "" where every element is right.

    Elements are -1, 0 and 1 and 256 of them are added, so every partial sum is a whole number that bf16 holds, in whatever
    order and precision the device adds. `tiles` repeats the rows and columns until a large device is busy all over.
    """
    import numpy as np
    import torch

    tiles = tiles or (1 if device == "cpu" else 16)
    i, j = np.indices((inner, inner))
    a, b = (i * 3 + j * 5) % 7 % 3 - 1, (i * 11 + j * j) % 5 % 3 - 1
    expected = torch.from_numpy(np.tile(a @ b, (tiles, tiles)))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.from_numpy(np.tile(a, (tiles, 1))).to(device, dtype)
        y = torch.from_numpy(np.tile(b, (1, tiles))).to(device, dtype)
        if wrong := int(((x @ y).cpu().long() != expected).sum()):
            kind = str(dtype).removeprefix("torch.")
            return f"{wrong} of {expected.numel()} elements of a {kind} matrix product are wrong on {device}"
    return ""


def memory(device: str, size: int = 0) -> str:
    """Patterns written, held and read back; "" where every byte is right."""
    import torch

    size = size or MEMORY_BYTES[device.partition(":")[0]]
    for pattern in (0x55, 0xAA, 0x00, 0xFF):
        block = torch.full((size,), pattern, dtype=torch.uint8, device=device)
        if wrong := int((block != pattern).sum()):
            return f"{wrong} of {size} bytes of memory on {device} do not hold {pattern:#04x}"
    return ""


def disk(folder: Path) -> tuple[str, str]:
    """(problem, note) of a folder: that it can be written and read back, and has room."""
    probe = folder / f".probe-{platform.node()}-{os.getpid()}"
    data = os.urandom(1 << 16)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if probe.read_bytes() != data:
            return f"{folder} gives back other bytes than were written", ""
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if error.errno == 28:  # a full disk is waited out by the run itself
            return "", f"{folder} is full; free some space"
        return f"{folder} cannot be written ({error.strerror})", ""
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return "", f"{folder} has {free >> 20} MiB left" if free < FREE_BYTES else ""


def clock_offsets(rounds: int = 3) -> list[float]:
    """Seconds by which each rank's clock is ahead of rank 0's, read behind a barrier; the least of a few rounds, since a
    late start of the reading only adds. Needs a process group."""
    import torch.distributed as dist

    world, best = dist.get_world_size(), None
    for _ in range(rounds):
        dist.barrier()
        clocks: list[float] = [0.0] * world
        dist.all_gather_object(clocks, time.time())
        offsets = [c - clocks[0] for c in clocks]
        best = offsets if best is None else [min(a, b, key=abs) for a, b in zip(best, offsets, strict=True)]
    return best or [0.0]
