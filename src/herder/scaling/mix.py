"""Search of a data mix by small runs (paper 3.1.2), as a graph: a lattice of mixes, their law, and the check of its best mix.

The mix that the law chooses is an artifact, `mix.json`, which the check's runs read: what a step finds is never configuration.
The check trains default and chosen mix at a size of its own, with the same seeds, and compares them document by document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from herder.config import at_least_one, runtime
from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig
from herder.records import Measure
from herder.scaling.isoflop import widen
from herder.scaling.mixing import fit_mix, lattice
from herder.scaling.report import write_json
from herder.scaling.sweep import small_run, train_point, whole_mix
from herder.steps import Step, read_json
from herder.train import Layout, Stage, TokenShards


@dataclass(frozen=True)
class MixConfig:
    """Literals of a search; sequence, optimizer, held-out set and the default mix are the target's."""

    weights: dict[str, float]
    """How much each held-out domain counts."""
    degree: int
    """Shares of the lattice are multiples of 1 / degree: 3 sources in thirds are 10 mixes."""
    model: LlamaConfig
    """Shape of the small runs; the vocabulary is the target's."""
    steps: int
    rows_per_step: int
    check_model: LlamaConfig
    check_steps: int
    check_rows_per_step: int
    check_seeds: tuple[int, ...] = (0,)
    """Training seeds of the check; two or more let its interval know the luck of a run."""
    least_share: float = 0.02
    """No source is left out: a domain never seen tells nothing about its neighbours."""
    max_epochs: float = 4.0
    """Times that the target may read a source: up to four, repeating is about as good as new text (Muennighoff et al. 2023)."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """`lr` and `lr_muon` of all these runs; empty: the target's."""
    layout: Layout = runtime(Layout(micro_batch=8, shard=1))

    def __post_init__(self):
        at_least_one(self, "degree", "steps", "rows_per_step", "check_steps", "check_rows_per_step")
        if not self.check_seeds:
            raise ValueError("check_seeds is empty; give at least one seed")


@dataclass(frozen=True)
class MixChoice:
    """What `choose_mix` needs to know: the weights, the bounds, the mix to beat and the target's tokens."""

    weights: dict[str, float]
    default: dict[str, float]
    tokens: int
    least_share: float
    max_epochs: float


def mix_search(config: MixConfig, target: PretrainConfig, inputs: Mapping[str, Step], stage: str) -> Step:
    """The graph: runs of a lattice of mixes under `stage`, "choice" with the best mix, and "check" that compares it with the
    target's mix. inputs: the steps "tokens" and "tokenizer"."""
    default, tokens = whole_mix(target.stages), sum(s.steps * s.tokens_per_step for s in target.stages)
    small = _run(
        config, target, config.model, Stage(config.steps, config.rows_per_step, target.stages[-1].seq_len, default)
    )
    runs = {
        "mix-" + "-".join(f"{100 * share:.0f}" for share in mix.values()): _with_mix(small, mix)
        for mix in lattice(sorted(default), config.degree, config.least_share)
    }
    points = {name: Step(f"{stage}/{name}", train_point, run, dict(inputs)) for name, run in runs.items()}
    wanted = MixChoice(config.weights, default, tokens, config.least_share, config.max_epochs)
    choice = Step(f"{stage}/choice", choose_mix, wanted, {"tokens": inputs["tokens"], **points})
    long = Stage(config.check_steps, config.check_rows_per_step, target.stages[-1].seq_len, default)
    large = _run(config, target, config.check_model, long)
    pairs = {}
    for seed in config.check_seeds:
        run = replace(large, seed=seed)
        pairs[f"default-{seed}"] = Step(f"{stage}/default-{seed}", train_point, run, dict(inputs))
        pairs[f"chosen-{seed}"] = Step(f"{stage}/chosen-{seed}", train_point, run, {**inputs, "mix": choice})
    return Step(f"{stage}/check", compare_mixes, wanted, {"choice": choice, **pairs})


