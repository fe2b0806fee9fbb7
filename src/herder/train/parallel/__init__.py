"""4D parallelism applied from outside the model (paper 3.3.2): one file per axis."""

from herder.train.parallel.mesh import RECOMPUTE, Layout

__all__ = ["RECOMPUTE", "Layout"]
