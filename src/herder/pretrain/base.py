"""The base model (paper 3.4.1): next-token prediction on a mixture of token shards, in stages.

Stages are data: each says for how many steps how many rows of how many tokens come from which mix. Warm-up and cosine run
over all of them, so a bigger batch or a longer sequence changes nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import save
from herder.model import Llama, LlamaConfig
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
    """Held-out tokens for the curve; the evaluation takes all."""
    processes: int = runtime(1)
    """Local processes of one thread each, where torchrun has not made them."""

    def __post_init__(self):
        at_least_one(self, "processes")
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage")
        longest = max(stage.seq_len for stage in self.stages)
        if longest > self.model.max_seq_len:
            raise ValueError(
                f"a stage has rows of {longest} tokens, the model a context of {self.model.max_seq_len}; raise "
                "model.max_seq_len or shorten the stage"
            )


@launch.distributed
def pretrain(config: PretrainConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: trains on inputs["tokens"] with inputs["tokenizer"], leaves `out/model`."""
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
    model = Llama(config.model).init_weights(config.seed)
    held = HeldOut(TokenShards(inputs["tokens"] / "heldout"), config.stages[-1].seq_len, config.heldout_tokens)

    def heldout(model: Llama) -> dict[str, float]:
        return {"heldout_bits_per_byte": held(model).value} if launch.rank() == 0 else {}

    numbers = train(model, NextToken(mixture), config.train, out, heldout)
    if launch.rank() == 0:
        numbers["heldout_bits_per_byte"] = held(model)  # of the model as saved, with its interval
        save(model, tokenizer, out / "model")
        write_mixture(mixture, out)
    return {"parameters": config.model.n_params, **numbers}


def write_mixture(mixture: Mixture, out: Path) -> None:
    """`mixture.json`: target and realised share and tokens of every source; `consumed.json`: what to read again."""
    used, target = mixture.used(mixture.steps), dict.fromkeys(mixture.names, 0.0)
    for stage in mixture.stages:
        for name in mixture.names:
            target[name] += stage.mix.get(name, 0.0) / sum(stage.mix.values()) * stage.steps * stage.tokens_per_step
    total = sum(used.values())
    rows = {
        name: {
            "target": target[name] / sum(target.values()),
            "realised": used[name] / total,
            "tokens": used[name],
            "epochs": used[name] / mixture.streams[name].source.n_tokens,
        }
        for name in mixture.names
    }
    (out / "mixture.json").write_text(json.dumps(rows, indent=1))
    (out / "consumed.json").write_text(json.dumps({"seed": mixture.seed, "tokens": used}))
