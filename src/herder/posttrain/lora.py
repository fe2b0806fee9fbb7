"""Low-rank adaptation: small trained matrices beside frozen ones (Hu et al. 2021), applied to a plain Llama from outside.

The one design decision: the adapter is a dictionary of tensors under the names that the PEFT library gives them. It is
trained inside a model, saved by itself, and merged into weights that were never rounded by training.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from herder.config import at_least_one
from herder.model import Llama
from herder.train.checkpoint import save_tensors

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Each target's weight W becomes W + alpha / rank * B A, with A (rank, in) and B (out, rank)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    seed: int = 0

    def __post_init__(self):
        at_least_one(self, "rank")
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise ValueError(f"targets names {unknown[0]!r}; the projections of a block are {', '.join(TARGETS)}")
        if not self.targets:
            raise ValueError("targets is empty; name at least one projection, for instance q_proj")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A frozen projection with its adapter. B starts at zero, so training starts from the frozen model's own outputs."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        self.base, self.scale = base, config.scale
        bound = 1 / math.sqrt(base.in_features)
        drawn = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale


def add_adapter(model: Llama, config: LoraConfig) -> None:
    """Freezes the model and puts an adapter beside every target. A's are drawn from one seed, in the order of the layers."""
    generator = torch.Generator().manual_seed(config.seed)
    model.requires_grad_(False)
    for _, parent, target in _projections(model, config):
        setattr(parent, target, LoraLinear(getattr(parent, target), config, generator))


def adapter_tensors(model: Llama) -> dict[str, torch.Tensor]:
    """The adapter inside a model, under PEFT's names: base_model.model.NAME.lora_A.weight (rank, in), and lora_B."""
    return {
        f"base_model.model.{name}.weight": p.detach().float().cpu()
        for name, p in model.named_parameters()
        if name.endswith(("lora_A", "lora_B"))
    }


@torch.no_grad()
def merge(model: Llama, adapter: dict[str, torch.Tensor], config: LoraConfig) -> None:
    """Adds an adapter to a plain model's weights. Raises ValueError naming a tensor that is missing or left over."""
    rest = dict(adapter)
    for name, parent, target in _projections(model, config):
        weight = getattr(parent, target).weight
        pair = [f"base_model.model.{name}.{part}.weight" for part in ("lora_A", "lora_B")]
        for key, shape in zip(pair, ((config.rank, weight.shape[1]), (weight.shape[0], config.rank)), strict=True):
            if key not in rest or rest[key].shape != shape:
                found = tuple(rest[key].shape) if key in rest else "missing"
                raise ValueError(f"adapter tensor {key} is {found}, expected {shape}; give the adapter of this model")
        a, b = (rest.pop(key).to(weight.device, torch.float32) for key in pair)
        weight.copy_(weight.float() + config.scale * (b @ a))
    if rest:
        raise ValueError(
            f"the adapter holds {min(rest)}, which is none of the model's targets {', '.join(config.targets)}"
        )


def save_adapter(adapter: dict[str, torch.Tensor], config: LoraConfig, out: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json as PEFT reads them."""
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(adapter, out / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    (out / "adapter_config.json").write_text(json.dumps(fields, indent=1))


def _projections(model: Llama, config: LoraConfig):
    """(name, parent module, attribute) of every target, layer by layer."""
    for index, layer in enumerate(model.model.layers):
        for module in ("self_attn", "mlp"):
            parent = getattr(layer, module)
            for target in TARGETS:
                if target in config.targets and hasattr(parent, target):
                    yield f"model.layers.{index}.{module}.{target}", parent, target
