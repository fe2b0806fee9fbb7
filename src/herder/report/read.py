"""Reads the files of a run for the report, and trusts none of them.

Documents and answers are hostile data and a run may have died at any moment, so one rule holds: every file is read on its
own, strings are stripped of control and direction-changing characters, and what cannot be read becomes a sentence that the
page shows where the content would have stood. Nothing here raises for a damaged file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herder.records import Ledger, Measure

FILE_LIMIT = 64 << 20
"""Files above these bytes are named, not read: the page could show a thousandth of them."""

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)


@dataclass
class Part:
    """What one file of one step gave: `data` as its parser returns it, or `problem`, a sentence that says why not."""

    step: str
    data: Any = None
    problem: str = ""


@dataclass
class Step:
    """One step of a run as its files tell it. `inputs` maps a role to the address of the step that filled it."""

    name: str
    address: str
    reused: bool = False
    seconds: float | None = None
    record: dict = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    numbers: list[tuple[str, Measure | str]] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    problem: str = ""

    @property
    def stage(self) -> str:
        return self.name.rpartition("/")[0] or self.name

    @property
    def title(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass
class Run:
    name: str
    record: dict
    steps: list[Step]
    problem: str = ""


def read_run(run: Path) -> Run:
    """Reads runs/<run>/run.json and every step folder it names (beside the run's own folder).

    Raises ValueError only where `run` is no run at all.
    """
    run = Path(run)
    if not (run / "run.json").is_file():
        raise ValueError(f"{run} holds no run.json; give the folder of a run, as `herder run` prints it")
    name = clean(run.resolve().name)
    try:
        record = mapping(read_json(run / "run.json"), "the run")
        listed = record.get("steps", [])
        if not isinstance(listed, list):
            raise ValueError("its steps are not a list")
    except (OSError, ValueError, RecursionError) as error:
        return Run(name, {}, [], f"run.json cannot be read: {error}")
    steps = [read_step(run.resolve().parent, row, number) for number, row in enumerate(listed, 1)]
    return Run(name, record, steps)


def read_step(root: Path, row: Any, number: int) -> Step:
    if not isinstance(row, dict) or not row.get("name"):
        return Step(f"step {number}", "", problem=f"run.json, step {number}: no name")
    address = str(row.get("address") or "")
    step = Step(str(row["name"]), address, row.get("reused") is True, finite(row.get("seconds")))
    folder = (root / address[:240]).resolve()  # no file system takes longer names
    if not address or root not in folder.parents:
        step.problem = "its address does not lie in the folder of runs"
        return step
    try:
        step.record = mapping(read_json(folder / "step.json"), "the step")
        step.inputs = {role: str(source) for role, source in mapping(step.record.get("inputs") or {}, "inputs").items()}
        step.numbers = flatten(step.record.get("numbers") or {})
        if step.reused:  # what it took when it ran is worth more than the time it took to find it
            step.seconds = finite(step.record.get("seconds"), step.seconds)
    except FileNotFoundError:
        step.problem = "step.json is missing: the step did not finish, or its folder was removed"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        step.problem = f"step.json cannot be read: {error}"
    for file, parse in PARSERS.items():
        if (folder / file).is_file():
            step.parts[file] = read_part(step.name, folder / file, parse)
    return step


def read_part(step: str, path: Path, parse: Callable[[Any], Any]) -> Part:
    try:
        return Part(step, parse(read_lines(path) if path.suffix == ".jsonl" else read_json(path)))
    except Exception as error:  # any damage at all: the page must come out, and says so in place
        return Part(step, problem=f"{path.name} cannot be read: {type(error).__name__}, {cut(clean(str(error)), 160)}")


def read_json(path: Path) -> Any:
    """The content of a JSON file with its strings cleaned. Raises ValueError or OSError."""
    size = path.stat().st_size
    if size > FILE_LIMIT:
        raise ValueError(f"{size >> 20} MiB are more than the {FILE_LIMIT >> 20} MiB that a report reads")
    return clean(json.loads(path.read_text(encoding="utf-8", errors="replace")))


def read_lines(path: Path) -> tuple[list[dict], int]:
    """The objects of a JSONL file and the number of lines that are none (a run that was killed leaves half a line)."""
    rows, broken = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                rows.append(mapping(clean(json.loads(line)), "a line"))
            except (ValueError, RecursionError):
                broken += bool(line.strip())
    return rows, broken


def clean(value: Any) -> Any:
    """Replaces characters that no reader can see, or that reorder the text around them, in every string of a JSON value."""
    if isinstance(value, str):
        return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return value


def cut(text: Any, limit: int) -> str:
    """A text of at most `limit` characters, and how much was left out."""
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def mapping(value: Any, what: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def finite(value: Any, default: float | None = None) -> float | None:
    """A finite number (bool is none), or the default."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good else default


def whole(value: Any) -> int:
    """A count; 0 where it is none."""
    return max(0, int(finite(value, 0.0)))


def measure(value: Any) -> Measure:
    """A Measure from its JSON, or from a bare number. Raises ValueError for anything else."""
    fields = value if isinstance(value, dict) else {"value": value}
    number = finite(fields.get("value"))
    if number is None:
        raise ValueError("a measure without a number")
    ends = [e if isinstance(e := fields.get(k), int | float) and e == e else math.nan for k in ("low", "high")]
    return Measure(number, whole(fields.get("n")), *map(float, ends), str(fields.get("unit") or ""))


def flatten(numbers: dict, prefix: str = "") -> list[tuple[str, Measure | str]]:
    """A step's numbers as rows of a table; the one level of nesting becomes 'outer / inner'."""
    rows: list[tuple[str, Measure | str]] = []
    for key, value in mapping(numbers, "numbers").items():
        if isinstance(value, dict) and "value" not in value and not prefix:
            rows += flatten(value, f"{key} / ")
            continue
        try:
            rows.append((prefix + key, measure(value)))
        except ValueError:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value)))
    return rows


