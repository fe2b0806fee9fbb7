"""GPUs a run can be planned for: peaks, memory, bandwidths and power as their data sheets print them (paper 3.3.1 for the H100).

The one design decision: only data-sheet figures stand here, dense and per direction; what is reached of them is in `timing`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of the server: FLOP/s (dense), bytes, bytes/s (one direction) and watts."""

    name: str
    bf16: float
    fp8: float
    """0 where the GPU has no fp8 tensor cores."""
    memory: float
    memory_bandwidth: float
    nvlink: float
    network: float
    watts: float
    per_node: int = 8


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 80GB SXM data sheet; network of a DGX A100: one 200 Gb/s port a GPU.
        Gpu("a100", 312e12, 0.0, 80e9, 2.039e12, 300e9, 25e9, 400.0),
        # NVIDIA H100 SXM data sheet; network 400 Gb/s a GPU (paper 3.3.1).
        Gpu("h100", 989.4e12, 1978.9e12, 80e9, 3.35e12, 450e9, 50e9, 700.0),
        # NVIDIA H200 SXM data sheet: an H100 with more and faster memory.
        Gpu("h200", 989.4e12, 1978.9e12, 141e9, 4.8e12, 450e9, 50e9, 700.0),
        # NVIDIA DGX B200 data sheet, an eighth of the server.
        Gpu("b200", 2250e12, 4500e12, 180e9, 8.0e12, 900e9, 50e9, 1000.0),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name. Raises ValueError with the known names."""
    if name not in GPUS:
        raise ValueError(f"unknown GPU {name!r}; known are {', '.join(sorted(GPUS))}")
    return GPUS[name]
