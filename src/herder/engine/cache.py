"""Keys and values of the sequences in a batch, behind the model's `attend` seam.

Each sequence owns one slot, a contiguous stretch per layer and KV head; running sequences always occupy the first slots,
so a decoding step reads plain views, without gathering. A sequence that leaves is replaced by the last one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from herder.model import LlamaConfig
from herder.model.attention import Attend, causal


class SlotCache:
    """Room for `slots` sequences of up to `capacity` positions each."""

    def __init__(self, config: LlamaConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.n_layers, slots, config.n_kv_heads, capacity, config.head_dim)
        # Zeros, not empty: a masked position still enters the product with weight 0, and 0 * NaN is NaN.
        self.k_lsghd = torch.zeros(shape, dtype=dtype, device=device)
        self.v_lsghd = torch.zeros(shape, dtype=dtype, device=device)

    def prefill(self, slots: list[int]) -> Attend:
        """`attend` for whole prompts from position 0, right-padded: row i goes into slot slots[i]."""
        index = torch.tensor(slots, device=self.k_lsghd.device)

        def attend(layer: int, q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor) -> torch.Tensor:
            length = k_bthd.shape[1]
            self.k_lsghd[layer][index, :, :length] = k_bthd.transpose(1, 2)
            self.v_lsghd[layer][index, :, :length] = v_bthd.transpose(1, 2)
            return causal(q_bthd, k_bthd, v_bthd)  # causal: what pads a row on the right is never seen by it

        return attend

    def decode(self, positions: list[int]) -> Attend:
        """`attend` for one new token in each of the first slots: row i stands at positions[i] of slot i."""
        device, rows, longest = self.k_lsghd.device, len(positions), max(positions) + 1
        at, row = torch.tensor(positions, device=device), torch.arange(rows, device=device)
        seen_r11k = (torch.arange(longest, device=device) <= at[:, None])[:, None, None]

        def attend(layer: int, q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor) -> torch.Tensor:
            k_sghd, v_sghd = self.k_lsghd[layer], self.v_lsghd[layer]
            k_sghd[row, :, at] = k_bthd[:, 0]
            v_sghd[row, :, at] = v_bthd[:, 0]
            # The query heads that share a KV head stand as rows of one query matrix: no copy of K and V.
            q = q_bthd.view(rows, k_sghd.shape[1], -1, q_bthd.shape[-1])
            out = F.scaled_dot_product_attention(
                q, k_sghd[:rows, :, :longest], v_sghd[:rows, :, :longest], attn_mask=seen_r11k
            )
            return out.view_as(q_bthd)

        return attend

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one slot to another."""
        for cache in (self.k_lsghd, self.v_lsghd):
            cache[:, target, :, :length] = cache[:, source, :, :length]
