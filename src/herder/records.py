"""The record types that stages hand to each other, and the files they lie in.

One type per thing: `Record` (what a source yields, bytes as crawled), `Document` (extracted text with spans),
`Message` and `Dialogue`, `Ledger` (what was read, kept and removed, and why), `Measure` (a score that carries n and a
95% interval; paper section 5.1). Documents lie in Parquet shards that are never rewritten; attributes lie beside them in
shards of the same name, so a threshold can change without recomputing a tagger.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

NOTES_KEPT = 20
KEPT = "kept"
"""The fate of a document that no filter removed; every other fate is the name of the filter that removed it."""


@dataclass(slots=True)
class Record:
    """One raw record of a source: `body` is as published, with transfer and content encodings undone."""

    id: str
    url: str
    body: bytes
    content_type: str = "text/html"
    charset: str = ""
    crawled_at: str = ""
    source: str = ""


class Span(NamedTuple):
    """Structure of a text that holds no markup: characters start to end are of this kind.

    Kinds: heading, code, formula, table, list, quote, alt. `language` is the programming language of code, where known.
    """

    start: int
    end: int
    kind: str
    language: str = ""


@dataclass(slots=True)
class Document:
    """One extracted document. `id` is stable across runs; `source` names the source it came from."""

    id: str
    url: str
    text: str
    title: str = ""
    spans: list[Span] = field(default_factory=list)
    source: str = ""
    crawled_at: str = ""
    content_type: str = "text/html"


class Message(TypedDict, total=False):
    """An OpenAI-style message. `content` is text; `tool_calls` and `tool_call_id` as in that API.

    `stop_reason` says how an assistant message ended, where that is known (`tokenizer.chat` names the reasons); `context`
    is retrieved text that stands behind a user message.
    """

    role: str
    content: str
    tool_calls: list[dict]
    tool_call_id: str
    name: str
    stop_reason: str
    context: str


@dataclass(slots=True)
class Dialogue:
    """Messages with what is known of them. `answer` is the verifiable answer of the last turn, where there is one."""

    messages: list[Message]
    id: str = ""
    source: str = ""
    task: str = ""
    tools: list[dict] | None = None
    meta: dict = field(default_factory=dict)


@dataclass
class Ledger:
    """What one source gave: counts of documents, bytes and tokens, and every removal by its reason.

    `read` counts records seen, `bytes` their body bytes; `removed[reason]` counts those that went no further, `documents`
    those that came out, `characters` and `tokens` what those hold (tokens are filled in once a tokenizer exists). `notes`
    keeps the first few places of trouble ("a.jsonl, line 7: not valid JSON") to show.
    """

    source: str = ""
    read: int = 0
    bytes: int = 0
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, place: str) -> None:
        if len(self.notes) < NOTES_KEPT:
            self.notes.append(place)

    def remove(self, reason: str, count: int = 1) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + count

    def add(self, other: Ledger) -> None:
        """Adds another ledger's counts to this one (the source name stays)."""
        for name in ("read", "bytes", "documents", "characters", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.removed.items():
            self.remove(reason, count)
        for place in other.notes:
            self.note(place)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Ledger:
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with what is known of its uncertainty: n observations, 95% interval from low to high.

    `unit` is for display ("%" shows a share as a percentage; "" is a plain number). A number without sampling error
    (a count, seconds) has n = 0 and low = high = value.
    """

    value: float
    n: int = 0
    low: float = math.nan
    high: float = math.nan
    unit: str = ""

    def __post_init__(self):
        if math.isnan(self.low):
            object.__setattr__(self, "low", self.value)
        if math.isnan(self.high):
            object.__setattr__(self, "high", self.value)

    @classmethod
    def share(cls, hits: float, n: int) -> Measure:
        """A share of n trials: the paper's 1.96 * sqrt(S (1 - S) / N) (section 5.1), and Wilson's interval at the borders.

        The normal interval collapses to width zero at 0 and 1 and leaves [0, 1] near them: with fewer than five hits or five
        misses Wilson's is given instead.
        """
        if n <= 0:
            return cls(0.0, 0, 0.0, 1.0, "%")
        share = hits / n
        if min(hits, n - hits) < 5:
            low, high = wilson(share, n)
        else:
            half = half_width(share, n)
            low, high = share - half, share + half
        return cls(share, n, max(0.0, low), min(1.0, high), "%")

    @classmethod
    def mean(cls, values: Iterable[float], unit: str = "") -> Measure:
        """The mean of independent observations, with the normal 95% interval of the mean."""
        values = list(values)
        n = len(values)
        if n == 0:
            return cls(math.nan, 0, unit=unit)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, 1, -math.inf, math.inf, unit)
        half = Z95 * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
        return cls(mean, n, mean - half, mean + half, unit)

    @classmethod
    def ratio(cls, numerators: Iterable[float], denominators: Iterable[float], unit: str = "") -> Measure:
        """Sum over sum (bits per byte), with the linearised interval of a ratio estimator over independent documents."""
        top, bottom = list(numerators), list(denominators)
        n, total = len(top), math.fsum(bottom)
        if n == 0 or total == 0:
            return cls(math.nan, 0, unit=unit)
        value = math.fsum(top) / total
        if n == 1:
            return cls(value, 1, -math.inf, math.inf, unit)
        residuals = math.fsum((a - value * b) ** 2 for a, b in zip(top, bottom, strict=True))
        half = Z95 * math.sqrt(residuals * n / (n - 1)) / total
        return cls(value, n, value - half, value + half, unit)

    def above(self, other: Measure) -> bool:
        """True where this interval lies wholly above the other's."""
        return self.low > other.high

    def below(self, other: Measure) -> bool:
        return self.high < other.low

    def to_json(self) -> dict:
        """Plain JSON: an infinite bound (one observation) is null."""
        value, low, high = (x if math.isfinite(x) else None for x in (self.value, self.low, self.high))
        return {"value": value, "n": self.n, "low": low, "high": high, "unit": self.unit}

    @classmethod
    def from_json(cls, fields: dict) -> Measure:
        missing = {"value": math.nan, "low": -math.inf, "high": math.inf}
        return cls(**{name: missing[name] if value is None else value for name, value in fields.items()})

    def __str__(self) -> str:
        scale, digits = (100, 1) if self.unit == "%" else (1, 3)
        text = f"{self.value * scale:.{digits}f}{'%' if self.unit == '%' else ''}"
        if self.n:
            text += f" [{self.low * scale:.{digits}f}, {self.high * scale:.{digits}f}] n={self.n}"
        return text + (f" {self.unit}" if self.unit not in ("", "%") else "")


Z95 = 1.96
"""The paper's factor (section 5.1): 95% of a normal distribution lies within 1.96 standard errors."""


def half_width(share: float, n: int) -> float:
    """The paper's 95% half width of a share: 1.96 * sqrt(S (1 - S) / N)."""
    return Z95 * math.sqrt(share * (1 - share) / n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval (1927): keeps its coverage at shares of 0 and 1."""
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return centre - half, centre + half


SPAN_TYPE = pa.list_(
    pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string()), ("language", pa.string())])
)
DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("spans", SPAN_TYPE),
        ("source", pa.string()),
        ("crawled_at", pa.string()),
        ("content_type", pa.string()),
    ]
)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes one Parquet file whole or not at all (zstd)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    os.replace(part, path)


def write_documents(documents: Iterable[Document], path: Path) -> int:
    """Writes documents to one Parquet shard, whole or not at all; returns how many."""
    columns: dict[str, list] = {name: [] for name in DOCUMENT_SCHEMA.names}
    for document in documents:
        for name in columns:
            columns[name].append(getattr(document, name))
    columns["spans"] = [[s._asdict() for s in spans] for spans in columns["spans"]]
    write_table(pa.table(columns, schema=DOCUMENT_SCHEMA), path)
    return len(columns["id"])


def shard_names(folder: Path) -> list[str]:
    """Names of the Parquet shards of a curated folder, in order. Raises ValueError where it holds none."""
    names = sorted(p.name for p in (Path(folder) / "documents").glob("*.parquet"))
    if not names:
        raise ValueError(f"{folder} holds no documents/*.parquet; give the output folder of `herder curate`")
    return names


def read_documents(folder: Path, fate: str | None = KEPT, split: str | None = None) -> Iterator[Document]:
    """Streams the documents of a curated folder, shard by shard, in order.

    `fate` picks documents by what became of them ("kept", the name of a filter, or None for all); `split` ("train",
    "heldout") picks by the split attribute.
    """
    folder = Path(folder)
    for name in shard_names(folder):
        yield from read_shard(folder, name, fate, split)


def read_shard(folder: Path, name: str, fate: str | None = KEPT, split: str | None = None) -> Iterator[Document]:
    """`read_documents` for one shard: the unit of parallel work."""
    table = pq.read_table(folder / "documents" / name)
    wanted = [True] * table.num_rows
    for attribute, column, value in (("fate", "fate", fate), ("split", "split", split)):
        if value is not None:
            found = read_attribute(folder, attribute, name).column(column).to_pylist()
            wanted = [w and f == value for w, f in zip(wanted, found, strict=True)]
    if not all(wanted):
        table = table.filter(pa.array(wanted))
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            row["spans"] = [Span(**s) for s in row["spans"]]
            yield Document(**row)


def read_attribute(folder: Path, attribute: str, shard: str) -> pa.Table:
    """One attribute's rows for one shard, in the order of its documents (columns `id` and the attribute's own)."""
    path = Path(folder) / "attributes" / attribute / shard
    if not path.exists():
        raise ValueError(f"{path} is missing; run `herder curate` again, or choose an attribute that was written")
    return pq.read_table(path)


def check_replaceable(out: Path, marker: str) -> None:
    """Raises ValueError where `out` holds files but not `marker`: it is somebody's folder, not an older version of ours."""
    if out.exists() and not (out / marker).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and holds no {marker}, so it is not replaced; choose another folder")


def replace_folder(part: Path, out: Path) -> None:
    """Puts a finished folder in the place of an older one; at every moment one of the two is whole on the disk."""
    old = out.with_name(out.name + ".herder.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


def write_jsonl(rows: Iterable[dict], path: Path) -> int:
    """Writes one JSON object a line, whole file or nothing; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count = path.with_name(path.name + ".part"), 0
    with open(part, "w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(part, path)
    return count


def read_jsonl(path: Path) -> Iterator[dict]:
    """Streams JSON objects; a broken line raises ValueError that names the file and the line number."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(_whole_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: not valid UTF-8; mend or delete the line") from None
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not valid JSON ({error.msg}); mend or delete the line"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            yield row


def _whole_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, row) of JSONL (plain or .gz), a .json file that is one array, or Parquet; ValueError names what is broken."""
    if path.suffix == ".parquet":
        try:
            batches = pq.ParquetFile(path).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, 1))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} cannot be read as Parquet ({reason}); copy it again") from None
    elif path.suffix == ".json" and (array := _json_array(path)) is not None:
        yield from ((f"{path}, element {n}", row) for n, row in enumerate(array, 1))
    else:
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(read_jsonl(path), 1))


def _json_array(path: Path) -> list[dict] | None:
    """The rows of a file that is one JSON array; None where it begins otherwise."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.lstrip().startswith("["):
        return None
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend the file") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected an array of JSON objects")
    return rows


def write_dialogues(dialogues: Iterable[Dialogue], path: Path) -> int:
    return write_jsonl((asdict(d) for d in dialogues), path)


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """Streams dialogues; raises ValueError naming file and line for a row that is none."""
    known = {f.name for f in fields(Dialogue)}
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}, dialogue {number}"
        if strange := sorted(set(row) - known):
            raise ValueError(
                f"{where}: unknown field {strange[0]!r}; a dialogue has messages, and may have {', '.join(known)}"
            )
        messages = row.get("messages")
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(m, dict) and "role" in m for m in messages)
        ):
            raise ValueError(f'{where}: `messages` must be a list of {{"role": ..., "content": ...}}')
        yield Dialogue(**row)
