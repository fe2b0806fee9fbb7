"""The one training loop, for every objective (paper 3.3, 3.4).

A step: the objective's rows, this rank's share of them in micro-batches, sums of gradients over micro-batches and ranks, one
division by the global weight, the guard's look, the update. It may be killed at any moment: the newest checkpoint holds all
that the next steps depend on, and a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from herder import launch, progress
from herder.config import at_least_one, runtime
from herder.model import Llama
from herder.train.checkpoint import Checkpoints, Saved, load_checkpoint, save_checkpoint
from herder.train.data import data_step
from herder.train.faults import Guard, GuardConfig
from herder.train.meter import Meter, Metrics
from herder.train.objective import Objective
from herder.train.optim import OptimConfig
from herder.train.parallel import Layout, Sharded, apply_locally
from herder.train.replica import Replica
from herder.train.sinks import open_sinks

BAD_BATCHES = 16
"""Bad batches in a row after which the run gives up: by then it is not the data."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train on is the objective's. Runtime fields say where and how often, never what."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    float8: bool = False
    """Computes the blocks' matrix products in FP8 (CUDA, with torchao): faster, and not the same numbers."""
    heldout_every: int = 0
    """Steps between held-out measurements (0: only at the end)."""
    snapshot_every: int = 0
    """Steps between weights kept in `out/snapshots`, for averaging (0: none)."""
    layout: Layout = runtime(Layout(micro_batch=8, shard=1))
    keep_moments: bool = True
    """Whether `out/final` holds the optimizer's moments, for a run that goes on from it, or weights alone."""
    device: str = runtime("auto")
    checkpoint_seconds: float = runtime(30.0)
    checkpoints_kept: int = runtime(2)
    sinks: tuple[str, ...] = runtime(())

    def __post_init__(self):
        at_least_one(self, "checkpoints_kept")


def pick_device(name: str) -> str:
    """ "auto" is CUDA where there is one. Raises ValueError for a device this machine lacks."""
    try:
        torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; use cpu, cuda or auto") from None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    return name


