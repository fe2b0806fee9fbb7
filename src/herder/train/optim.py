"""Optimizers and their schedule: AdamW, or Muon on the matrices of the blocks (paper 3.2.1, 3.4.1).

The one design decision: an optimizer knows named fp32 weights with gradients and nothing else; how these weights are copied,
cut and gathered is the business of `replica` and `parallel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW on everything, or Muon (torch.optim.Muon) on the matrices of the blocks with AdamW on embedding, head and norms.

    The paper publishes neither betas, epsilon nor clipping; these are Llama 2's. Weight decay is 0.1 x learning rate per step
    (paper 3.2.1) and spares the norms. The schedule is linear warm-up, then cosine (or a line) to `lr_final` of the peak.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    """Peak learning rate of AdamW."""
    lr_muon: float = 2e-2
    """Peak learning rate of Muon's matrices."""
    warmup_steps: int = 100
    lr_final: float = 0.01
    """Share of the peak at the last step."""
    decay: Literal["cosine", "linear"] = "cosine"
    """From the end of warm-up to the last step; linear to 0 is the paper's annealing (3.4.3)."""
    decay_steps: int = 0
    """Steps that warm-up and decay are laid out for; 0 is as many as the run has."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    momentum: float = 0.95

    def scale(self, step: int, steps: int) -> float:
        """Learning rate of step 0, 1, ... as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, (self.decay_steps or steps) - self.warmup_steps)
        left = 1 - min(1.0, done)
        share = left if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return self.lr_final + (1 - self.lr_final) * share


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained: those that ask for a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Optimizer:
    """The update of fp32 master weights from gradients that lie in their `.grad`: AdamW, or Muon with AdamW.

    Moments exist from the start, so that `state` is whole before the first step and a checkpoint can be read into it.
    Masters may be DTensors (any sharding) for AdamW; Muon needs whole matrices.

    rank, copies: where several ranks hold the same masters, each updates its own part of Muon's matrices, whose Newton-Schulz
    iterations cost as much as a batch of a thousand tokens. The owners' masters must then be handed to the other ranks:
    `shared[r]` are those of rank r, empty where nothing is shared.
    """

    def __init__(self, masters: dict[str, nn.Parameter], config: OptimConfig, rank: int = 0, copies: int = 1):
        self.masters, self.config, self.rank = masters, config, rank
        self.updates = self._groups()
        matrices = [p for o, _ in self.updates if isinstance(o, torch.optim.Muon) for p in _params(o)]
        self.shared = _parts(matrices, copies) if matrices and copies > 1 else []
        for optimizer, _ in self.updates:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    optimizer.state[p].update(_fresh(optimizer, p))

    def _groups(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Optimizers with their peak learning rates; one whose weights are all elsewhere is left out."""
        c = self.config
        matrices = {n for n, m in self.masters.items() if c.kind == "muon" and m.dim() == 2 and ".layers." in n}
        decayed = [m for n, m in self.masters.items() if n not in matrices and m.dim() >= 2]
        norms = [m for n, m in self.masters.items() if m.dim() < 2]
        groups = [{"params": decayed, "weight_decay": c.weight_decay}, {"params": norms, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        betas = (c.beta1, c.beta2)
        found = [(torch.optim.AdamW(groups, lr=c.lr, betas=betas, eps=c.eps, fused=True), c.lr)] if groups else []
        if matrices:
            muon = torch.optim.Muon(
                [m for n, m in self.masters.items() if n in matrices],
                lr=c.lr_muon,
                momentum=c.momentum,
                weight_decay=c.weight_decay,
            )
            found.insert(0, (muon, c.lr_muon))
        return found

    def step(self, scale: float) -> None:
        """Updates the masters at `scale` of the peak learning rates."""
        for optimizer, lr in self.updates:
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            theirs = self._not_mine() if isinstance(optimizer, torch.optim.Muon) else []
            gradients = [p.grad for p in theirs]
            for p in theirs:
                p.grad = None  # the optimizer passes over it
            optimizer.step()
            for p, grad in zip(theirs, gradients, strict=True):
                p.grad = grad
                optimizer.state[p]["momentum_buffer"].lerp_(grad, 1 - self.config.momentum)  # as torch does

    def _not_mine(self) -> list[nn.Parameter]:
        return [p for rank, part in enumerate(self.shared) if rank != self.rank for p in part]

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that a bit-exact continuation needs, by names that no layout changes: `master/NAME`, and the moments as
        `optim/SLOT/NAME`. They are the living tensors: who writes into them changes the run."""
        tensors = {f"master/{name}": m.detach() for name, m in self.masters.items()}
        names = {id(m): name for name, m in self.masters.items()}
        for optimizer, _ in self.updates:
            for p, slots in optimizer.state.items():
                tensors |= {f"optim/{slot}/{names[id(p)]}": t for slot, t in slots.items()}
        return tensors


def _params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _parts(matrices: list[nn.Parameter], count: int) -> list[list[nn.Parameter]]:
    """The matrices in `count` parts of about the same work, each to the part that has the least, the largest first."""
    parts, work = [[] for _ in range(count)], [0] * count
    for p in sorted(matrices, key=_newton_schulz_work, reverse=True):
        least = work.index(min(work))
        parts[least].append(p)
        work[least] += _newton_schulz_work(p)
    return parts


def _newton_schulz_work(p: torch.Tensor) -> int:
    """Multiplications of one iteration: X X^T, its square, and their product with X."""
    short, long = sorted(p.shape)
    return short * short * (2 * long + short)


def _fresh(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, torch.Tensor]:
    zeros = torch.zeros_like(p.detach())
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer": zeros}
    count = torch.zeros((), dtype=torch.float32, device=zeros.device)
    return {"step": count, "exp_avg": zeros, "exp_avg_sq": torch.zeros_like(zeros)}
