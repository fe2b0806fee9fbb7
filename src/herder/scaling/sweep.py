"""An IsoFLOP sweep as a graph of runs, and what it says of a bigger run before that is trained (paper 3.2.1).

Every point is a step of its own with literals for shape, tokens and learning rate, trained by the same loop on the same
shards as the run it is to predict, so a sweep grows by what is missing and small points share a machine (`launch.packed`).
Budgets are shares of the target's FLOPs. `forecast` reads the points alone; `check` puts it beside the truth afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import save
from herder.model import Llama, LlamaConfig
from herder.pretrain import PretrainConfig, present
from herder.records import Measure, write_jsonl
from herder.scaling.isoflop import CHINCHILLA, OfShapes, Point, fit_law
from herder.scaling.loss import predict
from herder.scaling.report import plot, summary, write_json
from herder.steps import Step, read_json
from herder.tokenizer import Tokenizer
from herder.train import Layout, Mixture, NextToken, OptimConfig, Stage, TokenShards, TrainConfig, train
from herder.train.heldout import HeldOut


@dataclass(frozen=True)
class Budget:
    """Runs that spend the same FLOPs on models of different size; the batch is one for all of them, as in the paper."""

    share: float
    """Of the target's training FLOPs."""
    rows_per_step: int
    shapes: tuple[str, ...]
    """Names in `SweepConfig.shapes`; the compute-optimal one should lie between them."""

    def __post_init__(self):
        at_least_one(self, "rows_per_step")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; a budget must be a part of the target's, between 0 and 1")


@dataclass(frozen=True)
class SweepConfig:
    """Literals of a sweep. What it does not name is the target's: mix, sequence, seed, held-out set, optimizer and decay."""

    shapes: dict[str, LlamaConfig]
    """Shapes by name; the vocabulary is replaced by the target's."""
    budgets: tuple[Budget, ...]
    lr: float
    """Peak learning rate of the smallest shape."""
    lr_muon: float
    """The same of Muon's matrices, where the target has them."""
    lr_exponent: float
    """Peaks fall with parameters to this power. The paper's 4e-4 at 40M to 2e-4 at 16B is 0.116."""
    warmup_share: float
    """Of a run's steps. The paper's 2,000 for every run is a share that small runs cannot spend."""
    layout: Layout = runtime(Layout(micro_batch=8, shard=1))
    """Of a point; the target's may cut what is too small to be cut."""
    checkpoint_seconds: float = runtime(10.0)

    def __post_init__(self):
        for budget in self.budgets:
            if unknown := [name for name in budget.shapes if name not in self.shapes]:
                raise ValueError(f"a budget names the shape {unknown[0]!r}; shapes are {', '.join(self.shapes)}")


@dataclass(frozen=True)
class ForecastConfig:
    """The run to be predicted, as planned."""

    params: int
    tokens: int
    flops: float
    shapes: tuple[LlamaConfig, ...]
    """Shapes by which FLOPs are turned into parameters: those of the sweep and the target's."""
    context: float
    """Tokens that a token sees on average, as the FLOPs count them."""


def training_flops(config: PretrainConfig) -> float:
    """FLOPs of a run by the exact count of its shape; a token attends to half a row, as if each row were one document."""
    return sum(
        stage.steps * stage.tokens_per_step * config.model.flops_per_token((stage.seq_len + 1) / 2)
        for stage in config.stages
    )


def sweep(config: SweepConfig, target: PretrainConfig, inputs: Mapping[str, Step], stage: str) -> Step:
    """The graph: one step a point under `stage`, the longest first, and the forecast of `target` that reads them all.

    inputs: the steps "tokens" and "tokenizer". Nothing here depends on the target's own run.
    """
    runs = {
        name: Step(f"{stage}/{name}", train_point, run, dict(inputs)) for name, run in points(config, target).items()
    }
    shapes = {name: replace(s, vocab_size=target.model.vocab_size) for name, s in config.shapes.items()}
    tokens = sum(s.steps * s.tokens_per_step for s in target.stages)
    planned = ForecastConfig(
        params=target.model.n_params,
        tokens=tokens,
        flops=training_flops(target),
        shapes=(*shapes.values(), target.model),
        context=(target.stages[-1].seq_len + 1) / 2,
    )
    return Step(f"{stage}/forecast", forecast, planned, runs)


