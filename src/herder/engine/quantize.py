"""Weights in fewer bits: int8 and int4 beside full activations, and the paper's row-wise FP8 (paper section 6.2).

FP8 as in the paper: only the feed-forward products, never in the first and last Transformer layers, one scale for each row of
weights and of activations, the latter taken from the row itself with its maximum bounded by 1200. The one design decision: a
quantized model is the same Llama with other modules in the places of its Linears, so every path of the engine runs the same
formats, and kernels take the same containers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from herder.model import Llama

KINDS = ("int8", "int4", "fp8")
GROUP = 32
"""Inputs that share a scale and an offset in int4: 5 bits a weight in all."""
SCALE_BOUND = 1200.0
"""Upper bound of an activation row's maximum in FP8 (paper 6.2); what is above it saturates."""
E4M3_MOST = 448.0
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
_BLOCK = 2**16
"""Weights that are quantized at a time."""
_FEW_ROWS = 4
"""Up to here torch's int8 product, which never widens the weights in memory, is faster on a CPU."""


@dataclass(frozen=True, eq=False)
class Int8:
    """values (out, in) int8 and scale (out,) fp32: weight = values * scale, symmetric, one scale an output."""

    values: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8:
        return cls(*_by_rows(_int8_rows, weight))

    @property
    def inputs(self) -> int:
        return self.values.shape[1]

    def dequantize(self) -> torch.Tensor:
        """(out, in) fp32."""
        return self.values.float() * self.scale[:, None]


@dataclass(frozen=True, eq=False)
class Int4:
    """packed (out, padded / 2) uint8, input 2i in the low half of byte i; scale and zero (out, padded / group) fp16:
    weight = q * scale + zero with q from 0 to 15. `padded` is `inputs` rounded up to whole groups."""

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group: int
    inputs: int

    @classmethod
    def of(cls, weight: torch.Tensor, group: int = GROUP) -> Int4:
        """Each group takes the range, out of a few narrower than its own, with the least squared error. Raises ValueError
        for a group that is no multiple of 32."""
        if group < 32 or group % 32:
            raise ValueError(f"group is {group}; int4 groups are multiples of 32 inputs")
        return cls(*_by_rows(lambda rows: _int4_rows(rows.float(), group), weight), group, weight.shape[1])

    def quants(self) -> torch.Tensor:
        """(out, padded) uint8 from 0 to 15."""
        return torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1)

    def dequantize(self) -> torch.Tensor:
        """(out, in) fp32."""
        q = self.quants().unflatten(1, (-1, self.group)).float()
        return (q * self.scale.float()[..., None] + self.zero.float()[..., None]).flatten(1)[:, : self.inputs]


