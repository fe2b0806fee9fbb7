"""Files and URLs through fsspec: listing, identity, and reading remote files politely.

A remote file is read by ranges, and every range is retried by itself: a server that says "slow down" in the middle of a
gigabyte costs one pause, not the gigabyte. `Retry-After` is honoured. Credentials and options of a file system come from
fsspec's own configuration (for instance the environment variable FSSPEC_S3_ANON=true), never from a recipe.
"""

from __future__ import annotations

import email.utils
import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

import fsspec
import xxhash

from herder import __version__

USER_AGENT = f"herder/{__version__} (reads web archives)"
BLOCK_BYTES = 8 << 20
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often a failing request is tried, and the pauses between: doubling, jittered, never below Retry-After."""

    tries: int = 7
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 120.0

    def pause(self, attempt: int, retry_after_seconds: float) -> float:
        doubled = self.first_pause_seconds * 2**attempt * random.uniform(0.75, 1.25)
        return min(max(doubled, retry_after_seconds), self.longest_pause_seconds)


PATIENT = Patience()


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path or URL, and the path within it. ValueError for an unknown or missing protocol."""
    polite = (
        {"client_kwargs": {"headers": {"User-Agent": USER_AGENT}}} if path.startswith(("http://", "https://")) else {}
    )
    try:
        return fsspec.core.url_to_fs(path, **polite)
    except ImportError as error:
        raise ValueError(f"{path}: {error}; install what remote files need: pip install 'herder[remote]'") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a folder, a file or a URL that fsspec knows") from None


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """The address that reaches this file again: a plain path where it is local, a URL elsewhere."""
    return path if is_local(fs) else fs.unstrip_protocol(path)


def listing(spec: str) -> list[str]:
    """Addresses of all files under a folder, of a glob's matches, or of the one file, sorted. ValueError if there is none."""
    fs, path = filesystem(spec)
    if "*" in path or ("?" in path and is_local(fs)):
        found = fs.glob(path)
    elif fs.protocol in ("http", "https") or "http" in fs.protocol:
        return [spec]
    elif fs.isdir(path):
        found = fs.find(path)
    elif fs.exists(path):
        found = [path]
    else:
        raise ValueError(f"{spec} does not exist; give an existing folder or file, or a URL")
    if not found:
        raise ValueError(f"{spec} holds no files; give a folder or pattern with at least one file")
    return [address(fs, p) for p in sorted(found)]


def suffix(path: str) -> str:
    """The last suffix in lower case, with the compression before it dropped: '.jsonl' for 'a.JSONL.gz'."""
    name = PurePosixPath(path.split("?")[0].lower())
    return PurePosixPath(name.stem).suffix if name.suffix in (".gz", ".zst") else name.suffix


def relative(spec: str, path: str) -> str:
    """A file's name as seen from its source's root, so that a moved folder keeps its identity."""
    root = filesystem(spec)[1].rstrip("/")
    inside = filesystem(path)[1]
    return inside[len(root) + 1 :] if inside.startswith(root + "/") else inside.rsplit("/", 1)[-1]


def manifest(spec: str, paths: list[str]) -> list[dict]:
    """What identifies each file: its name within the source, its size and its content hash (remote: the server's tag)."""
    return [_identity(spec, path) for path in paths]


