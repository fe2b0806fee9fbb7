"""Which pages are found again, which are given up, and which never are."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.engine import blocks as module
from herder.engine.blocks import CANDIDATES, Blocks
from herder.engine.sequence import Sequence

ids = st.lists(st.integers(0, 2), min_size=1, max_size=14)


def computed(blocks: Blocks, tokens, **settings) -> Sequence:
    """A sequence that has computed all its tokens and holds its blocks."""
    sequence = Sequence([*tokens], 0, 0, **settings)
    blocks.adopt(sequence, [])
    sequence.blocks = [blocks.allocate() for _ in range(blocks.pages(len(tokens)))]
    sequence.computed = len(tokens)
    blocks.settle(sequence)
    return sequence


def cached(blocks: Blocks, tokens, **settings) -> list[int]:
    sequence = computed(blocks, tokens, **settings)
    held = [*sequence.blocks]
    blocks.release(sequence)
    return held


def matched(blocks: Blocks, tokens, **settings) -> int:
    """How many of the tokens are known."""
    match = blocks.match(Sequence([*tokens], 0, 0, **settings), len(tokens))
    return len(match.blocks) * blocks.size + match.length


@given(st.lists(ids, max_size=8), ids, st.integers(1, 4), st.booleans())
def test_the_longest_common_prefix_is_known(earlier, tokens, size, finished):
    blocks = Blocks(100, size)
    for prompt in earlier:
        (cached if finished else computed)(blocks, prompt)
    common = [next((i for i, (a, b) in enumerate(zip(p, tokens, strict=False)) if a != b), None) for p in earlier]
    longest = max(
        (min(len(p), len(tokens)) if n is None else n for n, p in zip(common, earlier, strict=True)), default=0
    )
    assert matched(blocks, tokens) == longest


def test_what_a_match_may_not_reach_is_copied_from_the_full_block():
    blocks = Blocks(8, 4)
    held = cached(blocks, range(8))
    match = blocks.match(Sequence([*range(8)], 0, 0), 7)
    assert (match.blocks, match.source, match.length) == (held[:1], held[1], 3)


def test_the_same_tokens_after_another_beginning_are_not_the_same():
    blocks = Blocks(8, 4)
    cached(blocks, [1, 1, 1, 1, 5, 6, 7, 8])
    assert matched(blocks, [2, 2, 2, 2, 5, 6, 7, 8]) == 0
    assert matched(blocks, [5, 6, 7, 8]) == 0


def test_ids_are_not_run_together():
    blocks = Blocks(8, 2)
    cached(blocks, [1, 23])
    assert matched(blocks, [12, 3]) == 0
    cached(blocks, [256, 0])
    assert matched(blocks, [0, 1]) == 0


def test_namespaces_share_nothing():
    blocks = Blocks(8, 4)
    cached(blocks, range(6), namespace="french")
    assert matched(blocks, range(6)) == matched(blocks, range(6), namespace="german") == 0
    assert matched(blocks, range(6), namespace="french") == 6


def test_what_is_not_computed_is_not_known():
    blocks = Blocks(8, 4)
    sequence = Sequence([*range(8)], 0, 0)
    blocks.adopt(sequence, [])
    sequence.blocks = [blocks.allocate(), blocks.allocate()]
    for count in (0, 3, 4, 6):
        sequence.computed = count
        blocks.settle(sequence)
        assert matched(blocks, range(8)) == count


def test_an_unfinished_block_is_known_as_far_as_its_owner_has_come():
    blocks = Blocks(8, 4)
    sequence = Sequence([*range(8)], 0, 0)
    blocks.adopt(sequence, [])
    sequence.blocks = [blocks.allocate()]
    sequence.computed = 1
    blocks.settle(sequence)
    sequence.computed = 3  # and nobody was told
    assert matched(blocks, range(8)) == 3


def test_the_longest_of_several_beginnings_is_taken():
    blocks = Blocks(8, 4)
    cached(blocks, [1, 2, 9])
    held = cached(blocks, [1, 2, 3])
    cached(blocks, [1, 8])
    match = blocks.match(Sequence([1, 2, 3, 4], 0, 0), 4)
    assert (match.source, match.length) == (held[0], 3)


def test_a_block_computed_twice_is_known_once_and_the_other_is_free_again():
    blocks, sequences = Blocks(8, 4), [Sequence([*range(4)], 0, 0) for _ in range(2)]
    for sequence in sequences:
        blocks.adopt(sequence, [])
        sequence.blocks = [blocks.allocate()]
    for count in (2, 4):
        for sequence in sequences:
            sequence.computed = count
            blocks.settle(sequence)
    for sequence in sequences:
        blocks.release(sequence)
    assert (blocks.cached, blocks.available) == (1, 8)
    assert matched(blocks, range(4)) == 4


def test_the_block_that_was_used_longest_ago_goes_first():
    blocks = Blocks(3, 2)
    for prompt in ([1, 1], [2, 2], [3, 3]):
        cached(blocks, prompt)
    block = blocks.match(Sequence([1, 1], 0, 0), 2).blocks[0]
    blocks.take(block)
    blocks.drop(block)
    blocks.allocate()
    assert [matched(blocks, prompt) for prompt in ([1, 1], [2, 2], [3, 3])] == [2, 0, 2]


def test_the_end_of_a_prompt_is_given_up_before_its_beginning():
    blocks = Blocks(4, 2)
    cached(blocks, range(8))
    for left in (6, 4, 2, 0):
        blocks.allocate()
        assert matched(blocks, range(8)) == left


def test_what_is_held_is_never_given_up():
    blocks = Blocks(4, 2)
    sequence = computed(blocks, range(4))
    cached(blocks, [7, 7])
    assert not {blocks.allocate(), blocks.allocate()} & {*sequence.blocks}
    assert blocks.available == 0
    assert matched(blocks, range(4)) == 4


def test_forgetting_frees_what_is_cached_and_shares_nothing_of_what_is_held():
    blocks = Blocks(8, 2)
    running = computed(blocks, range(5))
    cached(blocks, [7, 7, 7])
    blocks.forget()
    assert (blocks.cached, blocks.available) == (0, 5)
    running.tokens.append(5)
    running.computed = 6
    blocks.settle(running)
    assert matched(blocks, range(6)) == matched(blocks, [7, 7, 7]) == 0
    blocks.release(running)
    assert (blocks.cached, blocks.available) == (0, 8)
    assert matched(blocks, range(6)) == 0


def test_few_of_many_candidates_are_compared(monkeypatch):
    blocks, compared, common = Blocks(600, 4), [], module._common
    for i in range(500):
        cached(blocks, [0, i, i])
    monkeypatch.setattr(module, "_common", lambda a, b: compared.append(b) or common(a, b))
    assert matched(blocks, [0, 1, 1, 1]) == 1
    assert len(compared) == CANDIDATES
    assert matched(blocks, [0, 499, 499, 1]) == 3


def test_the_scheduler_is_plain_python():
    folder = Path(module.__file__).parent
    for name in ("blocks", "scheduler", "sequence", "waiting"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            outside = [n for n in names if n.startswith("herder") and not n.startswith("herder.engine.")]
            assert not outside + [n for n in names if n.split(".")[0] in ("torch", "numpy")]


def test_no_blocks_are_no_cache():
    with pytest.raises(ValueError, match="0 blocks of 16 positions"):
        Blocks(0, 16)
