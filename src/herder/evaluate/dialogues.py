"""Held-out dialogues: before and after fine-tuning, against what takes no model (paper 5.2; the miniature's proof of learning).

Every held-out question was made from a document that no training dialogue was made from. A score means something only above
the most frequent answer, above the answer of the nearest training question, and above a model trained on shuffled answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herder.config import runtime
from herder.convert import load
from herder.engine import Engine, Sampling
from herder.evaluate.baselines import most_frequent_answer, nearest_answers, score_answers
from herder.evaluate.run import evaluate
from herder.evaluate.task import GenerationItem, GenerationTask
from herder.records import Dialogue, Measure, read_dialogues, read_jsonl
from herder.tokenizer import ChatFormat

SAMPLES = 6
"""Answers of each family that the report shows."""


@dataclass(frozen=True)
class DialogueEvaluation:
    """`open_families` have no one right answer: only the form of their answers is judged."""

    open_families: tuple[str, ...] = ()
    max_tokens: int = 64
    dialect: str = "llama3.1"
    device: str = runtime("cpu")
    batch: int = runtime(64)


def evaluate_dialogues(config: DialogueEvaluation, inputs: dict[str, Path], out: Path) -> dict:
    """Step: the models among the inputs ("after", and where given "before" and "shuffled") on inputs["dialogues"]/heldout.jsonl.

    Writes `comparison.json` (a table of each family and of all), `answers.json`, and every item under `items/<model>/`.
    """
    heldout = list(read_dialogues(inputs["dialogues"] / "heldout.jsonl"))
    if not heldout:
        return {"items": 0}
    train = list(read_dialogues(inputs["dialogues"] / "train.jsonl"))
    families = sorted({d.task for d in heldout})
    tasks = [_task(family, [d for d in heldout if d.task == family], config) for family in families]
    models = [name for name in ("before", "shuffled", "after") if name in inputs]
    rows = {name: _run(name, inputs[name], tasks, config, out) for name in models}
    scored = [f for f in families if f not in config.open_families and any(d.task == f for d in train)]
    answered = {
        f"answers_well_{name}": _share([r["fault"] == "" for f in families for r in rows[name][f]]) for name in models
    }
    baselines = {f: _baselines(f, tasks[families.index(f)], train) for f in scored}
    numbers = dict(answered)
    everything: dict[str, list[Measure]] = {}
    for family in scored:
        measures = {name: _share([r["score"] for r in rows[name][family]]) for name in models}
        for name, measure in (baselines[family] | measures).items():
            everything.setdefault(name, []).append(measure)
        numbers[f"{family}_after"] = measures["after"]
    totals = {
        name: Measure.share(sum(round(m.value * m.n) for m in found), sum(m.n for m in found))
        for name, found in everything.items()
    }
    numbers |= {f"all_tasks_{name.replace(' ', '_')}": measure for name, measure in totals.items()}
    _write_tables(out, answered, totals, everything, scored)
    answers = [a for family in families for a in _samples(family, rows["after"][family], family in scored)]
    (out / "answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False))
    headline = {"answers_that_work": answered["answers_well_after"], "accuracy": totals["after"]} if totals else {}
    return {"items": len(heldout), **headline, **numbers}


def _task(family: str, dialogues: Sequence[Dialogue], config: DialogueEvaluation) -> GenerationTask:
    items = tuple(GenerationItem(tuple(d.messages[:-1]), (d.messages[-1]["content"],), d.id) for d in dialogues)
    return GenerationTask(family, items, Sampling(temperature=0.0, max_tokens=config.max_tokens))


def _run(
    name: str, model: Path, tasks: Sequence[GenerationTask], config: DialogueEvaluation, out: Path
) -> dict[str, list]:
    """Rows of every task, in the order of its items."""
    llama, tokenizer = load(model)
    engine = Engine(llama, tokenizer, max_batch=config.batch, device=config.device)
    folder = out / "items" / name
    evaluate(engine, tasks, folder, chat=ChatFormat(tokenizer, config.dialect))
    found = {}
    for task in tasks:
        rows = [row for row in read_jsonl(folder / f"{task.name}.jsonl") if "item" in row]
        found[task.name] = sorted(rows, key=lambda row: row["item"])
    return found


def _baselines(family: str, task: GenerationTask, train: Sequence[Dialogue]) -> dict[str, Measure]:
    known = [d for d in train if d.task == family]
    prompts, answers = [d.messages[0]["content"] for d in known], [d.messages[-1]["content"] for d in known]
    asked = [item.prompt[0]["content"] for item in task.items]
    return {
        "most frequent answer": score_answers(task, [most_frequent_answer(answers)] * len(asked)),
        "nearest training question": score_answers(task, nearest_answers(prompts, answers, asked)),
    }


def _share(hits: Sequence[float]) -> Measure:
    return Measure.share(sum(hits), len(hits))


_NAMES = {"before": "base model", "shuffled": "fine-tuned on shuffled answers", "after": "fine-tuned"}


def _write_tables(out: Path, answered: dict, totals: dict, everything: dict, scored: Sequence[str]) -> None:
    def row(name: str, measure: Measure) -> dict:
        return {"name": _NAMES.get(name, name), "measure": measure.to_json(), "note": ""}

    # The report draws the first row as ours: the fine-tuned model leads every table.
    form = [row(name.removeprefix("answers_well_"), m) for name, m in reversed(answered.items())]
    everything = {"after": everything["after"], **everything} if everything else {}
    totals = {"after": totals["after"], **totals} if totals else {}
    tables = [
        {"title": "Answers that end in time, without control ids and without loops", "unit": "%", "rows": form},
        {
            "title": "Held-out questions answered right, all tasks",
            "unit": "%",
            "rows": [row(n, m) for n, m in totals.items()],
        },
    ]
    for number, family in enumerate(scored):
        rows = [row(name, found[number]) for name, found in everything.items()]
        tables.append(
            {"title": f"Held-out questions answered right: {family.replace('_', ' ')}", "unit": "%", "rows": rows}
        )
    (out / "comparison.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False))


def _samples(family: str, rows: Sequence[dict], scored: bool) -> list[dict]:
    return [
        {
            "task": family,
            "prompt": row["prompt"][-1]["content"],
            "messages": row["prompt"],
            "answer": row["output"],
            "gold": row["gold"][0],
            "correct": bool(row["score"]) if scored else None,
        }
        for row in rows[:SAMPLES]
    ]
