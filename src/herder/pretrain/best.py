"""The best documents of a corpus, to be upsampled in annealing, without what benchmarks train on (paper 3.1.3, 3.4.3).

"Best" is told by the signals that curation has measured of each document, ranked within its domain; no source is called good by
its name. Training sets of the benchmarks that a model is scored on would lift its score and nothing else, so a document that
holds a share of one item's 8-grams is left out and listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from herder.config import runtime
from herder.curate import Protected, read_benchmarks
from herder.pretrain.tokens import TokenizeConfig, by_domain
from herder.records import Document, read_attribute, shard_names, write_jsonl
from herder.tokenizer import Tokenizer
from herder.train import write_shards

BEST = "best_"
"""What the names of these sources begin with."""
SIGNALS = {
    "alphabetic_words": 1.0,
    "function_words": 1.0,
    "symbols_per_word": -1.0,
    "bullet_lines": -1.0,
    "ellipsis_lines": -1.0,
    "repeated_lines": -1.0,
    "repeated_5grams": -1.0,
    "top_word": -1.0,
}
"""Columns of the curated corpus's `stats` and what they weigh: text made of sentences that do not repeat themselves."""


@dataclass(frozen=True)
class BestConfig:
    """Which documents count as best, and which are never taken."""

    share: float = 0.25
    """Of each domain's documents."""
    signals: dict[str, float] = field(default_factory=lambda: dict(SIGNALS))
    max_overlap: float = 0.2
    """Share of one benchmark item's 8-grams from which on a document is left out."""
    domains: TokenizeConfig = TokenizeConfig()
    manifest: tuple[dict, ...] = ()
    """Of the file `benchmarks` (`herder.config.manifest`)."""
    benchmarks: str = runtime("")
    """A JSONL file of benchmark items, training sets included; inputs["benchmarks"]/benchmark.jsonl is read as well."""

    def __post_init__(self):
        if not 0 < self.share <= 1 or not 0 < self.max_overlap <= 1:
            raise ValueError(f"share {self.share} and max_overlap {self.max_overlap} must be above 0 and at most 1")


def select_best(config: BestConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: token shards of the best training documents of inputs["corpus"] under `out/train`, sources "best_<domain>";
    `excluded.jsonl` lists what overlaps with benchmarks."""
    files = [config.benchmarks, str(inputs["benchmarks"] / "benchmark.jsonl") if "benchmarks" in inputs else ""]
    protected = [found for file in files if (found := read_benchmarks(file)[0]) is not None]
    chosen = best_documents(inputs["corpus"], config)
    excluded: list[dict] = []

    def kept() -> Iterator[tuple[str, str]]:
        for domain, document in by_domain(inputs["corpus"], config.domains, "train"):
            if document.id not in chosen:
                continue
            overlap = overlaps(document, protected)
            if overlap >= config.max_overlap:
                excluded.append({"id": document.id, "url": document.url, "overlap": round(overlap, 4)})
            else:
                yield BEST + domain, document.text

    ledgers = write_shards(kept(), Tokenizer.load(inputs["tokenizer"]), out / "train", config.domains.threads)
    write_jsonl(excluded, out / "excluded.jsonl")
    (out / "ledger.json").write_text(json.dumps([ledger.to_json() for ledger in ledgers], indent=1))
    return {
        "documents": sum(ledger.documents for ledger in ledgers),
        "excluded_for_benchmarks": len(excluded),
        "tokens": sum(ledger.tokens for ledger in ledgers),
        **{f"{ledger.source}_tokens": ledger.tokens for ledger in ledgers},
    }


def overlaps(document: Document, protected: list[Protected]) -> float:
    """The largest share of any one benchmark item that a document holds."""
    return max((items.worst_in(document.text) for items in protected), default=0.0)


def best_documents(corpus: Path, config: BestConfig) -> set[str]:
    """Ids of the best share of each domain's training documents: the highest sums of weighted ranks of their signals."""
    stats: dict[str, tuple[float, ...]] = {}
    for name in shard_names(corpus):
        table = read_attribute(corpus, "stats", name)
        if missing := sorted(config.signals.keys() - set(table.column_names)):
            raise ValueError(f"signals names {missing[0]!r}; stats has {', '.join(table.column_names[1:])}")
        columns = [table.column(signal).to_pylist() for signal in config.signals]
        stats |= dict(zip(table.column("id").to_pylist(), zip(*columns, strict=True), strict=True))
    domains: dict[str, list[str]] = {}
    for domain, document in by_domain(corpus, config.domains, "train"):
        domains.setdefault(domain, []).append(document.id)
    best: set[str] = set()
    for ids in domains.values():
        scores = quality(np.array([stats[i] for i in ids], dtype=np.float64), config.signals)
        order = np.argsort(-scores, kind="stable")[: max(1, round(config.share * len(ids)))]
        best |= {ids[i] for i in order}
    return best


def quality(values: np.ndarray, signals: Mapping[str, float]) -> np.ndarray:
    """(documents,) sum over signals (documents, signals) of weight times rank, ranks between 0 and 1, equal values alike."""
    ranks = np.stack([rankdata(column) for column in values.T], axis=1) / len(values)
    return ranks @ np.array(list(signals.values()))
