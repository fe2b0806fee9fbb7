"""Llama 3.1 70B (paper 3.2 to 3.4): the recipe of the 405B with this size's literals, where the paper prints any.

"We use similar recipes" is what the paper says of the smaller sizes: shape, peak learning rate and GPU-hours are published;
batch, warm-up and schedule are not, and are the 405B's here.

    herder run llama3_70b --dry-run
    torchrun --nnodes 512 --nproc-per-node 8 ... -m herder.cli run llama3_70b --set data=...
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from herder.config import runtime
from herder.model import SHAPES
from herder.pretrain import AnnealConfig, ContextConfig, PretrainConfig
from herder.recipes import _llama3 as shared
from herder.recipes._llama3 import recipe
from herder.train import Layout

__all__ = ["Config", "recipe"]

TOKENS = 15e12
"""The model cards say "15T+" for every size of 3.1."""

LAYOUT = Layout(tp=8, pp=2, chunks=4, recompute="elementwise")
"""Not published; near the plan's choice for 4,096 GPUs, with TP within a server as the 405B has it."""

CONTEXT_LAYOUTS = {
    length: replace(LAYOUT, cp=cp, dp=256 // cp)
    for length, cp in zip(shared.CONTEXTS, (2, 4, 8, 8, 16, 16), strict=True)
}
"""Not published; the plan's choice."""

_BASE = shared.base(
    SHAPES["llama3.1-70b"],
    TOKENS - shared.CONTEXT_TOKENS,
    replace(shared.ADAMW, lr=1.5e-4, warmup_steps=shared.WARMUP_STEPS, lr_final=shared.LR_FINAL),  # lr: table 3
    LAYOUT,
)
_CONTEXTS = shared.longer_contexts(_BASE, CONTEXT_LAYOUTS, shared.CONTEXT_TOKENS)


@dataclass(frozen=True)
class Config(shared.Shared):
    """Literals of the run; `herder run llama3_70b --set KEY=VALUE` changes them."""

    pretrain: PretrainConfig = _BASE
    contexts: tuple[ContextConfig, ...] = _CONTEXTS
    anneal: AnnealConfig = shared.annealing(_BASE, _CONTEXTS[-1])
    gpus: int = runtime(4096)
    """Not published; 7.0M GPU-hours are."""
