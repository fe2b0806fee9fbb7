"""Curation end to end against datatrove: the same WARC of real pages, one core, from records to documents on disk.

datatrove runs its WARC reader, Trafilatura, the Gopher repetition and quality filters, the C4 filter and a JSONL writer; herder
runs its whole stage (extraction, language, heuristics, MinHash signatures, duplicates, split, Parquet). Both are timed in CPU
seconds, children included, and both forget their start-up: the time of a WARC with a few pages is taken off. The pages are
those of documentation packages, whose pages are long and full of code; only pages that the page limit admits are taken.

    apt-get install python3.11-doc debian-reference-en     # or any folder of HTML
    pip install "herder[bench]" && python benchmarks/curate.py [FOLDER or WARC] [--pages 180]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
import uuid
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

WARM_PAGES = 8
MEDIAN_BYTES = 30_000
SMALLEST_BYTES, LARGEST_BYTES = 8_000, 400_000


def find_pages(folder: Path, count: int) -> list[tuple[str, bytes]]:
    """A seeded sample of the HTML pages under a folder, (path, body), whose median size is at least MEDIAN_BYTES."""
    paths = sorted({p.resolve() for p in folder.rglob("*.html")} if folder.exists() else ())
    sized = [(p, p.stat().st_size) for p in paths]
    fitting = [p for p, size in sized if SMALLEST_BYTES <= size <= LARGEST_BYTES]
    random.Random(0).shuffle(fitting)
    pages = [(str(p), p.read_bytes()) for p in fitting[:count]]
    if len(pages) < 20 or statistics.median(len(body) for _, body in pages) < MEDIAN_BYTES:
        raise SystemExit(
            f"{folder} holds {len(pages)} usable pages, or too small ones (the median must reach {MEDIAN_BYTES} bytes); "
            "apt-get install python3.11-doc, or name a folder of HTML"
        )
    return pages


def write_warc(pages: list[tuple[str, bytes]], path: Path) -> None:
    """One gzip WARC with a response record a page."""
    import gzip

    with open(path, "wb") as file:
        for name, body in pages:
            http = (
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            head = (
                f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}>\r\n"
                f"WARC-Target-URI: https://pages.example{name}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
                "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(http)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + http + b"\r\n\r\n", 6))


def read_warc(path: Path, count: int) -> list[tuple[str, bytes]]:
    """The first HTML pages of a given WARC."""
    from herder.corpus import open_source
    from herder.records import Ledger

    source, pages = open_source(str(path)), []
    for part in source.parts():
        for record in source.read(part, Ledger()):
            pages.append((f"/{record.id}", record.body))
            if len(pages) == count:
                return pages
    return pages


def run_datatrove(warc: Path, out: Path) -> int:
    """datatrove's pipeline over one WARC; returns how many documents came out."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    steps = [
        WarcReader(str(warc.parent), glob_pattern=warc.name),
        Trafilatura(favour_precision=True, timeout=10),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        JsonlWriter(str(out / "documents"), compression=None),
    ]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(out / "logs")).run()
    return sum(line.count("\n") for p in (out / "documents").glob("*") for line in [p.read_text()])


def run_herder(warc: Path, out: Path) -> int:
    """herder's whole stage over one WARC, in this process; returns how many documents were kept."""
    from herder.corpus import open_source
    from herder.curate import curate

    return curate([open_source(str(warc))], out, workers=1)["kept"]


def cpu_seconds() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def measure(run, warm: Path, warc: Path, scratch: Path, pages: int) -> dict:
    """Pages a CPU second beyond the start-up, which a first run over a few pages shows."""
    took = []
    run(warm, scratch / "imports")
    for name, path in (("warm", warm), ("all", warc)):
        began, wall = cpu_seconds(), time.monotonic()
        kept = run(path, scratch / name)
        took.append((cpu_seconds() - began, time.monotonic() - wall))
    cpu, wall = took[1][0] - took[0][0], took[1][1] - took[0][1]
    rate = (pages - WARM_PAGES) / cpu
    return {
        "pages_per_second": round(rate, 1),
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "kept": kept,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", default="/usr/share/doc", help="a folder of HTML pages, or a WARC")
    parser.add_argument("--pages", type=int, default=180)
    parser.add_argument("--without-peer", action="store_true", help="time herder alone")
    arguments = parser.parse_args()
    source = Path(arguments.source)
    pages = (find_pages if source.is_dir() else read_warc)(source, arguments.pages)
    sizes = [len(body) for _, body in pages]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        warc, warm = scratch / "pages" / "pages.warc.gz", scratch / "warm" / "pages.warc.gz"
        for path, chosen in ((warc, pages), (warm, pages[:WARM_PAGES])):
            path.parent.mkdir()
            write_warc(chosen, path)
        result = {
            "processor": processor(),
            "pages": len(pages),
            "median_bytes": int(statistics.median(sizes)),
            "mean_bytes": int(statistics.mean(sizes)),
        }
        # herder's turn is a tenth as long, so it takes several, before and after its peer's, and the median counts.
        turns = [measure(run_herder, warm, warc, scratch / f"herder{i}", len(pages)) for i in range(2)]
        if not arguments.without_peer:
            result["datatrove"] = measure(run_datatrove, warm, warc, scratch / "datatrove", len(pages))
        turns += [measure(run_herder, warm, warc, scratch / f"herder{i}", len(pages)) for i in range(2, 5)]
        result["herder"] = sorted(turns, key=lambda turn: turn["pages_per_second"])[len(turns) // 2]
        result["herder"]["turns"] = [turn["pages_per_second"] for turn in turns]
        if not arguments.without_peer:
            ratio = result["herder"]["pages_per_second"] / result["datatrove"]["pages_per_second"]
            result["ratio"] = round(ratio, 1)
    for name in ("herder", "datatrove"):
        if name in result:
            print(f"{name:10} {result[name]['pages_per_second']:8.1f} pages per second of one core")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
