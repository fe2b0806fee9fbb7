"""What a training run reports: tokens/s, TFLOP/s, MFU against the measured matmul peak, in `metrics.jsonl`."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

import torch


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
    """Appends rows to `metrics.jsonl`; on resumption rows after the checkpoint's step are cut, so no step stands twice."""

    def __init__(self, path: Path, step: int, sinks: list):
        self.path, self.sinks = path, sinks
        rows = [row for row in read_metrics(path) if row["step"] < step] if path.exists() else []
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, path)
        self.file = open(path, "a")  # noqa: SIM115, closed in close()

    def write(self, row: dict) -> None:
        self.file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
        self.file.flush()
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
