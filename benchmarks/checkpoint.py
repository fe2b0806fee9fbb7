"""Saving a training state: how long training is blocked, against torch's own ways in the same run.

The state is that of AdamW on a 98M-parameter Llama: fp32 weights and two moments, 1.1 GiB, cut between the ranks as FSDP
does (`--ranks 2`). herder and torch.distributed.checkpoint (DCP) force their files to the disk, torch.save does not (it is
shown both ways). While an asynchronous save is written, "training" (matrix products and many small operations) goes on; its
steps are timed against undisturbed ones. Turns alternate, the median counts; the first save, which plans and makes the buffers,
is listed apart.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py [--turns 7] [--ranks 1] [--device cpu] [--folder .]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from herder import launch
from herder.model import Llama, LlamaConfig
from herder.steps import machine
from herder.train.checkpoint import Checkpoints, checkpoints, load_checkpoint

SHAPE = LlamaConfig(vocab_size=32_000, dim=768, n_layers=8, n_heads=12, n_kv_heads=4, ffn_dim=2048)
STEP_OPERATIONS = 400
"""Small operations of one pretended training step: each needs Python's lock, which a writer may hold."""

State = dict[str, torch.Tensor]
Way = Callable[[State, Path], Callable[[], None]]
"""Saves a state to a folder; what it returns waits until it is there."""


def state(device: str) -> State:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Llama(SHAPE).named_parameters()}
    mesh = init_device_mesh(device, (dist.get_world_size(),)) if dist.is_initialized() else None
    tensors: State = {}
    for name, shape in shapes.items():
        for kind in ("master", "optim/exp_avg", "optim/exp_avg_sq"):
            tensor = torch.randn(shape, device=device)
            tensors[f"{kind}/{name}"] = distribute_tensor(tensor, mesh, [Shard(0)]) if mesh else tensor
        tensors[f"optim/step/{name}"] = torch.tensor(1.0)
    return tensors


def ways(root: Path) -> dict[str, Way]:
    behind = Checkpoints(root / "behind", keep=1)
    before = Checkpoints(root / "before", keep=1, asynchronous=False)
    # the fastest of torch's asynchronous ways here: buffers that are kept between saves
    stager = DefaultStager(StagingOptions(torch.cuda.is_available(), False, False, False))
    step = iter(range(1, 1 << 30))

    def herder(which: Checkpoints) -> Way:
        def save(tensors: State, _: Path) -> Callable[[], None]:
            which.save(next(step), tensors, {})
            return which.wait

        return save

    def dcp_save(tensors: State, folder: Path) -> Callable[[], None]:
        dcp.save(dict(tensors), checkpoint_id=folder)
        return lambda: None

    def dcp_async(tensors: State, folder: Path) -> Callable[[], None]:
        return dcp.async_save(dict(tensors), checkpoint_id=folder).result

    def dcp_staged(tensors: State, folder: Path) -> Callable[[], None]:
        return dcp.async_save(dict(tensors), checkpoint_id=folder, async_stager=stager).result

    def torch_save(synced: bool) -> Way:
        def save(tensors: State, folder: Path) -> Callable[[], None]:
            folder.mkdir(exist_ok=True)
            local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}
            with open(folder / f"{launch.rank()}.pt", "wb") as file:
                torch.save(local, file)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
            return lambda: None

        return save

    return {
        "herder": herder(behind),
        "herder, synchronous": herder(before),
        "torch.save": torch_save(False),
        "torch.save, forced to the disk": torch_save(True),
        "DCP save": dcp_save,
        "DCP async_save": dcp_async,
        "DCP async_save, its buffers kept": dcp_staged,
    }


def training_step(matrix: torch.Tensor) -> float:
    start, small = time.perf_counter(), torch.zeros(16, device=matrix.device)
    for _ in range(4):
        matrix @ matrix
    for _ in range(STEP_OPERATIONS):
        small = small + 1
    float(small[0])
    return time.perf_counter() - start


@dataclasses.dataclass
class Turn:
    """One way's turn: seconds blocked, seconds until all is on the disk, seconds of training steps while it was written."""

    blocked: list[float]
    whole: float
    steps: list[float]


def turn(way: Way, tensors: State, folder: Path, matrix: torch.Tensor) -> Turn:
    """Saves twice: waiting for the end, then training beside it for as long as that took."""
    clear(folder)
    start = time.perf_counter()
    wait = way(tensors, folder)
    blocked = [time.perf_counter() - start]
    wait()
    whole = time.perf_counter() - start
    clear(folder)
    start = time.perf_counter()
    wait = way(tensors, folder)
    blocked.append(time.perf_counter() - start)
    steps = []
    while time.perf_counter() < start + whole:
        steps.append(training_step(matrix))
    wait()
    return Turn(blocked, whole, steps)


def clear(folder: Path) -> None:
    if launch.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()


def bench(turns: int, device: str, root: str) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(launch.rank())
    tensors, matrix, named = state(device), torch.randn(384, 384, device=device), ways(Path(root))
    quiet: list[float] = []
    rows: dict[str, list[Turn]] = {name: [] for name in named}
    for _ in range(turns + 1):
        for name, way in named.items():
            quiet += [training_step(matrix) for _ in range(20)]
            rows[name].append(turn(way, tensors, Path(root) / "peer", matrix))
    clear(Path(root) / "peer")
    loads = loading(Path(root), tensors)
    if launch.rank() == 0:
        report(rows, statistics.median(quiet), loads, tensors, device)


def loading(root: Path, tensors: State) -> dict[str, float]:
    """Median seconds to load what was saved, files in the page cache; herder's includes comparing every checksum."""
    dcp.save(dict(tensors), checkpoint_id=root / "peer")
    ours = checkpoints(root / "behind")[-1]
    loads = {
        "herder, checksums compared": lambda: load_checkpoint(ours, tensors),
        "DCP load": lambda: dcp.load(dict(tensors), checkpoint_id=root / "peer"),
    }
    seconds = {}
    for name, load in [*loads.items()] * 3:
        start = time.perf_counter()
        load()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
    return {name: statistics.median(of) for name, of in seconds.items()}


def report(rows: dict[str, list[Turn]], quiet: float, loads: dict[str, float], tensors: State, device: str) -> None:
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    where = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "ranks": launch.world_size()}
    print(json.dumps({**machine(), "torch": torch.__version__, **where, "state_gib": round(size / 2**30, 3)}))
    synchronous = statistics.median(t.whole for t in rows["herder, synchronous"][1:])
    print(f"\n{'':<34}{'blocked':>9}{'share':>8}{'first':>9}{'whole':>9}{'step beside':>13}")
    for name, (first, *later) in rows.items():
        blocked = statistics.median(b for t in later for b in t.blocked)
        whole = statistics.median(t.whole for t in later)
        beside = statistics.median(s for t in later for s in t.steps) / quiet if blocked < 0.9 * whole else 1.0
        print(
            f"{name:<34}{blocked:>9.3f}{blocked / synchronous:>8.1%}{first.blocked[0]:>9.3f}{whole:>9.3f}{beside:>13.2f}"
        )
    print(
        "\nblocked, first (save) and whole in seconds; share is of herder's synchronous save; step beside: median seconds of a"
    )
    print("training step while it is written, of undisturbed ones")
    for name, seconds in loads.items():
        print(f"loading: {name:<30}{seconds:>8.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=".", help="on the disk that is to be measured")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        launch.run_local(bench, (options.turns, options.device, root), options.ranks)


if __name__ == "__main__":
    main()