def _by_rows(
    convert: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], weight: torch.Tensor
) -> Iterator[torch.Tensor]:
    """What `convert` makes of all rows. On a CPU it gets blocks that stay in a core's cache, each thread one of its own: many
    small operations that each wait for all threads take up to 100 times longer where other processes run."""
    if weight.device.type != "cpu":
        return iter(convert(weight.detach()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(convert, weight.detach().split(max(1, _BLOCK // weight.shape[1]))))
    finally:
        torch.set_num_threads(threads)
    return map(torch.cat, zip(*parts, strict=True))


def _int8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rows.abs().amax(-1).float() / 127
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (rows.float() * inverse[:, None]).round_().to(torch.int8), scale


def _int4_rows(rows: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, padded / 2) uint8, scale and zero (rows, groups) fp16."""
    short = -rows.shape[1] % group
    # The last value fills a group that is not whole, so that it does not widen the group's range.
    x = torch.cat((rows, rows[:, -1:].expand(-1, short)), 1).unflatten(1, (-1, group))
    low, high = x.amin(-1), x.amax(-1)
    best = None
    for shrink in _SHRINK:
        zero, scale = (low * shrink).half(), ((high - low) * (shrink / 15)).half()
        inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)[..., None]
        offset, wide = zero.float()[..., None], scale.float()[..., None]
        q = ((x - offset) * inverse).round_().clamp_(0, 15)
        error = torch.addcmul(offset - x, q, wide).square_().sum(-1)
        if best is None:
            best = [error, q, scale, zero]
            continue
        better = error < best[0]
        for kept, new in zip(best, (error, q, scale, zero), strict=True):
            torch.where(better[..., None] if new.dim() > better.dim() else better, new, kept, out=kept)
    _, q, scale, zero = best
    q = q.flatten(1).to(torch.uint8)
    return q[:, ::2] | q[:, 1::2] << 4, scale, zero


@dataclass(frozen=True, eq=False)
class Float8:
    """values (out, in) e4m3 and scale (out,) fp32: weight = values * scale, one scale a row."""

    values: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Float8:
        return cls(*float8_rows(weight))

    @property
    def inputs(self) -> int:
        return self.values.shape[1]

    def dequantize(self) -> torch.Tensor:
        """(out, in) fp32."""
        return self.values.float() * self.scale[:, None]


def float8_rows(x: torch.Tensor, bound: float = float("inf")) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as e4m3 (rows, n) with scales (rows,) fp32: a row's maximum, at most `bound`, becomes 448, and what is above it
    saturates there."""
    peak = x.float().abs().amax(-1).clamp(1e-12, bound)
    scale = peak / E4M3_MOST
    return (x.float() / scale[:, None]).clamp_(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn), scale


class _Quantized(nn.Module):
    """A Linear without bias whose weight is one of the containers; its tensors are buffers, so they move with the module."""

    container: type

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.set(weight)

    @torch.no_grad()
    def set(self, weight: torch.Tensor) -> None:
        """Quantizes and takes over another full weight (out, in)."""
        made = self.container.of(weight.detach())
        for name, value in vars(made).items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    @property
    def weight(self):
        """The container over this module's tensors."""
        return self.container(**{name: getattr(self, name) for name in self.container.__dataclass_fields__})

    def _apply(self, fn, recurse=True):
        """Moves to other devices, never to another dtype: the formats are what they are."""
        for name, buffer in self._buffers.items():
            self._buffers[name] = buffer.to(fn(torch.empty(0, dtype=torch.float32, device=buffer.device)).device)
        return self


class Int8Linear(_Quantized):
    container = Int8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if (
            rows <= _FEW_ROWS and x.device.type == "cpu" and x.shape[-1] % 32 == 0
        ):  # it reads 32 inputs at a time, unchecked
            y = torch._weight_int8pack_mm(x.reshape(rows, -1), self.values, self.scale.to(x.dtype))
            return y.view(*x.shape[:-1], -1)
        return F.linear(x, self.values.to(x.dtype)) * self.scale.to(x.dtype)


class Int4Linear(_Quantized):
    container = Int4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.dequantize().to(x.dtype))


class Float8Linear(_Quantized):
    """Both sides in e4m3, sums in fp32: `torch._scaled_mm` where the device has it (CUDA, compute capability 9), else the same
    arithmetic in fp32."""

    container = Float8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, scale = float8_rows(x.reshape(-1, x.shape[-1]), SCALE_BOUND)
        if (
            x.is_cuda
            and torch.cuda.get_device_capability(x.device) >= (9, 0)
            and not any(s % 16 for s in self.values.shape)
        ):
            y = torch._scaled_mm(
                rows, self.values.t(), scale_a=scale[:, None], scale_b=self.scale[None], out_dtype=torch.bfloat16
            )
        else:
            y = F.linear(rows.float(), self.values.float()) * scale[:, None] * self.scale
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def quantize(model: Llama, kind: str) -> Llama:
    """A copy of `model` in `kind`: "int8", "int4" (its head in int8) or "fp8" (feed-forward products between the first and the
    last layer). Embedding and norms stay as they are; a tied head becomes a table of its own. What is replaced is not copied.
    Raises ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}; the kinds are {', '.join(KINDS)}")
    places = _places(model, kind)
    embedding = model.model.embed_tokens.weight
    replaced = {id(w): w for path in places if (w := model.get_submodule(path).weight) is not embedding}
    new = copy.deepcopy(model, dict(replaced))
    for path, module in places.items():
        parent, _, name = path.rpartition(".")
        setattr(new.get_submodule(parent), name, module(model.get_submodule(path).weight))
    return new


def _places(model: Llama, kind: str) -> dict[str, type[_Quantized]]:
    """Paths of the Linears to replace, and by what."""
    layers, places = model.config.n_layers, {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if kind != "fp8":
            places[path] = Int8Linear if kind == "int8" or path == "lm_head" else Int4Linear
        elif ".mlp." in path and 0 < int(path.split(".")[2]) < layers - 1:
            places[path] = Float8Linear
    return places
