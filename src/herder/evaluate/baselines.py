"""What a model must beat before its score means anything: constant and nearest answers, compressors, n-grams."""

from __future__ import annotations

import gzip
import lzma
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from herder.evaluate.task import BitsPerByteTask, GenerationTask
from herder.records import Measure

_WORD = re.compile(r"\w+|[^\w\s]")
_ROWS = 256


def most_frequent_answer(answers: Sequence[str]) -> str:
    """The commonest training answer; among equals the one that came first."""
    if not answers:
        raise ValueError("there are no training answers to choose from")
    return Counter(answers).most_common(1)[0][0]


def nearest_answers(train_prompts: Sequence[str], train_answers: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """For each prompt the answer of the training prompt nearest by TF-IDF cosine; among equals the first."""
    if len(train_prompts) != len(train_answers) or not train_prompts:
        raise ValueError(f"{len(train_prompts)} training prompts but {len(train_answers)} answers; give one for each")
    vocabulary: dict[str, int] = {}
    counts = _counts(train_prompts, vocabulary, grow=True)
    idf = np.log((1 + counts.shape[0]) / (1 + (counts > 0).sum(0).A1)) + 1
    known, answers = _weights(counts, idf), []
    for start in range(0, len(prompts), _ROWS):
        asked = _weights(_counts(prompts[start : start + _ROWS], vocabulary, grow=False), idf)
        similarity = (asked @ known.T).toarray()
        answers += [train_answers[i] for i in similarity.argmax(1)]
    return answers


def score_answers(task: GenerationTask, answers: Sequence[str]) -> Measure:
    """The share of right answers when these stand in for the model's outputs, judged as the task judges."""
    if len(answers) != len(task.items):
        raise ValueError(f"{len(answers)} answers for the {len(task.items)} items of {task.name}; give one for each")
    scores = [task.judge(item, answer)[1] for item, answer in zip(task.items, answers, strict=True)]
    return Measure.share(math.fsum(scores), len(scores))


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> Measure:
    """Bits per UTF-8 byte from the nats of each document: sum over sum, as `BitsPerByteTask` measures a model."""
    sizes = [len(text.encode("utf-8", errors="replace")) for text in texts]
    return Measure.ratio([n / math.log(2) for n in nats], sizes, BitsPerByteTask.unit)


def compressed_bits_per_byte(texts: Sequence[str], method: str = "xz") -> Measure:
    """What a general compressor ("xz" or "gzip", at its strongest) needs for all the texts as one stream."""
    methods = {
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "gzip": lambda d: gzip.compress(d, 9),
    }
    if method not in methods:
        raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(methods)}")
    data = "\n".join(texts).encode("utf-8", errors="replace")
    value = 8 * len(methods[method](data)) / len(data) if data else math.nan
    return Measure(value, unit=BitsPerByteTask.unit)


def _counts(texts: Sequence[str], vocabulary: dict[str, int], grow: bool) -> sparse.csr_matrix:
    """(texts, words) counts; unknown words extend the vocabulary or are left out."""
    columns, values, starts = [], [], [0]
    for text in texts:
        for word, count in Counter(_WORD.findall(text.casefold())).items():
            column = vocabulary.setdefault(word, len(vocabulary)) if grow else vocabulary.get(word)
            if column is not None:
                columns.append(column)
                values.append(float(count))
        starts.append(len(columns))
    return sparse.csr_matrix((values, columns, starts), shape=(len(texts), len(vocabulary)))


def _weights(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """(1 + log count) * idf, each row of length one."""
    weights = counts.copy()
    weights.data = 1 + np.log(weights.data)
    weights = weights.multiply(idf[None]).tocsr()
    norms = np.sqrt(weights.multiply(weights).sum(1).A1)
    return sparse.diags_array(1 / np.maximum(norms, 1e-12)).tocsr() @ weights
