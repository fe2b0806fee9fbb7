"""From sources to a curated folder (paper section 3.1): read every part in parallel, then resolve what needs all of them.

Crash-only: a part that is finished is never read again, the second pass is a pure function of the first one's files, and
the bytes written do not depend on workers, order or interruptions.
"""

from __future__ import annotations

import errno
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from herder.config import digest, encode
from herder.curate.overlap import read_benchmarks
from herder.curate.reading import Part, finished, read_part, write_json
from herder.curate.resolving import Corpus, resolve
from herder.curate.settings import CurateConfig
from herder.launch import children_ignore_interrupts
from herder.progress import report
from herder.records import KEPT, Ledger

SAMPLE_CHARACTERS = 600


def curate(sources: list, out: Path, config: CurateConfig | None = None, workers: int = 2) -> dict:
    """Curates sources into `out`: documents/, attributes/, ledger.json, samples.json (see docs/guide-data.md).

    Returns counts: pages read, documents kept, removed by reason, split sizes, pages_per_second of this call. Raises
    ValueError for sources that cannot be used, OSError (with what to do) when the disk is full.
    """
    config = config or CurateConfig()
    out = Path(out)
    if not sources:
        raise ValueError("there is nothing to curate; name at least one source")
    started = time.monotonic()
    try:
        ledgers, parts, fresh = read_all(sources, out, config, workers)
        corpus = resolve(out, [part.shard for part in parts], config)
        per_source = settle(sources, parts, ledgers, corpus)
        write_json([ledger.to_json() for ledger in per_source], out / "ledger.json")
        write_json(samples(corpus, config.samples_per_reason), out / "samples.json")
        write_json(encode(config), out / "config.json")
    except OSError as error:
        clear_scratch(out)
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"the disk of {out} is full; free space and run the same command again: finished parts are kept",
            ) from None
        raise
    numbers = headline(per_source, corpus, out, [part.shard for part in parts], fresh, time.monotonic() - started)
    if not numbers["kept"]:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in numbers["removed"].items()) or "no record was found"
        )
        raise ValueError(
            f"nothing was kept of {numbers['pages']} records ({reasons}); see {out / 'ledger.json'}, and mend the source, or "
            "loosen the thresholds"
        )
    return numbers


def read_all(sources: list, out: Path, config: CurateConfig, workers: int) -> tuple[list[Ledger], list[Part], int]:
    """The first pass over all parts; returns their ledgers in order, the parts, and the pages read anew."""
    parts = plan(sources, config)
    drop_foreign_shards(out, parts)
    ledgers: list[Ledger | None] = [finished(out, part) for part in parts]
    todo = [index for index, ledger in enumerate(ledgers) if ledger is None]
    clear_scratch(out)
    done, fresh, started = len(parts) - len(todo), 0, time.monotonic()
    for index, ledger in run([(parts[i], out, config) for i in todo], todo, workers):
        ledgers[index] = Ledger.from_json(ledger)
        done += 1
        fresh += ledgers[index].read
        report(done, len(parts), "parts", pages=fresh, pages_per_second=fresh / max(time.monotonic() - started, 1e-9))
    return ledgers, parts, fresh


def plan(sources: list, config: CurateConfig) -> list[Part]:
    """One shard a part, numbered over all sources in order."""
    _, benchmarks = read_benchmarks(config.benchmarks)
    reading = config.reading(benchmarks)
    parts = []
    for number, source in enumerate(sources):
        for address in source.parts():
            identity = digest([reading, encode(source), address, source.manifest(address)], 32)
            parts.append(Part(source, number, address, f"part-{len(parts):05d}.parquet", identity))
    if not parts:
        raise ValueError("the sources hold no parts to read")
    return parts


