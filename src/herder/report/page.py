"""Builds the report's page from what the files gave, and keeps it under its size.

The template only prints: every choice of what to show, and every cut, is made here. A page that comes out too large is built
again with half the texts, until it fits; what was cut is said in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from herder.records import Ledger, Measure
from herder.report import charts, graph, laws
from herder.report.read import Part, Run, cut, flatten, read_run

PAGE_LIMIT = 3_000_000
"""Bytes of a page: what a mail or a chat still carries."""

REASONS_SHOWN, CARDS_OPEN = 14, 4
RATES = (
    "lr",
    "grad_norm",
    "tflops",
    "mfu",
    "memory_gib",
    "data_wait",
    "communication_share",
    "effective_time",
    "energy_kwh",
)
"""Curves that belong to the details of a training step."""

HEADLINES = (
    ("Model size", "parameters", ("parameters", "n_parameters", "params")),
    ("Bits per byte, held out", "", ("bits_per_byte", "heldout_bits_per_byte")),
    ("Answers that work", "", ("answers_that_work",)),
    ("Held-out questions right", "", ("accuracy", "correct")),
)
"""Label, unit and the keys of `numbers` that may hold it; the last step that has one tells."""


@dataclass(frozen=True)
class Limits:
    text: int = 1500
    items: int = 24
    points: int = 240
    rows: int = 300

    def half(self) -> Limits:
        return Limits(*(max(2, n // 2) for n in (self.text, self.items, self.points, self.rows)))


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes one self-contained HTML page for the run in folder `run` (default: RUN/report.html); returns its path.

    Reads run.json, the step.json and metrics.jsonl of its steps, and the small files beside them (ledger, samples, audit,
    answers, mixture, comparison, scaling .json). Missing or damaged files are named on the page. Raises ValueError where
    `run` holds no run.json.
    """
    out = Path(out) if out else Path(run) / "report.html"
    found = read_run(Path(run))
    limits = Limits()
    page = render(found, limits)
    while len(page) > PAGE_LIMIT and limits.text > 2:
        limits = limits.half()
        page = render(found, limits)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(page)
    os.replace(part, out)
    return out


def summary(run: Path) -> str:
    """A few plain lines for the terminal: headline numbers, where the time went, and where the report lies."""
    found = read_run(Path(run))
    lines = [f"{found.name}: {len(found.steps)} steps, {sum(s.reused for s in found.steps)} reused"]
    lines += [f"  {label + ':':<26}{text}{f'  ({note})' if note else ''}" for label, text, note in headlines(found)]
    slow = sorted((s for s in found.steps if s.seconds and not s.reused), key=lambda s: -(s.seconds or 0))[:3]
    if slow:
        lines.append("  Longest steps:            " + ", ".join(f"{s.name} {charts.duration(s.seconds)}" for s in slow))
    lines += [f"  Problem: {text}" for text in problems(found)]
    page = Path(run) / "report.html"
    lines.append(f"  Report: {page}" if page.exists() else f"  No report yet: herder report {run}")
    return "\n".join(lines)


def problems(run: Run) -> list[str]:
    """Everything that could not be read, a sentence each."""
    out = [run.problem] if run.problem else []
    for step in run.steps:
        out += [f"{step.name}: {text}" for text in (step.problem, *(p.problem for p in step.parts.values())) if text]
    return out


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """The numbers on top, as (label, value, note): what run.json names under "headline", then what is known of every run."""
    named = run.record.get("headline")
    if isinstance(named, dict) and named:
        rows = [(label, charts.value(m), charts.interval(m)) for label, m in flatten(named)]
    else:
        rows = found_headlines(run)
    seconds = run.record.get("seconds")
    if isinstance(seconds, int | float):
        reused = sum(step.reused for step in run.steps)
        made = sum(step.seconds for step in run.steps if isinstance(step.seconds, int | float))
        note = f"{len(run.steps)} steps" + (f", {reused} reused: {charts.duration(seconds)} now" if reused else "")
        rows.append(("Time", charts.duration(max(made, seconds)), note))
    return [(cut(label, 60), cut(text, 60), cut(note, 120)) for label, text, note in rows]