def _run(config: MixConfig, target: PretrainConfig, model: LlamaConfig, stage: Stage) -> PretrainConfig:
    warmup = max(1, stage.steps // 10)
    optim = replace(target.train.optim, **config.learning_rates, warmup_steps=warmup, decay_steps=0)
    train = replace(small_run(target.train, optim), layout=config.layout)
    return replace(target, model=replace(model, vocab_size=target.model.vocab_size), train=train, stages=(stage,))


def _with_mix(run: PretrainConfig, mix: dict[str, float]) -> PretrainConfig:
    return replace(run, stages=tuple(replace(stage, mix=mix) for stage in run.stages))


def choose_mix(config: MixChoice, inputs: dict[str, Path], out: Path) -> dict:
    """Step: fits the mixing law to the runs among the inputs; leaves `mix.json` with the best mix and what is predicted of it."""
    rows = [read_json(folder / "point.json") for name, folder in sorted(inputs.items()) if name != "tokens"]
    sources = TokenShards(inputs["tokens"] / "train").sources
    law = fit_mix([row["mix"] for row in rows], [{n: m["value"] for n, m in row["domains"].items()} for row in rows])
    most = {name: config.max_epochs * source.n_tokens / config.tokens for name, source in sources.items()}
    weights = {name: w for name, w in config.weights.items() if name in law.domains}
    shares = law.best_interval(weights, most, config.least_share)
    best = {name: share.value for name, share in shares.items()}
    default = {name: share for name, share in config.default.items() if name in law.sources}
    gain = law.gain(best, default, weights)
    found = {
        "best": best,
        "shares": {name: m.to_json() for name, m in shares.items()},
        "default": default,
        "weights": weights,
        "formula": "loss = c + exp(sum of t x share), nats per token",
        "law": {
            d: {"c": float(t[0]), **dict(zip(law.sources, t[1:].tolist(), strict=True))}
            for d, t in zip(law.domains, law.theta, strict=True)
        },
        "error": dict(zip(law.domains, law.error.tolist(), strict=True)),
        "predicted": {"best": law.losses(best), "default": law.losses(default), "gain": gain.to_json()},
        "runs": [{"mix": row["mix"], "losses": row["domains"]} for row in rows],
    }
    write_json(found, out / "mix.json")
    return {"runs": len(rows), **{f"share_{name}": m for name, m in shares.items()}, "predicted_gain": gain}


def compare_mixes(config: MixChoice, inputs: dict[str, Path], out: Path) -> dict:
    """Step: the chosen mix against the default, by domain and weighted. A positive gain is a lower loss of the chosen one.

    Intervals are over documents, paired; with several seeds the weighted gain has one over pairs of runs as well. Leaves
    `comparison.json`.
    """
    choice = read_json(inputs["choice"] / "mix.json")
    seeds = sorted(name.removeprefix("chosen-") for name in inputs if name.startswith("chosen-"))
    pairs = [tuple(_measured(inputs[f"{side}-{seed}"]) for side in ("default", "chosen")) for seed in seeds]
    weights = {name: w / sum(choice["weights"].values()) for name, w in choice["weights"].items()}
    domains, numbers = {}, {}
    for name in weights:
        saved = np.mean([a[name][0] - b[name][0] for a, b in pairs], axis=0)
        domains[name] = Measure.ratio(saved, pairs[0][0][name][1], "nats per token")
        numbers[f"gain_{name}"] = domains[name]
    value = sum(w * domains[name].value for name, w in weights.items())
    half = sum((w * (domains[name].high - domains[name].value)) ** 2 for name, w in weights.items()) ** 0.5
    n = sum(m.n for m in domains.values())
    numbers["gain"] = Measure(value, n, value - half, value + half, "nats per token")
    rows = [("weighted, over documents", numbers["gain"], f"{len(pairs)} pairs of runs")]
    if len(pairs) > 1:
        each = [sum(w * (a[d][0].sum() - b[d][0].sum()) / a[d][1].sum() for d, w in weights.items()) for a, b in pairs]
        mean = Measure.mean(each, "nats per token")
        half = (mean.high - mean.value) * widen(len(pairs) - 1)
        numbers["gain_over_seeds"] = replace(mean, low=mean.value - half, high=mean.value + half)
        rows.append(("weighted, over pairs of runs", numbers["gain_over_seeds"], "each pair shares its seed"))
    predicted = Measure.from_json(choice["predicted"]["gain"])
    rows.append(("weighted, as the law predicted", predicted, "at the size of the small runs"))
    rows += [(name, m, f"counts {weights[name]:.0%}") for name, m in domains.items()]
    title = "Gain of the chosen mix over the default: " + ", ".join(f"{n} {s:.0%}" for n, s in choice["best"].items())
    table = [{"name": name, "measure": m.to_json(), "note": note} for name, m, note in rows]
    write_json([{"title": title, "unit": "nats per token, held out", "rows": table}], out / "comparison.json")
    return numbers | {"predicted_gain": predicted}


def _measured(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(nats, targets) of every held-out document, by domain."""
    nats, targets, _ = np.load(folder / "nats.npy", allow_pickle=False)
    ends = np.cumsum(list((documents := read_json(folder / "point.json")["documents"]).values()))
    return {
        name: (nats[end - count : end], targets[end - count : end])
        for (name, count), end in zip(documents.items(), ends, strict=True)
    }
