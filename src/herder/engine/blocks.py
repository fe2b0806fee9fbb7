"""Pages of the KV cache by number: who holds them, what they contain, and which to give up (paper section 6).

A full block is known by a digest chained over its parent's and its own tokens, so equal digests mean equal prefixes. Within
the next block the longest common run of tokens counts as well: the block is copied, and written on from there.

The one design decision: a block is registered only once its positions are computed and its tokens final; nothing that is
registered and full is ever written again. The unfinished block of a sequence is known up to what the sequence has computed,
read off the sequence itself, so that decoding costs nothing here but once a block.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from herder.engine.sequence import Sequence

CANDIDATES = 16
"""Blocks looked at for a common beginning, latest first; under one parent there may be thousands."""


@dataclass(slots=True, eq=False)
class _Page:
    """What a registered block holds: its own tokens, or those that `owner` has computed of it so far."""

    parent: bytes
    digest: bytes | None = None
    tokens: list[int] | None = None
    owner: Sequence | None = None
    start: int = 0

    def known(self) -> list[int]:
        return self.tokens if self.owner is None else self.owner.tokens[self.start : self.owner.computed]


@dataclass(slots=True)
class Match:
    """Blocks that hold a sequence's first tokens, and a block whose first `length` tokens come next (None where none)."""

    blocks: list[int]
    source: int | None = None
    length: int = 0


class Blocks:
    """`count` blocks of `size` positions. A block is free, held (references), or cached: registered, and held by nobody."""

    def __init__(self, count: int, size: int):
        if count < 1 or size < 1:
            raise ValueError(f"{count} blocks of {size} positions; there must be at least one of each")
        self.count, self.size, self.epoch = count, size, 0
        self.references = [0] * count
        self._free = list(range(count - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._pages: list[_Page | None] = [None] * count
        self._full: dict[bytes, int] = {}
        self._children: dict[bytes, dict[int, None]] = {}  # by parent, latest last

    @property
    def available(self) -> int:
        """Blocks that `allocate` could give: free ones, and cached ones that it would evict."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and that may still be matched."""
        return len(self._cached)

    def pages(self, positions: int) -> int:
        """Blocks that so many positions take."""
        return -(-positions // self.size)

    def allocate(self) -> int:
        """A block with one reference: a free one, or else the cached one that was used longest ago."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._unregister(block)
        self.references[block] = 1
        return block

    def take(self, block: int) -> None:
        """One more reference to a matched block."""
        if not self.references[block]:
            del self._cached[block]
        self.references[block] += 1

    def adopt(self, sequence: Sequence, blocks: list[int]) -> None:
        """Gives a sequence without blocks those matched for it."""
        for block in blocks:
            self.take(block)
        sequence.blocks, sequence.sealed, sequence.epoch = list(blocks), len(blocks), self.epoch
        sequence.computed = len(blocks) * self.size

    def drop(self, block: int) -> None:
        """One reference less; with the last one the block is cached if it is registered, and free otherwise."""
        self.references[block] -= 1
        if not self.references[block]:
            if self._pages[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def match(self, sequence: Sequence, most: int) -> Match:
        """What is known of the sequence's first `most` tokens. Takes no reference."""
        size, tokens, blocks = self.size, sequence.tokens, []
        while (len(blocks) + 1) * size <= most:
            block = self._full.get(self._digest(sequence, len(blocks)))
            if block is None:
                break
            blocks.append(block)
        start = len(blocks) * size
        rest = tokens[start : min(most, start + size)]
        if not rest:
            return Match(blocks)
        if len(rest) < size <= len(tokens) - start:  # the whole block may be known, though not all of it may be used
            block = self._full.get(self._digest(sequence, len(blocks)))
            if block is not None:
                return Match(blocks, block, len(rest))
        best = Match(blocks)
        for block in islice(reversed(self._children.get(self._parent(sequence, len(blocks)), {})), CANDIDATES):
            length = _common(rest, self._pages[block].known())
            if length > best.length:
                best.source, best.length = block, length
                if length == len(rest):
                    break
        return best

    def settle(self, sequence: Sequence) -> None:
        """Registers what the sequence has computed since the last time: full blocks, and the one it is writing."""
        if sequence.epoch != self.epoch:
            return
        full = sequence.computed // self.size
        while sequence.sealed < full:
            self._seal(sequence, sequence.sealed)
            sequence.sealed, sequence.opened = sequence.sealed + 1, False
        if not sequence.opened and sequence.computed > full * self.size:
            page = _Page(self._parent(sequence, full), owner=sequence, start=full * self.size)
            self._register(sequence.blocks[full], page)
            sequence.opened = True

    def release(self, sequence: Sequence) -> None:
        """Drops all blocks of a sequence, the last one first: a prefix is worth more than what followed it."""
        if sequence.opened and sequence.epoch == self.epoch:
            page = self._pages[sequence.blocks[sequence.sealed]]
            page.tokens, page.owner = page.known(), None
        for block in reversed(sequence.blocks):
            self.drop(block)
        sequence.blocks, sequence.computed, sequence.sealed, sequence.opened = [], 0, 0, False

    def forget(self) -> None:
        """Nothing computed so far is matched any more; what is held stays held."""
        self.epoch += 1
        self._full.clear()
        self._children.clear()
        self._pages = [None] * self.count
        self._free.extend(self._cached)
        self._cached.clear()

    def _seal(self, sequence: Sequence, index: int) -> None:
        block, digest = sequence.blocks[index], self._digest(sequence, index)
        page = self._pages[block]  # there already where the block has been open
        if digest in self._full:  # another sequence computed the same; one of them is enough to be found
            if page is not None:
                self._unregister(block)
            return
        tokens = sequence.tokens[index * self.size : (index + 1) * self.size]
        if page is None:
            page = _Page(self._parent(sequence, index))
            self._register(block, page)
        page.digest, page.tokens, page.owner = digest, tokens, None
        self._full[digest] = block

    def _register(self, block: int, page: _Page) -> None:
        self._pages[block] = page
        self._children.setdefault(page.parent, {})[block] = None

    def _unregister(self, block: int) -> None:
        page, self._pages[block] = self._pages[block], None
        siblings = self._children[page.parent]
        del siblings[block]
        if not siblings:
            del self._children[page.parent]
        if page.digest is not None:
            del self._full[page.digest]

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        """Digest of all tokens before block `index`, and of the namespace."""
        digests = sequence.digests
        if not digests:
            digests.append(blake2b(sequence.namespace.encode(), digest_size=16, person=b"namespace").digest())
        while len(digests) <= index:
            start = (len(digests) - 1) * self.size
            ids = array("q", sequence.tokens[start : start + self.size])
            digests.append(blake2b(digests[-1] + ids.tobytes(), digest_size=16).digest())
        return digests[index]

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        return self._parent(sequence, index + 1)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
