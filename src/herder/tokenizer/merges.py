"""Two descriptions of one byte-pair encoding (paper section 3.2): tokens in order of rank, and a list of pairs to merge.

tiktoken's kind merges whichever neighbours spell the token of lowest rank; the kind of Hugging Face's `tokenizers` merges
only listed pairs, first listed first. Going to a list is easy: name every way to write each token as two tokens. The one
design decision is how the way back is made safe: both kinds agree exactly when the one split that merging really arrives at
(the *reached* split of a token) is listed, in the order of the tokens, so `rank_order` computes that split for every token
and refuses a list where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NONE = -1


def splits(tokens: Sequence[bytes]) -> np.ndarray:
    """Every way to write a token as two tokens: rows (left, right, token), as positions in `tokens`.

    Ordered by token, then left, then right, as the published conversion of Llama 3 lists its merges. int64, shape (n, 3).
    """
    place_of = {token: place for place, token in enumerate(tokens)}.get
    lefts, rights, owners = [], [], []
    for place, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left = place_of(token[:cut])
            if left is not None and (right := place_of(token[cut:])) is not None:
                lefts.append(left)
                rights.append(right)
                owners.append(place)
    rows = np.array([lefts, rights, owners], dtype=np.int64).T
    return rows[np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2]))]


def reached(tokens: Sequence[bytes], rows: np.ndarray) -> np.ndarray:
    """The row of `rows` (all `splits` of `tokens`) by which merging arrives at each token; NONE for bytes and for tokens
    that merging never arrives at. Shape (tokens,).

    Merging arrives at a token by (left, right) exactly when nothing merges across their border before both are whole. That is
    read backwards: take apart whichever of the two neighbours was made last, and look whether what then meets at the border
    would have merged with each other before that.
    """
    n, length = len(tokens), np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    rank = np.where(length == 1, NONE, np.arange(n))  # bytes are there from the start
    keys = rows[:, 0] * n + rows[:, 1]
    order = np.argsort(keys)
    keys, spelled = np.append(keys[order], -1), np.append(rows[order, 2], NONE)
    left_half, right_half = np.full(n, NONE), np.full(n, NONE)
    out = np.full(n, NONE)
    row_length = length[rows[:, 2]]
    for size in np.unique(row_length):  # halves are shorter than their token: by now theirs are known
        here = np.flatnonzero(row_length == size)
        a, b, row = rows[here, 0], rows[here, 1], here
        until_a = until_b = np.full(len(here), n)  # the rank at which the token on this side of the border is swallowed
        good = []
        while len(a):
            index = np.searchsorted(keys[:-1], a * n + b)
            merged = np.where(keys[index] == a * n + b, spelled[index], NONE)
            # Among equal ranks the leftmost merges first: a tie with what is on the right is a merge across, on the left not.
            crossed = (merged >= 0) & (merged < until_a) & (merged <= until_b) & (merged != rows[row, 2])
            take_a = rank[a] > rank[b]
            done = ~crossed & (rank[a] < 0) & (rank[b] < 0)
            good.append(row[done])
            parent = np.where(take_a, a, b)
            half = np.where(take_a, right_half[parent], left_half[parent])
            go = ~crossed & ~done & (half >= 0)  # a part that merging never arrives at is never at the border
            a, b, row, take_a, parent, half = (x[go] for x in (a, b, row, take_a, parent, half))
            until_a = np.where(take_a, parent, until_a[go])
            until_b = np.where(take_a, until_b[go], parent)
            a, b = np.where(take_a, half, a), np.where(take_a, b, half)
        chosen = np.concatenate(good)
        out[rows[chosen, 2]] = chosen
        left_half[rows[chosen, 2]], right_half[rows[chosen, 2]] = rows[chosen, 0], rows[chosen, 1]
    return out


def rank_order(
    vocabulary: dict[bytes, int], merges: Iterable[tuple[bytes, bytes]], whole_pieces: bool
) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """(tokens in order of rank with their ids, tokens that are never produced) of a list of merges.

    Encoding by those ranks gives the ids that merging by the list gives. `whole_pieces` is `ignore_merges` of a
    tokenizer.json: a piece that is a token becomes that token, whatever the merges say. Raises ValueError for a merge of what
    is no token, and where no order of ranks does what the list does.
    """
    merges = list(merges)
    order: dict[bytes, None] = dict.fromkeys(token for token in vocabulary if len(token) == 1)
    order.update(dict.fromkeys(left + right for left, right in merges))
    made = len(order)
    if whole_pieces:
        order.update(dict.fromkeys(vocabulary))
    tokens = list(order)
    _check_known(vocabulary, merges, tokens)
    rows = splits(tokens)
    numbers = _numbers(tokens, merges, rows)
    if whole_pieces and _in_order(numbers, rows):
        return {token: vocabulary[token] for token in tokens}, {}
    arrived = reached(tokens, rows)
    _check_reached(tokens, rows, arrived, numbers, made)
    idle = set() if whole_pieces else {t for t, row in zip(tokens, arrived, strict=True) if row == NONE and len(t) > 1}
    ranks = {token: vocabulary[token] for token in tokens if token not in idle}
    return ranks, {token: id_ for token, id_ in vocabulary.items() if token not in ranks}


def _check_known(vocabulary: dict[bytes, int], merges: list[tuple[bytes, bytes]], tokens: list[bytes]) -> None:
    """Raises ValueError for the first merge whose parts or whole are no tokens; all of them stand in `tokens` otherwise."""
    known = vocabulary.keys()
    if known >= set(tokens) and known >= {part for merge in merges for part in merge}:
        return
    for number, (left, right) in enumerate(merges):
        for part in (left, right, left + right):
            if part not in known:
                raise ValueError(
                    f"merge {number} ({_show(left)} {_show(right)}): {_show(part)} is not in the vocabulary"
                )


def _numbers(tokens: list[bytes], merges: list[tuple[bytes, bytes]], rows: np.ndarray) -> np.ndarray:
    """Where each row of splits stands in the list of merges; NONE where it is not listed. Shape (rows,)."""
    n, place_of = len(tokens), {token: place for place, token in enumerate(tokens)}.get
    pairs = np.array([(place_of(left, NONE), place_of(right, NONE)) for left, right in merges], dtype=np.int64)
    left, right = pairs.reshape(-1, 2).T
    keys = np.append(np.where((left < 0) | (right < 0), NONE, left * n + right), NONE)
    keys, first = np.unique(keys, return_index=True)
    wanted = rows[:, 0] * n + rows[:, 1]
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, first[at], NONE)


def _in_order(numbers: np.ndarray, rows: np.ndarray) -> bool:
    """Whether all splits are listed, and those of one token before those of the next."""
    return bool((numbers >= 0).all() and (np.diff(rows[np.argsort(numbers), 2]) >= 0).all())


def _check_reached(tokens: list[bytes], rows: np.ndarray, arrived: np.ndarray, numbers: np.ndarray, made: int) -> None:
    """Raises ValueError unless the split by which each token is reached is listed, in order, with parts made before it."""
    last = NONE
    for place in np.flatnonzero(arrived >= 0).tolist():
        left, right, _ = rows[arrived[place]].tolist()
        number = int(numbers[arrived[place]])
        early = all(part < place or len(tokens[part]) == 1 for part in (left, right))
        if place >= made or number <= last or not early:
            raise ValueError(
                f"its merges cannot be written as ranks: neighbours {_show(tokens[left])} and {_show(tokens[right])} would "
                f"become the token {_show(tokens[place])}, which the list of merges does not say, or says out of order"
            )
        last = number


def _show(token: bytes) -> str:
    return repr(token.decode("utf-8", "backslashreplace"))
