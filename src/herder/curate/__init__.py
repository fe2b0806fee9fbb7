"""Section 3.1: from raw pages to documents worth training on.

`curate` runs the whole stage: `reading.py` turns each part of a source into documents with attributes beside them (charset,
extract with walk and boilerplate, words, language, heuristics, MinHash signatures); `resolving.py` gives every document
one fate (URLs, thresholds, duplicates, the held-out split). `why` explains a fate, `audit` compares fates with planted truth.
"""

from herder.curate.audit import audit
from herder.curate.dedup import NearDuplicates
from herder.curate.extract import Page, extract
from herder.curate.heuristics import Thresholds
from herder.curate.overlap import Protected, read_benchmarks
from herder.curate.pipeline import curate
from herder.curate.settings import CurateConfig
from herder.curate.why import why

__all__ = [
    "CurateConfig",
    "NearDuplicates",
    "Page",
    "Protected",
    "Thresholds",
    "audit",
    "curate",
    "extract",
    "read_benchmarks",
    "why",
]
