"""Optional C++ kernels for CPUs (paper section 6: the engine's speed where there is no GPU).

One call computes a whole step for all sequences. The one design decision: kernels are compiled once on the machine that runs
them, for its own processor, and everything works without them.
"""

from herder.engine.kernels.build import unavailable
from herder.engine.kernels.runner import NativeRunner, supports

__all__ = ["NativeRunner", "supports", "unavailable"]
