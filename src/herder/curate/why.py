"""Why a document was kept or removed, in sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from herder.curate.heuristics import STAT_NAMES
from herder.records import KEPT, read_attribute, shard_names


def why(out: Path, id_or_url: str) -> str:
    """Explains the fate of the documents with this id or address. Raises ValueError where no document has it."""
    out = Path(out)
    limits = json.loads((out / "config.json").read_text())["thresholds"] if (out / "config.json").exists() else {}
    stories = []
    for name in shard_names(out):
        table = pq.read_table(out / "documents" / name, columns=["id", "url", "title", "source", "crawled_at"])
        found = pc.or_(pc.equal(table.column("id"), id_or_url), pc.equal(table.column("url"), id_or_url))
        stories += [
            story(out, name, row, table.slice(row, 1).to_pylist()[0], limits)
            for row in pc.indices_nonzero(found).to_pylist()
        ]
    if not stories:
        raise ValueError(
            f"no document of {out} has the id or address {id_or_url!r}; "
            "records that never became documents are counted in ledger.json"
        )
    return "\n\n".join(stories)


def story(out: Path, shard: str, row: int, document: dict, limits: dict) -> str:
    attributes = {}
    for attribute in ("fate", "split", "dedup", "language", "stats", "keys"):
        columns = read_attribute(out, attribute, shard).slice(row, 1)
        attributes[attribute] = {k: v for k, v in columns.to_pylist()[0].items() if k not in ("id", "signature")}
    fate, dedup, stats = attributes["fate"], attributes["dedup"], attributes["stats"]
    verdict = (
        f"kept ({attributes['split']['split']})"
        if fate["fate"] == KEPT
        else f"removed by {fate['fate']}: {fate['detail']}"
    )
    lines = [
        f"{document['id']} is {verdict}",
        f"  address {document['url'] or '(none)'}, crawled {document['crawled_at'] or '(unknown)'}, source {document['source']}, "
        f"title {document['title']!r}",
        f"  language {attributes['language']['language'] or '(none)'} with {attributes['language']['score']:.2f}",
    ]
    if dedup["duplicate_of"]:
        lines.append(f"  duplicate of {dedup['duplicate_of']}")
    if dedup["cluster_size"] > 1:
        lines.append(f"  one of {dedup['cluster_size']} near duplicates (cluster {dedup['cluster']})")
    lines += [f"  {name} {show(stats[name])}{bounds(name, limits)}" for name in STAT_NAMES]
    return "\n".join(lines)


def bounds(name: str, limits: dict) -> str:
    """The thresholds that a number is held against: " (min 20, max 200000)"."""
    found = [f"{side} {limits[f'{side}_{name}']:g}" for side in ("min", "max") if f"{side}_{name}" in limits]
    return f" ({', '.join(found)})" if found else ""


def show(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
