"""The base model (paper 3.4.1): next-token prediction on a mixture of token shards, in stages.

Stages are data: each says for how many steps how many rows of how many tokens come from which mix. Warm-up and cosine run
over all of them, so a bigger batch or a longer sequence changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import TrainedCheckpoint, export, weightless
from herder.model import Llama, LlamaConfig, initial_weight
from herder.pretrain.scores import Scores, bits_per_byte, read_scores
from herder.pretrain.stages import present
from herder.tokenizer import Tokenizer
from herder.train import Mixture, NextToken, Stage, TokenShards, TrainConfig, train
from herder.train.heldout import HeldOut


@dataclass(frozen=True)
class PretrainConfig:
    """One base model. A source of a stage's mix that the shards lack is left out where `optional_sources`."""

    model: LlamaConfig
    train: TrainConfig
    stages: tuple[Stage, ...]
    """In order; `ramp` computes them from thresholds in tokens."""
    seed: int = 0
    optional_sources: bool = False
    heldout_tokens: int = 60_000
    """Held-out tokens for the curve, and for the scores of the steps that go on from here; the evaluation takes all."""
    processes: int = runtime(1)
    """Local processes of one thread each, where torchrun has not made them."""

    def __post_init__(self):
        at_least_one(self, "processes")
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage")
        check_length(self.stages, self.model)


def check_length(stages: Sequence[Stage], model: LlamaConfig) -> None:
    """Raises ValueError where a stage's rows are longer than the model's context."""
    longest = max(stage.seq_len for stage in stages)
    if longest > model.max_seq_len:
        raise ValueError(
            f"a stage has rows of {longest} tokens, the model a context of {model.max_seq_len}; raise model.max_seq_len or "
            "shorten the stage"
        )


@launch.distributed
def pretrain(config: PretrainConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: trains on inputs["tokens"] with inputs["tokenizer"], leaves `out/final` and `out/model`."""
    return launch.run_local(_pretrain, (config, inputs, out), config.processes)


def _pretrain(config: PretrainConfig, inputs: dict[str, Path], out: Path) -> dict:
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    if tokenizer.n_vocab > config.model.vocab_size:
        raise ValueError(
            f"model.vocab_size {config.model.vocab_size} is below the tokenizer's {tokenizer.n_vocab}; raise it"
        )
    shards = TokenShards(inputs["tokens"] / "train")
    stages = present(config.stages, shards.sources) if config.optional_sources else config.stages
    mixture = Mixture(shards, stages, config.seed)
    held = HeldOut(TokenShards(inputs["tokens"] / "heldout"), config.stages[-1].seq_len, config.heldout_tokens)
    scores = Scores({"heldout": held}, out, config.heldout_tokens)
    numbers = train_on(mixture, config.model, config.train, out, scores, seed=config.seed)
    if launch.rank() == 0:
        export(TrainedCheckpoint(out / "final", config.model, tokenizer), out / "model")
        numbers["heldout_bits_per_byte"] = bits_per_byte(*read_scores(out))
        write_mixture([mixture], out)
    return {"parameters": config.model.n_params, **numbers}


def train_on(
    mixture: Mixture,
    shape: LlamaConfig,
    config: TrainConfig,
    out: Path,
    scores: Scores,
    *,
    seed: int = 0,
    start: Path | None = None,
) -> dict:
    """Trains a model of this shape on the mixture, from `start` or from weights drawn from the seed. Where a layout cuts the
    model, no rank ever holds it whole."""
    objective = NextToken(mixture)
    if config.layout.on(launch.world_size()).plain:
        model = Llama(shape) if start else Llama(shape).init_weights(seed)
        return train(model, objective, config, out, scores, start)
    with weightless():
        model = Llama(shape)
    sizes = {name: p.shape for name, p in model.named_parameters()}
    draw = (lambda name: torch.zeros(sizes[name])) if start else lambda n: initial_weight(n, sizes[n], shape, seed)
    return train(model, objective, config, out, scores, start, draw)


def write_mixture(mixtures: Sequence[Mixture], out: Path, before: Mapping[str, int] | None = None) -> None:
    """`mixture.json`: target and realised share and tokens of every source in a run of these, one after the other;
    `consumed.json`: what to read again, the tokens `before` this run included."""
    used: dict[str, int] = {}
    target: dict[str, float] = {}
    size: dict[str, int] = {}
    for mixture in mixtures:
        for name, count in mixture.used(mixture.steps).items():
            used[name] = used.get(name, 0) + count
            size[name] = mixture.streams[name].source.n_tokens
        for stage in mixture.stages:
            for name, share in stage.mix.items():
                tokens = share / sum(stage.mix.values()) * stage.steps * stage.tokens_per_step
                target[name] = target.get(name, 0.0) + tokens
    total, asked = sum(used.values()), sum(target.values())
    rows = {
        name: {
            "target": target[name] / asked,
            "realised": used[name] / total,
            "tokens": used[name],
            "epochs": used[name] / size[name],
        }
        for name in used
    }
    (out / "mixture.json").write_text(json.dumps(rows, indent=1))
    before = dict(before or {})
    seen = {name: before.get(name, 0) + used.get(name, 0) for name in {**before, **used}}
    (out / "consumed.json").write_text(json.dumps({"seed": mixtures[0].seed, "tokens": seen}))
