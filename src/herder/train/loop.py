"""The one training loop, for every objective (paper 3.3, 3.4).

A step: the objective's rows, this rank's share of them in micro-batches, sums of gradients over micro-batches and ranks, one
division by the global weight, the guard's look, the update. It may be killed at any moment: the newest checkpoint holds all
that the next steps depend on, and a resumed run equals an uninterrupted one bit for bit. So does one that had to go back.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from herder import launch, progress
from herder.config import at_least_one, runtime
from herder.model import Llama
from herder.train.checkpoint import Saved, load_checkpoint, save_checkpoint
from herder.train.data import data_step
from herder.train.faults import FaultConfig, Guard, GuardConfig, Rewind
from herder.train.meter import Meter, Metrics
from herder.train.objective import Objective
from herder.train.optim import OptimConfig
from herder.train.parallel import Layout, Sharded, apply_locally
from herder.train.recovery import Recovery
from herder.train.replica import Replica
from herder.train.sinks import open_sinks


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
    faults: FaultConfig = runtime(FaultConfig())

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
            run.recovery.checkpoints.close()


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
        self.step, self.tokens, self.row, self.metrics = 0, 0, {}, None
        self.guard, self.fresh = Guard(config.guard), True
        self.recovery = Recovery(config.faults, self.replica, out / "checkpoints", config.checkpoints_kept, self.device)
        self.replica.waiting = self._waiting
        self.recovery.enter("loading", "start")
        if not self._load() and start is not None:
            state = self.replica.state()
            load_checkpoint(start, state if Saved(start).facts.get("moments", False) else _masters(state))
            self.replica.restored()

    def train(self) -> dict:
        steps = self.objective.steps
        self._open_metrics()
        if 0 == self.step < steps:
            self._save()  # there is always something to go back to
        self.saved = time.monotonic()
        while self.step < steps:
            try:
                self._advance(steps)
            except Rewind as reason:
                self._rewind(reason)
        if self.metrics:
            self.metrics.close()
        self._finish()
        return self._headline()

    def _advance(self, steps: int) -> None:
        """One step and what is due after it."""
        config, recovery = self.config, self.recovery
        recovery.seen.step(self.step, self.meter.seconds)
        recovery.enter("compute", "start" if self.fresh else "step")
        self.meter.start_step()
        row = self._one(steps)
        row |= self.meter.row(row.pop("positions"), row.pop("context"))
        self.step, self.fresh = self.step + 1, False
        save = recovery.agree(self.step, time.monotonic() - self.saved > config.checkpoint_seconds)
        due = config.heldout_every and self.step % config.heldout_every == 0
        if self.heldout and (due or self.step == steps):
            recovery.enter("heldout", "start")
            row |= self.heldout(self.replica.model)
            self.replica.model.train()
        self.row = row
        if self.metrics:
            self.metrics.write(row)
            shown = {name: row[name] for name in ("loss", "tokens_per_second")}
            progress.report(self.step, steps, "steps", **shown)
        if config.snapshot_every and self.step % config.snapshot_every == 0:
            folder = self.out / "snapshots" / f"step-{self.step:08d}"
            tensors = _masters(self.replica.state())
            recovery.patiently(lambda: save_checkpoint(folder, tensors, {"step": self.step}), f"snapshot {folder.name}")
        if save and self.step < steps:
            with self._waiting("checkpoint"):
                self._save()
            self.saved = time.monotonic()

    def _one(self, steps: int) -> dict:
        """Computes and applies one step; what becomes of a bad one, `Course` says."""
        for attempt in itertools.count():
            weight, loss, *rest = self.recovery.gradients(self.step, self._gradients)
            if weight == 0:
                raise ValueError(f"step {self.step} holds nothing to predict: every target of its rows has weight 0")
            loss, grad_norm = loss / weight, self.replica.grad_norm()
            reason = self.guard.check(loss, grad_norm)
            if reason is None:
                break
            self.replica.clear()
            todo = self.recovery.course.judge(self.step, self.objective.skips, attempt, reason)
            if todo == "rewind":
                raise Rewind(f"step {self.step}: {reason}, twice")
            if todo == "skip":
                index = data_step(self.step, self.objective.skips)
                self.objective.skips = (*self.objective.skips, index)
                self.recovery.say("skip", f"step {self.step}: batch {index} is skipped, on replay again {reason}")
        self.guard.accept(loss, grad_norm)
        scale = self.config.optim.scale(self.step, steps)
        self.recovery.before_update()
        self.replica.step(scale, grad_norm)
        self.recovery.after_update()
        positions, pairs, *metrics = rest
        self.tokens += int(positions)
        row = {"step": self.step, "tokens": self.tokens, "loss": loss, "grad_norm": grad_norm}
        row |= {"lr": scale * self.config.optim.lr, "positions": positions, "context": pairs / positions}
        return row | {name: s / weight for name, s in zip(self.objective.metrics, metrics, strict=True)}

    def _gradients(self) -> list[float]:
        return self.replica.gradients(self.objective, self.objective.batch(self.step))

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        with self.meter.waiting(what), self.recovery.waiting(what):
            yield

    def _open_metrics(self) -> None:
        """Rows from the present step on are cut: they are written anew."""
        if self.metrics:
            self.metrics.close()
        if self.main:
            sinks = open_sinks(self.config.sinks, self.out, self.step)
            self.metrics = Metrics(self.out / "metrics.jsonl", self.step, sinks)

    def _load(self) -> bool:
        """Takes up the newest good checkpoint; False where there is none."""
        facts = self.recovery.load()
        if facts is None:
            return False
        self.step, self.tokens, self.row = facts["step"], facts["tokens"], facts["row"]
        self.meter.load(facts["meter"])
        self.objective.skips = tuple(facts["skips"])
        self.guard = Guard(self.config.guard, facts["history"])
        return True

    def _save(self) -> None:
        self.recovery.save(self.step, self._facts())

    def _rewind(self, reason: Rewind) -> None:
        """Back to the last good checkpoint: the same batches follow, and a transient fault leaves no trace."""
        bad = self.step
        self.recovery.enter("loading", "start")
        self.replica.clear()
        if not self._load():
            raise ValueError(f"{reason}; there is no good checkpoint to go back to, run again to begin anew")
        self.recovery.say("rewind", f"{reason}; back from step {bad} to {self.step}, the same batches are replayed")
        self._open_metrics()
        self.saved = time.monotonic()

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
        self.recovery.close()
        state, final = self.replica.state(), self.out / "final"
        kept = state if self.config.keep_moments else _masters(state)
        facts = {**self._facts(), "step": self.step, "moments": self.config.keep_moments}
        self.recovery.patiently(lambda: save_checkpoint(final, kept, facts), "final state")
        self.recovery.enter("idle", "")
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