def run(tasks: list[tuple], indices: list[int], workers: int) -> Iterator[tuple[int, dict]]:
    """Runs the first pass over tasks, in process or in spawned workers (a fork would copy the parent's threads)."""
    if workers <= 1 or len(tasks) <= 1:
        for index, task in zip(indices, tasks, strict=True):
            yield index, read_part(*task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context)
    try:
        with children_ignore_interrupts():  # the first task starts all workers
            futures = {pool.submit(read_part, *task): index for index, task in zip(indices, tasks, strict=True)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a curation worker was killed, most likely for lack of memory; run the same command again with fewer workers: "
            "finished parts are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def drop_foreign_shards(out: Path, parts: list[Part]) -> None:
    """Removes the shards of an earlier run over more parts, which readers of the folder would take for ours."""
    names = {part.shard for part in parts}
    for folder in (out / "documents", *(out / "attributes").glob("*")):
        for path in folder.glob("part-*.parquet"):
            if path.name not in names:
                path.unlink()


def clear_scratch(out: Path) -> None:
    """Removes what an interrupted write left behind."""
    for path in out.rglob("*.part"):
        path.unlink(missing_ok=True)


def settle(sources: list, parts: list[Part], ledgers: list[Ledger], corpus: Corpus) -> list[Ledger]:
    """One ledger a source: what was read, every removal by its reason, and what the kept documents hold."""
    result = [Ledger(source=source.name) for source in sources]
    for shard, (part, ledger) in enumerate(zip(parts, ledgers, strict=True)):
        total = result[part.source_index]
        rows = corpus.rows_of(shard)
        total.read, total.bytes = total.read + ledger.read, total.bytes + ledger.bytes
        total.notes += ledger.notes
        for reason, count in ledger.removed.items():
            total.remove(reason, count)
        fates = corpus.fate[rows]
        for reason, count in zip(*np.unique(fates.astype(str), return_counts=True), strict=True):
            if reason != KEPT:
                total.remove(str(reason), int(count))
        kept = fates == KEPT
        total.documents += int(kept.sum())
        total.characters += int(corpus.length[rows][kept].sum())
    for ledger in result:
        ledger.removed = dict(sorted(ledger.removed.items()))
    return result


def samples(corpus: Corpus, per_reason: int) -> dict[str, list[dict]]:
    """For a report: the first documents of every fate, with reason, address and how the text begins."""
    wanted: dict[int, list[int]] = {}
    for reason in sorted(set(corpus.fate.tolist())):
        rows = np.flatnonzero(corpus.fate == reason)
        picked = rows[:: max(1, len(rows) // max(per_reason, 1))][:per_reason]
        for row in picked.tolist():
            shard = int(np.searchsorted(np.cumsum(corpus.sizes), row, side="right"))
            wanted.setdefault(shard, []).append(row)
    found: dict[str, list[dict]] = {}
    for shard, rows in sorted(wanted.items()):
        table = pq.read_table(corpus.out / "documents" / corpus.shards[shard], columns=["id", "url", "title", "text"])
        start = corpus.rows_of(shard).start
        for row in rows:
            document = {
                name: column[0].as_py()
                for name, column in zip(table.column_names, table.slice(row - start, 1).columns, strict=True)
            }
            document["text"] = document["text"][:SAMPLE_CHARACTERS]
            found.setdefault(corpus.fate[row], []).append({**document, "detail": corpus.detail[row]})
    return dict(sorted(found.items()))


def headline(ledgers: list[Ledger], corpus: Corpus, out: Path, shards: list[str], fresh: int, seconds: float) -> dict:
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    splits = [pq.read_table(out / "attributes" / "split" / name, columns=["split"]).column("split") for name in shards]
    heldout = np.concatenate([s.to_numpy() == "heldout" for s in splits]) & (corpus.fate == KEPT)
    return {
        "pages": total.read,
        "bytes": total.bytes,
        "kept": total.documents,
        "characters": total.characters,
        "heldout": int(heldout.sum()),
        "removed": dict(sorted(total.removed.items())),
        "pages_per_second": round(fresh / seconds, 1),
        "seconds": round(seconds, 2),
    }
