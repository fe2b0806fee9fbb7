"""The second pass: what needs all documents at once. URL, exact and near duplicates, the split, and every document's fate.

It reads attributes, not texts (the held-out check aside), so it can be run again with other thresholds in seconds. Each
document has exactly one fate: "kept", or the first filter that removes it in the order URLs, language, heuristics, benchmark
overlap, exact duplicates, near duplicates, held-out overlap.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from herder.curate.dedup import PERMUTATIONS, keepers, near_duplicates
from herder.curate.heuristics import STAT_NAMES, Stats, judge
from herder.curate.overlap import Protected
from herder.curate.settings import CurateConfig
from herder.curate.words import hash_words
from herder.records import KEPT, read_attribute, write_table


class Corpus:
    """What the second pass knows of all n documents, in shard order: a few numbers each."""

    def __init__(self, out: Path, shards: list[str]):
        self.out, self.shards = out, shards
        meta = [pq.read_table(out / "documents" / name, columns=["id", "crawled_at"]) for name in shards]
        keys = [read_attribute(out, "keys", name).select(["url_key", "content_key", "benchmark"]) for name in shards]
        self.sizes = [table.num_rows for table in meta]
        joined, keyed = pa.concat_tables(meta), pa.concat_tables(keys)
        self.ids = joined.column("id").combine_chunks()
        self.n = joined.num_rows
        self.date = (
            pc.rank(joined.column("crawled_at").combine_chunks(), tiebreaker="dense").to_numpy().astype(np.int64)
        )
        self.url_key, self.content_key, self.benchmark = (keyed.column(c).to_numpy() for c in keyed.column_names)
        self.length = np.zeros(self.n, np.int64)
        self.has_code = np.zeros(self.n, bool)
        self.fate = np.full(self.n, KEPT, dtype=object)
        self.detail = np.full(self.n, "", dtype=object)
        self.duplicate_of = np.full(self.n, -1, np.int64)
        self.cluster = np.arange(self.n)

    def alive(self) -> np.ndarray:
        """Row numbers of the documents that nothing has removed so far."""
        return np.flatnonzero(self.fate == KEPT)

    def remove(self, row: int, reason: str, detail: str) -> None:
        self.fate[row], self.detail[row] = reason, detail

    def rows_of(self, shard: int) -> slice:
        start = sum(self.sizes[:shard])
        return slice(start, start + self.sizes[shard])


def resolve(out: Path, shards: list[str], config: CurateConfig) -> Corpus:
    """Decides every document's fate and split and writes the attributes `dedup`, `fate` and `split`."""
    corpus = Corpus(out, shards)
    has_url = np.flatnonzero(corpus.url_key != 0)
    drop_duplicates(corpus, has_url, corpus.url_key[has_url], "url_duplicate", "an older capture of the same address")
    apply_rules(corpus, config)
    alive = corpus.alive()
    drop_duplicates(corpus, alive, corpus.content_key[alive], "exact_duplicate", "the same words in the same order")
    drop_near_duplicates(corpus, config)
    split = split_off(corpus, config)
    write_attributes(corpus, split)
    return corpus


