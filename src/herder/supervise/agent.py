"""`herder launch`: torchrun's elastic agent with eyes (paper 3.3.4: automatic restart, time-outs, named culprits).

The one design decision: processes, rendezvous and restarts are TorchElastic's, through its public interface; this adds a
thread that reads the ranks' heartbeats and acts by killing processes, after which the agent does what it always does. So a
hang, a late start and a death take the same road back: every rank starts again from the last good checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from herder.supervise import recorder, watch
from herder.supervise.monitor import Monitor

ENDLESS = 10_000
"""Restarts that TorchElastic is allowed; the monitor stops it after `restarts` in a row without a new step."""


@dataclass(frozen=True)
class Launch:
    """What runs where. Time-outs are seconds; `nodes` is a number or MIN:MAX; `rdzv` is HOST:PORT of the first node, ""
    for one machine."""

    nproc: int = 1
    nodes: str = "1"
    rdzv: str = ""
    name: str = "herder"
    start_timeout: float = 600.0
    """From a process's start, or a first step's, to its end."""
    step_timeout: float = 300.0
    restarts: int = 3
    """Restarts in a row without a new step in between, after which the launcher gives up."""
    report_every: float = 60.0
    """Seconds between looks for slow ranks (0: never)."""
    slow: float = 1.5
    """A rank that is busy this many times the median of its group is reported."""
    log: Path = Path("runs/.launch")
    """Folder for events, reports of hangs and the summary; shared by the nodes where they share a file system."""

    def __post_init__(self):
        low, high = self.node_range
        for name in ("nproc", "start_timeout", "step_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if self.restarts < 0:
            raise ValueError(f"--restarts is {self.restarts}; it must be at least 0")
        if not 1 <= low <= high:
            raise ValueError(f"--nnodes {self.nodes} is not a number of at least 1, nor MIN:MAX with MIN <= MAX")
        if high > 1 and not self.rdzv:
            raise ValueError(f"--nnodes {self.nodes} needs --rdzv HOST:PORT, the first node's address and a free port")

    @property
    def node_range(self) -> tuple[int, int]:
        low, colon, high = self.nodes.partition(":")
        try:
            return int(low), int(high) if colon else int(low)
        except ValueError:
            raise ValueError(f"--nnodes {self.nodes!r} is neither a number nor MIN:MAX") from None


def launch(config: Launch, program: list[str], beats: Path | None = None) -> int:
    """Runs `program` (arguments of the Python interpreter) in `nproc` processes a node until it is done, restarting it after
    faults; called in the main thread. Heartbeats lie in `beats`, or in a folder of their own in memory.

    Returns the exit code: 0, 2 for what the user mends, 76 where this node must be replaced, 1 where it gave up.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = beats or Path(tempfile.mkdtemp(prefix="herder-", dir=memory))
    before = dict(os.environ)
    os.environ |= {
        watch.FOLDER: str(folder),
        watch.LIMITS: f"{config.start_timeout},{config.step_timeout}",
        recorder.BUFFER: str(recorder.ENTRIES),
        # A store shared by all restarts keeps the addresses of processes that are gone, and gloo connects to them (torch 2.13).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    os.environ.setdefault("TORCH_NCCL_ENABLE_TIMING", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    (folder / "ask").write_bytes(b"")
    monitor = Monitor(config, folder)
    try:
        monitor.start()
        code = _elastic(config, program, monitor)
        return monitor.finish(code)
    finally:
        monitor.stop()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def _elastic(config: Launch, program: list[str], monitor: Monitor) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # what they say, the monitor says in a sentence
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    low, high = config.node_range
    seconds = max(1, round(config.start_timeout))
    elastic = LaunchConfig(
        min_nodes=low,
        max_nodes=high,
        nproc_per_node=config.nproc,
        run_id=config.name,
        rdzv_backend="c10d",
        rdzv_endpoint=config.rdzv or "localhost:0",
        rdzv_configs={"timeout": seconds, "join_timeout": seconds},
        max_restarts=ENDLESS if config.restarts else 0,
        monitor_interval=1.0,
        local_addr=None if config.rdzv else "localhost",
    )
    try:
        elastic_launch(elastic, sys.executable)("-m", "herder.supervise.worker", *program)
        return 0
    except SignalException as stopped:
        return monitor.code if monitor.code is not None else 128 + int(stopped.sigval)
    except ChildFailedError:
        return 1
    except RendezvousError as error:
        monitor.say(
            "rendezvous",
            f"not all of {config.nodes} nodes came to {config.rdzv or 'this machine'} within {config.start_timeout:.0f} s"
            f" ({type(error).__name__}); see which node has not started, or raise --start-timeout",
        )
        return 1


def read_summary(log: Path) -> dict:
    """What the last launch into a log folder came to: `launch.json`. Raises ValueError where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((log / "launch.json").read_text())
    raise ValueError(f"{log} holds no launch.json; give the --log folder of a launch that has ended")
