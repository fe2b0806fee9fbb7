"""What a data set is worth (paper 3.4.3): a half-trained model is annealed on 30% of it and 70% of the ordinary mix.

The same steps on the ordinary mix alone are the control. Sets are ranked by the paired difference from it on held-out documents,
which is cheaper than scaling laws for every small set, and says with an interval when a difference is none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import open_checkpoint
from herder.pretrain.base import check_length, train_on
from herder.pretrain.scores import Scored, Scores, bits_per_byte, change, read_scores
from herder.pretrain.stages import present
from herder.records import Measure
from herder.steps import read_json
from herder.train import Mixture, Stage, TokenShards, TrainConfig
from herder.train.heldout import HeldOut

CONTROL = "control"
SET = "set_"
"""What the names of inputs that are data sets begin with."""


@dataclass(frozen=True)
class ProbeConfig:
    """`stage` is the control: the ordinary mix for all steps (40B tokens in the paper). `train.optim` decays linearly to 0."""

    train: TrainConfig
    stage: Stage
    share: float = 0.3
    """Of the tokens that come from the set under test."""
    heldout_tokens: int = 200_000
    optional_sources: bool = False
    processes: int = runtime(1)

    def __post_init__(self):
        at_least_one(self, "processes")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and below 1")
        if self.train.optim.decay != "linear" or self.train.optim.lr_final:
            raise ValueError("the probe anneals: set train.optim.decay=linear and lr_final=0")


@launch.distributed
def probe(config: ProbeConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: ranks the token shards among the inputs named "set_...", from inputs["base"] and inputs["tokens"].

    Scores are on the held-out shards of inputs["target"], or of inputs["tokens"]. Writes `ranking.json` and `comparison.json`;
    a gain above 0 is better than the control.
    """
    return launch.run_local(_probe, (config, inputs, out), config.processes)


def _probe(config: ProbeConfig, inputs: dict[str, Path], out: Path) -> dict:
    base = open_checkpoint(inputs["base"])
    check_length([config.stage], base.config)
    names = [name for name in inputs if name.startswith(SET)]
    if not names:
        raise ValueError(f"there is no set to probe; name inputs {SET}NAME")
    seen = read_json(inputs["base"] / "consumed.json")
    heldout = TokenShards(inputs.get("target", inputs["tokens"]) / "heldout")
    held = HeldOut(heldout, config.stage.seq_len, config.heldout_tokens)
    scores: dict[str, Scored] = {}
    for name in (CONTROL, *names):
        shards, stage = _arm(config, inputs, name)
        folder = out / name
        folder.mkdir(exist_ok=True)
        mixture = Mixture(shards, [stage], seen["seed"], before=seen["tokens"])
        scorer = Scores({"heldout": held}, folder, config.heldout_tokens)
        train_on(mixture, base.config, config.train, folder, scorer, start=inputs["base"] / "final")
        if launch.rank() == 0:
            scores[name.removeprefix(SET)] = read_scores(folder)
    if launch.rank() != 0:
        return {}
    gains = ranking(scores)
    (out / "ranking.json").write_text(json.dumps({name: m.to_json() for name, m in gains.items()}, indent=1))
    (out / "comparison.json").write_text(json.dumps(_tables(scores, gains, config.share), indent=1))
    for name in (CONTROL, *names):  # models of a probe are of no further use
        for part in ("final", "checkpoints"):
            shutil.rmtree(out / name / part, ignore_errors=True)
    plain = {f"bits_per_byte_{name}": bits_per_byte(*found) for name, found in scores.items()}
    return {"best": next(iter(gains)), **{f"gain_{name}": m for name, m in gains.items()}, **plain}


def _arm(config: ProbeConfig, inputs: dict[str, Path], name: str) -> tuple[TokenShards, Stage]:
    """The shards and the stage of one run: the control's, or with a share of the set's sources by their tokens."""
    shards = TokenShards(inputs["tokens"] / "train")
    stage = present((config.stage,), shards.sources)[0] if config.optional_sources else config.stage
    if name == CONTROL:
        return shards, stage
    new = TokenShards(inputs[name] / "train").sources
    total, old = sum(source.n_tokens for source in new.values()), sum(stage.mix.values())
    mix = {source: share / old * (1 - config.share) for source, share in stage.mix.items()}
    for source in new.values():
        renamed = replace(source, name=f"{name}/{source.name}")  # a set may call its sources what the ordinary mix does
        shards.sources[renamed.name] = renamed
        mix[renamed.name] = config.share * source.n_tokens / total
    return shards, replace(stage, mix=mix)


def ranking(scores: dict[str, Scored]) -> dict[str, Measure]:
    """Gain of every set over the control in bits per byte, document by document, the best first."""
    gains = {name: change(found, scores[CONTROL]) for name, found in scores.items() if name != CONTROL}
    return dict(sorted(gains.items(), key=lambda row: -row[1].value))


def _tables(scores: dict[str, Scored], gains: dict[str, Measure], share: float) -> list[dict]:
    """Gains, best first, and the scores they come from, for the report."""
    unit = "bits per byte"
    rows = [{"name": name, "measure": m.to_json(), "note": ""} for name, m in gains.items()]
    ordered = [*gains, CONTROL]
    plain = [{"name": n, "measure": bits_per_byte(*scores[n]).to_json(), "note": ""} for n in ordered]
    return [
        {"title": f"Annealing probe: gain of {share:.0%} of a set over the control", "unit": unit, "rows": rows},
        {"title": "Annealing probe: held-out documents (lower is better)", "unit": unit, "rows": plain},
    ]
