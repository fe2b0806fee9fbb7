"""What a training run reports: speed, where the time went, memory, energy and carbon (paper 3.3.2, 3.3.4), in `metrics.jsonl`.

The one design decision: what a checkpoint rolls back (the seconds of steps that count) travels in the checkpoint; what nothing
undoes (the time since the first start, energy) lies beside it in `clock.json`. Effective training time is the one over the
other, so lost steps, restarts and the time between count as lost.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.autograd import profiler as autograd_profiler

from herder import launch
from herder.model import LlamaConfig
from herder.train.devices import CPU_WATTS, KG_PER_KWH, reported_gpu

Wait = Literal["data", "communication", "checkpoint"]

FIRST_SAMPLE, SAMPLE_EVERY = 10, 500
"""Steps of a process whose collectives the profiler times: the first is past warm-up, the others too rare to be felt."""

WRITE_EVERY = 2.0
"""Seconds between writes of `clock.json`."""


class Meter:
    """Every rank has one; a step lies between `start_step` and `row`, and rank 0's rows are written.

    sample: times the collectives of some steps with the profiler, for layouts whose collectives lie within the model; without
    it `communication_share` is what `waiting("communication")` saw.
    """

    def __init__(
        self,
        config: LlamaConfig,
        device: str,
        dtype: torch.dtype,
        out: Path,
        *,
        sample: bool = False,
        kg_per_kwh: float = KG_PER_KWH,
    ):
        self.config, self.device, self.sample, self.kg_per_kwh = config, torch.device(device), sample, kg_per_kwh
        self.peak = peak_flops(device, dtype) * launch.world_size()
        self.seconds, self.steps, self.share = 0.0, 0, 0.0
        self.waits: dict[str, float] = dict.fromkeys(get_args(Wait), 0.0)
        self._before, self._profile = dict(self.waits), None
        self._path = out / "clock.json" if launch.rank() == 0 else None
        self._clock = {"started": time.time(), "alive": 0.0, "joules": 0.0}
        if self._path and self._path.exists():
            self._clock = json.loads(self._path.read_text())
        self._began = self._seen = self._written = time.monotonic()

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds, "waits": dict(self.waits), "share": self.share}

    def load(self, state: dict) -> None:
        """Goes on from a checkpoint's `state`."""
        self.seconds, self.waits, self.share = state["seconds"], dict(state["waits"]), state["share"]

    def start_step(self) -> None:
        self._before = dict(self.waits)
        if self._profile is not None:  # a step that was given up
            self._profile.__exit__(None, None, None)
            self._profile = None
        if self.sample and (self.steps == FIRST_SAMPLE or self.steps % SAMPLE_EVERY == SAMPLE_EVERY - 1):
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every start and stop is a line on stderr
            cuda = self.device.type == "cuda"  # torch.profiler's own entrance takes seconds where it is not CUDA
            self._profile = autograd_profiler.profile(use_device="cuda" if cuda else None, use_kineto=True).__enter__()
        self._began = time.monotonic()

    @contextlib.contextmanager
    def waiting(self, what: Wait) -> Iterator[None]:
        """Counts the time inside as waiting for data, for other ranks or for a checkpoint; also between steps."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.waits[what] += time.monotonic() - start

    def row(self, positions: float, context: float) -> dict[str, float]:
        """Ends a step of `positions` tokens over all ranks, which saw `context` tokens each on average; its part of the row.

        `data_wait` (seconds) and `communication_share` (of the step, hidden behind compute or not) are this rank's; a step
        that is not sampled repeats the last sample.
        """
        if self._profile is not None and self.device.type == "cuda":
            torch.cuda.synchronize()
        took = max(time.monotonic() - self._began, 1e-9)
        waited = {what: self.waits[what] - self._before[what] for what in self.waits}
        if self._profile is not None:
            profile, self._profile = self._profile, None
            profile.__exit__(None, None, None)
            self.share = min(1.0, collective_seconds(profile) / took)
        elif not self.sample:
            self.share = waited["communication"] / took
        self.seconds += took
        self.steps += 1
        self._tick()
        flops = self.config.flops_per_token(context) * positions / took
        return {
            "seconds": self.seconds,
            "tokens_per_second": positions / took,
            "tflops": flops / 1e12,
            "mfu": flops / self.peak,
            "memory_gib": memory_bytes(self.device) / 2**30,
            "data_wait": waited["data"],
            "communication_share": self.share,
            "effective_time": self.effective,
            "energy_kwh": self.energy_kwh,
        }

    def headline(self) -> dict[str, float | str]:
        """Numbers of the whole run so far, restarts included. Energy is of all ranks; `power` says what it rests on."""
        self._tick(write=True)
        seconds = max(self.seconds, 1e-9)
        return {
            "effective_time": self.effective,
            "data_wait_share": self.waits["data"] / seconds,
            "communication_share": self.share if self.sample else self.waits["communication"] / seconds,
            "checkpoint_wait_seconds": self.waits["checkpoint"],
            "memory_gib": memory_bytes(self.device) / 2**30,
            "energy_kwh": self.energy_kwh,
            "carbon_kg": self.energy_kwh * self.kg_per_kwh,
            "power": watts(self.device)[1],
        }

    @property
    def effective(self) -> float:
        """Share of the time since the first start that went into steps that count."""
        since = max(time.time() - self._clock["started"], self._clock["alive"], 1e-9)  # a clock may be set back
        return min(1.0, self.seconds / since)

    @property
    def energy_kwh(self) -> float:
        return self._clock["joules"] * launch.world_size() / 3.6e6

    def _tick(self, write: bool = False) -> None:
        """Adds the time since the last call to what nothing undoes."""
        now = time.monotonic()
        took, self._seen = now - self._seen, now
        self._clock["alive"] += took
        self._clock["joules"] += took * watts(self.device, minute=int(now // 60))[0]
        if self._path and (write or now - self._written > WRITE_EVERY):
            part = self._path.with_name(self._path.name + ".part")
            with contextlib.suppress(OSError):  # a full disk stops no training
                part.write_text(json.dumps(self._clock))
                os.replace(part, self._path)
            self._written = now


def collective_seconds(profile: autograd_profiler.profile) -> float:
    """Seconds in which at least one collective of NCCL or gloo was under way, waiting for other ranks included."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.function_events
        if event.name.startswith(("gloo:", "ncclDevKernel", "ncclKernel"))
    )
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def memory_bytes(device: torch.device) -> float:
    """The most that this process has held so far: allocated on the device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (2**10 if sys.platform != "darwin" else 1)


@functools.lru_cache(maxsize=8)
def watts(device: torch.device, minute: int = 0) -> tuple[float, str]:
    """Power of one rank's device and what the figure is: the driver's reading (asked once a minute), the data sheet's rating,
    or for a CPU an assumption of `CPU_WATTS` for each thread; 0 where nothing is known."""
    if device.type != "cuda":
        return CPU_WATTS * torch.get_num_threads(), f"assumed {CPU_WATTS:g} W a thread"
    try:
        return torch.cuda.power_draw(device) / 1000, "measured by the driver"
    except Exception:  # without its Python package, or permission, the driver cannot be asked: many kinds of errors
        gpu = reported_gpu(torch.cuda.get_device_name(device))
        return (gpu.watts, "rated power") if gpu else (0.0, "unknown GPU, not counted")


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s that MFU is told against: the data sheet's where the GPU is known, in bf16, else `matmul_peak`."""
    if torch.device(device).type == "cuda" and dtype == torch.bfloat16:
        gpu = reported_gpu(torch.cuda.get_device_name(device))
        if gpu:
            return gpu.bf16
    return matmul_peak(device, dtype)


@functools.cache
def matmul_peak(device: str, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Measured FLOP/s of one process's large matrix product in this dtype: the roof that MFU is told against."""
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class Metrics:
    """Appends rows to `metrics.jsonl`; on resumption rows after the checkpoint's step are cut, so no step stands twice.

    Rows that a full disk refuses are kept and written with later ones.
    """

    def __init__(self, path: Path, step: int, sinks: list):
        self.path, self.sinks = path, sinks
        rows = [row for row in read_metrics(path) if row["step"] < step] if path.exists() else []
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, path)
        self.file, self.rest = open(path, "ab", buffering=0), b""  # noqa: SIM115, closed in close()

    def write(self, row: dict) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        self.rest += json.dumps(rounded).encode() + b"\n"
        with contextlib.suppress(OSError):
            self.rest = self.rest[self.file.write(self.rest) :]
        for sink in self.sinks:
            sink.write(row)

    def close(self) -> None:
        self.file.close()
        for sink in self.sinks:
            sink.close()


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics file; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
