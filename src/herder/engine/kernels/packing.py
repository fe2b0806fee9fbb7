"""Weights in the order in which the kernels read them: panels of 32 outputs, each one stream of memory.

The one design decision: all panels of a model lie in one arena, in the order of use, on huge pages where the system has them;
new weights are packed into the same place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    def fill(self, arena: torch.Tensor) -> Matrix:
        """Packs into arena (room,) uint8."""
        weights = list(self.weights())
        data, scale = arena[: self.size], arena[_padded(self.size, _ALIGN) :][: self.scale_size]
        if self.kind == KIND["int4"]:
            self._fill_int4(weights, data)
        else:
            values = self._join([w.values if isinstance(w, Int8) else w for w in weights])
            wide = 1 if self.kind == KIND["fp32"] else 2
            panels = values.view(-1, PANEL, self.padded // wide, wide).transpose(1, 2)
            data.view(values.dtype).view_as(panels).copy_(panels)
        if self.kind == KIND["int8"]:
            scale.view(torch.float32).copy_(self._join([w.scale[:, None] for w in weights], 1).flatten())
        return Matrix(data.data_ptr(), scale.data_ptr(), self.kind, self.outputs, self.inputs, self.padded, self.group)

    def _join(self, parts: list[torch.Tensor], columns: int = 0) -> torch.Tensor:
        """(whole panels, padded inputs), zeros where nothing stands."""
        columns = columns or self.padded
        if self.paired:
            joined = parts[0].new_zeros(self.rows[0] // PANEL, len(parts), PANEL, columns)
            for i, part in enumerate(parts):
                padded = part.new_zeros(self.rows[0], columns)
                padded[: part.shape[0], : part.shape[1]] = part
                joined[:, i] = padded.view(-1, PANEL, columns)
            return joined.flatten(0, 2)
        joined, at = parts[0].new_zeros(_padded(self.outputs, PANEL), columns), 0
        for part in parts:
            joined[at : at + part.shape[0], : part.shape[1]] = part
            at += part.shape[0]
        return joined

    def _fill_int4(self, weights: list[Int4], data: torch.Tensor) -> None:
        groups = self.padded // self.group
        q = self._join([w.quants() for w in weights]).view(-1, PANEL, groups, self.group // 4, 2, 2)
        nibbles = (q[..., 0, :] | q[..., 1, :] << 4).permute(0, 2, 3, 1, 4).flatten(2)
        records = [nibbles]
        for part in ("scale", "zero"):
            values = self._join([getattr(w, part) for w in weights], groups).view(-1, PANEL, groups)
            records.append(values.transpose(1, 2).contiguous().view(torch.uint8))
        data.view(q.shape[0], groups, -1).copy_(torch.cat(records, 2))


def _outputs(weight: Weight) -> int:
    tensor = weight.values if isinstance(weight, Int8) else weight.packed if isinstance(weight, Int4) else weight
    return tensor.shape[0]


class Arena:
    """The packed matrices of a model by name."""

    def __init__(self, plan: dict[str, Packed], advise: Callable[[int, int], object]):
        self.plan = plan
        self.bytes = sum(p.room for p in plan.values())
        self._whole = torch.empty(self.bytes + _ALIGN, dtype=torch.uint8)
        advise(self._whole.data_ptr(), self._whole.numel())  # before the first touch
        self.matrices: dict[str, Matrix] = {}
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Packs all weights as they are now."""
        at = -self._whole.data_ptr() % _ALIGN
        for name, packed in self.plan.items():
            self.matrices[name] = packed.fill(self._whole[at : at + packed.room])
            at += packed.room
