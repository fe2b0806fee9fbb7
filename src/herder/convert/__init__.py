"""Models in and out (paper 6 and the public checkpoints): Hugging Face, Meta and GGUF, read and written tensor by tensor."""

from herder.convert.catalog import ModelEntry, final_model, models, resolve
from herder.convert.checkpoint import Checkpoint, weightless
from herder.convert.formats import open_checkpoint
from herder.convert.trained import TrainedCheckpoint
from herder.convert.transfer import convert, export, load, save

__all__ = [
    "Checkpoint",
    "ModelEntry",
    "TrainedCheckpoint",
    "convert",
    "export",
    "final_model",
    "load",
    "models",
    "open_checkpoint",
    "resolve",
    "save",
    "weightless",
]
