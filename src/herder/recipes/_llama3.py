"""The graph that the published sizes share (paper 3.4), and how their stage tables follow from what the paper prints.

Documents, tokenizer and tokens; the base model through the ramp of batch and sequence; six longer contexts behind gates;
annealing on the best documents with averaging. The recipes beside this file hold the literals. Every step is the function that
the miniature runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from herder.config import runtime
from herder.curate import CurateConfig
from herder.model import LlamaConfig, RopeScaling
from herder.pretrain import (
    AnnealConfig,
    BestConfig,
    ContextConfig,
    Gate,
    PretrainConfig,
    TokenizeConfig,
    TokenizerConfig,
    anneal,
    extend_context,
    pretrain,
    ramp,
    select_best,
)
from herder.recipes.miniature import data as curated_data
from herder.steps import Step
from herder.train import Layout, OptimConfig, Stage, TrainConfig

MIX = {"general": 0.5, "reasoning": 0.25, "code": 0.17, "multilingual": 0.08}
"""Paper 3.1.2. Curation tells general, code and multilingual apart; a source that the shards lack is left out and the others
keep their proportions, until something writes `reasoning`."""

BATCHES = {0: (1024, 4096), 252e6: (1024, 8192), 2.87e12: (2048, 8192)}
"""(rows, tokens a row) from this many tokens on (paper 3.4.1: 4M tokens at 4,096, 8M at 8,192, 16M)."""

WARMUP_STEPS, DECAY_STEPS, LR_FINAL = 8_000, 1_200_000, 0.01
"""Paper 3.4.1, of the 405B: linear warm-up, then cosine over 1,200,000 steps from 8e-5 to 8e-7."""

CONTEXT_TOKENS = 800e9
"""Paper 3.4.2. Whether the 15.6T include them is not said; here they do."""
CONTEXTS = (16_384, 32_768, 49_152, 65_536, 98_304, 131_072)
"""Six stages from 8K to 128K (paper 3.4.2); the lengths between are not published, nor how the tokens are shared: evenly here."""
GATE = Gate(short_margin=0.0, beyond_margin=None, min_needle=1.0)
"""Short-context scores that recover completely, and every needle found (paper 3.4.2)."""

ANNEAL_TOKENS = 40e6
"""Paper 3.4.3, in both versions: two steps of 16M. The data probe of 3.1.3 has 40B, which would leave more to average."""
ANNEAL_MIX = {"general": 0.3, "code": 0.1, "multilingual": 0.05, "best_general": 0.35, "best_code": 0.2}
"""The paper upsamples sources of very high quality and names none; the shares are ours."""
ROPE_SCALING = RopeScaling()
"""Of the published 3.1 models. The paper only tells of the base of 500,000, nor when the scaling came: with the first longer
context here."""
AVERAGED = 10
"""States averaged at most; not published."""

ADAMW = OptimConfig(kind="adamw", beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, clip=1.0)
"""Betas, epsilon and clipping are not published: Llama 2's. The weight decay is that of the scaling-law runs (paper 3.2.1)."""


@dataclass(frozen=True)
class Shared:
    """Fields that the sizes share; each adds `pretrain`, `contexts` and `anneal`. To run, `data` must be given, nothing else."""

    data: str = ""
    """A folder, WARC, JSONL, Parquet, URL, cc:CRAWL or hf:NAME."""
    data_kind: str = ""
    """What a folder of mixed files is read as: warc, folder, jsonl, parquet."""
    data_fields: dict[str, str] = field(default_factory=dict)
    """Columns of a table: `--set data_fields.text=body`."""
    curate: CurateConfig = CurateConfig(languages=())
    """All languages are kept (paper 3.1.1 names 176 that are told apart)."""
    tokenizer: TokenizerConfig = TokenizerConfig(
        vocab_size=128_256, n_special=256, extension_share=27_744 / 128_000, max_characters=2_000_000_000
    )
    """100,256 and 27,744 ids in two parts (paper 3.2; the published ranks). How much text they were learned on is not said."""
    tokenize: TokenizeConfig = TokenizeConfig()
    best: BestConfig = BestConfig()
    workers: int = runtime(16)
    gpus: int = runtime(8)
    """What a dry run checks the layouts for."""
    gpu: str = runtime("h100")


