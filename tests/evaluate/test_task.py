import math

import numpy as np
import pytest
import torch

from herder.engine import Sampling
from herder.evaluate import BitsPerByteTask, ChoiceItem, ChoiceTask, GenerationItem, GenerationTask, TextItem, evaluate
from herder.evaluate.task import NUMBER, document_windows, extract, matches, split_continuation


def logprob(engine, text, start):
    """Log-probability of the ids of `text` after begin_of_text, from position `start` on, by a plain forward pass."""
    ids = engine.tokenizer.encode(text, bos=True)
    with torch.no_grad():
        scores = engine.model(torch.tensor([ids]))[0].log_softmax(-1)
    return sum(float(scores[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_the_choice_is_the_likeliest_option_in_sum_and_per_character(engine, tok):
    item = ChoiceItem("import os; os.", ("path", "a very long name of nothing", "x"), 0)
    start = len(tok.encode(item.context, bos=True))
    sums = [logprob(engine, f"{item.context} {option}", start) for option in item.options]
    each = [value / len(option) for value, option in zip(sums, item.options, strict=True)]
    assert int(np.argmax(sums)) != int(np.argmax(each))  # so that the two measures differ here
    for gold in range(3):
        measures = evaluate(engine, [ChoiceTask("t", (ChoiceItem(item.context, item.options, gold),))])
        assert measures["t"].value == (gold == np.argmax(sums))
        assert measures["t/acc_norm"].value == (gold == np.argmax(each))
        assert measures["t/nats_per_character"].value == pytest.approx(-each[gold], abs=1e-5)


def test_ties_go_to_the_lowest_index(engine):
    measures = evaluate(
        engine, [ChoiceTask("t", (ChoiceItem("a", ("same", "same"), 0), ChoiceItem("a", ("same", "same"), 1)))]
    )
    assert measures["t"].value == 0.5


def test_trailing_spaces_of_the_context_move_to_the_continuation(tok):
    whole = tok.encode("def xylophones")
    assert len(whole) > 3
    for context, option in (("def ", "xylophones"), ("def", " xylophones")):
        assert split_continuation(tok, context, option, False, 99) == (whole[:1], whole[1:])
        assert split_continuation(tok, context, option, True, 99) == ([tok.bos_id, *whole[:1]], whole[1:])


def test_a_long_context_loses_its_beginning_and_keeps_begin_of_text(tok):
    context, continuation = split_continuation(tok, "a b c d e f g h", " i", True, 5)
    assert context == [tok.bos_id, *tok.encode("a b c d e f g h")[-3:]]
    assert continuation == tok.encode(" i")


@pytest.mark.parametrize("bos", [True, False])
def test_a_continuation_that_fills_the_context_keeps_one_id_before_it(tok, bos):
    context, option = "a b c d e f g h", " i j k"
    size = len(tok.encode(option))
    before, after = split_continuation(tok, context, option, bos, size + 1)
    assert before == ([tok.bos_id] if bos else tok.encode(context)[-1:])
    assert after == tok.encode(option)
    with pytest.raises(ValueError, match=rf"' i j k' has {size} tokens; the model scores {size - 1} at most"):
        split_continuation(tok, context, option, bos, size)


def test_an_option_that_merges_into_the_context_is_still_scored(tok):
    for context, option in (("", "x"), ("a" * 30, "a"), ("(", ")"), ("\n", "\n")):
        for bos in (True, False):
            before, after = split_continuation(tok, context, option, bos, 99)
            assert before
            assert after
            assert tok.decode(before + after, special=False) == context + option


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("first 3, then 4: so 1,207.5.", NUMBER, "1,207.5"),
        ("none here", NUMBER, None),
        ("Answer: a\nAnswer: b ", r"Answer: (?P<answer>.*)", "b"),
        (" all of it ", None, "all of it"),
    ],
)
def test_the_last_match_is_the_answer(text, pattern, expected):
    assert extract(text, pattern) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("1,000", "1000.0", True),
        ("$5.", "5", True),
        ("-5", "5", False),
        ("  The  Answer. ", "the answer", True),
        ("ﬁne", "fine", True),
        ("12", "120", False),
        ("c++", "c", False),
        ("", "0", False),
    ],
)
def test_normalised_answers_match_by_value(answer, gold, same):
    assert matches(answer, gold, normalised=True) is same
    assert matches(answer, gold, normalised=False) is False


def test_generated_answers_are_extracted_and_scored(engine, tok):
    sampling = Sampling(temperature=0, max_tokens=6, stop_ids=())
    prompts = ["def f", "class A", ({"role": "user", "content": "hi"},)]
    outputs = [engine.generate([tok.encode(p, bos=True)], sampling)[0].text for p in prompts[:2]]
    items = (
        GenerationItem(prompts[0], (outputs[0],)),
        GenerationItem(prompts[1], ("wrong",)),
        GenerationItem(prompts[2], ("?",)),
    )
    measures = evaluate(engine, [GenerationTask("t", items, sampling)])
    assert (measures["t"].value, measures["t"].n) == (pytest.approx(1 / 3), 3)
    assert measures["t/unparsed"].value == 0
    assert measures["t/answers_well"].value == 0  # none ends by itself
    unparsed = evaluate(engine, [GenerationTask("t", items, sampling, pattern="(?P<answer>impossible to say)")])
    assert (unparsed["t"].value, unparsed["t/unparsed"].value) == (0, 1)


def test_bits_per_byte_are_those_of_a_plain_forward_pass(engine):
    texts = ["def f(x):\n    return x", "日本", "a"]
    bits = [-logprob(engine, text, 1) / math.log(2) for text in texts]
    measure = evaluate(engine, [BitsPerByteTask("t", tuple(TextItem(t) for t in texts))])["t"]
    assert measure.value == pytest.approx(sum(bits) / sum(len(t.encode()) for t in texts), abs=1e-4)
    assert (measure.n, measure.unit) == (3, "bits/byte")


@pytest.mark.parametrize("length", [1, 2, 10, 11, 12, 16, 17, 100])
@pytest.mark.parametrize("context", [1, 2, 10])
def test_windows_score_every_id_once_within_the_context(length, context):
    ids = list(range(length))
    windows = document_windows(ids, context)
    assert [i for _, scored in windows for i in scored] == ids[1:]
    for seen, scored in windows:
        assert seen
        assert len(seen) + len(scored) <= context + 1
        assert seen[-1] == scored[0] - 1
        assert seen[0] == 0 or len(seen) >= context // 2


def test_a_document_longer_than_the_context_is_scored_whole(engine, tok):
    text = "the quick brown fox " * 60
    assert len(tok.encode(text)) > 2 * engine.context
    row = next(BitsPerByteTask("t", ()).run(engine, None, [(0, TextItem(text))]))
    assert (row["tokens"], row["bytes"]) == (len(tok.encode(text)), len(text))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match='no group "answer"'):
        GenerationTask("t", (), pattern=r"\d+")
    with pytest.raises(ValueError, match="gold 2 is none of 2 options"):
        ChoiceItem("c", ("a", "b"), 2)
    with pytest.raises(ValueError, match="scores one answer an item"):
        GenerationTask("t", (), Sampling(n=2))
