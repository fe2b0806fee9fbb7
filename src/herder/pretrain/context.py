"""Long-context pre-training (paper 3.4.2): the context doubles in stages, and each stage has to pass its gate.

Two things are asked before the next doubling: that the scores of short documents have recovered, and that the longer context
is used (a share of needles found; tokens beyond the old context no harder than those just before it). A stage that does not
pass is trained on, a stated number of times, and then refused: a longer context that costs the short one, or that is not
looked at, is never handed on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import Checkpoint, TrainedCheckpoint, export, load, open_checkpoint
from herder.engine import Engine
from herder.model import LlamaConfig, RopeScaling
from herder.pretrain.base import train_on, write_mixture
from herder.pretrain.needle import NeedleConfig, NeedleScore, needle_test
from herder.pretrain.scores import FILE as SCORES
from herder.pretrain.scores import Beyond, Scores, asked, bits_per_byte, change, read_scores
from herder.pretrain.stages import present
from herder.records import Measure, write_jsonl
from herder.steps import read_json
from herder.tokenizer import Tokenizer
from herder.train import Mixture, Stage, TokenShards, TrainConfig
from herder.train.heldout import HeldOut
from herder.train.meter import read_metrics

HAYSTACK_DOCUMENTS = 200
FINISHED = "round.json"
MEASURES = ("heldout_bits_per_byte", "short_before", "short_after", "just_before", "beyond")


@dataclass(frozen=True)
class Gate:
    """What a longer context must show. The paper asks for short-context scores that recover completely and for every needle."""

    short_margin: float = 0.0
    """Bits per byte that held-out documents in rows of the old context may be worse by, where the difference is no chance."""
    beyond_margin: float | None = 0.0
    """Nats that tokens beyond the old context may cost more than those just before it; None does not ask."""
    min_needle: float = 1.0
    """Share of needles that must be found; 0 prints the share as it is."""


@dataclass(frozen=True)
class Found:
    """What was measured after a round, for the gate."""

    short: Measure
    """Change of bits per byte in rows of the old context, the same documents before and after."""
    beyond: Measure
    """Nats per token beyond the old context less nats per token just before it, in the same documents."""
    needle: Measure


def refusal(gate: Gate, found: Found) -> str:
    """Why a stage does not pass, naming the score, or ""."""
    reasons = []
    if found.short.value > gate.short_margin and found.short.low > 0:
        reasons.append(
            f"held-out documents in short rows are worse by {found.short} where {gate.short_margin:g} is allowed"
        )
    if gate.beyond_margin is not None and found.beyond.low > gate.beyond_margin:
        reasons.append(
            f"tokens beyond the old context cost more than those just before it by {found.beyond} where "
            f"{gate.beyond_margin:g} is allowed"
        )
    if found.needle.value < gate.min_needle:
        reasons.append(f"needles found are {found.needle} where {gate.min_needle:.0%} are asked for")
    return " and ".join(reasons)


@dataclass(frozen=True)
class ContextConfig:
    """One doubling: `stage.seq_len` is the new context. The learning rate is `train.optim`'s, over each round anew."""

    train: TrainConfig
    stage: Stage
    gate: Gate = Gate()
    extra_steps: int = 0
    """Steps of each further round, for a stage that does not pass."""
    extra_rounds: int = 0
    needle: NeedleConfig = NeedleConfig()
    rope_scaling: RopeScaling | None = None
    """None keeps what the model has: the paper raises the RoPE base to 500,000 from the start instead."""
    beyond_tokens: int = 60_000
    """Positions of held-out documents longer than the old context, for the loss beyond it."""
    optional_sources: bool = False
    """Sources that the shards lack are left out of the mix; where no held-out document is long enough, nothing is asked of the
    loss beyond the old context, which is then told of 0 documents."""
    device: str = runtime("cpu")
    """Where the needle test runs."""
    processes: int = runtime(1)

    def __post_init__(self):
        at_least_one(self, "processes")
        if self.extra_rounds and self.extra_steps < 1:
            raise ValueError(f"extra_steps is {self.extra_steps}; a further round needs at least 1")

    def rounds(self) -> list[Stage]:
        return [self.stage, *(replace(self.stage, steps=self.extra_steps) for _ in range(self.extra_rounds))]


