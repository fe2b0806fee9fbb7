"""Common Crawl by crawl id and file range, over https or s3 (paper section 3.1.1 starts from such web data).

The crawl's path list (`crawl-data/CRAWL/warc.paths.gz`) names its WARC files; a part is one of them. Crawls are immutable, so
the file names identify the data and no byte is fetched for the manifest.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from herder.config import runtime
from herder.corpus.files import PATIENT, Patience, open_binary
from herder.corpus.warc import PAGE_LIMIT_BYTES, read_warc
from herder.records import Ledger, Record

HTTPS = "https://data.commoncrawl.org/"
S3 = "s3://commoncrawl/"
_CRAWL_ID = re.compile(r"CC-[A-Z]+(-[0-9]{4})?(-[0-9]{2})?")
_SPEC = re.compile(r"cc:(?P<crawl>[^:]+)(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?")


@dataclass(frozen=True)
class CommonCrawlSource:
    """Files `first` to `last` (from 0, both included; last None: to the end) of one crawl.

    `base` is where crawls lie: HTTPS, S3, or a mirror. `files` is "warc" (pages) or "wet" (the crawl's own text).
    """

    crawl: str
    first: int = 0
    last: int | None = None
    base: str = HTTPS
    files: str = "warc"
    name: str = "commoncrawl"
    limit_bytes: int = PAGE_LIMIT_BYTES
    patience: Patience = runtime(PATIENT)

    def __post_init__(self):
        if not _CRAWL_ID.fullmatch(self.crawl):
            raise ValueError(f"{self.crawl!r} is no crawl id; give one like CC-MAIN-2024-33")
        if self.files not in ("warc", "wet"):
            raise ValueError(f"files={self.files!r}: Common Crawl sources read 'warc' or 'wet'")
        if self.last is not None and self.last < self.first:
            raise ValueError(f"files {self.first}-{self.last} of {self.crawl}: the last file comes before the first")

    def parts(self) -> list[str]:
        """Addresses of the chosen files. Fetches the path list (once a process); ValueError where the range is beyond it."""
        root = self.base.rstrip("/") + "/"
        paths = _path_list(f"{root}crawl-data/{self.crawl}/{self.files}.paths.gz", self.patience)
        last = len(paths) - 1 if self.last is None else self.last
        if last >= len(paths) or self.first >= len(paths):
            raise ValueError(f"{self.crawl} has {len(paths)} files, numbered from 0; {self.first}-{last} goes beyond")
        return [root + path for path in paths[self.first : last + 1]]

    def read(self, part: str, ledger: Ledger) -> Iterator[Record]:
        with open_binary(part, self.patience) as file:
            yield from read_warc(file, ledger, self.name, self.limit_bytes)

    def manifest(self, part: str = "") -> list[dict]:
        root = self.base.rstrip("/") + "/"
        return [{"path": p.removeprefix(root), "crawl": self.crawl} for p in ([part] if part else self.parts())]


def parse_spec(spec: str, **options) -> CommonCrawlSource:
    """`cc:CC-MAIN-2024-33` (the whole crawl), `cc:CC-MAIN-2024-33:7` (one file) or `cc:CC-MAIN-2024-33:0-9`."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r}: give cc:CRAWL-ID or cc:CRAWL-ID:FIRST-LAST, like cc:CC-MAIN-2024-33:0-9")
    first, last = match["first"], match["last"]
    chosen = {} if first is None else {"first": int(first), "last": int(last or first)}
    return CommonCrawlSource(match["crawl"], **(chosen | options))


@functools.lru_cache(maxsize=16)
def _path_list(address: str, patience: Patience) -> tuple[str, ...]:
    with open_binary(address, patience) as file:
        try:
            text = zlib.decompress(file.read(), 47).decode("ascii")
        except (zlib.error, UnicodeDecodeError):
            raise ValueError(f"{address} is no gzip path list; check the base address") from None
    paths = tuple(line for line in text.split() if ".." not in line and not line.startswith("/"))
    if not paths:
        raise ValueError(f"{address} lists no files; check the crawl id")
    return paths
