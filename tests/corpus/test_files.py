"""Remote files: ranges with retries, Retry-After honoured, and one clear sentence where nothing helps."""

from __future__ import annotations

import concurrent.futures
import email.utils
import multiprocessing
import sys
import time

import fsspec
import pytest
from warcs import server

from herder.corpus import Patience, files
from herder.corpus.files import listing, manifest, open_binary

QUICK = Patience(tries=4, first_pause_seconds=0.01)


@pytest.fixture
def _web():
    pytest.importorskip("aiohttp", reason="reading over https needs the extra [remote]")


@pytest.mark.usefixtures("_web")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_remote_file_reads_and_seeks_like_a_local_one(ranges):
    body = bytes(range(256)) * 300
    with server({"a.bin": body}, ranges=ranges) as (base, _), open_binary(base + "a.bin", QUICK) as file:
        assert file.read(10) == body[:10]
        file.seek(70_000)
        assert file.read(50) == body[70_000:70_050]
        file.seek(-5, 2)
        assert file.read() == body[-5:]
        assert file.read() == b""


@pytest.mark.usefixtures("_web")
def test_a_file_is_fetched_by_ranges_and_each_failed_range_alone_is_repeated(monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    body = b"0123456789" * 350
    fail = [(503, {"Connection": "close"})]
    with server({"a.bin": body}, fail) as (base, log), open_binary(base + "a.bin", QUICK) as file:
        assert file.read(1) == b"0"
        assert file.read() == body[1:]
    ranges = [r for _, r in log]
    assert ranges[0] == ranges[1] == "bytes=0-999"
    assert len(set(ranges)) >= 2


@pytest.mark.usefixtures("_web")
def test_retry_after_in_seconds_is_waited_for():
    with server({"a": b"body"}, [(429, {"Retry-After": "1"})]) as (base, log):
        started = time.monotonic()
        with open_binary(base + "a", QUICK) as file:
            assert file.read() == b"body"
        assert time.monotonic() - started >= 1.0
        assert [path for path, _ in log][:2] == ["/a", "/a"]


@pytest.mark.usefixtures("_web")
def test_retry_after_as_a_date_is_waited_for(monkeypatch):
    pauses = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    when = email.utils.formatdate(time.time() + 30, usegmt=True)
    with server({"a": b"body"}, [(503, {"Retry-After": when})]) as (base, _), open_binary(base + "a", QUICK) as file:
        assert file.read() == b"body"
    assert 25 < max(pauses) <= 30.5


@pytest.mark.usefixtures("_web")
def test_patience_ends_with_one_sentence():
    with server({}, [(503, {})] * 20) as (base, log):
        with pytest.raises(ConnectionError, match=r"gave up after 4 tries \(status 503\)"):
            open_binary(base + "a", QUICK).read()
        assert len(log) == 4


@pytest.mark.usefixtures("_web")
def test_a_missing_remote_file_is_not_retried():
    with server({}) as (base, log):
        with pytest.raises(ValueError, match="does not exist on its server"):
            open_binary(base + "none.warc.gz", QUICK).read()
        assert len(log) == 1


@pytest.mark.usefixtures("_web")
def test_a_refusal_says_what_to_do_and_is_not_retried():
    with server({}, [(403, {})] * 9) as (base, log):
        with pytest.raises(ValueError, match="access is refused; check the address"):
            open_binary(base + "a", QUICK).read()
        assert len(log) == 1


@pytest.mark.usefixtures("_web")
def test_requests_say_who_asks():
    with server({"a": b"x"}) as (base, _), open_binary(base + "a", QUICK) as file:
        assert file.read() == b"x"
        assert server.agents[-1].startswith("herder/")


def _read_in_child(path: str) -> bytes:
    with open_binary(path, QUICK) as file:
        return file.read()


@pytest.mark.usefixtures("_web")
def test_a_forked_worker_reads_after_its_parent_did():
    with server({"a": b"body"}) as (base, _):
        assert _read_in_child(base + "a") == b"body"
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(_read_in_child, base + "a").result(timeout=20) == b"body"


def test_pauses_double_and_never_undercut_retry_after():
    patience = Patience(first_pause_seconds=1, longest_pause_seconds=60)
    assert [0.75 * 2**n <= patience.pause(n, 0) <= 1.25 * 2**n for n in range(5)] == [True] * 5
    assert patience.pause(0, 30) == 30
    assert patience.pause(20, 0) == 60


def test_an_unknown_path_is_named():
    with pytest.raises(ValueError, match=r"nowhere/at/all does not exist"):
        listing("nowhere/at/all")
    with pytest.raises(ValueError, match="give a folder, a file or a URL"):
        listing("nosuchprotocol://x")


def test_a_missing_file_system_package_names_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ValueError, match=r"pip install 'herder\[remote\]'"):
        listing("abfs://container/file.warc.gz")


def test_memory_files_are_listed_and_read():
    fsspec.filesystem("memory").pipe("/listing/b/two.txt", b"2")
    fsspec.filesystem("memory").pipe("/listing/one.txt", b"1")
    found = listing("memory://listing")
    assert found == ["memory:///listing/b/two.txt", "memory:///listing/one.txt"]
    assert [open_binary(path).read() for path in found] == [b"2", b"1"]


def test_the_manifest_follows_content_not_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("same")
    first, second = (manifest(str(tmp_path / f), listing(str(tmp_path / f))) for f in ("a", "b"))
    assert first == second
    assert first[0]["path"] == "x.txt"
    assert first[0]["bytes"] == 4
    (tmp_path / "b" / "x.txt").write_text("else")
    assert manifest(str(tmp_path / "b"), listing(str(tmp_path / "b"))) != first