def _identity(spec: str, path: str) -> dict:
    fs, inside = filesystem(path)
    entry: dict[str, Any] = {"path": relative(spec, path)}
    if not is_local(fs):
        info = retrying(lambda: fs.info(inside), path)
        tag = next((info[k] for k in ("ETag", "etag", "Content-MD5", "md5Hash") if info.get(k)), None)
        if tag:
            return entry | {"bytes": info.get("size"), "tag": str(tag).strip('"')}
    digest, size = xxhash.xxh3_128(), 0
    with open_binary(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return entry | {"bytes": size, "xxh3_128": digest.hexdigest()}


def open_binary(path: str, patience: Patience | None = None) -> BinaryIO:
    """A seekable binary file. Remote ones are read by ranges with retries. ValueError where there is no such file."""
    fs, inside = filesystem(path)
    if is_local(fs):
        try:
            return open(inside, "rb")
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; give an existing file") from None
    return io.BufferedReader(RangeReader(fs, inside, path, patience or PATIENT), BLOCK_BYTES)


class RangeReader(io.RawIOBase):
    """A remote file as ranges: each `readinto` is one request, retried on its own at the same offset."""

    def __init__(self, fs: fsspec.AbstractFileSystem, inside: str, path: str, patience: Patience):
        self.fs, self.inside, self.path, self.patience = fs, inside, path, patience
        self.position = 0
        self.end: int | None = None
        self.whole: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = 0 if whence == io.SEEK_SET else self.position if whence == io.SEEK_CUR else self._size()
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self._range(self.position, len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _size(self) -> int:
        if self.end is None:
            self.end = int(retrying(lambda: self.fs.size(self.inside), self.path, self.patience))
        return self.end

    def _range(self, start: int, wanted: int) -> bytes:
        if self.whole is not None:
            return self.whole[start : start + wanted]
        if wanted == 0 or (self.end is not None and start >= self.end):
            return b""
        try:
            data = retrying(
                lambda: self.fs.cat_file(self.inside, start=start, end=start + wanted), self.path, self.patience
            )
        except Exception as error:
            if status_of(error) != 416:  # asked beyond the end: its size was a multiple of what was read
                raise
            data = b""
        if len(data) > wanted:  # a server without ranges sends the file whole: keep it, ask no more
            self.whole, self.end = data, len(data)
            return data[start : start + wanted]
        if len(data) < wanted:
            self.end = start + len(data)
        return data


def retrying(request: Callable[[], T], what: str, patience: Patience | None = None) -> T:
    """The result of `request`, tried again after transient failures. ValueError for a file that is not there.

    Raises ConnectionError with one sentence once patience ends.
    """
    patience = patience or PATIENT
    for attempt in range(patience.tries):
        try:
            return request()
        except Exception as error:
            status = status_of(error)
            if isinstance(error, FileNotFoundError) and status in (None, 404, 410):
                raise ValueError(f"{what} does not exist on its server; check the address") from None
            if not _transient(error, status):
                _explain(what, error, status)
                raise
            if attempt + 1 == patience.tries:
                reason = f"status {status}" if status else f"{type(error).__name__}: {error}"
                raise ConnectionError(f"{what}: gave up after {patience.tries} tries ({reason}); try later") from error
            time.sleep(patience.pause(attempt, _retry_after(error)))
    raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes: fsspec reports a failed HEAD as FileNotFoundError, with the real answer as its cause."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of aiohttp or botocore, if there is one."""
    for link in _chain(error):
        status = getattr(link, "status", None)
        if isinstance(status, int) and status >= 400:
            return status
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _explain(what: str, error: Exception, status: int | None) -> None:
    """Raises a ValueError that says what to do, for refusals that users can mend; returns for everything else."""
    no_credentials = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    if status in (401, 403) or no_credentials or isinstance(error, PermissionError):
        hint = "give credentials, or for public buckets set FSSPEC_S3_ANON=true"
        raise ValueError(f"{what}: access is refused; check the address, {hint}") from None


def _transient(error: BaseException, status: int | None) -> bool:
    if status is not None:
        return status in TRANSIENT_STATUS
    lost = any(type(link).__module__.startswith("aiohttp") for link in _chain(error))
    return lost or isinstance(error, (ConnectionError, TimeoutError))


def _retry_after(error: BaseException) -> float:
    """Seconds asked for by a Retry-After header, given as seconds or as a date; 0 without one."""
    for link in _chain(error):
        headers = getattr(link, "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
        if value is None:
            continue
        if value.strip().isdigit():
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return 0.0
    return 0.0
