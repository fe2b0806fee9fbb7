"""Common Crawl by crawl id and file range, against a local server with its layout."""

from __future__ import annotations

import gzip

import fsspec
import pytest
from warcs import record, server, zipped

from herder.corpus import CommonCrawlSource, Patience, open_source
from herder.records import Ledger

CRAWL = "CC-MAIN-2024-33"
QUICK = Patience(tries=4, first_pause_seconds=0.01)


def crawl(count: int = 5) -> dict[str, bytes]:
    names = [f"crawl-data/{CRAWL}/segments/1/warc/part-{n:05d}.warc.gz" for n in range(count)]
    files = {name: zipped(record(f"page-{n}")) for n, name in enumerate(names)}
    return files | {f"crawl-data/{CRAWL}/warc.paths.gz": gzip.compress("\n".join(names).encode() + b"\n")}


def read_all(source) -> list[str]:
    ledger = Ledger()
    return [r.id for part in source.parts() for r in source.read(part, ledger)]


def test_a_range_of_files_is_read_over_http_from_a_server_that_first_fails():
    pytest.importorskip("aiohttp", reason="reading over https needs the extra [remote]")
    failures = [(503, {"Retry-After": "0"}), (500, {}), (429, {})]
    with server(crawl(), failures) as (base, log):
        source = open_source(f"cc:{CRAWL}:1-3", base=base, patience=QUICK)
        assert read_all(source) == ["page-1", "page-2", "page-3"]
        assert not [path for path, _ in log if "00000" in path or "00004" in path]


def test_a_crawl_on_another_file_system_is_read_by_its_base():
    memory = fsspec.filesystem("memory")
    for path, body in crawl().items():
        memory.pipe(f"/mirror/{path}", body)
    assert read_all(open_source(f"cc:{CRAWL}:4", base="memory://mirror")) == ["page-4"]
    assert len(read_all(open_source(f"cc:{CRAWL}", base="memory://mirror"))) == 5


def test_a_crawl_in_a_bucket_is_read_through_s3(monkeypatch):
    pytest.importorskip("s3fs", reason="reading from s3 needs the extra [remote]")
    bucket = {f"commoncrawl/{path}": body for path, body in crawl().items()}
    with server(bucket, [(503, {})]) as (base, log):
        monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "endpoint_url": base.rstrip("/")})
        source = open_source(f"cc:{CRAWL}:0-1", base="s3://commoncrawl", patience=QUICK)
        assert read_all(source) == ["page-0", "page-1"]
        assert all(path.startswith("/commoncrawl/crawl-data/") for path, _ in log)


def test_the_default_address_is_the_public_one():
    source = open_source(f"cc:{CRAWL}:0-9")
    assert source == CommonCrawlSource(CRAWL, 0, 9)
    assert source.base == "https://data.commoncrawl.org/"


def test_a_range_beyond_the_crawl_says_how_many_files_there_are(tmp_path):
    for path, body in crawl().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(body)
    with pytest.raises(ValueError, match="has 5 files, numbered from 0"):
        open_source(f"cc:{CRAWL}:3-7", base=str(tmp_path)).parts()


@pytest.mark.parametrize("spec", ["cc:", "cc:latest", f"cc:{CRAWL}:x", f"cc:{CRAWL}:9-3", "cc:../../etc:0"])
def test_a_wrong_spec_is_refused(spec):
    with pytest.raises(ValueError, match=r"cc:|crawl id|before the first"):
        open_source(spec)


def test_the_manifest_names_the_files(tmp_path):
    memory = fsspec.filesystem("memory")
    for path, body in crawl().items():
        memory.pipe(f"/named/{path}", body)
    rows = open_source(f"cc:{CRAWL}:0-1", base="memory://named").manifest()
    assert [row["path"].rsplit("/", 1)[1] for row in rows] == ["part-00000.warc.gz", "part-00001.warc.gz"]


def test_a_path_list_that_is_no_gzip_is_a_clear_error():
    fsspec.filesystem("memory").pipe(f"/odd/crawl-data/{CRAWL}/warc.paths.gz", b"<html>sorry</html>")
    with pytest.raises(ValueError, match="no gzip path list"):
        open_source(f"cc:{CRAWL}:0", base="memory://odd").parts()
