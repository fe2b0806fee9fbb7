"""`NativeRunner`: a step of the engine in one call of the C++ kernels, for rows decoded and prefilled alike.

The one design decision: one path for every number of rows, in which each row's sums are taken in an order of its own, so a row
has bitwise the same result alone, batched, in chunks of a prompt, or as a draft to be verified.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from herder.engine.kernels.build import library
from herder.engine.kernels.packing import _DTYPE_KIND, Arena, Matrix, Packed, Weight, kind_of, on_huge_pages
from herder.engine.quantize import Float8Linear
from herder.model import Llama
from herder.model.rope import inverse_frequencies

if TYPE_CHECKING:
    from herder.engine.runner import Batch

MOST_ROWS = 512
"""Rows of one call: bounds the memory of activations; more rows follow in further calls, in order."""


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.POINTER(_Layer)),
        ("embedding", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        *((n, ctypes.c_int32) for n in ("embedding_kind", "layers", "dim", "heads", "kv_heads", "head_dim", "ffn")),
        ("eps", ctypes.c_float),
    )


class _Pages(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k", "v", "k_scale", "v_scale")),
        *((n, ctypes.c_int32) for n in ("kind", "layers", "blocks", "kv_heads", "block_size", "head_dim")),
    )


_ARRAYS = ("tokens", "positions", "first", "count", "table_at", "tables", "select", "target")


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_ARRAYS, "cos", "sin", "out")),
        *((name, ctypes.c_int32) for name in ("rows", "spans", "selected")),
    )


def supports(model: Llama) -> str:
    """Why the kernels cannot run this model, in one sentence; "" where they can."""
    weights = {p.dtype for p in model.parameters()}
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "the kernels run on CPUs and the model lies elsewhere"
    if not weights <= {torch.float32, torch.bfloat16}:
        return f"the kernels know weights in fp32, bf16, int8 and int4, not {', '.join(sorted(map(str, weights)))}"
    if any(isinstance(m, Float8Linear) for m in model.modules()):
        return "the kernels do not compute FP8, which this processor would only emulate"
    return ""


class NativeRunner:
    """Runs `model` (as it is, or from `quantize`) over `pages` (with `k`, `v`, `k_scale`, `v_scale` as in `Pages`). Weights are
    copied into the order of the kernels; after the model's change, `refresh` takes them anew. Raises ValueError with the reason
    where there are no kernels for it."""

    def __init__(self, model: Llama, pages: Any):
        if reason := supports(model):
            raise ValueError(reason)
        self._library, self.model, self.pages, self.config = library(), model, pages, model.config
        plan = {}
        for i, block in enumerate(model.model.layers):
            attention, mlp = block.self_attn, block.mlp
            plan[f"{i}.qkv"] = Packed(_weights(attention, "q_proj", "k_proj", "v_proj"))
            plan[f"{i}.output"] = Packed(_weights(attention, "o_proj"))
            plan[f"{i}.gate_up"] = Packed(_weights(mlp, "gate_proj", "up_proj"), paired=True)
            plan[f"{i}.down"] = Packed(_weights(mlp, "down_proj"))
        plan["head"] = Packed(_weights(model, "lm_head"))
        self._arena = Arena(plan, self._library)
        for part in (pages.k, pages.v):
            on_huge_pages(self._library, part)
        self._inv_freq = inverse_frequencies(model.config)
        self._cos = self._sin = torch.empty(0)
        self._bind()

    @property
    def bytes(self) -> int:
        """Bytes of weights that a decoding step reads, the head included."""
        return self._arena.bytes

    def refresh(self) -> None:
        """Takes the model's weights as they are now."""
        self._arena.fill()
        self._bind()

    def run(self, batch: Batch) -> torch.Tensor:
        """(selected, dim) fp32 normalised last hidden states, in the order of `batch.select`."""
        if any(getattr(batch, "adapters", ())):
            raise ValueError("the kernels run the model without adapters; give such rows to the plain path")
        out = torch.empty(len(batch.select), self.config.dim)
        tokens, positions = (np.array(ids, dtype=np.int32) for ids in (batch.tokens, batch.positions))
        spans = sorted(batch.spans, key=lambda span: span[0])
        self._check(tokens, positions, spans)
        self._reach(int(positions.max()) + 1)
        select = np.array(batch.select, dtype=np.int64)
        for start, stop, pieces in _chunks(spans):
            inside = np.flatnonzero((select >= start) & (select < stop))
            self._call(tokens[start:stop], positions[start:stop], pieces, select[inside] - start, inside, out)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(selected, dim) -> (selected, V) fp32."""
        x = hidden.float().contiguous()
        out = torch.empty(len(x), self.config.vocab_size)
        if len(x):
            self._library.herder_product(
                ctypes.byref(self._arena.matrices["head"]),
                ctypes.c_void_p(x.data_ptr()),
                len(x),
                ctypes.c_void_p(out.data_ptr()),
                torch.get_num_threads(),
            )
        return out

    def _bind(self) -> None:
        """The structures that the calls take, over the tensors as they lie."""
        c, decoder = self.config, self.model.model
        norms = [decoder.norm, *(n for b in decoder.layers for n in (b.input_layernorm, b.post_attention_layernorm))]
        self._norms = torch.stack([n.weight.detach().float() for n in norms])
        at = [self._norms[i].data_ptr() for i in range(len(norms))]
        names = ("qkv", "output", "gate_up", "down")
        self._layers = (_Layer * c.n_layers)(
            *(
                _Layer(*(self._arena.matrices[f"{i}.{n}"] for n in names), at[1 + 2 * i], at[2 + 2 * i])
                for i in range(c.n_layers)
            )
        )
        self._embedding = decoder.embed_tokens.weight.detach().contiguous()
        kind = kind_of(self._embedding)
        shape = (c.n_layers, c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim)
        self._model = _Model(self._layers, self._embedding.data_ptr(), at[0], kind, *shape, c.norm_eps)
        pages, scales = self.pages, (self.pages.k_scale, self.pages.v_scale)
        if pages.k.dtype not in _DTYPE_KIND or not (pages.k.is_contiguous() and pages.v.is_contiguous()):
            raise ValueError(f"the kernels know pages in fp32, bf16 and int8, contiguous, not {pages.k.dtype}")
        layers, blocks, heads, size, width = pages.k.shape
        self._pages = _Pages(
            *(x.data_ptr() if x is not None else None for x in (pages.k, pages.v, *scales)),
            *(_DTYPE_KIND[pages.k.dtype], layers, blocks, heads, size, width),
        )

    def _reach(self, positions: int) -> None:
        """Rotations of all positions below `positions`, the model's own."""
        if positions > len(self._cos):
            count = max(positions, 2 * len(self._cos), 256)
            angles = torch.arange(count)[:, None].float() * self._inv_freq
            self._cos, self._sin = angles.cos(), angles.sin()

    def _check(self, tokens: np.ndarray, positions: np.ndarray, spans: list[tuple[int, int, list[int]]]) -> None:
        """The kernels read where they are told: what would lead them outside is refused here."""
        size, blocks, row = self._pages.block_size, self._pages.blocks, 0
        if (
            len(tokens) == 0
            or len(tokens) != len(positions)
            or tokens.min() < 0
            or tokens.max() >= self.config.vocab_size
        ):
            raise ValueError(f"a step needs tokens from 0 to {self.config.vocab_size - 1}, and a position for each")
        for first, count, table in spans:
            start = positions[first]
            if first != row or count < 1 or start < 0 or positions[first + count - 1] != start + count - 1:
                raise ValueError("the spans of a step cover its rows in order, each at consecutive positions")
            used = table[: (start + count - 1) // size + 1]
            if len(used) * size < start + count or min(used) < 0 or max(used) >= blocks:
                raise ValueError(f"the block table of rows {first} to {first + count} does not hold their positions")
            row += count
        if row != len(tokens):
            raise ValueError(f"the spans of a step cover {row} of its {len(tokens)} rows")

    def _call(self, tokens, positions, pieces, select, target, out: torch.Tensor) -> None:
        size = self._pages.block_size
        used = [table[: int(positions[first + count - 1]) // size + 1] for first, count, table in pieces]
        starts = [0, *itertools.accumulate(len(table) for table in used)]
        arrays = [tokens, positions, [p[0] for p in pieces], [p[1] for p in pieces], starts]
        arrays += [list(itertools.chain.from_iterable(used)), select, target]
        held = [np.ascontiguousarray(a, dtype=np.int32) for a in arrays]
        step = _Step(
            *(a.ctypes.data for a in held),
            *(x.data_ptr() for x in (self._cos, self._sin, out)),
            *(len(tokens), len(pieces), len(select)),
        )
        parts = (ctypes.byref(part) for part in (self._model, self._pages, step))
        self._library.herder_step(*parts, torch.get_num_threads())


def _weights(parent: torch.nn.Module, *names: str) -> Callable[[], list[Weight]]:
    def found() -> list[Weight]:
        weights = [getattr(parent, name).weight for name in names]
        return [w.detach() if isinstance(w, torch.Tensor) else w for w in weights]

    return found


def _chunks(spans: list[tuple[int, int, list[int]]]):
    """(first row, last row + 1, spans with rows counted from the first) of each call: at most MOST_ROWS rows, in order."""
    start = row = 0
    pieces: list[tuple[int, int, list[int]]] = []
    for first, count, table in spans:
        while count:
            taken = min(count, MOST_ROWS - (row - start))
            pieces.append((first - start, taken, table))
            row, first, count = row + taken, first + taken, count - taken
            if row - start == MOST_ROWS:
                yield start, row, pieces
                start, pieces = row, []
    if pieces:
        yield start, row, pieces
