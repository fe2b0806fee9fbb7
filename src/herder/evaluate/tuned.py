"""One model before or after fine-tuning: its loss on held-out answers, right answers, benchmarks, and what it says (paper 5).

The one design decision: an evaluation is an artifact of one model. Given the artifact of an earlier one it tables both, item
sets being equal because both name the same dialogues and files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herder.config import runtime
from herder.convert import load
from herder.engine import Engine, Sampling
from herder.evaluate.answers import AnswerItem, AnswersTask
from herder.evaluate.run import evaluate
from herder.evaluate.suites import SUITES
from herder.evaluate.task import GenerationItem, GenerationTask, Task
from herder.records import Dialogue, Measure, read_dialogues, read_jsonl
from herder.steps import read_json
from herder.tokenizer import ChatFormat

HELDOUT, SAMPLES = "held-out answers", "samples"


@dataclass(frozen=True)
class ModelEvaluation:
    """`verifiable` names the tasks of the held-out dialogues whose answer is right or wrong as a whole; `benchmarks` maps a
    suite's name to a file, of which `manifest` is the content that counts."""

    verifiable: tuple[str, ...] = ()
    benchmarks: dict[str, str] = runtime(default_factory=dict)
    manifest: tuple[dict, ...] = ()
    limit: int = 200
    """At most this many items of each benchmark (0: all)."""
    samples: int = 8
    """Answers that are generated and shown."""
    max_tokens: int = 64
    dialect: str = ""
    """Chat dialect; "" is the one that the model's tokenizer calls for."""
    device: str = runtime("cpu")
    batch: int = runtime(32)


def evaluate_model(config: ModelEvaluation, inputs: dict[str, Path], out: Path) -> dict:
    """Step: inputs["model"] on inputs["dialogues"]/heldout.jsonl and the benchmarks; inputs["before"], where given, is an
    earlier evaluation to stand beside. Writes items/, measures.json and answers.json, and then comparison.json too."""
    heldout = list(read_dialogues(inputs["dialogues"] / "heldout.jsonl"))
    model, tokenizer = load(inputs["model"])
    engine = Engine(model, tokenizer, max_batch=config.batch, device=config.device)
    tasks = tasks_of(config, heldout)
    chat = ChatFormat(tokenizer, config.dialect or None)
    measures = evaluate(engine, tasks, out / "items", chat=chat)
    shown = {HELDOUT, *config.verifiable, *config.benchmarks} | {f"{name}/acc_norm" for name in config.benchmarks}
    numbers = {name: m for name, m in measures.items() if name in shown}
    (out / "measures.json").write_text(json.dumps({name: m.to_json() for name, m in numbers.items()}, indent=1))
    if "before" in inputs:
        before = read_json(inputs["before"] / "measures.json")
        tables = [_table(name, m, before[name], config) for name, m in numbers.items() if name in before]
        (out / "comparison.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False))
    rows = read_jsonl(out / "items" / f"{SAMPLES}.jsonl") if any(t.name == SAMPLES for t in tasks) else ()
    (out / "answers.json").write_text(
        json.dumps([_sample(r) for r in rows if "item" in r], ensure_ascii=False, indent=1)
    )
    return {name.replace(" ", "_"): m for name, m in numbers.items()}


def tasks_of(config: ModelEvaluation, heldout: Sequence[Dialogue]) -> list[Task | AnswersTask]:
    """What is measured. Raises ValueError for an unknown suite."""
    tasks: list[Task | AnswersTask] = []
    if heldout:
        tasks.append(AnswersTask(HELDOUT, tuple(AnswerItem.of(d) for d in heldout)))
    answered = [d for d in heldout if len(d.messages) > 1 and _answer(d)]
    sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens)
    for name in config.verifiable:
        items = tuple(_asked(d) for d in answered if d.task == name)
        if not items:
            raise ValueError(f"verifiable names the task {name!r}, of which no held-out dialogue is")
        tasks.append(GenerationTask(name, items, sampling))
    if answered and config.samples:
        spread = answered[:: max(1, len(answered) // config.samples)][: config.samples]
        tasks.append(GenerationTask(SAMPLES, tuple(_asked(d) for d in spread), sampling))
    return tasks + [suite(name, path, config.limit) for name, path in config.benchmarks.items()]


def suite(name: str, path: str | Path, limit: int = 0) -> Task:
    """A published benchmark as a task, from the user's file. Raises ValueError for an unknown name or a missing file."""
    if name not in SUITES:
        raise ValueError(f"benchmark {name!r} is unknown; known are {', '.join(SUITES)}")
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; give the file of {name} (JSONL, JSONL.gz or Parquet)")
    return SUITES[name](Path(path), limit)


def _answer(dialogue: Dialogue) -> str:
    """The text of the last message where it is the assistant's; "" where there is none."""
    last = dialogue.messages[-1]
    content = last.get("content") if last["role"] == "assistant" else None
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(part.get("text", "") for part in parts)


def _asked(dialogue: Dialogue) -> GenerationItem:
    meta = {"tools": dialogue.tools} if dialogue.tools else {}
    return GenerationItem(tuple(dialogue.messages[:-1]), (_answer(dialogue),), dialogue.id, meta)


def _table(name: str, now: Measure, before: dict, config: ModelEvaluation) -> dict:
    title = name.replace("_", " ").capitalize() + (", word for word as expected" if name in config.verifiable else "")
    rows = [
        {"name": "after fine-tuning", "measure": now.to_json(), "note": ""},
        {"name": "before", "measure": before, "note": ""},
    ]
    return {"title": title, "unit": now.unit or "%", "rows": rows}


def _sample(row: dict) -> dict:
    return {
        "task": "held-out",
        "prompt": row["prompt"][-1].get("content"),
        "messages": row["prompt"],
        "answer": row["output"],
        "gold": row["gold"][0],
        "correct": None,
    }
