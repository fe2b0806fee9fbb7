"""What the plan and a dry run read from a recipe: its pre-training steps, their shape, stages and layout.

The one design decision: they are found in the recipe's graph, as it would run, so that nothing is stated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herder.model import SHAPES, LlamaConfig
from herder.pretrain import PretrainConfig
from herder.recipes import build, names
from herder.steps import Step, ordered
from herder.train import Layout, Stage

PAPER_BATCH, PAPER_TOKENS = 2**24, 15.6e12
"""Tokens a batch and in all that a bare shape is planned with (paper 3.4.1, 3.1)."""


@dataclass(frozen=True)
class Training:
    """One pre-training step of a recipe."""

    name: str
    model: LlamaConfig
    stages: tuple[Stage, ...]
    layout: Layout

    @property
    def tokens(self) -> int:
        return sum(stage.steps * stage.tokens_per_step for stage in self.stages)


def trainings(last: Sequence[Step]) -> list[Training]:
    """The pre-training steps of a graph, in order."""
    found = [step for step in ordered(last) if isinstance(step.config, PretrainConfig)]
    return [Training(s.name, s.config.model, s.config.stages, s.config.train.layout) for s in found]


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
        config, own = training.model, (stage.seq_len, stage.tokens_per_step, float(sum(t.tokens for t in found)))
    elif name in SHAPES:
        config, own = SHAPES[name], (min(8192, SHAPES[name].max_seq_len), PAPER_BATCH, PAPER_TOKENS)
    else:
        known = f"recipes are {', '.join(names())}; shapes {', '.join(SHAPES)}"
        raise ValueError(f"{name!r} is neither a recipe nor a shape; {known}")
    given = (seq_len, batch, tokens)
    return config, *(mine if asked is None else asked for asked, mine in zip(given, own, strict=True))
