"""`evaluate`: runs tasks, keeps every item, resumes where it stopped.

Each item is one line of `<task>.jsonl`, appended when it is done; the first line names task and model. The one design
decision: results are computed from those lines only, and a file of another model or another task is refused, never mixed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash

from herder.config import digest, encode
from herder.engine import Engine
from herder.evaluate.task import Task
from herder.progress import report
from herder.records import Measure
from herder.tokenizer import ChatFormat

BATCH_ITEMS = 256


def evaluate(
    engine: Engine,
    tasks: Sequence[Task],
    out: Path | str | None = None,
    batch_size: int = BATCH_ITEMS,
    chat: ChatFormat | None = None,
) -> dict[str, Measure]:
    """Measures of each task by name, further ones as `task/what`.

    With `out`, rows go to out/<task>.jsonl, an interrupted run continues after the items it finished, and
    out/results.json holds every measure with n and its interval. `batch_size` items go to the engine at once. Raises
    ValueError where `out` holds results of another model or of a task that has changed.
    """
    tasks = list(tasks)
    names = [task.name for task in tasks]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two tasks are called {min(duplicates)!r}; give each its own name")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    model = ""
    if out is not None:
        model = f"{model_identity(engine)}-{chat.dialect.name if chat else 'llama3.1'}"
    measures: dict[str, Measure] = {}
    total, done = sum(len(task.items) for task in tasks), 0
    for task in tasks:
        rows: dict[int, dict] = {}
        book = None
        if out is not None:
            book = _Book(Path(out), task, model)
            rows = book.rows
        missing = [(i, item) for i, item in enumerate(task.items) if i not in rows]
        done += len(rows)
        for start in range(0, len(missing), batch_size):
            for row in task.run(engine, chat, missing[start : start + batch_size]):
                rows[row["item"]] = row
                done += 1
                if book is not None:
                    book.append(row)
                report(done, total, "items")
        measures |= task.measures([rows[i] for i in range(len(task.items))])
    if out is not None:
        _write_results(Path(out) / "results.json", model, measures)
    return measures


def model_identity(engine: Engine) -> str:
    """A digest of the model's shape and weights and of the tokenizer: equal where answers would be."""
    state = xxhash.xxh3_128(repr(engine.model.config).encode() + engine.tokenizer.fingerprint.encode())
    for name, parameter in engine.model.named_parameters():
        state.update(f"{name} {parameter.dtype}".encode())
        state.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().data)
    return state.hexdigest()[:16]


class _Book:
    """The file of one task's rows. Opening it reads what is done; a line that was cut off is dropped."""

    def __init__(self, folder: Path, task: Task, model: str):
        name = re.sub(r"[^\w.+-]+", "_", task.name)
        self.path = folder / f"{name}.jsonl"
        header = {"task": task.name, "identity": digest(encode(task, task.name), 16), "model": model}
        self.rows: dict[int, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)
        good = 0
        if self.path.exists():
            good = self._read(header, len(task.items))
        if good == 0:
            self.path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        else:
            os.truncate(self.path, good)

    def append(self, row: dict) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        # One write of one whole line: a reader, or the next run, sees it complete or cut off, never mixed.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _read(self, header: dict, items: int) -> int:
        """Reads whole lines into `rows`; returns how many bytes they take."""
        good = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                index = -1 if number == 1 else row["item"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path}, line {number}: not a row of results; delete the file") from None
            if number == 1 and row != header:
                what = (
                    "another model" if row.get("task") == header["task"] and row.get("model") != header["model"] else ""
                )
                raise ValueError(
                    f"{self.path} holds results of {what or 'another version of this task'}; "
                    "give another folder, or delete the file"
                )
            if number > 1 and 0 <= index < items:
                self.rows[index] = row
            good += len(line)
        return good


def _write_results(path: Path, model: str, measures: dict[str, Measure]) -> None:
    """Adds to what earlier calls with the same model left there."""
    known: dict = {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        known = before["measures"] if before["model"] == model else {}
    known |= {name: measure.to_json() for name, measure in measures.items()}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"model": model, "measures": known}, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
