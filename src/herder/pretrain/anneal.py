"""Annealing (paper 3.4.3): the learning rate falls linearly to 0 on a mix that upsamples the best data, and the states on the
way are averaged.

The paper prints 40M tokens for it, 2.4 of its steps, which leaves nothing to average; so length, snapshots and their weights
are literals of the recipe. What the annealing brought is told beside a control that spends the same tokens without it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import Checkpoint, TrainedCheckpoint, export, load, open_checkpoint, weightless
from herder.model import Llama
from herder.pretrain.average import average
from herder.pretrain.base import check_length, train_on, write_mixture
from herder.pretrain.scores import Scored, Scores, asked, bits_per_byte, change, read_scores
from herder.pretrain.stages import present
from herder.records import Measure
from herder.steps import read_json
from herder.train import Mixture, Stage, TokenShards, TrainConfig
from herder.train.checkpoint import checkpoints
from herder.train.heldout import HeldOut
from herder.train.loop import pick_device, place


@dataclass(frozen=True)
class AnnealConfig:
    """`stage.mix` may name the sources of inputs["tokens"] and of inputs["best"] (see `select_best`).

    `train.optim` must decay linearly to 0 without warm-up, and `train.snapshot_every` says which states are averaged.
    """

    train: TrainConfig
    stage: Stage
    average_last: int
    """How many of the newest snapshots are averaged; the last one is the final state where the steps are a multiple."""
    average_decay: float = 1.0
    """1 is the uniform mean; below 1 each snapshot weighs that much of its successor."""
    control: bool = False
    """Also spends the same tokens on the mix of `control_mix` at the learning rate that annealing starts from, for the report."""
    control_mix: dict[str, float] | None = None
    optional_sources: bool = False
    processes: int = runtime(1)

    def __post_init__(self):
        at_least_one(self, "average_last", "processes")
        optim = self.train.optim
        if optim.decay != "linear" or optim.lr_final or optim.warmup_steps:
            raise ValueError(
                "annealing lowers the learning rate linearly to 0: set train.optim.decay=linear, lr_final=0, warmup_steps=0"
            )
        made = self.stage.steps // self.train.snapshot_every if self.train.snapshot_every else 0
        if made < self.average_last:
            raise ValueError(
                f"average_last is {self.average_last}, but {self.stage.steps} steps with train.snapshot_every="
                f"{self.train.snapshot_every} leave {made} snapshots; take fewer, or more often"
            )


@launch.distributed
def anneal(config: AnnealConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: anneals inputs["base"] on inputs["tokens"] and inputs["best"].

    Leaves the average in `out/model`, the last state in `out/final`, and what annealing and averaging brought in
    `comparison.json`.
    """
    return launch.run_local(_anneal, (config, inputs, out), config.processes)


def _anneal(config: AnnealConfig, inputs: dict[str, Path], out: Path) -> dict:
    base = open_checkpoint(inputs["base"])
    check_length([config.stage], base.config)
    seen = read_json(inputs["base"] / "consumed.json")
    shards = TokenShards(*(inputs[name] / "train" for name in ("tokens", "best") if name in inputs))
    context, tokens = asked(inputs["base"])
    held = HeldOut(TokenShards(inputs["tokens"] / "heldout"), context, tokens)

    def spend(stage: Stage, settings: TrainConfig, folder: Path) -> tuple[dict, Mixture]:
        folder.mkdir(exist_ok=True)
        (stage,) = present((stage,), shards.sources) if config.optional_sources else (stage,)
        mixture = Mixture(shards, [stage], seen["seed"], before=seen["tokens"])
        scores = Scores({"heldout": held}, folder, tokens)
        return train_on(mixture, base.config, settings, folder, scores, start=inputs["base"] / "final"), mixture

    numbers, mixture = spend(config.stage, config.train, out)
    if config.control:
        level = replace(config.train.optim, lr_final=1.0)
        stage = replace(config.stage, mix=config.control_mix or config.stage.mix)
        spend(stage, replace(config.train, optim=level, snapshot_every=0), out / "control")
    last, tokenizer = checkpoints(out / "snapshots")[-config.average_last :], base.tokenizer()
    mean = average([TrainedCheckpoint(path, base.config, tokenizer) for path in last], config.average_decay)
    nats = held.nats(placed(mean, config.train), together=True)
    if launch.rank() != 0:
        return {}
    export(mean, out / "model")
    write_mixture([mixture], out, seen["tokens"])
    scores = {
        "averaged": (nats, held.bytes),
        "last": read_scores(out),
        "before": read_scores(inputs["base"]),
    }
    if config.control:
        scores["control"] = read_scores(out / "control")
        shutil.rmtree(out / "control" / "final", ignore_errors=True)
        shutil.rmtree(out / "control" / "checkpoints", ignore_errors=True)
    (out / "comparison.json").write_text(json.dumps(_tables(scores), indent=1))
    plain = {name: bits_per_byte(*found) for name, found in scores.items()}
    changes = {f"averaged_less_{name}": change(found, scores["averaged"]) for name, found in scores.items()}
    del changes["averaged_less_averaged"]
    return numbers | {"heldout_bits_per_byte": plain.pop("averaged"), **plain, **changes, "averaged_states": len(last)}


def placed(checkpoint: Checkpoint, config: TrainConfig) -> nn.Module:
    """A model to be measured, under the layout that training has: whole, or this rank's part. Every rank calls."""
    device = pick_device(config.device)
    if config.layout.on(launch.world_size()).plain:
        return load(checkpoint, getattr(torch, config.dtype))[0].to(device)
    with weightless():
        model = Llama(checkpoint.config)
    return place(model, config, device, checkpoint.tensor).model


_NAMES = {
    "averaged": "annealed, averaged",
    "last": "annealed, last state",
    "control": "the same tokens of the ordinary mix, learning rate not lowered",
    "before": "before annealing",
}


def _tables(scores: dict[str, Scored]) -> list[dict]:
    """Held-out scores, and what the averaged model gains on each of the others, for the report."""

    def table(title: str, rows: dict[str, Measure]) -> dict:
        found = [{"name": _NAMES[name], "measure": m.to_json(), "note": ""} for name, m in rows.items()]
        return {"title": title, "unit": "bits per byte", "rows": found}

    order = [name for name in _NAMES if name in scores]
    gains = {name: change(scores["averaged"], scores[name]) for name in order if name != "averaged"}
    return [
        table("Annealing: held-out documents (lower is better)", {n: bits_per_byte(*scores[n]) for n in order}),
        table("Annealing: what the averaged model gains on, document by document (above 0 is a gain)", gains),
    ]
