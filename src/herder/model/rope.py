"""Rotary position embedding in fp32, half-split layout as in Hugging Face's weights (theta 500,000; the 3.1 scaling)."""

from __future__ import annotations

import math

import torch

from herder.model.shapes import LlamaConfig


def inverse_frequencies(config: LlamaConfig) -> torch.Tensor:
    """(head_dim / 2,) fp32 radians per position. Under the 3.1 scaling, wavelengths above the original context are
    stretched by `factor`, those below a quarter of it are kept, those between are blended linearly."""
    d = config.head_dim
    inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float32, device="cpu") / d)
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq
    wavelength = 2 * math.pi / inv_freq
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((scaling.original_max_seq_len / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * inv_freq / scaling.factor + blend * inv_freq


def rotation(inv_freq: torch.Tensor, positions_bt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the angles at these positions, each (B, T, 1, head_dim) fp32; sin carries the sign of the first half."""
    angles = positions_bt[..., None].float() * inv_freq.to(positions_bt.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1)[:, :, None], torch.cat((-sin, sin), -1)[:, :, None]


def rotate(x_bthd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates each pair (i, i + head_dim / 2) of every head, in at least fp32, and casts back."""
    x = x_bthd.to(torch.promote_types(x_bthd.dtype, torch.float32))
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x_bthd.dtype)
