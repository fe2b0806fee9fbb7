"""Runs that survive (paper 3.3.4, table 5): heartbeats, health checks, the launcher over TorchElastic, the flight recorder's
analysis, and templates for Slurm and Kubernetes."""

from herder.supervise.health import BrokenDevice
from herder.supervise.watch import BROKEN, LOST_PEERS, USER_ERROR, Watch, begin

__all__ = ["BROKEN", "LOST_PEERS", "USER_ERROR", "BrokenDevice", "Watch", "begin"]