def train(
    model: Llama,
    objective: Objective,
    config: TrainConfig,
    out: Path,
    heldout: Callable[[nn.Module], dict[str, float]] | None = None,
    start: Path | None = None,
    weights: Callable[[str], torch.Tensor] | None = None,
) -> dict:
    """Trains `model`, continuing from `out/checkpoints` where there are any; every rank calls it. Returns headline numbers.

    The final state lies in `out/final`, and the first rank's `model` holds the final weights in fp32. A model on the meta
    device is never whole anywhere: `weights(name)` gives its parameters one by one, and `out/final` alone has the result.
    start: a final checkpoint whose weights, and moments where it has them, a fresh run begins with, under any layout.
    heldout(model) returns numbers for `metrics.jsonl`, every `heldout_every` steps and at the end; every rank calls it, with a
    whole Llama or with this rank's part of one, which `train.outputs.compute` takes alike.
    Raises ValueError where nothing can be learned from a batch, where too many batches in a row are bad, or for a layout that
    does not fit.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    run = _Run(model, objective, config, Path(out), heldout, start, weights)
    try:
        return run.train()
    finally:
        if launch.world_size() == 1:  # with others, who may be gone, the process ends anyway
            run.checkpoints.close()


def place(
    model: Llama, config: TrainConfig, device: str, weights: Callable[[str], torch.Tensor] | None = None
) -> Replica | Sharded:
    """The model as the layout has it: a whole copy on every rank, or a part."""
    layout, dtype = config.layout.on(launch.world_size()), getattr(torch, config.dtype)
    whole = dict(model.named_parameters())
    if weights is None:
        if any(p.is_meta for p in whole.values()):
            raise ValueError("the model lies on the meta device; give train() its weights, or a model that has them")
        weights = whole.__getitem__
    if not layout.plain:
        with torch.device("meta"):
            plain = {name for name, p in Llama(model.config).named_parameters()}
        if {name for name, p in whole.items() if p.requires_grad} != plain:
            raise ValueError(
                f"the layout {layout} cuts a plain Llama, but this one has frozen or added parameters (an adapter?); train it "
                "with whole copies: layout tp=cp=pp=1, shard=1"
            )
        return Sharded(model.config, layout, weights, config.optim, dtype, device, config.float8)
    if any(p.is_meta for p in whole.values()):
        model.to_empty(device=device)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights(name))
    model.to(device)
    apply_locally(model, layout, config.float8, device)
    return Replica(model, config.optim, dtype, layout.micro_batch)


class _Run:
    def __init__(self, model, objective, config, out, heldout, start, weights):
        self.given, self.objective, self.config, self.out, self.heldout = model, objective, config, out, heldout
        self.main = launch.rank() == 0
        self.device = pick_device(config.device)
        launch.keep_memory()
        model.train()
        self.replica = place(model, config, self.device, weights)
        self.meter = Meter(
            model.config, self.device, getattr(torch, config.dtype), out, sample=isinstance(self.replica, Sharded)
        )
        self.replica.waiting = self.meter.waiting
        self.step, self.tokens, self.row, history = 0, 0, {}, []
        self.checkpoints = Checkpoints(out / "checkpoints", config.checkpoints_kept)
        state = self.replica.state()
        facts = self.checkpoints.load_latest(state)
        if facts is not None:
            self.step, self.tokens = facts["step"], facts["tokens"]
            self.meter.load(facts["meter"])
            objective.skips, history, self.row = tuple(facts["skips"]), facts["history"], facts["row"]
        elif start is not None:
            moments = Saved(start).facts["moments"]
            load_checkpoint(start, state if moments else _masters(state))
        if facts is not None or start is not None:
            self.replica.restored()
        self.guard = Guard(config.guard, history)

    def train(self) -> dict:
        config, steps = self.config, self.objective.steps
        metrics = (
            Metrics(self.out / "metrics.jsonl", self.step, open_sinks(config.sinks, self.out, self.step))
            if self.main
            else None
        )
        saved = time.monotonic()
        while self.step < steps:
            self.meter.start_step()
            row = self._one(steps)
            row |= self.meter.row(row.pop("positions"), row.pop("context"))
            self.step += 1
            due = config.heldout_every and self.step % config.heldout_every == 0
            if self.heldout and (due or self.step == steps):
                row |= self.heldout(self.replica.model)
                self.replica.model.train()
            self.row = row
            if metrics:
                metrics.write(row)
                shown = {name: row[name] for name in ("loss", "tokens_per_second")}
                progress.report(self.step, steps, "steps", **shown)
            if config.snapshot_every and self.step % config.snapshot_every == 0:
                folder = self.out / "snapshots" / f"step-{self.step:08d}"
                save_checkpoint(folder, _masters(self.replica.state()), {"step": self.step})
            if self.step < steps and self._agree(time.monotonic() - saved > config.checkpoint_seconds):
                with self.meter.waiting("checkpoint"):
                    self.checkpoints.save(self.step, self.replica.state(), self._facts())
                saved = time.monotonic()
        if metrics:
            metrics.close()
        self._finish()
        return self._headline()

    def _one(self, steps: int) -> dict:
        """Computes and applies one step; a bad batch is computed again, then skipped and recorded."""
        for attempt in range(2 * BAD_BATCHES):
            weight, loss, *rest = self.replica.gradients(self.objective, self.objective.batch(self.step))
            if weight == 0:
                raise ValueError(f"step {self.step} holds nothing to predict: every target of its rows has weight 0")
            loss, grad_norm = loss / weight, self.replica.grad_norm()
            reason = self.guard.check(loss, grad_norm)
            if reason is None:
                break
            self.replica.clear()
            if attempt % 2:
                index = data_step(self.step, self.objective.skips)
                self.objective.skips = (*self.objective.skips, index)
                if self.main:
                    print(f"step {self.step}: batch {index} is skipped, twice its {reason}", file=sys.stderr)
        else:
            raise ValueError(
                f"step {self.step}: {BAD_BATCHES} batches in a row are bad ({reason}); lower the learning rate"
            )
        self.guard.accept(loss, grad_norm)
        scale = self.config.optim.scale(self.step, steps)
        self.replica.step(scale, grad_norm)
        positions, pairs, *metrics = rest
        self.tokens += int(positions)
        row = {"step": self.step, "tokens": self.tokens, "loss": loss, "grad_norm": grad_norm}
        row |= {"lr": scale * self.config.optim.lr, "positions": positions, "context": pairs / positions}
        return row | {name: s / weight for name, s in zip(self.objective.metrics, metrics, strict=True)}

    def _agree(self, flag: bool) -> bool:
        """The first rank's answer: clocks differ, and what follows is collective."""
        if launch.world_size() == 1:
            return flag
        answer = torch.tensor(float(flag), device=self.device)
        torch.distributed.broadcast(answer, 0)
        return bool(answer)

    def _facts(self) -> dict:
        return {
            "tokens": self.tokens,
            "meter": self.meter.state(),
            "skips": list(self.objective.skips),
            "history": list(self.guard.history),
            "row": self.row,
            "layout": str(self.config.layout),
        }

    def _finish(self) -> None:
        """Writes the final state and gives the first rank's model the final weights."""
        self.checkpoints.close()
        state, final = self.replica.state(), self.out / "final"
        kept = state if self.config.keep_moments else _masters(state)
        save_checkpoint(final, kept, {**self._facts(), "step": self.step, "moments": self.config.keep_moments})
        self.replica.finish()
        if self.main and self.replica.model is not self.given and not any(p.is_meta for p in self.given.parameters()):
            saved = Saved(final)
            self.given.float()
            with torch.no_grad():
                for name, p in self.given.named_parameters():
                    p.copy_(saved.tensor(f"master/{name}"))
        self.given.eval()

    def _headline(self) -> dict:
        seconds = max(self.meter.seconds, 1e-9)
        return {
            "steps": self.objective.steps,
            "tokens": self.tokens,
            "loss": self.row.get("loss"),
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.row.get("mfu"),
            "skipped_batches": len(self.objective.skips),
            "train_seconds": round(self.meter.seconds, 1),
            **self.meter.headline(),
            **{name: value for name, value in self.row.items() if name.startswith("heldout")},
        }


def _masters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("master/")}
