"""How right the filters are: fates against a truth table (what was planted, what should have become of it).

Precision asks of each reason: did what it removed deserve to go, for whatever reason? Recall asks of each planted kind: did it
go? Of a group of duplicates any one member may survive. Extraction is measured by the words and code lines that arrive.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from herder.curate.dedup import NearDuplicates, expected_recall
from herder.curate.words import hash_words, shingles
from herder.records import KEPT, Measure, read_attribute, shard_names

DUPLICATES = ("url_duplicate", "exact_duplicate", "near_duplicate")
NOT_READ = "not read"
"""The fate of a record that the reader left out, or whose page held no text."""


def audit(curated: Path, truth: Path) -> dict[str, dict]:
    """{name: {measure: Measure}} for every reason (precision), planted kind (recall) and for extraction.

    `truth` is a Parquet file with id, expected ("" for what should be kept), planted, group, text and, where known, edit,
    benchmark and boilerplate; other columns are not looked at.
    """
    rows = {row["id"]: row for row in pq.read_table(truth).to_pylist()}
    fates = read_fates(Path(curated))
    result = {"all": overall(rows, fates)}
    result |= {reason: {"precision": p} for reason, p in precisions(rows, fates).items()}
    for kind, recall in recalls(rows, fates).items():
        result.setdefault(kind, {})["recall"] = recall
    result["near_duplicates_by_edit"] = by_edit(rows, fates, near_rule(Path(curated)))
    result["extraction"] = extraction(Path(curated), rows)
    return result


def near_rule(curated: Path) -> NearDuplicates:
    """The rule that a curated folder was made with."""
    chosen = json.loads((curated / "config.json").read_text())["near"]
    return NearDuplicates(**{name: value for name, value in chosen.items() if name != "type"})


def read_fates(curated: Path) -> dict[str, tuple[str, str]]:
    """id -> (fate, duplicate_of) of every document."""
    fates = {}
    for name in shard_names(curated):
        fate, dedup = read_attribute(curated, "fate", name), read_attribute(curated, "dedup", name)
        columns = (fate.column("id"), fate.column("fate"), dedup.column("duplicate_of"))
        fates |= {i: (f, d or "") for i, f, d in zip(*(c.to_pylist() for c in columns), strict=True)}
    return fates


def overall(rows: dict, fates: dict) -> dict[str, Measure]:
    """Of what is kept, how much should be; of what should be kept, how much is. Copies of one group count as one."""
    kept = [row for row in rows.values() if fate_of(row, fates) == KEPT]
    survivors: dict[str, int] = {}
    for row in kept:
        if row["group"]:
            survivors[row["group"]] = survivors.get(row["group"], 0) + 1
    good = sum(
        row["expected"] == "" or (row["expected"] in DUPLICATES and survivors[row["group"]] == 1) for row in kept
    )
    guarded = guards_benchmarks(fates)
    wanted = [row for row in rows.values() if row["expected"] == "" and not (guarded and row.get("benchmark"))]
    found = sum(fate_of(row, fates) == KEPT or survivors.get(row["group"] or "-", 0) > 0 for row in wanted)
    return {"kept_and_wanted": Measure.share(good, len(kept)), "wanted_and_kept": Measure.share(found, len(wanted))}


def guards_benchmarks(fates: dict) -> bool:
    """Whether the curation was told of the benchmark items: then their pages are not wanted."""
    return any(reason == "benchmark_overlap" for reason, _ in fates.values())


def fate_of(row: dict, fates: dict) -> str:
    return fates.get(row["id"], (NOT_READ, ""))[0]


def deserved(row: dict, reason: str, duplicate_of: str, rows: dict) -> bool:
    """Whether a removal was right: nobody wanted the record, it is a copy of what was kept, or holds a benchmark item."""
    if row["expected"] and row["expected"] not in DUPLICATES:
        return True
    if reason in DUPLICATES:
        other = rows.get(duplicate_of)
        return other is not None and (same_group(row, other) or row["text"] == other["text"] or contained(row, other))
    if reason in ("benchmark_overlap", "heldout_overlap"):
        return reason == "heldout_overlap" or bool(row.get("benchmark"))
    return False


def same_group(row: dict, other: dict) -> bool:
    return bool(row["group"]) and row["group"] == other["group"]


SAME_TEXT = 0.5


def contained(row: dict, other: dict) -> bool:
    """Real text repeats itself without being planted: half of the 5-grams shared makes a copy as well."""
    a, b = (np.unique(shingles(hash_words(r["text"]).hashes, 5)) for r in (row, other))
    return len(np.intersect1d(a, b)) >= SAME_TEXT * max(1, min(len(a), len(b)))


def precisions(rows: dict, fates: dict) -> dict[str, Measure]:
    counts: dict[str, list[int]] = {}
    for key, (reason, duplicate_of) in fates.items():
        if reason != KEPT and key in rows:
            hits = counts.setdefault(reason, [0, 0])
            hits[0] += deserved(rows[key], reason, duplicate_of, rows)
            hits[1] += 1
    return {reason: Measure.share(*hits) for reason, hits in sorted(counts.items())}


def recalls(rows: dict, fates: dict) -> dict[str, Measure]:
    """The share of each planted kind that is gone; of duplicates, the share whose group has one survivor at most."""
    counts: dict[str, list[int]] = {}
    survivors = surviving_groups(rows, fates)
    guarded = guards_benchmarks(fates)
    for row in rows.values():
        gone = fate_of(row, fates) != KEPT
        kinds = [row["expected"], *(p for p in row["planted"] or [] if p != row["expected"])] if row["expected"] else []
        if guarded and row.get("benchmark"):
            kinds = [*kinds, "benchmark_overlap"]
        for kind in kinds:
            if row["expected"] in DUPLICATES and kind in NOT_DEFECTS:
                continue
            hits = counts.setdefault(kind, [0, 0])
            hits[0] += gone or (row["expected"] in DUPLICATES and survivors[row["group"]] <= 1)
            hits[1] += 1
    return {kind: Measure.share(*hits) for kind, hits in sorted(counts.items())}


NOT_DEFECTS = frozenset(
    ("code", "image", "table", "formula", "encoded", "wrong_type", "charset", "wrong_charset", "mojibake")
)


def surviving_groups(rows: dict, fates: dict) -> dict[str, int]:
    survivors: dict[str, int] = {}
    for row in rows.values():
        if row["group"]:
            survivors[row["group"]] = survivors.get(row["group"], 0) + (fate_of(row, fates) == KEPT)
    return survivors


EDIT_BANDS = (0.0, 0.1, 0.15, 0.2, 0.25, 1.0)


def by_edit(rows: dict, fates: dict, rule: NearDuplicates) -> dict[str, Measure]:
    """Recall of near duplicates by the share of words edited, each with what the S-curve promises for the true texts."""
    survivors = surviving_groups(rows, fates)
    result = {}
    for low, high in itertools.pairwise(EDIT_BANDS):
        copies = [
            r for r in rows.values() if r["expected"] == "near_duplicate" and low <= (r.get("edit") or 0.0) < high
        ]
        if copies:
            promised = [
                expected_recall(jaccard(r, rows[r["duplicate_of"]], rule.shingle), rule, "code" in r["planted"])
                for r in copies
            ]
            name = f"{low:.0%}-{min(high, 0.3):.0%}"
            result[name] = Measure.share(sum(survivors[r["group"]] <= 1 for r in copies), len(copies))
            result[f"{name} expected"] = Measure(float(np.mean(promised)), unit="%")
    return result


def jaccard(row: dict, other: dict, n: int) -> float:
    a, b = (np.unique(shingles(hash_words(r["text"]).hashes, n)) for r in (row, other))
    both = len(np.intersect1d(a, b))
    return both / max(1, len(a) + len(b) - both)


def extraction(curated: Path, rows: dict) -> dict[str, Measure]:
    """Word F1 of extracted against true texts, code lines that arrive with their indentation, boilerplate that came along."""
    scores, lines_found, lines_total, dirty, documents = [], 0, 0, 0, 0
    for key, text in texts(curated):
        row = rows.get(key)
        if row is None or not row["text"] or (row["expected"] and row["expected"] not in DUPLICATES):
            continue
        scores.append(word_f1(text, row["text"]))
        documents += 1
        dirty += any(line in text for line in row.get("boilerplate") or [])
        if "code" in row["planted"]:
            wanted = [line for line in row["text"].split("\n") if line.startswith("    ") and line.strip()]
            have = set(text.split("\n"))
            lines_found += sum(line.rstrip() in have or line in have for line in wanted)
            lines_total += len(wanted)
    return {
        "word_f1": Measure.mean(scores),
        "code_lines": Measure.share(lines_found, lines_total),
        "with_boilerplate": Measure.share(dirty, documents),
    }


def texts(curated: Path) -> Iterator[tuple[str, str]]:
    for name in shard_names(curated):
        table = pq.read_table(curated / "documents" / name, columns=["id", "text"])
        yield from zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True)


def word_f1(text: str, truth: str) -> float:
    """F1 of the two bags of words."""
    a, b = hash_words(text).hashes, hash_words(truth).hashes
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    values, positions = np.unique(np.concatenate((a, b)), return_inverse=True)
    count_a = np.bincount(positions[: len(a)], minlength=len(values))
    count_b = np.bincount(positions[len(a) :], minlength=len(values))
    return float(2 * np.minimum(count_a, count_b).sum() / (len(a) + len(b)))