@launch.distributed
def extend_context(config: ContextConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: trains inputs["base"] on inputs["tokens"] at the new context until the gate is passed.

    Leaves what `pretrain` leaves, and `comparison.json` with the gate's scores. Raises ValueError, naming the score, for a stage
    that does not pass after its last round.
    """
    return launch.run_local(_extend, (config, inputs, out), config.processes)


def _extend(config: ContextConfig, inputs: dict[str, Path], out: Path) -> dict:
    base = open_checkpoint(inputs["base"])
    old, new = _contexts(config, inputs["base"])
    shape = replace(base.config, max_seq_len=max(new, base.config.max_seq_len))
    if config.rope_scaling is not None:
        shape = replace(shape, rope_scaling=config.rope_scaling)
    start, seen = inputs["base"] / "final", read_json(inputs["base"] / "consumed.json")
    shards = TokenShards(inputs["tokens"] / "train")
    used, mixtures = dict(seen["tokens"]), []
    for number, stage in enumerate(config.rounds()):
        stages = present((stage,), shards.sources) if config.optional_sources else (stage,)
        mixtures.append(Mixture(shards, stages, seen["seed"], before=used))
        folder = out / f"round-{number}"
        numbers = launch.broadcast(_finished(folder))
        if numbers is None:
            _round(config, inputs, folder, shape, mixtures[-1], start, old)
            numbers = launch.broadcast(_finished(folder))
        mixtures[-1].skips = tuple(numbers["skips"])
        found = Found(**{name: Measure.from_json(m) for name, m in numbers["gate"].items()})
        reason = refusal(config.gate, found)
        if not reason:
            break
        used |= {name: used.get(name, 0) + n for name, n in mixtures[-1].used(stage.steps).items()}
        start = folder / "final"
    if reason:
        steps = sum(mixture.steps for mixture in mixtures)
        raise ValueError(
            f"a context of {new} tokens does not pass its gate after {steps} steps: {reason}; give the stage more steps, "
            "more long documents or a lower learning rate, or stay at the context before"
        )
    if launch.rank() == 0:
        _hand_on(out, shape, base.tokenizer(), len(mixtures))
        write_mixture(mixtures, out, seen["tokens"])
        (out / "comparison.json").write_text(json.dumps(_tables(numbers, old, new), indent=1))
    measures = {name: Measure.from_json(numbers[name]) for name in MEASURES}
    needles = {f"needles_found_at_{n}": Measure.from_json(m) for n, m in numbers["needles"].items()}
    gate = {f"gate_{name}": m for name, m in vars(found).items()}
    measured = {name: m for name, m in {**measures, **gate, **needles}.items() if m.n}
    return {"context": new, "rounds": len(mixtures), **numbers["training"], **measured}


def _contexts(config: ContextConfig, base: Path) -> tuple[int, int]:
    """(old, new) tokens of context."""
    old, new = asked(base)[0], config.stage.seq_len
    if new <= old:
        raise ValueError(f"stage.seq_len is {new}, and the model has learned rows of {old} already; give a longer one")
    return old, new


def _round(
    config: ContextConfig,
    inputs: Mapping[str, Path],
    folder: Path,
    shape: LlamaConfig,
    mixture: Mixture,
    start: Path,
    old: int,
) -> None:
    """Trains one round in `folder`, measures what the gate asks, and marks it finished."""
    new, heldout, tokens = config.stage.seq_len, TokenShards(inputs["tokens"] / "heldout"), asked(inputs["base"])[1]
    folder.mkdir(exist_ok=True)
    sets = {
        "heldout": HeldOut(heldout, new, tokens),
        "short": HeldOut(heldout, old, tokens),
    }
    if Beyond.there(heldout, old) or not config.optional_sources:
        sets["beyond"] = Beyond(heldout, old, new, config.beyond_tokens)
    numbers = train_on(mixture, shape, config.train, folder, Scores(sets, folder, tokens), start=start)
    if launch.rank() != 0:
        return
    beyond = read_scores(folder, "beyond")[0] if "beyond" in sets else np.zeros((0, 2))
    tokenizer = open_checkpoint(inputs["base"]).tokenizer()
    needle = _needles(config, TrainedCheckpoint(folder / "final", shape, tokenizer), heldout)
    found = Found(
        change(read_scores(inputs["base"]), read_scores(folder, "short")),
        Measure.mean(beyond[:, 1] - beyond[:, 0], "nats per token"),
        needle.score,
    )
    before, after = (bits_per_byte(*read_scores(*place)) for place in ((inputs["base"],), (folder, "short")))
    measures = {
        "heldout_bits_per_byte": bits_per_byte(*read_scores(folder)),
        "short_before": before,
        "short_after": after,
        "just_before": Measure.mean(beyond[:, 0], "nats per token"),
        "beyond": Measure.mean(beyond[:, 1], "nats per token"),
    }
    finished = {name: m.to_json() for name, m in measures.items()} | {
        "training": {name: v for name, v in numbers.items() if not name.endswith("bits_per_byte")},
        "skips": list(mixture.skips),
        "needles": {str(length): m.to_json() for length, m in needle.by_length().items()},
        "gate": {name: m.to_json() for name, m in vars(found).items()},
    }
    part = folder / f"{FINISHED}.part"
    part.write_text(json.dumps(finished))
    os.replace(part, folder / FINISHED)


def _needles(config: ContextConfig, checkpoint: Checkpoint, heldout: TokenShards) -> NeedleScore:
    documents = [
        source.document(i).tolist()
        for source in heldout.sources.values()
        for i in range(min(source.n_documents, HAYSTACK_DOCUMENTS))
    ]
    model, tokenizer = load(checkpoint)
    return needle_test(Engine(model, tokenizer, device=config.device), documents, config.needle)


def _finished(folder: Path) -> dict | None:
    """What a finished round found, on rank 0."""
    return read_json(folder / FINISHED) if launch.rank() == 0 and (folder / FINISHED).exists() else None


def _hand_on(out: Path, shape: LlamaConfig, tokenizer: Tokenizer, rounds: int) -> None:
    """Makes the step's output of its last round: the final state, the model, scores and curves of all rounds. It may be killed
    at any point and called again; what marks a round as finished stays."""
    folders = [out / f"round-{number}" for number in range(rounds)]
    if not (out / "final").exists():
        rows, last = [], {"step": -1, "tokens": 0, "seconds": 0.0}
        for folder in folders:
            for row in read_metrics(folder / "metrics.jsonl"):
                rows.append(row | {name: row[name] + last[name] + (name == "step") for name in last})
            last = {name: rows[-1][name] for name in last}
        write_jsonl(rows, out / "metrics.jsonl")
        shutil.copyfile(folders[-1] / SCORES, out / SCORES)
        os.replace(folders[-1] / "final", out / "final")
    export(TrainedCheckpoint(out / "final", shape, tokenizer), out / "model")
    for folder in folders:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


def _tables(numbers: dict, old: int, new: int) -> list[dict]:
    """The gate's scores for the report."""

    def table(title: str, unit: str, rows: dict[str, dict]) -> dict:
        found = [{"name": name, "measure": measure, "note": ""} for name, measure in rows.items()]
        return {"title": title, "unit": unit, "rows": found}

    short = {f"after {new:,}": numbers["short_after"], "before": numbers["short_before"]}
    beyond = {
        f"tokens {old + 1:,} to {new:,}": numbers["beyond"],
        f"tokens {old // 2 + 1:,} to {old:,}": numbers["just_before"],
    }
    needles = {f"of {int(length):,} tokens": measure for length, measure in numbers["needles"].items()}
    tables = [
        table(f"Context of {new:,}: held-out documents in rows of {old:,} (lower is better)", "bits per byte", short),
        table(f"Context of {new:,}: long held-out documents, nats per token", "nats per token", beyond),
        table(f"Context of {new:,}: needles found in a haystack", "%", needles),
    ]
    return [found for found in tables if all(row["measure"]["n"] for row in found["rows"])]