def recipe(config: Shared) -> Step:
    """The graph: documents, tokenizer, tokens, base model, longer contexts, the best documents, annealed and averaged model."""
    corpus, bpe, tokens = documents(config)
    shared = {"tokens": tokens, "tokenizer": bpe}
    model = Step("3_pretrain/base", pretrain, config.pretrain, shared)
    for context in config.contexts:
        name = f"3_pretrain/context_{context.stage.seq_len}"
        model = Step(name, extend_context, context, {"base": model, "tokens": tokens})
    best = Step("3_pretrain/best", select_best, config.best, {"corpus": corpus, "tokenizer": bpe})
    return Step("3_pretrain/annealed", anneal, config.anneal, {"base": model, "tokens": tokens, "best": best})


def documents(config: Shared) -> tuple[Step, Step, Step]:
    """Steps of the curated corpus, the tokenizer and the tokens of `config.data`."""
    if config.data:
        return curated_data(config)[:3]
    corpus = Step("1_corpus/documents", no_data, config.curate)
    bpe = Step("2_tokenizer/bpe", no_data, config.tokenizer, {"corpus": corpus})
    return corpus, bpe, Step("2_tokenizer/tokens", no_data, config.tokenize, {"corpus": corpus, "tokenizer": bpe})


def no_data(config, inputs, out) -> dict:
    """Stands where data belong, so that a recipe can be looked at without any."""
    raise ValueError(
        "there is nothing to train on; give --set data=FOLDER (or JSONL, Parquet, WARC, cc:CRAWL, hf:NAME)"
    )


def base(
    model: LlamaConfig, tokens: float, optim: OptimConfig, layout: Layout, batches: Mapping = BATCHES
) -> PretrainConfig:
    """Pre-training of `tokens` tokens through the ramp, with the context of its longest rows and plain RoPE."""
    model = replace(model, max_seq_len=max(seq_len for _, seq_len in batches.values()), rope_scaling=None)
    train = TrainConfig(optim=optim, layout=layout, heldout_every=1000, checkpoint_seconds=300.0)
    return PretrainConfig(
        model, train, ramp(tokens, batches, {0: MIX}), optional_sources=True, heldout_tokens=2_000_000
    )


def longer_contexts(start: PretrainConfig, layouts: Mapping[int, Layout], tokens: float) -> tuple[ContextConfig, ...]:
    """A stage for each length of `layouts`, `tokens` in all, at the learning rate where pre-training left off.

    Rows a step hold about as many tokens as before, in a number that the `dp` ranks of each layout divide; it runs on as many as
    there are. What the learning rate did
    in these stages is not published.
    """
    batch, made = start.stages[-1].tokens_per_step, []
    for seq_len, layout in layouts.items():
        share = max(1, layout.dp) * layout.micro_batch
        rows = max(1, round(batch / seq_len / share)) * share
        steps = max(1, round(tokens / len(layouts) / (rows * seq_len)))
        made.append(
            ContextConfig(
                train=replace(start.train, optim=continued(start), layout=replace(layout, dp=0)),
                stage=Stage(steps, rows, seq_len, MIX),
                gate=GATE,
                extra_steps=max(1, steps // 10),  # ours: a stage that fails its gate goes on for a tenth, twice
                extra_rounds=2,
                rope_scaling=None if made else ROPE_SCALING,
                optional_sources=True,
                device="auto",
            )
        )
    return tuple(made)


def continued(start: PretrainConfig) -> OptimConfig:
    """The optimizer of pre-training at the learning rate of its last step, kept there."""
    optim, steps = start.train.optim, sum(stage.steps for stage in start.stages)
    return replace(optim, lr=optim.lr * optim.scale(steps, steps), lr_final=1.0, warmup_steps=0, decay_steps=0)


def annealing(start: PretrainConfig, last: ContextConfig, tokens: float = ANNEAL_TOKENS) -> AnnealConfig:
    """The learning rate from where it stands to 0 over `tokens` tokens, in the last context and batch."""
    stage = replace(last.stage, steps=max(1, round(tokens / last.stage.tokens_per_step)), mix=ANNEAL_MIX)
    optim = replace(continued(start), decay="linear", lr_final=0.0)
    train = replace(last.train, optim=optim, snapshot_every=max(1, stage.steps // AVERAGED))
    return AnnealConfig(train, stage, average_last=min(AVERAGED, stage.steps), optional_sources=True)