def drop_duplicates(corpus: Corpus, rows: np.ndarray, keys: np.ndarray, reason: str, detail: str) -> None:
    """Of the rows with equal keys the newest stays (then the longest, then the first)."""
    if len(rows) == 0:
        return
    order = np.lexsort((rows, -corpus.length[rows], -corpus.date[rows], keys))
    ordered = keys[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    keeper = rows[order][np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    for row, kept in zip(rows[order][~first].tolist(), keeper[~first].tolist(), strict=True):
        corpus.remove(row, reason, detail)
        corpus.duplicate_of[row] = kept


def apply_rules(corpus: Corpus, config: CurateConfig) -> None:
    """The rules that look at one document alone: language, heuristics, benchmark overlap."""
    row = 0
    for name in corpus.shards:
        languages = read_attribute(corpus.out, "language", name)
        stats = read_attribute(corpus.out, "stats", name)
        measured = zip(*(stats.column(c).to_pylist() for c in STAT_NAMES), strict=True)
        spoken = zip(languages.column("language").to_pylist(), languages.column("score").to_pylist(), strict=True)
        for (language, score), numbers in zip(spoken, measured, strict=True):
            found = Stats(*numbers)
            corpus.length[row], corpus.has_code[row] = found.characters, found.code_share > 0
            if corpus.fate[row] == KEPT:
                verdict = foreign(language, score, found, config) or judge(found, config.thresholds, language)
                if verdict is None and corpus.benchmark[row] > config.max_benchmark_overlap:
                    verdict = ("benchmark_overlap", f"holds {corpus.benchmark[row]:.0%} of a benchmark item's 8-grams")
                if verdict:
                    corpus.remove(row, *verdict)
            row += 1


MIN_PROSE_WORDS = 12


def foreign(language: str, score: float, stats: Stats, config: CurateConfig) -> tuple[str, str] | None:
    """The language rule. Pages of code, or with hardly any prose, speak no language and are left to the other rules."""
    if not config.languages or not language or stats.prose_words < MIN_PROSE_WORDS:
        return None
    if language not in config.languages:
        return "language", f"{language} ({score:.2f}) is not among {', '.join(config.languages)}"
    if score < config.min_language_score and stats.code_share == 0:
        return "language", f"{language} with a score of {score:.2f} < {config.min_language_score:g}"
    return None


def drop_near_duplicates(corpus: Corpus, config: CurateConfig) -> None:
    """MinHash clusters among what is left; the newest of a cluster stays, then the longest."""
    alive = corpus.alive()
    if len(alive) == 0:
        return
    matrix, scratch = signature_matrix(corpus, alive)
    needed = np.where(corpus.has_code[alive], config.near.similarity_with_code, config.near.similarity)
    roots = near_duplicates(matrix, config.near, needed)
    corpus.cluster[alive] = alive[roots]
    order = np.lexsort((alive, -corpus.length[alive], -corpus.date[alive], roots))
    _, starts, counts = np.unique(roots[order], return_index=True, return_counts=True)
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        members = order[start : start + count]
        for member, keeper in zip(members.tolist(), keepers(matrix, members, needed).tolist(), strict=True):
            if member != keeper:
                row, kept = int(alive[member]), int(alive[keeper])
                shared = float((matrix[member] == matrix[keeper]).mean())
                corpus.remove(row, "near_duplicate", f"estimated Jaccard {shared:.2f}, needed {needed[member]:g}")
                corpus.duplicate_of[row] = kept
    del matrix
    scratch.unlink()


def signature_matrix(corpus: Corpus, alive: np.ndarray) -> tuple[np.ndarray, Path]:
    """The signatures of some rows as a memory map uint32 (rows, 128), and the scratch file it lies in."""
    scratch = corpus.out / "state" / "signatures.part"
    wanted = np.zeros(corpus.n, bool)
    wanted[alive] = True
    with open(scratch, "wb") as file:
        for index, name in enumerate(corpus.shards):
            column = read_attribute(corpus.out, "keys", name).column("signature").combine_chunks()
            raw = np.frombuffer(
                column.buffers()[1], np.uint32, len(column) * PERMUTATIONS, column.offset * PERMUTATIONS * 4
            )
            file.write(raw.reshape(-1, PERMUTATIONS)[wanted[corpus.rows_of(index)]].tobytes())
    return np.memmap(scratch, np.uint32, "r", shape=(len(alive), PERMUTATIONS)), scratch


def split_off(corpus: Corpus, config: CurateConfig) -> np.ndarray:
    """ "train" or "heldout" for every row, by a hash of its cluster; a held-out document that the training documents
    hold too much of is removed ("heldout_overlap"), so that a loss on the rest measures generalisation."""
    split = np.full(corpus.n, "train", dtype=object)
    ids = corpus.ids
    limit = int(config.heldout_share * 2**64)
    for row in corpus.alive().tolist():
        group = ids[int(corpus.cluster[row])].as_py()
        if xxhash.xxh3_64_intdigest(group.encode(), seed=config.seed) < limit:
            split[row] = "heldout"
    heldout = np.flatnonzero(split == "heldout")
    if len(heldout) == 0:
        return split
    texts = dict(texts_of(corpus, split == "heldout"))
    protected = Protected([texts[row] for row in heldout.tolist()])
    hit = np.zeros(len(protected.grams), bool)
    for _, text in texts_of(corpus, (split == "train") & (corpus.fate == KEPT)):
        hit[protected.hits(hash_words(text).hashes)] = True
    for row, share in zip(heldout.tolist(), protected.shares(np.flatnonzero(hit)), strict=True):
        if share > config.max_heldout_overlap:
            corpus.remove(row, "heldout_overlap", f"{share:.0%} of its 8-grams are in the training documents")
    return split


def texts_of(corpus: Corpus, wanted: np.ndarray):
    """(row, text) of the wanted rows, one shard in memory at a time."""
    for index, name in enumerate(corpus.shards):
        rows = corpus.rows_of(index)
        mask = wanted[rows]
        if mask.any():
            texts = (
                pq.read_table(corpus.out / "documents" / name, columns=["text"]).column("text").filter(pa.array(mask))
            )
            yield from zip((np.flatnonzero(mask) + rows.start).tolist(), texts.to_pylist(), strict=True)


def write_attributes(corpus: Corpus, split: np.ndarray) -> None:
    _, inverse, counts = np.unique(corpus.cluster, return_inverse=True, return_counts=True)
    cluster_size = counts[inverse]
    for index, name in enumerate(corpus.shards):
        rows = corpus.rows_of(index)
        ids = corpus.ids[rows]
        original = corpus.duplicate_of[rows]
        copies = pa.array(np.where(original < 0, 0, original), mask=original < 0)
        dedup = {
            "id": ids,
            "cluster": corpus.ids.take(pa.array(corpus.cluster[rows])),
            "cluster_size": pa.array(cluster_size[rows], pa.int32()),
            "duplicate_of": corpus.ids.take(copies),
        }
        fate = {
            "id": ids,
            "fate": pa.array(corpus.fate[rows], pa.string()),
            "detail": pa.array(corpus.detail[rows], pa.string()),
        }
        write_table(pa.table(dedup), corpus.out / "attributes" / "dedup" / name)
        write_table(pa.table(fate), corpus.out / "attributes" / "fate" / name)
        write_table(
            pa.table({"id": ids, "split": pa.array(split[rows], pa.string())}),
            corpus.out / "attributes" / "split" / name,
        )
