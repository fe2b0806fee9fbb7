"""Llama 3.1 8B (paper 3.2 to 3.4): the recipe of the 405B with this size's literals, where the paper prints any.

"We use similar recipes" is what the paper says of the smaller sizes: shape, peak learning rate and GPU-hours are published;
batch, warm-up and schedule are not, and are the 405B's here.

    herder run llama3_8b --dry-run
    torchrun --nnodes 128 --nproc-per-node 8 ... -m herder.cli run llama3_8b --set data=...
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

LAYOUT = Layout(recompute="elementwise", reshard_after_forward=True)
"""Not published; the plan's choice for 1,024 GPUs."""

CONTEXT_LAYOUTS = {
    length: replace(replace(LAYOUT, recompute="elementwise"), cp=cp, dp=1024 // cp)
    for length, cp in zip(shared.CONTEXTS, (2, 4, 8, 8, 8, 8), strict=True)
}
"""Not published; the plan's choice."""

_BASE = shared.base(
    SHAPES["llama3.1-8b"],
    TOKENS - shared.CONTEXT_TOKENS,
    replace(shared.ADAMW, lr=3e-4, warmup_steps=shared.WARMUP_STEPS, lr_final=shared.LR_FINAL),  # lr: table 3
    LAYOUT,
)
_CONTEXTS = shared.longer_contexts(_BASE, CONTEXT_LAYOUTS, shared.CONTEXT_TOKENS)


@dataclass(frozen=True)
class Config(shared.Shared):
    """Literals of the run; `herder run llama3_8b --set KEY=VALUE` changes them."""

    pretrain: PretrainConfig = _BASE
    contexts: tuple[ContextConfig, ...] = _CONTEXTS
    anneal: AnnealConfig = shared.annealing(_BASE, _CONTEXTS[-1])
    gpus: int = runtime(1024)
    """Not published; 1.46M GPU-hours are."""
