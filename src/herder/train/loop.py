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

from herder import launch, progress
from herder.config import at_least_one, runtime
from herder.model import Llama
from herder.model.attention import Packing
from herder.train.checkpoint import load_latest, save_checkpoint
from herder.train.data import data_step
from herder.train.faults import Guard, GuardConfig
from herder.train.meter import Metrics, matmul_peak
from herder.train.objective import Objective
from herder.train.optim import OptimConfig, Optimizer, trainable
from herder.train.outputs import compute
from herder.train.parallel import Layout
from herder.train.sinks import open_sinks

BAD_BATCHES = 16
"""Bad batches in a row after which the run gives up: by then it is not the data."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train on is the objective's. Runtime fields say where and how often, never what."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    heldout_every: int = 0
    """Steps between held-out measurements (0: only at the end)."""
    snapshot_every: int = 0
    """Steps between weights kept in `out/snapshots`, for averaging (0: none)."""
    layout: Layout = runtime(Layout(micro_batch=8))
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
    heldout: Callable[[Llama], dict[str, float]] | None = None,
    start: Path | None = None,
) -> dict:
    """Trains `model` in place, continuing from `out/checkpoints` where there are any; leaves it in fp32, final weights.

    start: a final checkpoint (`out/final` of another run) whose weights and moments a fresh run begins with.
    heldout(model) returns numbers for `metrics.jsonl`, every `heldout_every` steps and at the end. Returns headline numbers.
    Raises ValueError where nothing can be learned from a batch, or where too many batches in a row are bad.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    return _Run(model, objective, config, Path(out), heldout).train()


class _Run:
    def __init__(self, model, objective, config, out, heldout):
        self.model, self.objective, self.config, self.out, self.heldout = model, objective, config, out, heldout
        self.main = launch.rank() == 0
        self.device = pick_device(config.device)
        self.dtype = getattr(torch, config.dtype)
        launch.keep_memory()
        model.to(self.device).train()
        self.optimizer = Optimizer(model, config.optim, self.dtype)
        self.step, self.tokens, self.seconds, self.row, history = 0, 0, 0.0, {}, []
        found = load_latest(out / "checkpoints", warn=lambda text: print(text, file=sys.stderr))
        if found is not None:
            tensors, facts = found
            self.optimizer.load(tensors)
            self.step, self.tokens, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
            objective.skips, history, self.row = tuple(facts["skips"]), facts["history"], facts["row"]
        self.guard = Guard(config.guard, history)

    def train(self) -> dict:
        config, steps = self.config, self.objective.steps
        metrics = (
            Metrics(self.out / "metrics.jsonl", self.step, open_sinks(config.sinks, self.out, self.step))
            if self.main
            else None
        )
        peak = matmul_peak(self.device, self.dtype) * launch.world_size()
        saved = clock = time.monotonic()
        while self.step < steps:
            row = self._one(steps)
            took = time.monotonic() - clock
            self.seconds += took
            row |= {"seconds": self.seconds, **self._rates(row.pop("positions"), row.pop("context"), took, peak)}
            self.step += 1
            due = config.heldout_every and self.step % config.heldout_every == 0
            if self.heldout and (due or self.step == steps):
                row |= self.heldout(self.model)
                self.model.train()
            self.row = row
            if metrics:
                metrics.write(row)
                shown = {name: row[name] for name in ("loss", "tokens_per_second")}
                progress.report(self.step, steps, "steps", **shown)
            if self.main and (time.monotonic() - saved > config.checkpoint_seconds or self.step == steps):
                self._save()
                saved = time.monotonic()
            clock = time.monotonic()  # measuring and saving are not training
        if metrics:
            metrics.close()
        self._finish()
        return self._headline()

    def _one(self, steps: int) -> dict:
        """Computes and applies one step; a bad batch is computed again, then skipped and recorded."""
        for attempt in range(2 * BAD_BATCHES):
            weight, loss, *rest = self._gradients()
            if weight == 0:
                raise ValueError(f"step {self.step} holds nothing to predict: every target of its rows has weight 0")
            loss, grad_norm = loss / weight, self.optimizer.grad_norm()
            reason = self.guard.check(loss, grad_norm)
            if reason is None:
                break
            self.optimizer.clear()
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
        self.optimizer.step(scale, grad_norm)
        positions, pairs, *metrics = rest
        self.tokens += int(positions)
        row = {"step": self.step, "tokens": self.tokens, "loss": loss, "grad_norm": grad_norm}
        row |= {"lr": scale * self.config.optim.lr, "positions": positions, "context": pairs / positions}
        return row | {name: s / weight for name, s in zip(self.objective.metrics, metrics, strict=True)}

    def _gradients(self) -> list[float]:
        """Leaves this step's gradient over all ranks in the optimizer, divided by the global weight.

        Returns sums over all ranks: weight, loss, positions, pairs of positions that see each other, the objective's metrics.
        """
        names = self.objective.metrics
        sums = torch.zeros(4 + len(names), dtype=torch.float64, device=self.device)
        items = self.objective.batch(self.step)[launch.rank() :: launch.world_size()]
        if len(items):
            for micro in self.objective.rows(items).micro_batches(self.config.layout.micro_batch):
                packing = Packing.of(micro.doc_ids)
                micro = micro.to(self.device)
                loss = self.objective.loss(compute(self.model, micro, packing, self.objective.needs), micro)
                loss.sum.backward()
                self.optimizer.accumulate()
                pairs = sum(n * (n + 1) // 2 for n in packing.lengths)
                values = [loss.weight, loss.sum, micro.tokens.numel(), pairs, *(loss.metrics[name] for name in names)]
                sums += torch.stack([torch.as_tensor(v, device=self.device).detach().double() for v in values])
        return self.optimizer.reduce(sums).tolist()

    def _rates(self, positions: float, context: float, seconds: float, peak: float) -> dict[str, float]:
        flops = self.model.config.flops_per_token(context) * positions / seconds
        return {"tokens_per_second": positions / seconds, "tflops": flops / 1e12, "mfu": flops / peak}

    def _save(self) -> None:
        facts = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skips": list(self.objective.skips),
            "history": list(self.guard.history),
            "row": self.row,
        }
        save_checkpoint(
            self.out / "checkpoints", self.step, self.optimizer.state(), facts, self.config.checkpoints_kept
        )

    def _finish(self) -> None:
        """Gives the model its fp32 master weights; frozen ones keep what the compute dtype left of them."""
        self.model.float()
        self.optimizer.params = list(trainable(self.model).values())
        self.optimizer.copy_to_model()
        self.model.eval()

    def _headline(self) -> dict:
        seconds = max(self.seconds, 1e-9)
        return {
            "steps": self.objective.steps,
            "tokens": self.tokens,
            "loss": self.row.get("loss"),
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.row.get("mfu"),
            "skipped_batches": len(self.objective.skips),
            "train_seconds": round(self.seconds, 1),
            **{name: value for name, value in self.row.items() if name.startswith("heldout")},
        }
