"""A Llama 3.2 1B-shaped model from your own text on one to eight GPUs: curated, tokenized, trained, measured, exported.

    herder plan llama_1b --gpus 8 --gpu h100
    herder run llama_1b --set data=FOLDER
    torchrun --nproc-per-node 8 -m herder.cli run llama_1b --set data=hf:NAME --set data_fields.text=text

The steps are the miniature's; only literals differ. The published 1B was pruned and distilled from bigger models; this one is
trained from scratch, so batch, steps and learning rate are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from herder.config import runtime
from herder.curate import CurateConfig
from herder.evaluate import CompressionConfig, compare_compression
from herder.model import SHAPES
from herder.pretrain import PretrainConfig, TokenizeConfig, TokenizerConfig, pretrain, ramp
from herder.recipes._llama3 import ADAMW, documents
from herder.recipes.smollm2 import Export, export
from herder.steps import Step
from herder.train import Layout, OptimConfig, TrainConfig

TOKENS = 25e9
"""Twenty for each parameter, where the loss for the compute is near its best (paper 3.2.1 trains longer, for cheap inference)."""
BATCHES = {0: (64, 4096), 1e9: (128, 4096)}
"""262K tokens a step, then 524K: a ramp as the paper's, in the scaling-law runs' range of 250K to 4M."""
MIX = {"general": 0.55, "code": 0.25, "multilingual": 0.2}
"""What curation tells apart; a source that your data lack is left out."""


@dataclass(frozen=True)
class Config:
    """Literals of the run; `herder run llama_1b --set KEY=VALUE` changes them. `data` must be given."""

    data: str = ""
    """A folder, WARC, JSONL, Parquet, URL, cc:CRAWL or hf:NAME."""
    data_kind: str = ""
    """What a folder of mixed files is read as: warc, folder, jsonl, parquet."""
    data_fields: dict[str, str] = field(default_factory=dict)
    """Columns of a table: `--set data_fields.text=body`."""
    curate: CurateConfig = CurateConfig(languages=(), heldout_share=0.01)
    tokenizer: TokenizerConfig = TokenizerConfig(
        vocab_size=128_256, n_special=256, extension_share=27_744 / 128_000, max_characters=500_000_000
    )
    """Llama 3's two-part vocabulary in size; less text than some hundred megabytes does not support so many tokens."""
    tokenize: TokenizeConfig = TokenizeConfig()
    pretrain: PretrainConfig = PretrainConfig(
        model=SHAPES["llama3.2-1b"],
        train=TrainConfig(
            optim=OptimConfig(**{**vars(ADAMW), "lr": 4e-4, "warmup_steps": 2000}),  # as the paper's 40M to 16B models
            layout=Layout(micro_batch=2),
            heldout_every=500,
            checkpoint_seconds=600.0,
        ),
        stages=ramp(TOKENS, BATCHES, {0: MIX}),
        optional_sources=True,
        heldout_tokens=1_000_000,
    )
    compression: CompressionConfig = CompressionConfig()
    export: Export = Export("gguf", "bf16")
    workers: int = runtime(8)
    gpus: int = runtime(8)
    """What a dry run checks the layout for."""
    gpu: str = runtime("h100")


def recipe(config: Config) -> list[Step]:
    """The graph: documents, tokenizer, tokens, base model, what it learned, its export."""
    corpus, bpe, tokens = documents(config)
    base = Step("3_pretrain/base", pretrain, config.pretrain, {"tokens": tokens, "tokenizer": bpe})
    measured = {"corpus": corpus, "tokens": tokens, "model": base}
    compression = Step("5_evaluate/compression", compare_compression, config.compression, measured)
    return [compression, Step("6_export/model", export, config.export, {"model": base})]
