"""Several low-rank adapters beside one base model, each for the rows that ask for it.

The one design decision: a batch's rows go through the base model's products together, and each adapter adds its two thin products
to its own rows; a row without one is computed as if there were none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from herder.engine.cache import Pages
from herder.engine.runner import Batch, TorchRunner
from herder.model import Llama

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """`pairs` are A (rank, in) and B (out, rank) by the name of the projection; a product gains scale * B A x."""

    scale: float
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]


def read_adapter(folder: str | Path, model: Llama) -> Adapter:
    """An adapter as the PEFT library and `herder.posttrain` save it, in the dtype of `model`.

    Raises ValueError where a file is missing or damaged, or does not fit the model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        scale = float(config["lora_alpha"]) / (int(config["r"]) ** (0.5 if config.get("use_rslora") else 1))
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no adapter that can be read ({error}); it needs PEFT's two files") from None
    if config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError(f"{folder} is an adapter with DoRA or biases; merge it into the model first")
    weights, pairs = dict(model.named_parameters()), {}
    for name in sorted(tensors):
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        weight, a, b = weights.get(f"{module}.weight"), tensors[name], tensors.get(name.replace("lora_A", "lora_B"))
        if weight is None or b is None or (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
            raise ValueError(f"{folder}: {name} does not fit the model; it is an adapter for another one")
        pairs[module] = (a.to(weight), b.to(weight))
    if 2 * len(pairs) != len(tensors):
        raise ValueError(f"{folder} holds {len(tensors)} tensors of which {2 * len(pairs)} are A or B of a projection")
    return Adapter(scale, pairs)


class AdapterRunner(TorchRunner):
    """The plain runner over a twin of the model that shares its weights."""

    def __init__(self, model: Llama, pages: Pages, adapters: dict[str, Adapter]):
        with torch.device("meta"):
            twin = Llama(model.config)
        twin.load_state_dict(model.state_dict(), assign=True)
        super().__init__(twin, pages)
        self.rows: list[tuple[slice, Adapter]] = []
        self.adapters = adapters
        for name in {name for adapter in adapters.values() for name in adapter.pairs}:
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _Adapted(name, twin.get_submodule(name), self))

    def run(self, batch: Batch) -> torch.Tensor:
        self.rows = [
            (slice(first, first + count), self.adapters[name])
            for (first, count, _), name in zip(batch.spans, batch.adapters, strict=True)
            if name
        ]
        return super().run(batch)


class _Adapted(nn.Module):
    def __init__(self, name: str, base: nn.Module, runner: AdapterRunner):
        super().__init__()
        self.base, self.name = base, name
        self.current = lambda: runner.rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        for rows, adapter in self.current():
            if (pair := adapter.pairs.get(self.name)) is not None:
                a, b = pair
                out[:, rows] += F.linear(F.linear(x[:, rows], a), b) * adapter.scale
        return out
