"""What the plan and a dry run read from a recipe: its pre-training, with shape, stages and layouts.

The one design decision: it is found in the recipe's graph, as it would run, so that nothing is stated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from herder.model import SHAPES, Llama, LlamaConfig
from herder.plan import Plan, Software, find_gpu, plan
from herder.pretrain import AnnealConfig, ContextConfig, PretrainConfig
from herder.recipes import build, names
from herder.steps import Step, ordered
from herder.train import Layout, Stage

PAPER_BATCH, PAPER_TOKENS = 2**24, 15.6e12
"""Tokens a batch and in all that a bare shape is planned with (paper 3.4.1, 3.1)."""


@dataclass(frozen=True)
class Training:
    """One step of pre-training. `model` has the context that the step leaves it with."""

    name: str
    model: LlamaConfig
    stages: tuple[Stage, ...]
    layout: Layout


def trainings(last: Sequence[Step]) -> list[Training]:
    """The pre-training of a graph in order: its largest base model, the longer contexts and the annealing that go on from it."""
    steps = ordered(last)
    bases = [step for step in steps if isinstance(step.config, PretrainConfig)]
    if not bases:
        return []
    base = max(bases, key=lambda s: s.config.model.n_params * sum(t.steps * t.tokens_per_step for t in s.config.stages))
    chain, found = [base], [Training(base.name, base.config.model, base.config.stages, base.config.train.layout)]
    for step in steps:
        if isinstance(step.config, ContextConfig | AnnealConfig) and step.inputs["base"] in chain:
            chain.append(step)
            model, stage = found[-1].model, step.config.stage
            model = replace(model, max_seq_len=max(model.max_seq_len, stage.seq_len))
            found.append(Training(step.name, model, (stage,), step.config.train.layout))
    return found


def workload(
    name: str, settings: Sequence[str], seq_len: int | None, batch: int | None, tokens: float | None
) -> tuple[LlamaConfig, int, int, float]:
    """(shape, sequence length, tokens a batch, tokens in all) of a recipe or a bare shape, what is given taken as it is.

    Of a recipe it is the stage that holds most tokens, of those with the given sequence length where there is one; the tokens
    are of all stages. Raises ValueError for a name that is neither.
    """
    if name in names() or name.endswith(".py"):
        found = trainings(build(name, settings)[1])
        if not found:
            raise ValueError(
                f"{name} trains no base model, so there is nothing to plan; give a shape such as llama3.1-8b"
            )
        pairs = [(training, stage) for training in found for stage in training.stages]
        fitting = [pair for pair in pairs if pair[1].seq_len == seq_len] or pairs
        training, stage = max(fitting, key=lambda pair: pair[1].steps * pair[1].tokens_per_step)
        config, own = (
            training.model,
            (stage.seq_len, stage.tokens_per_step, float(sum(s.steps * s.tokens_per_step for _, s in pairs))),
        )
    elif name in SHAPES:
        config, own = SHAPES[name], (min(8192, SHAPES[name].max_seq_len), PAPER_BATCH, PAPER_TOKENS)
    else:
        known = f"recipes are {', '.join(names())}; shapes {', '.join(SHAPES)}"
        raise ValueError(f"{name!r} is neither a recipe nor a shape; {known}")
    given = (seq_len, batch, tokens)
    return config, *(mine if asked is None else asked for asked, mine in zip(given, own, strict=True))


def dry_run(config: Any, last: Sequence[Step]) -> tuple[list[str], list[str]]:
    """What a recipe would do, without doing it: lines to print, and what of it cannot run.

    Every step with its address; the model built on the meta device and counted; of every stage its steps and tokens, and under
    the recipe's `gpus` (where it names any) its layout's memory a rank and days by the plan.
    """
    lines = [f"{step.address:<44}{step.run.__module__}.{step.run.__name__}" for step in ordered(last)]
    found, refused, total, days = trainings(last), [], 0, 0.0
    if not found:
        return lines, refused
    with torch.device("meta"):
        model = Llama(found[0].model)
    lines.append(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    gpus, gpu = getattr(config, "gpus", 0), getattr(config, "gpu", "h100")
    for training in found:
        for stage in training.stages:
            tokens = stage.steps * stage.tokens_per_step
            total += tokens
            line = f"{training.name}: {stage.steps:,} steps of {stage.rows:,} x {stage.seq_len:,} tokens, {tokens:.4g} in all"
            if gpus:
                try:
                    made = stage_plan(training, stage, gpus, gpu)
                    days += made.days
                    line += f"; {made.best.layout}: {made.best.bytes / 1e9:.1f} GB a rank, MFU {100 * made.mfu:.1f}%, "
                    line += f"{made.days:,.2f} days"
                except ValueError as error:
                    refused.append(f"{training.name}, rows of {stage.seq_len:,}: {error}")
                    line += f"; refused: {error}"
            lines.append(line)
    lines.append(f"tokens {total:.4g}" + (f", {days:,.1f} days on {gpus:,} {gpu}" if gpus and not refused else ""))
    return lines, refused


def stage_plan(training: Training, stage: Stage, gpus: int, gpu: str) -> Plan:
    """One stage in the layout that the recipe gives it, as herder's trainer runs it. Raises ValueError where it cannot."""
    find_gpu(gpu)
    layout = training.layout.on(gpus)
    software = Software(fused=layout.compile)
    tokens = stage.steps * stage.tokens_per_step
    return plan(training.model, gpus, gpu, stage.seq_len, stage.tokens_per_step, tokens, layout, software=software)
