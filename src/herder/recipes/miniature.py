"""The whole story in miniature: raw pages to a Llama that answers, on two cores, in minutes, without a network.

Every stage is the one that scales; only literals are small. `data` names your own folder, WARC, JSONL or Parquet instead of
the generated web.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from herder.config import runtime
from herder.corpus import Source, open_source
from herder.corpus.miniature import WebConfig, material_manifest, write_web
from herder.curate import CurateConfig, audit, curate
from herder.evaluate import CompressionConfig, DialogueEvaluation, compare_compression, evaluate_dialogues
from herder.model import SHAPES, LlamaConfig
from herder.posttrain import OPEN, DialogueConfig, FineTuneConfig, fine_tune, make_dialogues
from herder.pretrain import (
    AnnealConfig,
    BestConfig,
    ContextConfig,
    Gate,
    NeedleConfig,
    PretrainConfig,
    TokenizeConfig,
    TokenizerConfig,
    anneal,
    extend_context,
    pretrain,
    ramp,
    select_best,
    tokenize,
    train_tokenizer,
)
from herder.scaling.mix import MixConfig
from herder.scaling.mix import mix_search as search_mix
from herder.scaling.sweep import Budget, SweepConfig, check, sweep
from herder.steps import Step
from herder.train import Layout, OptimConfig, Stage, TrainConfig

_DEFAULT = {"general": 0.5, "code": 0.25, "multilingual": 0.25}
_TOKENS = 1_671_168
_OPTIM = OptimConfig(kind="muon", lr=1e-2, lr_muon=1e-2, warmup_steps=20, lr_final=0.1, weight_decay=0.05)
_BASE = PretrainConfig(
    model=SHAPES["miniature"],
    train=TrainConfig(optim=_OPTIM, heldout_every=256),
    # The paper's ramp, smaller: rows are short at first, steps grow to their full size at 18% of the tokens (3.4.1).
    stages=ramp(_TOKENS, {0: (8, 128), 16_384: (6, 256), 0.184 * _TOKENS: (8, 256)}, {0: _DEFAULT}),
    optional_sources=True,
    processes=2,
)
_LEVEL = replace(
    _OPTIM, lr=_OPTIM.lr * _OPTIM.lr_final, lr_muon=_OPTIM.lr_muon * _OPTIM.lr_final, warmup_steps=0, decay="linear"
)
"""Longer contexts and annealing go on at the rate that the base model ended with."""


def _context(seq_len: int, rows: int, steps: int) -> ContextConfig:
    return ContextConfig(
        train=TrainConfig(optim=replace(_LEVEL, lr_final=1.0), layout=Layout(micro_batch=rows // 2, shard=1)),
        stage=Stage(steps, rows, seq_len, _DEFAULT),
        # Models of this size find no needle at any context: the share is told as it is, and the loss is asked instead.
        gate=Gate(short_margin=0.01, beyond_margin=0.0, min_needle=0.0),
        needle=NeedleConfig(lengths=(0.5, 1.0), depths=(0.0, 0.5, 1.0)),
        extra_steps=steps // 2,
        extra_rounds=2,
        beyond_tokens=32_000,
        optional_sources=True,
        processes=2,
    )


_ANNEAL = AnnealConfig(
    train=TrainConfig(optim=replace(_LEVEL, lr_final=0.0), snapshot_every=4, layout=Layout(micro_batch=1, shard=1)),
    stage=Stage(
        64,
        2,
        1024,
        {name: 0.7 * share for name, share in _DEFAULT.items()}
        | {f"best_{name}": 0.3 * share for name, share in _DEFAULT.items()},
    ),
    average_last=4,
    optional_sources=True,
    processes=2,
)


def _small(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int) -> LlamaConfig:
    return replace(
        _BASE.model, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=0, ffn_dim=ffn_dim
    )


_SWEEP = SweepConfig(
    shapes={
        "dim16": _small(16, 2, 2, 1, 48),
        "dim24": _small(24, 2, 2, 1, 64),
        "dim32": _small(32, 2, 2, 1, 96),
        "dim48": _small(48, 2, 2, 1, 128),
        "dim64": _small(64, 3, 2, 1, 176),
        "dim96": _small(96, 4, 2, 1, 256),
    },
    budgets=(
        Budget(1 / 320, 2, ("dim24", "dim32", "dim48", "dim64")),
        Budget(1 / 160, 2, ("dim24", "dim32", "dim48", "dim64")),
        Budget(1 / 80, 4, ("dim16", "dim24", "dim32", "dim48")),
        Budget(1 / 36, 4, ("dim32", "dim48", "dim64", "dim96")),
    ),
    lr=2e-2,
    lr_muon=2e-2,
    lr_exponent=0.23,
    warmup_share=0.1,
)
_MIX = MixConfig(
    weights={"general": 0.5, "code": 0.25, "multilingual": 0.25},
    degree=3,
    model=_SWEEP.shapes["dim48"],
    steps=400,
    rows_per_step=4,
    check_model=_SWEEP.shapes["dim96"],
    check_steps=450,
    check_rows_per_step=4,
    check_seeds=(0, 1, 2),
    learning_rates={"lr": 2e-2, "lr_muon": 2e-2},
)
_SFT = FineTuneConfig(
    train=TrainConfig(
        optim=OptimConfig(kind="muon", lr=2e-3, lr_muon=5e-3, warmup_steps=10, lr_final=0.02, weight_decay=0.0)
    ),
    epochs=1.0,
    rows_per_step=16,
    seq_len=256,
    processes=2,
)
_DIALOGUES = DialogueConfig(
    families={
        "parameter_count": 1.0,
        "default_count": 1.0,
        "method_or_function": 1.0,
        "sentence_count": 0.8,
        "describe": 0.25,
        "complete_signature": 0.25,
        "fact": 0.15,
    },
    reasoning={"syllogism": 6000},
)
"""Families that three million parameters can generalise; docs/log.md tells of those they cannot."""


@dataclass(frozen=True)
class Config:
    """Literals of the run; `herder run miniature --set KEY=VALUE` changes them."""

    data: str = ""
    """A folder, WARC, JSONL, Parquet or URL of your own; "" is the generated web with known truth."""
    data_kind: str = ""
    """What a folder of mixed files is read as: warc, folder, jsonl, parquet."""
    data_fields: dict[str, str] = field(default_factory=dict)
    """Columns of a table: `--set data_fields.text=body`."""
    web: WebConfig = WebConfig()
    curate: CurateConfig = CurateConfig(heldout_share=0.08)
    tokenizer: TokenizerConfig = TokenizerConfig(
        vocab_size=SHAPES["miniature"].vocab_size, n_special=32, extension_share=0.2
    )
    tokenize: TokenizeConfig = TokenizeConfig()
    sweep: SweepConfig = _SWEEP
    mix: MixConfig = _MIX
    pretrain: PretrainConfig = _BASE
    contexts: tuple[ContextConfig, ...] = (_context(512, 4, 24), _context(1024, 2, 24))
    best: BestConfig = BestConfig()
    anneal: AnnealConfig = _ANNEAL
    dialogues: DialogueConfig = _DIALOGUES
    sft: FineTuneConfig = _SFT
    compression: CompressionConfig = CompressionConfig()
    answers: DialogueEvaluation = DialogueEvaluation(open_families=OPEN, max_tokens=48)
    workers: int = runtime(2)


@dataclass(frozen=True)
class WebStep:
    """The generated web depends on the packages whose text it reads."""

    web: WebConfig
    material: tuple[dict, ...]


@dataclass(frozen=True)
class CurateStep:
    """`manifest` holds what of the outside enters: path, size and content hash of every file."""

    curate: CurateConfig
    data_kind: str = ""
    data_fields: dict[str, str] = field(default_factory=dict)
    manifest: tuple[dict, ...] = ()
    data: str = runtime("")
    workers: int = runtime(2)


def recipe(config: Config) -> list[Step]:
    """The graph: pages, documents, tokenizer, tokens, scaling sweep, base model in longer contexts, annealed; dialogues,
    fine-tuned model, what it learned."""
    corpus, bpe, tokens, last = data(config)
    base = Step("3_pretrain/base", pretrain, config.pretrain, {"tokens": tokens, "tokenizer": bpe})
    if config.sweep.budgets:
        predicted = sweep(config.sweep, config.pretrain, {"tokens": tokens, "tokenizer": bpe}, "3_scaling")
        last += [predicted, Step("3_scaling/check", check, None, {"forecast": predicted, "base": base})]
    model, best = longer_and_annealed(config, base, corpus, bpe, tokens)
    dialogues = Step("4_posttrain/dialogues", make_dialogues, config.dialogues, {"corpus": corpus})
    shuffled = replace(config.sft, dialogues="shuffled.jsonl")
    control = Step("4_posttrain/control", fine_tune, shuffled, {"base": model, "dialogues": dialogues})
    sft = Step("4_posttrain/sft", fine_tune, config.sft, {"base": model, "dialogues": dialogues})
    compression = Step(
        "5_evaluate/compression",
        compare_compression,
        config.compression,
        {"corpus": corpus, "tokens": tokens, "best": best, "model": model},
    )
    models = {"before": model, "shuffled": control, "after": sft}
    answers = Step("5_evaluate/answers", evaluate_dialogues, config.answers, {"dialogues": dialogues, **models})
    return [*last, compression, answers]


def longer_and_annealed(config: Config, model: Step, corpus: Step, bpe: Step, tokens: Step) -> tuple[Step, Step]:
    """Steps of the annealed model and of the best documents it was annealed on."""
    for context in config.contexts:
        if config.data:  # whether the ends of unknown documents are harder than their middles, nobody can say
            context = replace(context, gate=replace(context.gate, beyond_margin=None))
        name = f"3_pretrain/context_{context.stage.seq_len}"
        model = Step(name, extend_context, context, {"base": model, "tokens": tokens})
    sources = {"corpus": corpus, "tokenizer": bpe}
    if "web" in corpus.inputs:
        sources["benchmarks"] = corpus.inputs["web"]
    best = Step("3_pretrain/best", select_best, config.best, sources)
    return Step("3_pretrain/annealed", anneal, config.anneal, {"base": model, "tokens": tokens, "best": best}), best


def mix_search(config: Config) -> Step:
    """The graph of `herder scaling mix miniature`; no part of the run."""
    _, bpe, tokens, _ = data(config)
    return search_mix(config.mix, config.pretrain, {"tokens": tokens, "tokenizer": bpe}, "3_mix")


def data(config: Config) -> tuple[Step, Step, Step, list[Step]]:
    """Steps of the curated corpus, the tokenizer and the tokens, and those that only measure them."""
    web = None
    if config.data:
        source = open_data(config.data, config.data_kind, config.data_fields)
        manifest = tuple(source.manifest())
        if config.curate.benchmarks:
            manifest += tuple(open_source(config.curate.benchmarks, kind="jsonl").manifest())
        curated = CurateStep(config.curate, config.data_kind, config.data_fields, manifest, config.data, config.workers)
        corpus = Step("1_corpus/documents", curate_pages, curated)
        last = []
    else:
        web = Step("1_corpus/web", make_web, WebStep(config.web, tuple(material_manifest())))
        curated = CurateStep(config.curate, workers=config.workers)
        corpus = Step("1_corpus/documents", curate_pages, curated, {"web": web})
        last = [Step("1_corpus/audit", audit_filters, None, {"corpus": corpus, "web": web})]
    bpe = Step("2_tokenizer/bpe", train_tokenizer, config.tokenizer, {"corpus": corpus})
    tokens = Step("2_tokenizer/tokens", tokenize, config.tokenize, {"corpus": corpus, "tokenizer": bpe})
    return corpus, bpe, tokens, last


def make_web(config: WebStep, inputs: dict[str, Path], out: Path) -> dict:
    ledger = write_web(out, config.web)
    return {"pages": ledger.read, "bytes": ledger.bytes, "documents": ledger.documents}


def curate_pages(config: CurateStep, inputs: dict[str, Path], out: Path) -> dict:
    if "web" not in inputs:
        source = open_data(config.data, config.data_kind, config.data_fields)
        return curate([source], out, config.curate, config.workers)
    knows_benchmark = replace(config.curate, benchmarks=str(inputs["web"] / "benchmark.jsonl"))
    return curate([open_source(str(inputs["web"] / "warc"))], out, knows_benchmark, config.workers)


def open_data(data: str, kind: str, fields: dict[str, str]) -> Source:
    return open_source(data, kind=kind, **({"fields": fields} if fields else {}))


def audit_filters(config: None, inputs: dict[str, Path], out: Path) -> dict:
    """Precision and recall of every filter against the generated web's truth."""
    found = audit(inputs["corpus"], inputs["web"] / "truth.parquet")
    plain = {name: {what: m.to_json() for what, m in measures.items()} for name, measures in found.items()}
    (out / "audit.json").write_text(json.dumps(plain, indent=1))
    return {
        f"{name}_{what}": m
        for name, measures in found.items()
        if name in ("all", "extraction")
        for what, m in measures.items()
    }
