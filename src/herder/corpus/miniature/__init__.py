"""The miniature web: real text that every installation has, wrapped into a messy crawl whose truth is known.

`write_web` writes WARC files and a truth table, so that extraction and every filter get a measured precision and recall.
"""

from herder.corpus.miniature.benchmark import Item, benchmark_items
from herder.corpus.miniature.docstrings import SOURCE_HEADING
from herder.corpus.miniature.material import material_manifest
from herder.corpus.miniature.plan import WebConfig
from herder.corpus.miniature.web import TRUTH_SCHEMA, write_web

__all__ = ["SOURCE_HEADING", "TRUTH_SCHEMA", "Item", "WebConfig", "benchmark_items", "material_manifest", "write_web"]
