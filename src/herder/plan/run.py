"""The plan of one run: the fastest layout that fits, or the user's own, with everything that follows (paper 3.3.2).

The one design decision: a given layout and the search go through the same functions, `refusal`, `memory_per_rank` and
`time_step`; a layout that is refused keeps its sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from herder.model import LlamaConfig
from herder.plan.cost import Cost, Prices, cost
from herder.plan.faults import Costs, Faults, simulate
from herder.plan.layout import axes, candidates, given_fields, micro_batches, refusal, variants
from herder.plan.memory import memory_per_rank
from herder.plan.timing import Software, Timing, time_step
from herder.train import Layout
from herder.train.devices import Gpu, find_gpu

CHECKPOINT_BYTES = 4 + 8
"""A parameter's fp32 master and two fp32 moments; the bf16 weight follows from the master."""

MOST_GPUS = 1_000_000

CONVENTION = "6 FLOPs a weight and token, head counted, embedding and recomputation not, attention causal"


@dataclass(frozen=True)
class Candidate:
    """A layout that can run, with its memory by part in bytes and its time."""

    layout: Layout
    memory: dict[str, float]
    timing: Timing

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """One run, planned. `second` is the next best with other axes, or where there is
    none with another micro-batch; `refused` maps layouts to sentences."""

    config: LlamaConfig
    gpus: int
    gpu: Gpu
    seq_len: int
    tokens_per_batch: int
    tokens: float
    best: Candidate
    second: Candidate | None
    faults: Faults
    cost: Cost
    refused: dict[str, str] = field(repr=False)

    @property
    def mfu(self) -> float:
        """Share of the dense bf16 peak (convention in `herder.plan.timing`)."""
        return self.best.timing.mfu(self.gpus, self.gpu)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_batch / self.best.timing.step

    @property
    def training_days(self) -> float:
        """Days of steps alone, without interruptions and checkpoints."""
        return self.tokens / self.tokens_per_second / 86_400

    @property
    def days(self) -> float:
        """Days on the clock, at the effective training time."""
        return self.training_days / self.faults.effective

    def to_json(self) -> dict:
        """Plain numbers with their units in the names."""
        best = self.best
        return {
            "parameters": self.config.n_params,
            "gpus": self.gpus,
            "gpu": self.gpu.name,
            "seq_len": self.seq_len,
            "tokens_per_batch": self.tokens_per_batch,
            "tokens": self.tokens,
            "layout": asdict(best.layout),
            "micro_batches": micro_batches(best.layout, self.seq_len, self.tokens_per_batch),
            "mfu": self.mfu,
            "tflops_per_gpu": self.mfu * self.gpu.bf16 / 1e12,
            "step_seconds": best.timing.step,
            "step_seconds_by_part": best.timing.parts,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_gpu": self.tokens_per_second / self.gpus,
            "memory_per_rank_bytes": best.bytes,
            "memory_per_rank_bytes_by_part": best.memory,
            "training_days": self.training_days,
            "days": self.days,
            "faults": asdict(self.faults),
            "cost": asdict(self.cost),
            "second": None
            if self.second is None
            else {
                "layout": asdict(self.second.layout),
                "mfu": self.second.timing.mfu(self.gpus, self.gpu),
                "step_seconds": self.second.timing.step,
                "memory_per_rank_bytes": self.second.bytes,
            },
            "refused": self.refused,
        }

    def table(self) -> str:
        """Everything as text."""
        best, f, c = self.best, self.faults, self.cost
        lines = [
            f"{self.config.n_params / 1e9:.4g}B parameters on {self.gpus:,} {self.gpu.name}, sequences of {self.seq_len:,}, "
            f"{self.tokens_per_batch:,} tokens a batch",
            f"layout {best.layout}",
        ]
        lines += _rows("memory per rank, GB", {k: v / 1e9 for k, v in best.memory.items()})
        lines += _rows("seconds a step", best.timing.parts)
        lines += [
            f"MFU {100 * self.mfu:.1f}%, {self.mfu * self.gpu.bf16 / 1e12:.0f} TFLOP/s a GPU, "
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"({CONVENTION}; bf16 peak {self.gpu.bf16 / 1e12:.1f} TFLOP/s)",
            f"{self.tokens:.4g} tokens: {self.training_days:.2f} days of steps, {self.days:.2f} on the clock",
            f"{f.interruptions:,.1f} interruptions, one in {f.hours_between:,.1f} h; each restart {f.restart_seconds:,.0f} s",
            f"checkpoint of {f.checkpoint_bytes / 1e9:,.1f} GB every {f.checkpoint_every_seconds:,.0f} s takes "
            f"{f.checkpoint_seconds:.2f} s",
            f"effective training time {100 * f.effective:.1f}% ({100 * f.effective_low:.1f} to {100 * f.effective_high:.1f})",
            f"{c.gpu_hours:,.0f} GPU-hours, {c.energy_kwh:,.0f} kWh, {c.carbon_tons:,.1f} t CO2eq, ${c.dollars:,.0f}",
        ]
        if self.second:
            slower = self.second.timing.step / best.timing.step - 1
            lines.append(f"second best {self.second.layout}: {100 * slower:.1f}% slower, {_why(best, self.second)}")
        if self.refused:
            lines.append(f"{len(self.refused):,} layouts refused, such as")
            lines += [f"  {layout}: {why}" for layout, why in _examples(self.refused).items()]
        return "\n".join(lines)