def parse_ledger(raw: list) -> list[Ledger]:
    ledgers = []
    for row in raw:
        counts = {k: whole(row.get(k)) for k in ("read", "bytes", "documents", "characters", "tokens")}
        removed = {str(k): whole(v) for k, v in (row.get("removed") or {}).items()}
        ledgers.append(Ledger(source=str(row.get("source") or ""), removed=removed, **counts))
    return ledgers


def parse_samples(raw: dict) -> dict[str, list[dict]]:
    fields = ("id", "url", "source", "title", "fate", "detail", "text")
    return {
        kind: [{f: str(row.get(f) or "") for f in fields} for row in raw.get(kind) or []]
        for kind in ("kept", "removed")
    }


def parse_audit(raw: dict) -> dict[str, dict[str, Measure]]:
    return {name: {k: measure(v) for k, v in scores.items()} for name, scores in raw.items()}


def parse_answers(raw: list) -> list[dict]:
    answers = []
    for row in raw:
        asked = [(str(m["role"]), as_text(m.get("content"))) for m in row.get("messages") or []]
        turns = asked or [("user", str(row.get("prompt") or ""))]
        correct = row.get("correct")
        answers.append(
            {"task": str(row.get("task") or ""), "turns": turns, "answer": as_text(row.get("answer"))}
            | {"gold": as_text(row.get("gold")), "correct": correct if isinstance(correct, bool) else None}
        )
    return answers


def as_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_mixture(raw: dict) -> list[tuple[str, float, float, int]]:
    return [
        (name, finite(row.get("target"), 0.0), finite(row.get("realised"), 0.0), whole(row.get("tokens")))
        for name, row in raw.items()
    ]


def parse_comparison(raw: dict | list) -> list[dict]:
    tables = raw if isinstance(raw, list) else [raw]
    return [
        {"title": str(t.get("title") or ""), "unit": str(t.get("unit") or "")}
        | {"rows": [(str(r["name"]), measure(r["measure"]), str(r.get("note") or "")) for r in t["rows"]]}
        for t in tables
    ]


def parse_scaling(raw: dict) -> dict:
    """`curves` of an IsoFLOP sweep as (flops, points, minimum as (tokens, loss, curvature) or None, why there is none); `target`
    and `law`, measures by name; `past`, rows of (times optimal, loss, optimal loss) of `size`; `refused`, sentences."""
    curves = []
    for row in raw.get("curves") or []:
        points = sorted((positive(p["tokens"]), positive(p["loss"])) for p in row["points"])
        least = tuple(finite(row.get(name)) for name in ("tokens", "loss", "curvature"))
        least = None if None in least else (positive(least[0]), *least[1:])
        curves.append((positive(row["flops"]), points, least, str(row.get("refused") or "")))
    told, target = raw.get("overtraining") or {}, raw.get("target") or {}
    past = [
        (positive(r["times_optimal"]), measure(r["loss"]), measure(r["optimal_loss"])) for r in told.get("rows") or []
    ]
    return {
        "curves": curves,
        "target": {name: measure(value) for name, value in target.items() if name != "refused"},
        "law": {name: measure(raw[name]) for name in ("alpha", "A") if name in raw},
        "past": past,
        "size": finite(told.get("params"), 0.0),
        "refused": [str(part["refused"]) for part in (raw, target, told) if part.get("refused")],
    }


def positive(value: Any) -> float:
    """A number that has a logarithm. Raises ValueError for any other."""
    if not (number := finite(value, 0.0)) > 0:
        raise ValueError(f"{str(value)[:40]} is not a positive number")
    return number


def parse_metrics(raw: tuple[list[dict], int]) -> dict:
    """`curves` by name as (x, y) points, `axis` the unit of x (tokens, or steps where no tokens are given), `span` its range,
    `broken` how many lines are no JSON objects."""
    rows, broken = raw
    axis = "tokens" if any(finite(row.get("tokens")) for row in rows) else "step"
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows):
        x = finite(row.get(axis), float(number))
        for key, y in row.items():
            if key not in ("step", "tokens", "seconds") and finite(y) is not None:
                curves.setdefault(key, []).append((x, float(y)))
    xs = [x for points in curves.values() for x, _ in points] or [0.0]
    return {"curves": curves, "axis": axis, "span": (min(xs), max(xs)), "broken": broken}


PARSERS: dict[str, Callable[[Any], Any]] = {
    "ledger.json": parse_ledger,
    "samples.json": parse_samples,
    "audit.json": parse_audit,
    "answers.json": parse_answers,
    "mixture.json": parse_mixture,
    "comparison.json": parse_comparison,
    "scaling.json": parse_scaling,
    "metrics.jsonl": parse_metrics,
}