def found_headlines(run: Run) -> list[tuple[str, str, str]]:
    rows = []
    for label, unit, keys in HEADLINES:
        hits = [
            (m, step.name)
            for step in reversed(run.steps)
            for key, m in step.numbers
            if key.rpartition(" / ")[2] in keys and isinstance(m, Measure)
        ]
        if hits:
            m, name = hits[0]
            text = charts.count(m.value) if unit else charts.value(m).removesuffix(f" {m.unit}")
            rows.append((label, text, charts.interval(m) or unit or name))
    tokens = {}
    for step in run.steps:
        part = step.parts.get("metrics.jsonl")
        if part and part.data and part.data["axis"] == "tokens":
            tokens[step.address] = (part.data["span"][1], step.stage)
    if tokens:  # the stage of the longest training, with what continues it (long context, annealing)
        stage = max(tokens.values())[1]
        total = sum(number for number, of in tokens.values() if of == stage)
        rows.insert(1, ("Training tokens", charts.count(total), f"in {stage}"))
    return rows


def render(run: Run, limits: Limits) -> bytes:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "count": charts.count,
        "size": charts.size,
        "duration": charts.duration,
        "share": charts.share,
        "plain": charts.plain,
        "value": charts.value,
        "interval": charts.interval,
        "cut": lambda text, most=limits.text: cut(text, min(most, limits.text)),
        "pretty": lambda data: cut(json.dumps(data, indent=2, ensure_ascii=False), 4 * limits.text),
    }
    environment.globals["whisker"] = charts.whisker
    page = environment.get_template("page.html").render(
        run=run,
        record=dict.fromkeys(("recipe", "herder", "git", "seconds", "config"), "") | run.record,
        machine=machine if isinstance(machine := run.record.get("machine"), dict) else {},
        overrides=overrides[: limits.rows] if isinstance(overrides := run.record.get("overrides"), list) else [],
        started=str(run.record.get("started") or "").replace("T", " ")[:19],
        problems=problems(run),
        headlines=headlines(run),
        graphs=[graph.draw(run.steps, 5, 1112), graph.draw(run.steps, 2, 380)],
        curation=[
            shown(p, lambda d: {"funnel": funnel(d), **ledger_table(d, limits)}) for p in parts(run, "ledger.json")
        ],
        audits=[shown(p, lambda d: list(d.items())[: limits.rows]) for p in parts(run, "audit.json")],
        mixtures=[shown(p, mixture) for p in parts(run, "mixture.json")],
        scaling=[shown(p, laws.scaling_card) for p in parts(run, "scaling.json")],
        training=training(run, limits),
        comparisons=[shown(p, comparison) for p in parts(run, "comparison.json")],
        measures=measures(run, limits),
        answers=[shown(p, lambda d: answers(d, limits.items)) for p in parts(run, "answers.json")],
        samples=[shown(p, lambda d: samples(d, limits.items)) for p in parts(run, "samples.json")],
        rows_shown=limits.rows,
    )
    return page.encode("utf-8", "replace")


def parts(run: Run, file: str) -> list[Part]:
    return [step.parts[file] for step in run.steps if file in step.parts]


def shown(part: Part, build: Any) -> Part:
    return part if part.problem else Part(part.step, build(part.data))


def funnel(ledgers: Sequence[Ledger]) -> list[dict]:
    """Rows from all that was read, through each reason, to what was kept, each with a bar that starts where the last ended."""
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    whole = max(total.read, total.documents + sum(total.removed.values())) or 1
    reasons = sorted(total.removed.items(), key=lambda r: -r[1])
    if len(reasons) > REASONS_SHOWN:
        rest = reasons[REASONS_SHOWN:]
        reasons = [*reasons[:REASONS_SHOWN], (f"{len(rest)} other reasons", sum(n for _, n in rest))]
    missing = total.read - total.documents - sum(total.removed.values())
    if missing > 0:
        reasons.append(("not accounted for", missing))
    rows = [("read", total.read, 0.0, total.read, "fill")]
    left = whole
    for reason, number in reasons:
        rows.append((reason, number, left - number, left, "lost"))
        left -= number
    rows.append(("kept", total.documents, 0.0, total.documents, "kept"))
    return [
        {"label": label, "count": number, "share": number / whole, "bar": charts.bar(low / whole, high / whole, css)}
        for label, number, low, high, css in rows
    ]


def ledger_table(ledgers: Sequence[Ledger], limits: Limits) -> dict:
    total = Ledger("all sources")
    for ledger in ledgers:
        total.add(ledger)
    return {"ledgers": list(ledgers)[: limits.rows], "total": total}


def mixture(rows: Sequence[tuple[str, float, float, int]]) -> list[dict]:
    top = max([1e-9, *(max(target, realised) for _, target, realised, _ in rows)])
    return [
        {"source": source, "target": target, "realised": realised, "tokens": tokens}
        | {"bars": charts.bar(0, target / top, "aim") + charts.bar(0, realised / top)}
        for source, target, realised, tokens in rows
    ]


