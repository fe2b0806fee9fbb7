"""What a curation does: every threshold, and which of them a change makes worth reading the pages again for."""

from __future__ import annotations

from dataclasses import dataclass, field

from herder.config import digest, encode, runtime
from herder.curate.dedup import NearDuplicates
from herder.curate.heuristics import Thresholds

ATTRIBUTES_VERSION = 1
"""Raised when extraction or a tagger changes what it writes: finished parts of another version are made again."""


@dataclass(frozen=True)
class CurateConfig:
    """`languages` are those kept (empty: all). `benchmarks` names a JSONL file of test items that must not be trained on."""

    languages: tuple[str, ...] = ("en", "fr", "es")
    min_language_score: float = 0.2
    thresholds: Thresholds = field(default_factory=Thresholds)
    near: NearDuplicates = field(default_factory=NearDuplicates)
    benchmarks: str = ""
    max_benchmark_overlap: float = 0.5
    heldout_share: float = 0.04
    max_heldout_overlap: float = 0.2
    seed: int = 0
    max_page_bytes: int = 10_000_000
    samples_per_reason: int = runtime(5)

    def __post_init__(self):
        for name in ("min_language_score", "max_benchmark_overlap", "heldout_share", "max_heldout_overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1")
        if isinstance(self.languages, str):
            raise ValueError(f'languages={self.languages!r} must be a tuple of codes, such as ("{self.languages}",)')

    def reading(self, benchmarks: str = "") -> str:
        """Identity of what the first pass writes; thresholds and the split are not part of it."""
        parts = [ATTRIBUTES_VERSION, self.near.shingle, self.max_page_bytes, benchmarks]
        return digest(encode(parts), 16)
