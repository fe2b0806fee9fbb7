"""Models in and out (paper 6 and the public checkpoints): folders that `transformers` reads as they lie."""

from herder.convert.huggingface import load, save

__all__ = ["load", "save"]