def points(config: SweepConfig, target: PretrainConfig) -> dict[str, PretrainConfig]:
    """The runs of a sweep by name ("flops-2.5e12-dim96"), biggest budget and model first."""
    whole, seq_len = training_flops(target), target.stages[-1].seq_len
    smallest = min(replace(s, vocab_size=target.model.vocab_size).n_params for s in config.shapes.values())
    mix, found = whole_mix(target.stages), {}
    for budget in sorted(config.budgets, key=lambda b: -b.share):
        for name in reversed(budget.shapes):
            model = replace(config.shapes[name], vocab_size=target.model.vocab_size)
            tokens = budget.share * whole / model.flops_per_token((seq_len + 1) / 2)
            steps = max(1, round(tokens / (budget.rows_per_step * seq_len)))
            fall = (smallest / model.n_params) ** config.lr_exponent
            optim = replace(
                target.train.optim,
                lr=config.lr * fall,
                lr_muon=config.lr_muon * fall,
                warmup_steps=round(config.warmup_share * steps),
                decay_steps=0,
            )
            found[f"flops-{budget.share * whole:.1e}-{name}".replace("e+", "e")] = replace(
                target,
                model=model,
                train=replace(
                    small_run(target.train, optim), layout=config.layout, checkpoint_seconds=config.checkpoint_seconds
                ),
                stages=(Stage(steps, budget.rows_per_step, seq_len, mix),),
            )
    return found


def small_run(train: TrainConfig, optim: OptimConfig) -> TrainConfig:
    """The target's way of training for a run that is only measured at its end."""
    return replace(train, optim=optim, heldout_every=0, snapshot_every=0, keep_moments=False)


def whole_mix(stages: tuple[Stage, ...]) -> dict[str, float]:
    """Shares of sources over all stages, by tokens."""
    total: dict[str, float] = {}
    for stage in stages:
        for name, share in stage.mix.items():
            part = share / sum(stage.mix.values()) * stage.steps * stage.tokens_per_step
            total[name] = total.get(name, 0.0) + part
    return {name: part / sum(total.values()) for name, part in total.items()}


