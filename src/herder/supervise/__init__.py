"""Runs that survive (paper 3.3.4, table 5): heartbeats, health checks, the launcher over TorchElastic, the flight recorder's
analysis, and templates for Slurm and Kubernetes."""

from herder.supervise.health import BrokenDevice, LostPeer
from herder.supervise.watch import BROKEN, LOST_PEERS, USER_ERROR, Limit, Watch, begin

__all__ = ["BROKEN", "LOST_PEERS", "USER_ERROR", "BrokenDevice", "Limit", "LostPeer", "Watch", "begin"]
