"""WARC bytes written by hand for the tests, independent of the code under test."""

from __future__ import annotations

import gzip
import http.server
import threading
from contextlib import contextmanager

PAGE = b"<!DOCTYPE html><html><head><title>Bees</title></head><body><p>Bees make honey in the hive.</p></body></html>"
HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"


def record(
    name: str, body: bytes = PAGE, head: bytes = HTML, *, kind="response", fields=b"", length: int | None = None
) -> bytes:
    """One WARC record: `head` is the HTTP head without its blank line (empty: no HTTP at all)."""
    block = (head + b"\r\n" if head else b"") + body
    media = b"application/http; msgtype=response" if head else b"text/plain"
    return (
        b"WARC/1.0\r\nWARC-Type: " + kind.encode() + b"\r\nWARC-Record-ID: <urn:uuid:" + name.encode() + b">\r\n"
        b"WARC-Target-URI: https://example.com/" + name.encode() + b"\r\nWARC-Date: 2024-07-01T12:00:00Z\r\n"
        b"Content-Type: " + media + b"\r\n" + fields
        + b"Content-Length: %d\r\n\r\n" % (len(block) if length is None else length) + block + b"\r\n\r\n"
    )  # fmt: skip


def zipped(*records: bytes) -> bytes:
    return b"".join(gzip.compress(r, mtime=0) for r in records)


@contextmanager
def server(files: dict[str, bytes], failures: list[tuple[int, dict[str, str]]] | None = None, ranges: bool = True):
    """A local web server. Answers `failures` (status, headers) to the first requests; yields (base URL, request log)."""
    failures, log = list(failures or []), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            log.append((self.path, self.headers.get("Range")))
            server.agents.append(self.headers.get("User-Agent", ""))
            if failures:
                status, headers = failures.pop(0)
                return self.answer(status, b"", headers)
            body = files.get(self.path.lstrip("/"))
            if body is None:
                return self.answer(404, b"", {})
            wanted = self.headers.get("Range", "")
            if not (ranges and wanted.startswith("bytes=")):
                return self.answer(200, body, {})
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(body):
                return self.answer(416, b"", {})
            end = min(int(last or len(body)), len(body) - 1)
            span = f"bytes {first}-{end}/{len(body)}"
            return self.answer(206, body[int(first) : end + 1], {"Content-Range": span})

        do_HEAD = do_GET

        def answer(self, status, body, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/", log
    finally:
        httpd.shutdown()
        httpd.server_close()


server.agents = []  # the User-Agent of every request so far
