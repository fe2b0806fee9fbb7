"""A real Llama out of the box: SmolLM2-135M-Instruct evaluated, fine-tuned on your dialogues, evaluated again, exported.

`base` may name any Llama that `herder models` lists, and `data` your own dialogues; without data, verifiable reasoning tasks
stand in, so the recipe runs as it lies. `method` trains every weight or a low-rank adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from herder.config import manifest, runtime
from herder.convert import convert, resolve
from herder.evaluate import ModelEvaluation, evaluate_model, suite
from herder.posttrain import (
    ConversationConfig,
    FineTuneConfig,
    LoraConfig,
    conversations_manifest,
    fine_tune,
    import_dialogues,
)
from herder.steps import Step
from herder.train import Layout, OptimConfig, TrainConfig

_REASONING = {"syllogism": 400}
_FULL = FineTuneConfig(
    train=TrainConfig(
        optim=OptimConfig(lr=1e-4, warmup_steps=5, lr_final=0.1, weight_decay=0.0),
        layout=Layout(micro_batch=2, shard=1),
    ),
    epochs=1.0,
    rows_per_step=4,
    seq_len=512,
    processes=2,
)
_ADAPTER_LR = 1e-3
"""Adapters start from zero and are small: they take about ten times the learning rate of the weights themselves."""


@dataclass(frozen=True)
class Config:
    """Literals of the run; `herder run smollm2 --set KEY=VALUE` changes them."""

    base: str = "smollm2"
    """A name or path that `herder models` lists: the packaged model, a run, a Hugging Face folder, a GGUF file."""
    data: str = ""
    """Your dialogues: a JSONL, JSON or Parquet file, a folder of them, no_robots, or hf:NAME; "" makes reasoning tasks."""
    method: Literal["full", "lora"] = "full"
    dialogues: ConversationConfig = ConversationConfig(reasoning=_REASONING)
    sft: FineTuneConfig = _FULL
    lora: LoraConfig = LoraConfig()
    lora_lr: float = _ADAPTER_LR
    benchmarks: dict[str, str] = field(default_factory=dict)
    """Files of published benchmarks: `--set benchmarks.arc_easy=FILE`."""
    evaluation: ModelEvaluation = ModelEvaluation()
    export: Literal["gguf", "hf", "meta"] = "gguf"
    export_dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "q8_0"
    runs: str = runtime("runs")
    """Where `base` is looked for when it names a run."""


@dataclass(frozen=True)
class BaseModel:
    """`manifest` is what identifies the model, wherever `source` lies."""

    manifest: tuple[dict, ...]
    source: str = runtime("")


@dataclass(frozen=True)
class Export:
    format: str
    dtype: str


def recipe(config: Config) -> Step:
    """The graph: base, dialogues, evaluation, fine-tuned model, evaluation, export."""
    if config.export_dtype.startswith("q") and config.export != "gguf":
        raise ValueError(f"export_dtype {config.export_dtype} is a GGUF type; set export=gguf, or export_dtype=bf16")
    source = resolve(config.base, Path(config.runs))
    base = Step("1_model/base", take_model, BaseModel(manifest(source), str(source)))
    conversations = replace(config.dialogues, data=config.data, manifest=conversations_manifest(config.data))
    dialogues = Step("4_posttrain/dialogues", import_dialogues, conversations)
    tasks = () if config.data else tuple(config.dialogues.reasoning)
    for name, path in config.benchmarks.items():
        suite(name, path, 1)  # what is wrong with it is said now, not after the training
    files = tuple(row | {"suite": name} for name, path in config.benchmarks.items() for row in manifest(Path(path)))
    evaluation = replace(config.evaluation, verifiable=tasks, benchmarks=config.benchmarks, manifest=files)
    before = Step("5_evaluate/before", evaluate_model, evaluation, {"model": base, "dialogues": dialogues})
    tuning = config.sft
    if config.method == "lora":
        optim = replace(tuning.train.optim, lr=config.lora_lr)
        tuning = replace(tuning, lora=config.lora, train=replace(tuning.train, optim=optim))
    sft = Step("4_posttrain/sft", fine_tune, tuning, {"base": base, "dialogues": dialogues})
    inputs = {"model": sft, "dialogues": dialogues, "before": before}
    after = Step("5_evaluate/after", evaluate_model, evaluation, inputs)
    return Step(
        "6_export/model", export, Export(config.export, config.export_dtype), {"model": sft, "evaluated": after}
    )


def take_model(config: BaseModel, inputs: dict[str, Path], out: Path) -> dict:
    """The base as a Hugging Face folder of fp32 weights, which training starts from."""
    return convert(config.source, out / "model", "hf", "f32")


def export(config: Export, inputs: dict[str, Path], out: Path) -> dict:
    """The fine-tuned model in the format that serves it; the Hugging Face folder stays where it was trained."""
    return convert(inputs["model"] / "model", out / config.format, config.format, config.dtype)
