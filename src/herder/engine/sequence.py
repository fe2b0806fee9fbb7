"""What the scheduler and the engine say to each other: sequences, and the steps that compute them.

The one design decision: a sequence has no phases beyond a number, `computed`. A prompt read in chunks, a decoding step,
drafts to be verified and the recomputation of a preempted sequence are all the same: positions from `computed` on.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens to be computed, and where the scheduler stands with them.

    tokens: the prompt and what was generated since; only the engine appends, and never takes back.
    limit: most tokens that may be generated from the prompt on; 0 where the prompt is only to be scored.
    needed: first position whose output is wanted (the prompt's last one to generate). A prefix match ends before it. The
        scheduler raises it when it preempts a sequence, so that no output is handed out twice.
    priority: smaller is sooner. client: who asked; fairness is between clients.
    group: sequences of one group share a prefix; while the first computes it, up to its `needed`, the others wait.
    drafts: proposed next tokens, verified in the next step that finds one token left to compute. The engine renews them.
    namespace: sequences of different namespaces share nothing (the name of an adapter).
    """

    tokens: list[int]
    limit: int
    needed: int
    priority: int = 0
    client: str = ""
    group: Hashable = None
    drafts: list[int] = field(default_factory=list)
    namespace: str = ""

    # The scheduler's, for others to read.
    computed: int = field(default=0, init=False)  # positions whose keys and values are in the pages
    blocks: list[int] = field(default_factory=list, init=False)  # block i holds the positions from i * block_size on
    state: Literal["waiting", "running", "finished"] = field(default="waiting", init=False)

    # The scheduler's own.
    positions: int = field(default=0, init=False)  # most positions it will ever compute
    arrival: int = field(default=-1, init=False)  # number in order of arrival, -1 before
    rank: tuple[float, int] = field(default=(0.0, -1), init=False)  # the smallest goes first
    served: int = field(default=0, init=False)  # the last step that computed some of it
    stalled: int = field(default=0, init=False)  # steps that passed it by, up to `served`
    epoch: int = field(default=-1, init=False)  # weights that its pages were computed with
    digests: list[bytes] = field(default_factory=list, init=False)  # the namespace's, then one for each full block
    sealed: int = field(default=0, init=False)  # leading blocks that are full, and registered if they could be
    opened: bool = field(default=False, init=False)  # whether the block after those serves as a source of copies


class Span(NamedTuple):
    """Positions start .. start + count of a sequence's tokens (and then its drafts) are computed in this step."""

    sequence: Sequence
    start: int
    count: int


class Step(NamedTuple):
    """One step. `copies` are (source, target) blocks, copied whole and in order before anything is written."""

    spans: list[Span]
    copies: list[tuple[int, int]]
