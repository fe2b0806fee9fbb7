"""Keys and values in pages, behind the model's `attend` seam.

A sequence's positions lie in blocks that its table names, in any order and shared with other sequences. The one design decision:
pages are plain tensors in one documented order, which the plain path gathers from and kernels read in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from herder.model import LlamaConfig
from herder.model.attention import Attend, causal, varlen

Spans = Sequence[tuple[int, int, list[int]]]
"""(first row, rows, block table) of each sequence in a step."""
SIZE = 16
"""Positions of a block."""
CACHE_BYTES = 2**30
"""Of keys and values at least, where all requests at once could use them."""


class Pages:
    """`k` and `v`: (layers, blocks + 1, kv_heads, size, head_dim); the last block, `spare`, belongs to nobody: rows that only
    fill a batch up write there. In int8 the scales (layers, blocks + 1, kv_heads, size) fp32 belong to them: value = int8 *
    scale, one scale for each position and head."""

    def __init__(
        self,
        config: LlamaConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        size: int = SIZE,
        compute: torch.dtype | None = None,
    ):
        self.blocks = self.spare = blocks
        shape = (config.n_layers, blocks + 1, config.n_kv_heads, size, config.head_dim)
        self.size, self.device, self.dtype, self.compute = size, device, dtype, compute or dtype
        self.k, self.v = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
        self.k_scale = self.v_scale = None
        if dtype == torch.int8:
            self.k_scale, self.v_scale = (_zeros(shape[:-1], torch.float32, device) for _ in "kv")

    def clear(self) -> None:
        """Zeros everywhere, whatever damaged weights may have left."""
        for name in ("k", "v", "k_scale", "v_scale"):
            if (old := getattr(self, name)) is not None:
                setattr(self, name, _zeros(tuple(old.shape), old.dtype, self.device))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, target) in order."""
        if not pairs:
            return
        source, target = (torch.tensor(ids, device=self.device) for ids in zip(*pairs, strict=True))
        for pages in (self.k, self.v, self.k_scale, self.v_scale):
            if pages is not None:
                pages[:, target] = pages[:, source]

    def attend(self, spans: Spans, positions: Sequence[int]) -> Attend:
        """`attend` of one step, (1, N, heads, head_dim) rows: stores what is new and lets each row see its sequence up to
        itself."""
        size = self.size
        block = [table[positions[row] // size] for first, count, table in spans for row in range(first, first + count)]
        block, place = (torch.tensor(x, device=self.device) for x in (block, [p % size for p in positions]))
        singles = [(first, table) for first, count, table in spans if count == 1]
        several = [span for span in spans if span[1] > 1]
        rows = torch.tensor([first for first, _ in singles], dtype=torch.int64, device=self.device)
        single = self.decode(*self._tables(singles, positions)) if singles else None

        def attend(layer: int, q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor) -> torch.Tensor:
            self.store(layer, block, place, k_bthd[0], v_bthd[0])
            if single is not None and not several:
                return single(layer, q_bthd[0])[None]
            out = torch.empty_like(q_bthd)
            if single is not None:
                out[0, rows] = single(layer, q_bthd[0, rows])
            if several:
                self._several(layer, several, positions, q_bthd, k_bthd, v_bthd, out)
            return out

        return attend

    def store(self, layer: int, block: torch.Tensor, place: torch.Tensor, *new: torch.Tensor) -> None:
        """Writes new keys and values (N, kv_heads, head_dim) to their blocks and places there."""
        for pages, scales, x_nhd in zip((self.k, self.v), (self.k_scale, self.v_scale), new, strict=True):
            if scales is not None:
                scale = x_nhd.float().abs().amax(-1) / 127
                scales[layer][block, :, place] = scale
                x_nhd = (x_nhd.float() / scale.clamp_min(1e-30)[..., None]).round_().to(torch.int8)
            pages[layer][block, :, place] = x_nhd.to(pages.dtype)

    def _read(self, layer: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of block tables (..., blocks): (..., blocks, kv_heads, size, head_dim) in the compute dtype."""
        found = []
        for pages, scales in ((self.k, self.k_scale), (self.v, self.v_scale)):
            x = pages[layer][table]
            if scales is not None:
                x = x.float() * scales[layer][table][..., None]
            found.append(x.to(self.compute))
        return found[0], found[1]

    def _tables(
        self, singles: list[tuple[int, list[int]]], positions: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables of equal length, and where each row stands."""
        at = [positions[first] for first, _ in singles]
        blocks = max(at) // self.size + 1
        padded = [[*table[:blocks], *[0] * (blocks - len(table))] for _, table in singles]
        return torch.tensor(padded, device=self.device), torch.tensor(at, device=self.device)

    def decode(self, table: torch.Tensor, at: torch.Tensor) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Attention of rows that stand alone, each at position `at` (rows,) of its own blocks `table` (rows, blocks):
        (layer, (rows, heads, head_dim)) -> the same shape."""
        places = torch.arange(table.shape[1] * self.size, device=self.device)
        seen_r11k = (places <= at[:, None])[:, None, None]

        def attend(layer: int, q_rhd: torch.Tensor) -> torch.Tensor:
            # A masked position still enters the product with weight 0: pages hold zeros or old values, never what is not finite.
            k, v = (x.transpose(1, 2).flatten(2, 3) for x in self._read(layer, table))
            # The query heads that share a KV head stand as rows of one query matrix: no copy of K and V for each.
            q = q_rhd.view(len(q_rhd), k.shape[1], -1, q_rhd.shape[-1])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_r11k).reshape(q_rhd.shape)

        return attend

    def _several(self, layer, spans: Spans, positions, q_bthd, k_bthd, v_bthd, out) -> None:
        """Stretches of new positions: from its own keys where nothing stands before, else from the pages."""
        keys, values, seen = [], [], []
        for first, count, table in spans:
            start, rows = positions[first], slice(first, first + count)
            seen.append(start + count)
            if start == 0 and self.k_scale is None:
                keys.append(k_bthd[0, rows])
                values.append(v_bthd[0, rows])
                continue
            used = torch.tensor(table[: -(-seen[-1] // self.size)], device=self.device)
            for found, pages in zip((keys, values), self._read(layer, used), strict=True):
                found.append(pages.transpose(1, 2).flatten(0, 1)[: seen[-1]])
        counts = [count for _, count, _ in spans]
        if q_bthd.is_cuda:
            q = torch.cat([q_bthd[0, first : first + count] for first, count, _ in spans])
            found = varlen(q, torch.cat(keys), torch.cat(values), counts, seen).split(counts)
        else:
            found = [
                causal(q_bthd[:, first : first + count], k[None], v[None])[0]
                for (first, count, _), k, v in zip(spans, keys, values, strict=True)
            ]
        for (first, count, _), part in zip(spans, found, strict=True):
            out[0, first : first + count] = part


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU memory that is taken only as it is written, since most of a cache may never be."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.empty((), dtype=dtype).element_size()
    words = np.zeros((*shape[:-1], shape[-1] * size), dtype=np.uint8)
    return torch.from_numpy(words).view(dtype)


def blocks_for(
    config: LlamaConfig, max_batch: int, dtype: torch.dtype, device: torch.device, cache_tokens: int | None
) -> int:
    """Blocks of the cache: what all requests at once could use, as far as memory goes."""
    if cache_tokens is not None:
        if cache_tokens < SIZE:
            raise ValueError(f"cache_tokens is {cache_tokens}; it must be at least {SIZE}")
        return cache_tokens // SIZE
    size = torch.empty((), dtype=dtype).element_size()
    block = 2 * config.n_layers * config.n_kv_heads * SIZE * (config.head_dim * size + (4 if size == 1 else 0))
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] * 3 // 4
    else:
        room = max(CACHE_BYTES, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    whole = -(-config.max_seq_len // SIZE) + 1
    return max(1, min(max_batch * whole, room // block))
