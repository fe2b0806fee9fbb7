"""Models in and out (paper 6 and the public checkpoints): Hugging Face, Meta and GGUF, read and written tensor by tensor."""

from herder.convert.checkpoint import Checkpoint
from herder.convert.formats import open_checkpoint
from herder.convert.transfer import convert, load, save

__all__ = ["Checkpoint", "convert", "load", "open_checkpoint", "save"]