def comparison(tables: Sequence[dict]) -> list[dict]:
    """Rows with whisker bars on the scale of their table; the first row is the model the table is about."""
    out = []
    for table in tables:
        low, high = charts.scale([m for _, m, _ in table["rows"]])
        rows = [
            {"name": name, "measure": m, "note": note, "bar": charts.whisker(m, low, high, "other" if i else "fill")}
            for i, (name, m, note) in enumerate(table["rows"])
        ]
        out.append(table | {"rows": rows, "notes": any(row["note"] for row in rows)})
    return out


def measures(run: Run, limits: Limits) -> list[tuple[str, list[tuple]]]:
    """Every number of the run that carries an interval, by step; shares get a bar."""
    out, left = [], limits.rows
    for step in run.steps:
        rows = [(key, m) for key, m in step.numbers if isinstance(m, Measure) and m.n][:left]
        left -= len(rows)
        if rows:
            out.append((step.name, [(key, m, charts.whisker(m, 0, 1) if m.unit == "%" else "") for key, m in rows]))
    return out


def training(run: Run, limits: Limits) -> list[dict]:
    """One card for each training step, or family of siblings; only the longest few are open."""
    cards = []
    for family in graph.families(run.steps):
        found = [(step, step.parts["metrics.jsonl"]) for step in family if "metrics.jsonl" in step.parts]
        trouble = [f"{part.step}: {part.problem}" for _, part in found if part.problem]
        good = [(step, part.data) for step, part in found if part.data]
        trouble += [
            f"{step.name}: {data['broken']} lines of metrics.jsonl cannot be read and are left out"
            for step, data in good
            if data["broken"]
        ]
        if found:
            stage, title = family[0].stage, graph.family_title(family)
            head = {"title": title if stage == title else f"{stage}/{title}", "problems": trouble}
            head |= {"seconds": sum(step.seconds or 0.0 for step in family), "legend": [s.title for s, _ in good][:24]}
            cards.append(head | draw_curves([data for _, data in good], head["title"], limits))
    slowest = sorted((c["seconds"] for c in cards), reverse=True)[:CARDS_OPEN]
    return [card | {"open": bool(card["problems"]) or card["seconds"] >= slowest[-1]} for card in cards]


def draw_curves(steps: Sequence[dict], title: str, limits: Limits) -> dict:
    """The charts of a card: `main` are the loss and what else was measured (a row, or two), `more` the rates."""
    curves: dict[str, list] = {}
    for data in steps:
        for key, points in data["curves"].items():
            curves.setdefault(key, []).append(points)
    spans = [data["span"] for data in steps] or [(0.0, 1.0)]
    span = (min(s[0] for s in spans), max(s[1] for s in spans))
    rank = {"loss": 0, "tokens_per_second": 3} | dict.fromkeys(RATES, 4)
    keys = sorted(curves, key=lambda k: rank.get(k, 1 if k.startswith("heldout") else 2))[: limits.rows]
    drawn = [
        {
            "title": key.replace("_", " ").replace("heldout", "held-out").replace("lr", "learning rate"),
            "last": curves[key][0][-1][1] if len(curves[key]) == 1 else None,
            "svg": charts.line_chart(curves[key], span, steps[0]["axis"], f"{key} of {title}", limits.points),
        }
        for key in keys
    ]
    first = sum(key not in RATES for key in keys)
    first = min(first, 6 if first >= 6 else 3)
    return {"main": drawn[:first], "more": drawn[first:]}


def answers(rows: Sequence[dict], most: int) -> dict:
    """Sample answers in turn from every task, so that no task crowds out the others, with how many were right of all."""
    tasks: dict[str, list[dict]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    longest = max(map(len, tasks.values()), default=0)
    turn = [group[i] for i in range(longest) for group in tasks.values() if i < len(group)]
    judged = [row["correct"] for row in rows if row["correct"] is not None]
    right = Measure.share(sum(judged), len(judged)) if judged else None
    return {"rows": turn[:most], "all": len(rows), "right": right, "judged": len(judged)}


def samples(data: dict[str, list[dict]], most: int) -> dict:
    """Kept documents, and removed ones by the filter that removed them, every filter with its share of the places."""
    fates: dict[str, list[dict]] = {}
    for row in data["removed"]:
        fates.setdefault(row["fate"] or "no reason given", []).append(row)
    each = max(1, 2 * most // max(1, len(fates)))
    removed = [(fate, rows[:each], len(rows)) for fate, rows in list(fates.items())[: 2 * most]]
    return {"kept": data["kept"][:most], "kept_all": len(data["kept"]), "removed": removed}
