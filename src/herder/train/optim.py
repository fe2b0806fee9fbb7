"""Optimizers and the mixed-precision arithmetic around them (paper 3.3.2: FP32 gradient accumulation and reduction).

The model computes in bf16 from a copy of its weights; fp32 master weights and fp32 gradient sums live here. Gradients of all
micro-batches and ranks are added as sums and divided once by the global weight, so unequal counts of valid tokens per rank
or micro-batch do not bend the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from herder import launch


@dataclass(frozen=True)
class OptimConfig:
    """AdamW on everything, or Muon (torch.optim.Muon) on the matrices of the blocks with AdamW on embedding, head and norms.

    The paper publishes neither betas, epsilon nor clipping; these are Llama 2's. Weight decay is 0.1 x learning rate per step
    (paper 3.2.1) and spares the norms. The schedule is linear warm-up, then cosine (or a line)
    to `lr_final` of the peak.
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
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        left = 1 - min(1.0, done)
        share = left if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return self.lr_final + (1 - self.lr_final) * share


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained: those that ask for a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Optimizer:
    """Master weights, gradient sums and the update for the trainable parameters of one model, which may compute in bf16 or
    fp32. Frozen parameters are cast with it and have no master: who needs them unrounded keeps them elsewhere."""

    def __init__(self, model: nn.Module, config: OptimConfig, dtype: torch.dtype):
        self.config = config
        self.names = list(trainable(model))
        masters = [p.detach().clone().float() for p in trainable(model).values()]
        model.to(dtype)
        self.params = list(trainable(model).values())
        self.masters = {name: nn.Parameter(m) for name, m in zip(self.names, masters, strict=True)}
        sizes = [m.numel() for m in masters]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float32, device=masters[0].device)
        for master, piece in zip(self.masters.values(), self.flat.split(sizes), strict=True):
            master.grad = piece.view_as(master)
        self.updates = self._groups()

    def _groups(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Optimizers with their peak learning rates."""
        c = self.config
        matrices = {n for n, m in self.masters.items() if c.kind == "muon" and m.dim() == 2 and ".layers." in n}
        decayed = [m for n, m in self.masters.items() if n not in matrices and m.dim() >= 2]
        norms = [m for n, m in self.masters.items() if m.dim() < 2]
        adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": c.weight_decay}, {"params": norms, "weight_decay": 0.0}],
            lr=c.lr,
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            fused=True,
        )
        if not matrices:
            return [(adamw, c.lr)]
        muon = torch.optim.Muon(
            [self.masters[n] for n in self.names if n in matrices],
            lr=c.lr_muon,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )
        return [(muon, c.lr_muon), (adamw, c.lr)]

    def accumulate(self) -> None:
        """Adds the model's gradients of one micro-batch to the fp32 sums and clears them."""
        for p, master in zip(self.params, self.masters.values(), strict=True):
            if p.grad is not None:
                master.grad.add_(p.grad)
                p.grad = None

    def reduce(self, sums: torch.Tensor) -> torch.Tensor:
        """Adds gradients and `sums` over ranks; sums[0] is the weight, by which the gradients are divided. Returns sums."""
        if launch.world_size() > 1:
            torch.distributed.all_reduce(self.flat)
            torch.distributed.all_reduce(sums)
        self.flat.div_(sums[0])
        return sums

    def grad_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.flat))

    def step(self, scale: float, grad_norm: float) -> None:
        """Clips, updates the masters at `scale` of the peak learning rates, copies them to the model, clears the sums."""
        if grad_norm > self.config.clip:
            self.flat.mul_(self.config.clip / grad_norm)
        for optimizer, lr in self.updates:
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            optimizer.step()
        self.copy_to_model()
        self.clear()

    def clear(self) -> None:
        self.flat.zero_()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for p, master in zip(self.params, self.masters.values(), strict=True):
            p.copy_(master)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that a bit-exact continuation needs, by name: `master/`, and the optimizers' own under `optim/`."""
        tensors = {f"master/{name}": m.detach() for name, m in self.masters.items()}
        names = {id(m): name for name, m in self.masters.items()}
        for optimizer, _ in self.updates:
            for p, slots in optimizer.state.items():
                tensors |= {f"optim/{slot}/{names[id(p)]}": t for slot, t in slots.items() if torch.is_tensor(t)}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes what `state` gave. Raises ValueError where a tensor is missing or has another shape."""
        for name, master in self.masters.items():
            found = tensors.get(f"master/{name}")
            if found is None or found.shape != master.shape:
                got = "missing" if found is None else f"of shape {tuple(found.shape)}"
                raise ValueError(f"checkpoint tensor master/{name} is {got}, expected {tuple(master.shape)}")
            master.copy_(found)
        names = {id(m): name for name, m in self.masters.items()}
        slots: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optim/"):
                _, slot, name = key.split("/", 2)
                slots.setdefault(name, {})[slot] = tensor
        for optimizer, _ in self.updates:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    for slot, tensor in slots.get(names[id(p)], {}).items():
                        where = "cpu" if slot == "step" and not group.get("fused") else p.device
                        optimizer.state[p][slot] = tensor.clone().to(where)
        self.copy_to_model()
        self.clear()
