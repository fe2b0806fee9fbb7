"""Multiple choice by log-likelihood: ARC and PIQA with the prompts and the scoring that lm-eval made customary.

Zero-shot "Question: ...\\nAnswer:", each option after one space, no chat format. `acc_norm` divides by characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from herder.evaluate.task import ChoiceItem, ChoiceTask
from herder.records import read_rows


def arc(name: str) -> Callable[[Path, int], ChoiceTask]:
    """ARC (Clark et al. 2018): fields question, choices (a list of texts, or {"text", "label"}), and `answer` (an index) or
    `answerKey` (a label)."""

    def task(path: Path, limit: int = 0) -> ChoiceTask:
        items = []
        for where, row in _rows(path, limit, "question", "choices"):
            choices = row["choices"]
            texts, labels = (
                (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (choices, None)
            )
            count = len(texts) if isinstance(texts, list) else 0
            labels = labels or row.get("labels") or [str(i) for i in range(count)]
            gold = row["answer"] if "answer" in row else _label(labels, row.get("answerKey"), where)
            items.append(_item(f"Question: {row['question']}\nAnswer:", texts, gold, str(row.get("id", "")), where))
        return ChoiceTask(name, tuple(items))

    return task


def piqa(path: Path, limit: int = 0) -> ChoiceTask:
    """PIQA (Bisk et al. 2020): fields goal, sol1, sol2, label (0 or 1)."""
    items = [
        _item(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"], "", where)
        for where, row in _rows(path, limit, "goal", "sol1", "sol2", "label")
    ]
    return ChoiceTask("piqa", tuple(items))


def _rows(path: Path, limit: int, *fields: str) -> Iterator[tuple[str, dict]]:
    """(place, row) of at most `limit` rows (0: all); ValueError where a field is missing or the file is empty."""
    count = 0
    for where, row in read_rows(path):
        if missing := [name for name in fields if name not in row]:
            raise ValueError(
                f"{where}: the field {missing[0]!r} is missing; this benchmark's rows have {', '.join(fields)}"
            )
        yield where, row
        count += 1
        if count == limit:
            return
    if not count:
        raise ValueError(f"{path} holds no rows")


def _item(context: str, options: object, gold: object, name: str, where: str) -> ChoiceItem:
    if not isinstance(options, list | tuple) or not options or not all(isinstance(o, str) and o for o in options):
        raise ValueError(f"{where}: the options must be a list of texts, none of them empty")
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        raise ValueError(f"{where}: the answer is {gold!r}; it must be the index of one of {len(options)} options")
    return ChoiceItem(context, tuple(options), gold, name or where.rpartition(", ")[2])


def _label(labels: object, key: object, where: str) -> int:
    if not isinstance(labels, list) or key not in labels:
        raise ValueError(f"{where}: answerKey {key!r} is none of the labels {labels}")
    return labels.index(key)
