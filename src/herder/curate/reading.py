"""The first pass: one part of a source becomes one shard of documents with the attributes beside it.

Whatever needs one document alone is computed here, in worker processes that load no deep-learning library. A part is finished
when its mark is written, last of all, so a killed run continues with the parts that have none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import xxhash

from herder.curate import plain
from herder.curate.dedup import PERMUTATIONS, signatures
from herder.curate.extract import Page, extract
from herder.curate.heuristics import STAT_NAMES, measure
from herder.curate.language import detect, prose
from herder.curate.overlap import Protected, read_benchmarks
from herder.curate.settings import CurateConfig
from herder.curate.urls import normalize_url
from herder.curate.words import hash_words
from herder.records import Document, Ledger, Record, write_documents, write_table

TAGGERS = ("language", "stats", "keys")
BATCH = 256


@dataclass(frozen=True)
class Part:
    """One unit of work: which part of which source becomes which shard."""

    source: object
    source_index: int
    address: str
    shard: str
    identity: str


def mark_path(out: Path, shard: str) -> Path:
    return Path(out) / "state" / shard.replace(".parquet", ".json")


def finished(out: Path, part: Part) -> Ledger | None:
    """The ledger of a part that was read before under the same configuration, or None."""
    try:
        mark = json.loads(mark_path(out, part.shard).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    if mark.get("identity") != part.identity:
        return None
    paths = [out / "documents" / part.shard, *(out / "attributes" / t / part.shard for t in TAGGERS)]
    return Ledger.from_json(mark["ledger"]) if all(p.exists() for p in paths) else None


def read_part(part: Part, out: Path, config: CurateConfig) -> dict:
    """Reads, extracts, measures and writes one part; returns its ledger as JSON."""
    protected, _ = read_benchmarks(config.benchmarks)
    ledger = Ledger(source=part.source.name)
    documents: list[Document] = []
    columns: dict[str, list] = {
        name: [] for name in ("language", "score", "url_key", "content_key", "benchmark", "signature")
    }
    stats: dict[str, list] = {name: [] for name in STAT_NAMES}
    batch: list[Document] = []
    for document in read_records(part, ledger, config):
        batch.append(document)
        if len(batch) == BATCH:
            tag(batch, columns, stats, protected, config)
            documents += batch
            batch = []
    tag(batch, columns, stats, protected, config)
    documents += batch
    ledger.documents = len(documents)
    ledger.characters = sum(len(d.text) for d in documents)
    write_part(Path(out), part, documents, columns, stats, ledger)
    return ledger.to_json()


def read_records(part: Part, ledger: Ledger, config: CurateConfig) -> Iterator[Document]:
    """The documents of a part. Ids are made unique within the part: a source may name two captures alike."""
    seen: set[str] = set()
    for record in part.source.read(part.address, ledger):
        if len(record.body) > config.max_page_bytes:
            ledger.remove("too_large")
            continue
        try:
            page = to_page(record)
        except (RecursionError, MemoryError, ValueError, OverflowError):
            ledger.remove("extraction_failed")
            continue
        if not page.text.strip():
            ledger.remove("no_text")
            continue
        if record.id in seen:
            record = replace(record, id=f"{record.id}-{len(seen)}")
        seen.add(record.id)
        yield Document(
            record.id,
            record.url,
            page.text,
            page.title,
            page.spans,
            record.source,
            record.crawled_at,
            record.content_type,
        )


def to_page(record: Record) -> Page:
    """The text of a record: HTML is extracted, markdown loses its markers, code becomes one span, text stays as it is."""
    if record.content_type in ("text/html", "application/xhtml+xml"):
        return extract(record.body, record.url, record.charset)
    return plain.read(record.body, record.content_type, record.charset)


def tag(batch: list[Document], columns: dict, stats: dict, protected: Protected | None, config: CurateConfig) -> None:
    """Appends the attributes of a batch of documents."""
    words = [hash_words(document.text) for document in batch]
    for document, found in zip(batch, words, strict=True):
        language, score = detect(prose(document.text, document.spans))
        columns["language"].append(language)
        columns["score"].append(score)
        columns["url_key"].append(
            xxhash.xxh3_64_intdigest(normalize_url(document.url).encode("utf-8", "replace")) if document.url else 0
        )
        columns["content_key"].append(xxhash.xxh3_64_intdigest(found.hashes.tobytes()))
        columns["benchmark"].append(round(protected.worst(found.hashes), 4) if protected else 0.0)
        measured = measure(document.text, document.spans, found)
        for name in STAT_NAMES:
            stats[name].append(getattr(measured, name))
    rows = signatures([found.hashes for found in words], config.near.shingle)
    columns["signature"] += [row.tobytes() for row in rows]


def write_part(out: Path, part: Part, documents: list[Document], columns: dict, stats: dict, ledger: Ledger) -> None:
    ids = pa.array([d.id for d in documents], pa.string())
    write_documents(documents, out / "documents" / part.shard)
    language = pa.table(
        {
            "id": ids,
            "language": pa.array(columns["language"], pa.string()),
            "score": pa.array(columns["score"], pa.float32()),
        }
    )
    keys = pa.table(
        {
            "id": ids,
            "url_key": pa.array(columns["url_key"], pa.uint64()),
            "content_key": pa.array(columns["content_key"], pa.uint64()),
            "benchmark": pa.array(columns["benchmark"], pa.float32()),
            "signature": pa.array(columns["signature"], pa.binary(PERMUTATIONS * 4)),
        }
    )
    table = pa.table({"id": ids, **{name: pa.array(values, STAT_TYPES[name]) for name, values in stats.items()}})
    for name, attribute in zip(TAGGERS, (language, table, keys), strict=True):
        write_table(attribute, out / "attributes" / name / part.shard)
    write_json(
        {"identity": part.identity, "part": part.address, "ledger": ledger.to_json()}, mark_path(out, part.shard)
    )


COUNTS = ("words", "characters", "prose_words", "dirty_words", "dirty_kinds", "spam_words", "spam_kinds")
STAT_TYPES = {name: pa.int32() if name in COUNTS else pa.float32() for name in STAT_NAMES} | {"lorem_ipsum": pa.bool_()}


def write_json(data: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(scratch, path)
