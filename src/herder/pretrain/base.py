"""The base model (paper 3.4.1): next-token prediction on a mixture of token shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import save
from herder.model import Llama, LlamaConfig
from herder.tokenizer import Tokenizer
from herder.train import Mixture, NextToken, Stage, TokenShards, TrainConfig, train
from herder.train.heldout import HeldOut


@dataclass(frozen=True)
class PretrainConfig:
    """One base model. `mix` names shares of sources; a source that the shards lack is left out where `optional_sources`."""

    model: LlamaConfig
    train: TrainConfig
    steps: int
    rows_per_step: int
    seq_len: int
    mix: dict[str, float]
    seed: int = 0
    optional_sources: bool = False
    heldout_tokens: int = 60_000
    """Held-out tokens for the curve; the evaluation takes all."""
    processes: int = runtime(1)
    """Local processes of one thread each, where torchrun has not made them."""

    def __post_init__(self):
        at_least_one(self, "steps", "rows_per_step", "seq_len", "processes")


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
    mix = {k: v for k, v in config.mix.items() if not config.optional_sources or k in shards.sources}
    mixture = Mixture(shards, [Stage(config.steps, config.rows_per_step, config.seq_len, mix)], config.seed)
    model = Llama(config.model).init_weights(config.seed)
    held = HeldOut(TokenShards(inputs["tokens"] / "heldout"), config.seq_len, config.heldout_tokens)

    def heldout(model: Llama) -> dict[str, float]:
        return {"heldout_bits_per_byte": held(model).value} if launch.rank() == 0 else {}

    numbers = train(model, NextToken(mixture), config.train, out, heldout)
    if launch.rank() == 0:
        numbers["heldout_bits_per_byte"] = held(model)  # of the model as saved, with its interval
        save(model, tokenizer, out / "model")
        write_mixture(mixture, config.steps, out)
    return {"parameters": config.model.n_params, **numbers}


def write_mixture(mixture: Mixture, steps: int, out: Path) -> None:
    """`mixture.json`: target and realised share and tokens of every source; `consumed.json`: what to read again."""
    used, target = mixture.used(steps), dict.fromkeys(mixture.names, 0.0)
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
