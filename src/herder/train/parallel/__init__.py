"""4D parallelism applied from outside the model (paper 3.3.2): one file per axis."""

from herder.train.parallel.mesh import RECOMPUTE, Layout
from herder.train.parallel.sharded import Sharded
from herder.train.parallel.stage import apply_locally

__all__ = ["RECOMPUTE", "Layout", "Sharded", "apply_locally"]
