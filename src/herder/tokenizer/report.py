"""Tokenizers compared on one text (paper section 3.2): characters per token, and how many tokens fewer, by language and domain.

This is the table behind the paper's "3.17 to 3.94 characters per token" and "up to 15% fewer tokens", for anyone's tokenizers.
The one design decision: every figure is a ratio of sums over documents with its 95% interval, and the saving against the first
tokenizer is taken on the same documents, so two tokenizers differ where their interval leaves 0 out.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from herder import progress
from herder.records import Measure, read_attribute, read_jsonl, read_shard, shard_names
from herder.tokenizer.bpe import Tokenizer

ALL = "all"
CODE_SHARE = 0.3
"""Share of characters inside code spans from which on a curated document counts as code."""
BATCH = 256
TEXT_FIELDS, LANGUAGE_FIELDS, DOMAIN_FIELDS = ("text", "content"), ("language", "lang"), ("domain", "source")
MOST_GROUPS = 24
"""Languages and domains drawn in the plot, those with most text first; the table has them all."""


class Sample(NamedTuple):
    """A document with what is known of it; "" where nothing is."""

    text: str
    language: str = ""
    domain: str = ""


class Row(NamedTuple):
    """One tokenizer on one group. `fewer` is the share of tokens saved against the first tokenizer."""

    tokenizer: str
    group: str
    documents: int
    characters_per_token: Measure
    bytes_per_token: Measure
    fewer: Measure


@dataclass(frozen=True)
class Encoder:
    """A tokenizer to be compared: its name, the size of its vocabulary, and tokens counted in texts."""

    name: str
    n_vocab: int
    count: Callable[[list[str]], list[int]]


def report(paths: list[Path], samples: Iterable[tuple[str, str, str]], out: Path) -> str:
    """Compares the tokenizers at `paths` on (text, language, domain) samples; returns the table as text.

    Writes report.json, report.txt and report.png into `out`. Raises ValueError for a path that holds no tokenizer and for
    samples without text.
    """
    encoders = open_encoders(paths)
    rows = compare(encoders, samples)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    fields = [{k: v.to_json() if isinstance(v, Measure) else v for k, v in row._asdict().items()} for row in rows]
    sizes = {encoder.name: encoder.n_vocab for encoder in encoders}
    text = table(rows, sizes)
    _put(out / "report.json", lambda part: part.write_text(json.dumps({"vocabulary": sizes, "rows": fields}, indent=1)))
    _put(out / "report.txt", lambda part: part.write_text(text, encoding="utf-8"))
    _put(out / "report.png", lambda part: plot(rows, part))
    return text


def open_encoders(paths: list[Path]) -> list[Encoder]:
    """Opens each tokenizer under a name of its own. One that herder cannot express is counted by `tokenizers` itself."""
    if not paths:
        raise ValueError("no tokenizer is given; name at least one folder or file")
    names, encoders = _names(paths), []
    for name, path in zip(names, paths, strict=True):
        try:
            tokenizer = Tokenizer.load(path)
        except ValueError as error:
            encoders.append(_foreign(name, path, error))
        else:
            encoders.append(Encoder(name, tokenizer.n_vocab, _counter(tokenizer)))
    return encoders


def _counter(tokenizer: Tokenizer) -> Callable[[list[str]], list[int]]:
    return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]


def _foreign(name: str, path: Path, refusal: ValueError) -> Encoder:
    """A tokenizer.json of a kind that is not byte-level BPE (Llama 2's, for one)."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix != ".json" or not file.is_file():
        raise refusal
    try:
        from tokenizers import Tokenizer as Foreign
    except ImportError:
        raise ValueError(f"{refusal}; to compare it nevertheless: pip install tokenizers") from None
    try:
        tokenizer = Foreign.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for any damage
        raise ValueError(f"{refusal}, nor do tokenizers read it ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(clean, add_special_tokens=False)]

    return Encoder(name, tokenizer.get_vocab_size(), count)


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; a file of a usual name is told by its folder."""
    usual = {"tokenizer.json", "tokenizer.model"}
    parts = [p.resolve().parts[:-1] if p.name in usual else p.resolve().parts for p in map(Path, paths)]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part)} ({number})" for number, part in enumerate(parts, 1)]


def read_samples(path: Path) -> Iterator[Sample]:
    """Samples of a curated folder, a JSONL file (fields text, language or lang, domain or source), a text file, or a folder of
    text files, where the first folder below is taken for the language. Raises ValueError where there is none of these."""
    path = Path(path)
    if (path / "documents").is_dir():
        yield from _curated(path)
    elif path.suffix == ".jsonl":
        for number, row in enumerate(read_jsonl(path), 1):
            text = _field(row, TEXT_FIELDS)
            if not text:
                raise ValueError(f"{path}, row {number}: it has no text; expected a field {' or '.join(TEXT_FIELDS)}")
            yield Sample(text, _field(row, LANGUAGE_FIELDS), _field(row, DOMAIN_FIELDS))
    elif path.is_file():
        yield Sample(path.read_bytes().decode("utf-8", "replace"))
    elif path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for file in files:
            inner = file.relative_to(path).parts
            yield Sample(file.read_bytes().decode("utf-8", "replace"), inner[0] if len(inner) > 1 else "")
    else:
        raise ValueError(f"{path} does not exist; give a curated folder, a JSONL file, a text file or a folder of them")


def _curated(folder: Path) -> Iterator[Sample]:
    for name in shard_names(folder):
        attribute = read_attribute(folder, "language", name)
        languages = dict(zip(attribute["id"].to_pylist(), attribute["language"].to_pylist(), strict=True))
        for document in read_shard(folder, name):
            code = sum(span.end - span.start for span in document.spans if span.kind == "code")
            domain = "code" if code >= CODE_SHARE * max(len(document.text), 1) else "prose"
            yield Sample(document.text, languages.get(document.id) or "", domain)


def _field(row: dict, names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if isinstance(row.get(name), str)), "")


def compare(encoders: list[Encoder], samples: Iterable[tuple[str, str, str]]) -> list[Row]:
    """A row for each group and tokenizer: all documents first, then each language, then each domain, by size."""
    sizes: list[tuple[int, int]] = []
    counts: list[list[int]] = [[] for _ in encoders]
    members: dict[str, list[int]] = {ALL: []}
    stream = iter(samples)
    while batch := [Sample(*sample) for sample in itertools.islice(stream, BATCH)]:
        for text, language, domain in (sample for sample in batch if sample.text):
            for group in (ALL, language and f"language {language}", domain and f"domain {domain}"):
                if group:
                    members.setdefault(group, []).append(len(sizes))
            sizes.append((len(text), len(text.encode("utf-8", "replace"))))
        texts = [sample.text for sample in batch if sample.text]
        for encoder, found in zip(encoders, counts, strict=True):
            found += encoder.count(texts)
        progress.report(len(sizes), unit="documents")
    if not sizes:
        raise ValueError("there is no text to compare tokenizers on; give a corpus that holds documents")
    order = sorted(members, key=lambda g: (g != ALL, g.startswith("domain"), -sum(sizes[i][0] for i in members[g]), g))
    return [
        _row(encoder.name, group, members[group], sizes, found, counts[0])
        for group in order
        for encoder, found in zip(encoders, counts, strict=True)
    ]


def _row(
    name: str, group: str, members: list[int], sizes: list[tuple[int, int]], counts: list[int], first: list[int]
) -> Row:
    tokens = [counts[i] for i in members]
    characters, size = ([sizes[i][k] for i in members] for k in (0, 1))
    left = Measure.ratio(tokens, [first[i] for i in members])
    fewer = Measure(1 - left.value, left.n, 1 - left.high, 1 - left.low, "%")
    return Row(name, group, len(members), Measure.ratio(characters, tokens), Measure.ratio(size, tokens), fewer)


def table(rows: list[Row], sizes: dict[str, int]) -> str:
    """The rows as text: one block a group, one line a tokenizer, values with their 95% intervals."""
    width = max(len(f"{name} ({size:,})") for name, size in sizes.items())
    head = f"{'':{width}}  {'characters per token':>24}  {'bytes per token':>24}  {'fewer tokens':>26}"
    lines = [head]
    for group, block in itertools.groupby(rows, key=lambda row: row.group):
        block = list(block)
        lines.append(f"{group}, {block[0].documents:,} document{'s' * (block[0].documents != 1)}")
        for row in block:
            name = f"{row.tokenizer} ({sizes[row.tokenizer]:,})"
            saved = "" if row is block[0] else _interval(row.fewer, 100, "%", 1)
            values = f"{_interval(row.characters_per_token):>24}  {_interval(row.bytes_per_token):>24}  {saved:>26}"
            lines.append(f"{name:{width}}  {values}".rstrip())
    return "\n".join(lines) + "\n"


def _interval(measure: Measure, scale: float = 1, unit: str = "", digits: int = 2) -> str:
    value, low, high = (scale * x for x in (measure.value, measure.low, measure.high))
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if measure.n > 1 else ""
    return f"{value:.{digits}f}{unit}{interval}"


def plot(rows: list[Row], path: Path) -> None:
    """Bars of characters per token and of tokens saved, one group beside the other, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.tokenizer for row in rows))
    groups = list(dict.fromkeys(row.group for row in rows))[:MOST_GROUPS]
    by = {(row.tokenizer, row.group): row for row in rows}
    step = 0.8 / len(names)
    figure = Figure(figsize=(11, 1.6 + len(groups) * (0.25 + 0.16 * len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if len(names) > 1 else 1, sharey=True, squeeze=False)[0]
    left, right = panels[0], panels[-1]
    for number, name in enumerate(names):
        places = [i + (number - (len(names) - 1) / 2) * step for i in range(len(groups))]
        chosen = [by[name, group] for group in groups]
        _bars(left, places, [row.characters_per_token for row in chosen], 1, step, number, name)
        if number:
            _bars(right, places, [row.fewer for row in chosen], 100, step, number, name)
    left.set_yticks(range(len(groups)), groups)
    left.invert_yaxis()
    left.set_xlabel("characters per token (longer is better)")
    if right is not left:
        right.set_xlabel(f"percent fewer tokens than {names[0]}")
        right.axvline(0, color="black", linewidth=0.8)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(names), 4), frameon=False
    )
    figure.savefig(path, dpi=110, format="png")


def _bars(
    axes, places: list[float], measures: list[Measure], scale: float, step: float, number: int, name: str
) -> None:
    """One tokenizer's bars with their intervals; a single document has none."""
    known = [m if m.n > 1 else Measure(m.value) for m in measures]
    error = [[scale * (m.value - m.low) for m in known], [scale * (m.high - m.value) for m in known]]
    values, thin = [scale * m.value for m in known], {"linewidth": 0.8}
    axes.barh(places, values, height=step * 0.92, xerr=error, color=f"C{number}", error_kw=thin, label=name)


def _put(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
