"""Devices and what their data sheets print: peaks, memory, bandwidths and power (paper 3.3.1 for the H100).

The one design decision: only data-sheet figures stand here, dense and per direction, for the meter of a run and the plan of
one alike; what is reached of them is measured by the one and assumed by the other.
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
    reported: str
    """What the driver's name of the device holds; forms with other peaks (PCIe, NVL) do not."""
    per_node: int = 8


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 80GB SXM data sheet; network of a DGX A100: one 200 Gb/s port a GPU.
        Gpu("a100", 312e12, 0.0, 80e9, 2.039e12, 300e9, 25e9, 400.0, "A100-SXM4-80GB"),
        # NVIDIA H100 SXM data sheet; network 400 Gb/s a GPU (paper 3.3.1).
        Gpu("h100", 989.4e12, 1978.9e12, 80e9, 3.35e12, 450e9, 50e9, 700.0, "H100 80GB HBM3"),
        # NVIDIA H200 SXM data sheet: an H100 with more and faster memory.
        Gpu("h200", 989.4e12, 1978.9e12, 141e9, 4.8e12, 450e9, 50e9, 700.0, "NVIDIA H200"),
        # NVIDIA DGX B200 data sheet, an eighth of the server.
        Gpu("b200", 2250e12, 4500e12, 180e9, 8.0e12, 900e9, 50e9, 1000.0, "NVIDIA B200"),
    )
}

CPU_WATTS = 10.0
"""Power of one busy CPU core with its share of the machine: an assumption (servers: 360 W over 96 cores and as much again for
memory and supply)."""

KG_PER_KWH = 0.414
"""Carbon intensity in kg of CO2 equivalent a kWh that the totals of the Llama 3.1 model card imply."""


def find_gpu(name: str) -> Gpu:
    """The GPU of this name. Raises ValueError with the known names."""
    if name not in GPUS:
        raise ValueError(f"unknown GPU {name!r}; known are {', '.join(sorted(GPUS))}")
    return GPUS[name]


def reported_gpu(device_name: str) -> Gpu | None:
    """The GPU that the driver calls so (`torch.cuda.get_device_name`), or None where its data sheet does not stand here."""
    return next((gpu for gpu in GPUS.values() if gpu.reported in device_name), None)
