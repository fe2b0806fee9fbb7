"""Training (paper 3.3-3.4): one loop for every objective, token shards, optimizers, checkpoints, faults, the meter."""

from herder.train.data import Mixture, Stage
from herder.train.loop import TrainConfig, train
from herder.train.objective import Loss, NextToken, Objective, Outputs, Rows
from herder.train.optim import OptimConfig
from herder.train.parallel import Layout
from herder.train.shards import TokenShards, write_shards

__all__ = [
    "Layout",
    "Loss",
    "Mixture",
    "NextToken",
    "Objective",
    "OptimConfig",
    "Outputs",
    "Rows",
    "Stage",
    "TokenShards",
    "TrainConfig",
    "train",
    "write_shards",
]
