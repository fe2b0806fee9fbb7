"""Llama 3.1 405B (paper 3.2 to 3.4): 15.6T tokens on 16,384 GPUs, context from 8K to 128K in six stages, annealing.

herder run llama3_405b --dry-run
torchrun --nnodes 2048 --nproc-per-node 8 ... -m herder.cli run llama3_405b --set data=...
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

TOKENS = 15.6e12
"""Paper 3.2, of all stages."""

LAYOUT = Layout(tp=8, pp=16, chunks=8, recompute="alternate")
"""Table 4: TP 8, PP 16, DP what is left (128 on 16,384). Interleaving is said, its number is not. The paper trains at 8K without
recomputation; herder's uncompiled blocks keep more than its code did, and by the plan need this much."""

CONTEXT_LAYOUTS = {
    length: replace(LAYOUT, cp=cp, dp=128 // cp)
    for length, cp in zip(shared.CONTEXTS, (2, 4, 8, 8, 16, 16), strict=True)
}
"""Table 4 has CP 16 at 131,072; the others keep at most 8,192 tokens a rank."""

_BASE = shared.base(
    SHAPES["llama3.1-405b"],
    TOKENS - shared.CONTEXT_TOKENS,
    replace(
        shared.ADAMW,
        lr=8e-5,  # table 3
        warmup_steps=shared.WARMUP_STEPS,
        lr_final=shared.LR_FINAL,
        decay_steps=shared.DECAY_STEPS,
    ),
    LAYOUT,
)
_CONTEXTS = shared.longer_contexts(_BASE, CONTEXT_LAYOUTS, shared.CONTEXT_TOKENS)


@dataclass(frozen=True)
class Config(shared.Shared):
    """Literals of the run; `herder run llama3_405b --set KEY=VALUE` changes them."""

    pretrain: PretrainConfig = _BASE
    contexts: tuple[ContextConfig, ...] = _CONTEXTS
    anneal: AnnealConfig = shared.annealing(_BASE, _CONTEXTS[-1])
    gpus: int = runtime(16_384)
    """Paper 3.3.1 and table 4."""