def plan(
    config: LlamaConfig,
    gpus: int,
    gpu: str | Gpu,
    seq_len: int,
    tokens_per_batch: int,
    tokens: float,
    layout: Layout | Mapping[str, Any] | None = None,
    *,
    software: Software | None = None,
    costs: Costs | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Plans `tokens` of training on `gpus` GPUs of kind `gpu` (a name or a Gpu), in the fastest layout that fits.

    layout: a whole Layout, or some of its fields (see `parse_layout`); the plan chooses the others.
    Raises ValueError for an unknown GPU, sizes below 1, a layout that cannot run or does not fit, and where none does.
    """
    kind = find_gpu(gpu) if isinstance(gpu, str) else gpu
    sizes = {"gpus": gpus, "seq_len": seq_len, "tokens_per_batch": tokens_per_batch, "tokens": tokens}
    for name, value in sizes.items():
        if not 1 <= value < 1e18:
            raise ValueError(f"{name} is {value}; it must be at least 1 and below 1e18")
    if gpus > MOST_GPUS:
        raise ValueError(f"gpus is {gpus}; the search goes up to {MOST_GPUS:,}")
    if software and software.precision == "fp8" and not kind.fp8:
        raise ValueError(f"a {kind.name} has no fp8 matrix products; plan it in bf16")
    refused: dict[str, str] = {}
    found: list[Candidate] = []
    tight: list[Candidate] = []
    given = given_fields(layout)
    for lay in candidates(config, gpus, kind, seq_len, given):
        result = judge(config, lay, gpus, kind, seq_len, tokens_per_batch, software, given)
        if isinstance(result, str):
            refused[str(lay)] = result
        else:
            (found if result.bytes <= kind.memory else tight).append(result)
    for near in sorted(tight, key=lambda c: c.bytes):
        refused[str(near.layout)] = (
            f"needs {near.bytes / 1e9:.1f} GB on a rank, a {kind.name} has {kind.memory / 1e9:.0f}"
        )
    if not found:
        why = "; ".join(f"{lay}: {why}" for lay, why in list(_examples(refused).items())[:3])
        if isinstance(layout, Layout):
            raise ValueError("layout {}: {}".format(*next(iter(refused.items()))))
        asked = " with " + ",".join(f"{name}={value}" for name, value in given.items()) if given else ""
        raise ValueError(f"no layout{asked} of {gpus} {kind.name} can train this model: {why}")
    found.sort(key=lambda c: c.timing.step)
    hours = tokens / tokens_per_batch * found[0].timing.step / 3600
    faults = simulate(gpus, max(hours, 1e-6), CHECKPOINT_BYTES * config.n_params, costs)
    if faults.effective <= 0:
        raise ValueError(f"{gpus} GPUs are interrupted so often that nothing is trained; lower restart_seconds")
    bill = cost(gpus * hours / faults.effective, kind.watts, prices)
    others = [c for c in found[1:] if axes(c.layout) != axes(found[0].layout)] or found[1:]
    second = others[0] if others else None
    return Plan(config, gpus, kind, seq_len, tokens_per_batch, tokens, found[0], second, faults, bill, refused)


def judge(
    config: LlamaConfig,
    layout: Layout,
    gpus: int,
    gpu: Gpu,
    seq_len: int,
    tokens_per_batch: int,
    software: Software | None = None,
    given: Mapping[str, Any] | None = None,
) -> Candidate | str:
    """The layout with what is not given chosen for the least time that fits, or where nothing does for the least memory; or the
    sentence that refuses it."""
    why = refusal(config, layout, gpus, gpu, seq_len, tokens_per_batch)
    if why:
        return why
    software, n_micro, made = software or Software(), micro_batches(layout, seq_len, tokens_per_batch), []
    for variant in variants(config, layout, gpu, given or {}):
        memory = memory_per_rank(config, variant, seq_len, n_micro, fused=software.fused)
        made.append(Candidate(variant, memory, time_step(config, variant, gpu, seq_len, tokens_per_batch, software)))
    fits = [candidate for candidate in made if candidate.bytes <= gpu.memory]
    return min(fits, key=lambda c: c.timing.step) if fits else min(made, key=lambda c: c.bytes)


def _rows(title: str, parts: dict[str, float]) -> list[str]:
    rows = [f"  {name:<38}{value:>12.4g}" for name, value in parts.items() if value]
    return [f"{title}: {sum(parts.values()):.4g}", *rows]


def _why(best: Candidate, second: Candidate) -> str:
    """The part of the step that costs the second layout most against the best."""
    names = {**best.timing.parts, **second.timing.parts}
    more = {name: second.timing.parts.get(name, 0.0) - best.timing.parts.get(name, 0.0) for name in names}
    name = max(more, key=more.__getitem__)
    return f"mostly {name} ({more[name]:+.3g} s)"


def _examples(refused: dict[str, str]) -> dict[str, str]:
    """One layout for each kind of refusal, a kind being its first words without numbers."""
    kinds: dict[str, str] = {}
    for layout, why in refused.items():
        words = " ".join(w for w in why.split() if not any(ch.isdigit() for ch in w))
        kinds.setdefault(words, layout)
    return {layout: refused[layout] for layout in kinds.values()}
