"""Weights in the order in which the kernels read them: panels of 32 outputs, each one stream of memory.

The one design decision: all panels of a model lie in one arena, in the order of use, on huge pages where the system has them;
new weights are packed into the same place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herder.engine.quantize import Int4, Int8

PANEL = 32
KIND = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
_DTYPE_KIND = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ALIGN = 64

Weight = torch.Tensor | Int8 | Int4
"""(out, in) fp32 or bf16, or a container."""


class Matrix(ctypes.Structure):
    """`struct Matrix` of products.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("kind", "outputs", "inputs", "padded", "group")),
    )


def kind_of(weight: Weight) -> int:
    """Raises ValueError where the kernels do not know the weight's format."""
    if isinstance(weight, Int8 | Int4):
        return KIND["int8" if isinstance(weight, Int8) else "int4"]
    if not isinstance(weight, torch.Tensor) or weight.dtype not in (torch.float32, torch.bfloat16):
        kind = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ValueError(f"the kernels know weights in fp32, bf16, int8 and int4, not {kind}")
    return _DTYPE_KIND[weight.dtype]


def _padded(size: int, whole: int) -> int:
    return -(-size // whole) * whole


@dataclass
class Packed:
    """One matrix made of several weights with the same inputs: their outputs one after the other, or, `paired`, in turn panel
    by panel (gate and up). All are of one format."""

    weights: Callable[[], Sequence[Weight]]
    """Asked again at each packing: updated weights keep shapes and format."""
    paired: bool = False

    def __post_init__(self):
        weights = self.weights()
        kinds = {kind_of(w) for w in weights}
        if len(kinds) > 1:
            raise ValueError("the kernels multiply q, k and v, and gate and up, at once: each needs one format for all")
        self.kind = kinds.pop()
        first = weights[0]
        self.inputs = first.shape[1] if isinstance(first, torch.Tensor) else first.inputs
        self.group = first.group if isinstance(first, Int4) else 0
        self.padded = _padded(self.inputs, max(self.group, PANEL))
        counts = [_outputs(w) for w in weights]
        self.rows = [_padded(c, PANEL) for c in counts] if self.paired else counts
        self.outputs = sum(self.rows)
        whole = _padded(self.outputs, PANEL)
        bits = {0: 32, 1: 16, 2: 8, 3: 4 + 32 // max(self.group, 1)}[self.kind]
        self.size = whole * self.padded * bits // 8
        self.scale_size = whole * 4 if self.kind == KIND["int8"] else 0

    @property
    def room(self) -> int:
        """Bytes in the arena."""
        return _padded(self.size, _ALIGN) + _padded(self.scale_size, _ALIGN)

    def fill(self, arena: torch.Tensor, pack: Callable[..., None]) -> Matrix:
        """Packs into arena (room,) uint8, zeros where nothing was packed before; `pack` is `herder_pack`."""
        data, scale = arena[: self.size], arena[_padded(self.size, _ALIGN) :][: self.scale_size]
        scales = scale.view(torch.float32).view(-1, PANEL)
        at = 0
        for i, weight in enumerate(self.weights()):
            first, step, offset = (0, len(self.rows), i) if self.paired else (at, 1, 0)
            rows, parts = _outputs(weight), [part.contiguous() for part in _parts(weight)]
            pointers = [part.data_ptr() for part in parts] + [0] * (3 - len(parts))
            pack(data.data_ptr(), self.kind, self.group, *pointers, rows, self.inputs, self.padded, first, step, offset)
            if self.scale_size:
                lanes = torch.arange(first, first + rows)
                scales[lanes // PANEL * step + offset, lanes % PANEL] = weight.scale
            at += rows
        return Matrix(data.data_ptr(), scale.data_ptr(), self.kind, self.outputs, self.inputs, self.padded, self.group)


def _parts(weight: Weight) -> list[torch.Tensor]:
    """The tensors that `herder_pack` reads: values first."""
    if isinstance(weight, Int4):
        return [weight.packed, weight.scale, weight.zero]
    return [weight.values if isinstance(weight, Int8) else weight]


def _outputs(weight: Weight) -> int:
    return _parts(weight)[0].shape[0]


def on_huge_pages(library: ctypes.CDLL, x: torch.Tensor) -> None:
    """Asks for huge pages for memory that is not touched yet. With small ones a step at 32 sequences spends more time on finding
    keys and values than on reading them."""
    library.herder_huge_pages(ctypes.c_void_p(x.data_ptr()), ctypes.c_size_t(x.numel() * x.element_size()))


class Arena:
    """The packed matrices of a model by name."""

    def __init__(self, plan: dict[str, Packed], library: ctypes.CDLL):
        self.plan, self._library = plan, library
        self.bytes = sum(p.room for p in plan.values())
        self._whole = torch.from_numpy(np.zeros(self.bytes + _ALIGN, dtype=np.uint8))  # zeros by not being touched yet
        on_huge_pages(library, self._whole)
        self.matrices: dict[str, Matrix] = {}
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Packs all weights as they are now."""
        at = -self._whole.data_ptr() % _ALIGN
        for name, packed in self.plan.items():
            self.matrices[name] = packed.fill(self._whole[at : at + packed.room], self._pack)
            at += packed.room

    def _pack(self, out, kind, group, source, scale, zero, *numbers: int) -> None:
        pointers = map(ctypes.c_void_p, (source, scale, zero))
        self._library.herder_pack(ctypes.c_void_p(out), kind, group, *pointers, *numbers, torch.get_num_threads())