@launch.packed
def train_point(config: PretrainConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: one run of a sweep on inputs["tokens"]. Leaves `point.json` (params, tokens, flops, loss in nats per token, bits per
    byte, loss by source), `nats.npy` (held-out documents,) and the model.

    inputs["mix"], where given, is an artifact whose `mix.json` replaces the mix of the configuration.
    """
    stages = config.stages
    if "mix" in inputs:
        mix = read_json(inputs["mix"] / "mix.json")["best"]
        stages = tuple(replace(stage, mix=mix) for stage in stages)
    shards = TokenShards(inputs["tokens"] / "train")
    if config.optional_sources:
        stages = present(stages, shards.sources)
    mixture = Mixture(shards, stages, config.seed)
    held = HeldOut(TokenShards(inputs["tokens"] / "heldout"), stages[-1].seq_len, config.heldout_tokens)
    model, measured = Llama(config.model).init_weights(config.seed), {}

    def heldout(model: Llama) -> dict[str, float]:
        measured["nats"] = held.nats(model)
        return {"heldout_bits_per_byte": measured["nats"].sum() / np.log(2) / sum(held.bytes)}

    numbers = train(model, NextToken(mixture), config.train, out, heldout)
    if launch.rank() != 0:
        return {}
    nats, targets, sources = measured["nats"], held.targets, np.array(held.sources)
    row = {
        "params": config.model.n_params,
        "tokens": numbers["tokens"],
        "flops": training_flops(replace(config, stages=stages)),
        "loss": float(nats.sum() / targets.sum()),
        "bits_per_byte": Measure.ratio(nats / np.log(2), held.bytes, "bits per byte").to_json(),
        "steps": numbers["steps"],
        "lr": config.train.optim.lr,
        "mix": {name: share / sum(stages[-1].mix.values()) for name, share in stages[-1].mix.items()},
        "documents": {name: held.sources.count(name) for name in dict.fromkeys(held.sources)},
        "domains": {name: domain_loss(nats, targets, sources == name).to_json() for name in sorted(set(held.sources))},
    }
    with open(out / "nats.npy.part", "wb") as file:
        np.save(file, np.stack([nats, targets, np.array(held.bytes, float)]), allow_pickle=False)
    os.replace(out / "nats.npy.part", out / "nats.npy")
    write_json(row, out / "point.json")
    save(model, Tokenizer.load(inputs["tokenizer"]), out / "model")
    shutil.rmtree(out / "final")  # the model holds the same weights, and nothing continues a point
    headline = {"parameters": row["params"], "tokens": row["tokens"], "flops": row["flops"], "loss": row["loss"]}
    return headline | {"heldout_bits_per_byte": Measure.from_json(row["bits_per_byte"])}


def domain_loss(nats: np.ndarray, targets: np.ndarray, chosen: np.ndarray) -> Measure:
    """Nats per token over the chosen held-out documents."""
    return Measure.ratio(nats[chosen], targets[chosen], "nats per token")


def forecast(config: ForecastConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: fits the points among the inputs and predicts the planned run. Leaves `points.jsonl`, `scaling.json`, `scaling.png`.

    Points that make no law or no loss form (too few, or no minimum between them) are told as "refused", not raised: the run they
    were to predict goes on without a forecast.
    """
    rows = sorted(
        (read_json(folder / "point.json") for folder in inputs.values()), key=lambda r: (r["flops"], r["tokens"])
    )
    write_jsonl(rows, out / "points.jsonl")
    found = [Point(*(float(row[name]) for name in Point.__slots__)) for row in rows]
    target = {"params": config.params, "tokens": config.tokens, "flops": config.flops}
    target["times_largest_point"] = config.flops / max(p.flops for p in found)
    result, numbers = {"points": len(found), "target": target}, {"points": len(found)}
    try:
        law = fit_law(found)
        counts = CHINCHILLA, OfShapes(config.shapes, config.context)
        result |= summary(found, law, (config.flops,), counts, config.params)
        plot(law, out / "scaling.png", (config.flops,), result["overtraining"])
        numbers |= {"alpha": law.measure_alpha(), "optimal_tokens": law.tokens(config.flops)}
        numbers["optimal_params"] = law.params(config.flops, counts[1])
    except ValueError as error:
        result["refused"] = numbers["law_refused"] = str(error)
    try:
        predicted = predict(found, config.params, config.tokens, config.flops)
        per_nat = sum(row["bits_per_byte"]["value"] for row in rows) / sum(row["loss"] for row in rows)
        value, low, high = (per_nat * x for x in (predicted.value, predicted.low, predicted.high))
        bits = Measure(value, predicted.n, low, high, "bits per byte")
        target |= {"loss": predicted.to_json(), "bits_per_byte": bits.to_json()}
        numbers |= {"forecast_loss": replace(predicted, unit="nats per token"), "forecast_bits_per_byte": bits}
    except ValueError as error:
        target["refused"] = numbers["forecast_refused"] = str(error)
    target["best_point"] = min(row["bits_per_byte"]["value"] for row in rows)
    numbers["times_largest_point"] = target["times_largest_point"]
    write_json(result, out / "scaling.json")
    return numbers


def check(config: None, inputs: dict[str, Path], out: Path) -> dict:
    """Step: inputs["forecast"] beside the truth of inputs["base"], on the same held-out documents. Leaves `comparison.json`."""
    target = read_json(inputs["forecast"] / "scaling.json")["target"]
    truth = Measure.from_json(read_json(inputs["base"] / "step.json")["numbers"]["heldout_bits_per_byte"])
    if "bits_per_byte" not in target:
        return {"truth_bits_per_byte": truth, "forecast_refused": target["refused"]}
    predicted = Measure.from_json(target["bits_per_byte"])
    inside = predicted.low <= truth.value <= predicted.high
    said = "inside" if inside else "OUTSIDE"
    error = truth.value / predicted.value - 1
    best = Measure(target["best_point"], unit="bits per byte")
    rows = [
        (
            "forecast, before training",
            predicted,
            f"from {predicted.n} runs; this one takes {target['times_largest_point']:.1f} times the largest",
        ),
        ("truth", truth, f"{said} the forecast's interval, {error:+.1%}; its own interval is over documents"),
        ("best run of the sweep", best, ""),
    ]
    table = {"title": "Held-out loss of the base model, forecast and truth", "unit": "bits per byte"}
    table["rows"] = [{"name": name, "measure": m.to_json(), "note": note} for name, m, note in rows]
    write_json([table], out / "comparison.json")
    return {"forecast_bits_per_byte": predicted, "truth_bits_per_byte": truth, "truth_inside": said, "error": error}
