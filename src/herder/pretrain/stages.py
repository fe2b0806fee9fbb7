"""The stage table of a run from thresholds in tokens (paper 3.4.1: 4M tokens a step at 4,096, then 8M at 8,192 from 252M
tokens on, then 16M from 2.87T on; edits of the mix in between).

The paper tells ramps in tokens, the trainer counts steps: `ramp` is the one place where one becomes the other, so a recipe
states what the paper states and the table that comes out is identity.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import replace

from herder.train import Stage

Mix = dict[str, float]


def ramp(tokens: float, batches: Mapping[float, tuple[int, int]], mixes: Mapping[float, Mix]) -> tuple[Stage, ...]:
    """Stages that use about `tokens` tokens: `batches[since]` is (rows, seq_len) and `mixes[since]` the shares of sources from
    that many tokens on; both begin at 0.

    Each threshold falls on the step nearest to it, counted from the tokens really used, so roundings do not add up. Raises
    ValueError for a threshold outside of the run, or a part too short for one step.
    """
    for name, table in (("batches", batches), ("mixes", mixes)):
        if 0 not in table:
            raise ValueError(f"{name} begins at {min(table, default=None)} tokens; give what holds from 0 on")
        if wrong := [since for since in table if not 0 <= since < tokens]:
            raise ValueError(
                f"{name} changes at {wrong[0]:,} tokens, but the run has {tokens:,}; leave it out or train longer"
            )
    cuts = sorted({*batches, *mixes})
    stages, used = [], 0
    for since, until in zip(cuts, [*cuts[1:], tokens], strict=True):
        rows, seq_len = _at(batches, since)
        steps = round((until - used) / (rows * seq_len))
        if steps < 1:
            raise ValueError(
                f"from {since:,} to {until:,} tokens there is not one step of {rows} x {seq_len} tokens; take smaller steps, "
                "or move the threshold"
            )
        stages.append(Stage(steps, rows, seq_len, dict(_at(mixes, since))))
        used += steps * rows * seq_len
    return tuple(stages)


def _at(table: Mapping[float, object], tokens: float):
    """The entry in force at this many tokens."""
    starts = sorted(table)
    return table[starts[bisect.bisect_right(starts, tokens) - 1]]


def present(stages: tuple[Stage, ...], sources: Mapping[str, object]) -> tuple[Stage, ...]:
    """The stages without the sources that the token shards lack. Raises ValueError where a mix would be empty."""
    found = []
    for number, stage in enumerate(stages):
        mix = {name: share for name, share in stage.mix.items() if name in sources}
        if not any(mix.values()):
            raise ValueError(
                f"stage {number} mixes {', '.join(sorted(stage.mix))}; the token shards have {', '.join(sorted(sources))}"
            )
        found.append(replace(stage, mix=mix))
    return tuple(found)
