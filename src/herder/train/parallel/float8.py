"""Training with FP8 matrix products (not the paper's, which serves in FP8 and trains in bf16; torchao's row-wise recipe).

The one design decision: an opt-in transform of a model that is built already. Only the linear layers of the blocks change, with
one dynamic scale for each row, as in the paper's inference (6.2); head, embedding, norms and attention stay as they are, and so
do parameter names, masters and checkpoints.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

MULTIPLE = 16
"""FP8 matrix products want both sides of a weight divisible by this."""


def float8(model: nn.Module, device: str | torch.device = "cuda", *, emulate: bool = False) -> nn.Module:
    """Turns the blocks' linear layers to FP8 in place, in forward and both products of the backward pass; returns the model.

    It pays only together with compilation (`layout.compile`): uncompiled, the casts cost more than the products save. emulate
    computes the same roundings in the model's dtype, on any device. Raises ValueError where the device has no FP8 products,
    torchao is missing, or a layer's size does not fit.
    """
    if not emulate:
        _check_device(torch.device(device))
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError("float8 needs torchao: pip install 'herder[float8]'") from None
    chosen = {id(m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in name}
    for name, module in model.named_modules():
        if id(module) in chosen and (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            size = f"{module.out_features} x {module.in_features}"
            raise ValueError(
                f"float8 needs sizes divisible by {MULTIPLE}; {name} is {size}: change the shape, or turn it off"
            )
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)
    return convert_to_float8_training(model, config=config, module_filter_fn=lambda module, _: id(module) in chosen)


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"float8 runs on CUDA devices only, and the device is {device.type}; turn it off")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        raise ValueError(
            f"float8 needs a GPU of compute capability 8.9 or newer, {torch.cuda.get_device_name(device)} has "
            f"{major}.{minor}; turn it off"
        )
