"""Checkpoints of a training run."""

from herder.train.saving import (
    Checkpoints,
    Saved,
    checkpoints,
    checksum,
    load_checkpoint,
    save_checkpoint,
    save_tensors,
)

__all__ = ["Checkpoints", "Saved", "checkpoints", "checksum", "load_checkpoint", "save_checkpoint", "save_tensors"]
