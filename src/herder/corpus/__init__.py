"""Where raw pages come from (paper section 3.1.1): Common Crawl, WARC, folders, JSONL, Parquet, Hugging Face, a miniature web.

Every source streams `Record`s part by part and counts what it leaves out; `open_source` picks one for an address.
"""

from herder.corpus.commoncrawl import CommonCrawlSource
from herder.corpus.files import Patience
from herder.corpus.folders import FolderSource
from herder.corpus.huggingface import HuggingFaceSource
from herder.corpus.sources import Source, open_source
from herder.corpus.tables import Fields, JsonlSource, ParquetSource
from herder.corpus.warc import WarcSource

__all__ = [
    "CommonCrawlSource",
    "Fields",
    "FolderSource",
    "HuggingFaceSource",
    "JsonlSource",
    "ParquetSource",
    "Patience",
    "Source",
    "WarcSource",
    "open_source",
]
