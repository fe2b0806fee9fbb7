"""Whether an answer is well formed, whatever it says: it ends in time, holds no control ids, does not run in circles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from herder.engine import Completion
from herder.records import Measure
from herder.tokenizer import Tokenizer

LOOP_REPEATS = 4
"""An n-gram this often back to back is a loop (a single token: twice as often, "!!!!" is fine)."""
LOOP_UNIQUE_SHARE = 0.3
"""Fewer distinct 4-grams than this share of all is a loop too, in answers of at least 16 of them."""
_SHORTEST_JUDGED = 16
DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>")


def fault(completion: Completion, tokenizer: Tokenizer, turn: bool = False) -> str:
    """Why an answer is not well formed, or "": "empty", "unfinished", "control id" or "loop".

    With `turn` it answers a dialogue and must end as a turn does (eot, eom, im_end): end_of_text there is a document's end.
    """
    ids = completion.ids[:-1] if completion.stop_reason == "stop" else completion.ids
    if completion.stop_reason != "stop":
        return "loop" if loops(ids) else "unfinished"
    if turn and completion.ids[-1] in {tokenizer.special.get(name) for name in DOCUMENT_ENDS}:
        return "unfinished"
    if not ids:
        return "empty"
    # python_tag opens a tool call; anywhere else, and any other control id, is out of place.
    body = ids[1:] if ids[0] == tokenizer.special.get("<|python_tag|>") else ids
    if not tokenizer.special_ids.isdisjoint(body):
        return "control id"
    return "loop" if loops(ids) else ""


def answers_well(completions: Iterable[Completion], tokenizer: Tokenizer) -> Measure:
    """The share of answers without a `fault`."""
    faults = [fault(completion, tokenizer) for completion in completions]
    return Measure.share(sum(not f for f in faults), len(faults))


def loops(ids: Sequence[int]) -> bool:
    """Whether ids repeat themselves: see LOOP_REPEATS and LOOP_UNIQUE_SHARE."""
    a = np.asarray(ids, dtype=np.int64)
    for period in range(1, len(a) // LOOP_REPEATS + 1):
        needed = period * (LOOP_REPEATS - 1) if period > 1 else 2 * LOOP_REPEATS - 1
        if len(a) > needed and _longest_run(a[period:] == a[:-period]) >= needed:
            return True
    grams = len(a) - 3
    if grams < _SHORTEST_JUDGED:
        return False
    windows = np.lib.stride_tricks.sliding_window_view(a, 4)
    return len(np.unique(windows, axis=0)) < LOOP_UNIQUE_SHARE * grams


def _longest_run(flags: np.ndarray) -> int:
    """The longest stretch of True."""
    ends = np.flatnonzero(np.diff(np.concatenate(([0], flags.view(np.int8), [0]))))
    return int((ends[1::2] - ends[::2]).max(initial=0))
