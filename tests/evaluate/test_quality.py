import pytest

from herder.engine import Completion
from herder.evaluate import answers_well, fault
from herder.evaluate.quality import loops


def done(ids, stop_reason="stop"):
    return Completion(ids, "", stop_reason, 0)


def test_each_fault_is_named(tok):
    eot, bos, python = (tok.special[f"<|{n}|>"] for n in ("eot_id", "begin_of_text", "python_tag"))
    cases = [
        (done([5, 6, 7, eot]), ""),
        (done([python, 6, 7, eot]), ""),
        (done([5, python, 7, eot]), "control id"),
        (done([5, bos, 7, eot]), "control id"),
        (done([eot]), "empty"),
        (done([5, 6, 7], "length"), "unfinished"),
        (done([5, 6] * 10, "length"), "loop"),
        (done([5, 6] * 10 + [eot]), "loop"),
    ]
    assert [fault(completion, tok) for completion, _ in cases] == [expected for _, expected in cases]
    measure = answers_well([completion for completion, _ in cases], tok)
    assert (measure.value, measure.n) == (0.25, 8)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4] * 4, True),
        ([1, 2, 3, 4] * 3 + [1, 2, 3], False),
        ([9, 8, *[1, 2] * 4, 7], True),
        ([9, 8, *[1, 2] * 3, 7], False),
        ([3] * 8, True),
        ([3] * 7, False),
        (list(range(100)), False),
        ([], False),
    ],
)
def test_an_ngram_four_times_back_to_back_is_a_loop(ids, expected):
    assert loops(ids) is expected


def test_few_different_ngrams_are_a_loop_even_with_breaks():
    block = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    ids = [token for i in range(9) for token in [*block, *([99] if i % 3 == 2 else [])]]
    assert loops(ids)


def test_a_dialogues_answer_ends_as_a_turn_not_as_a_document(tok):
    eot, eos = tok.special["<|eot_id|>"], tok.special["<|end_of_text|>"]
    assert fault(done([5, 6, eos]), tok) == ""
    assert fault(done([5, 6, eos]), tok, turn=True) == "unfinished"
    assert fault(done([5, 6, eot]), tok, turn=True) == ""
