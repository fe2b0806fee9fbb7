"""Sharding of parameters, gradients and moments over dp x cp with FSDP2 (paper 3.3.2), and HSDP where copies are kept.

The one design decision: gradients are sums, never means: FSDP adds them over ranks in fp32, and the trainer divides once by the
global weight, so ranks with unequal counts of valid tokens do not bend the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from herder.train.parallel.stage import Stage


def apply(
    stage: Stage,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    reshard_after_forward: bool,
    fill: Callable[[torch.nn.Module], None],
) -> None:
    """Cuts each block, then the rest, over `mesh` (one axis, or two: copies x shards). `fill(part)` gives a part its values
    just before it is cut, so that a rank never holds more than one whole block.

    Parameters stay in their own dtype (fp32 masters); products are computed in `dtype`, gradients added in at least fp32.
    """
    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide, cast_forward_inputs=False)
    for part in (*stage.blocks, stage):
        fill(part)
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def last_backward(stage: Stage, last: bool) -> None:
    """Before a backward pass of a stage: only the step's last one adds gradients over ranks and gives memory back."""
    stage.set_is_last_backward(last)
    stage.set_requires_gradient_sync(last)
    stage.set_reshard_after_backward(last)


def reshard(stage: Stage) -> None:
    """Drops gathered parameters, which a change of the shards would make stale."""
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
