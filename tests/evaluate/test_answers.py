"""Bits per byte of given answers, against a plain forward pass over the same dialogue."""

import math

import pytest
import torch

from herder.engine import Engine
from herder.evaluate import AnswerItem, AnswersTask, evaluate
from herder.model import Llama, LlamaConfig
from herder.records import Dialogue
from herder.tokenizer import ChatFormat

DIALOGUES = [
    [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bc"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "é"},
    ],
]


def items(dialogues):
    return tuple(AnswerItem.of(Dialogue(d)) for d in dialogues)


def test_the_figure_is_the_nats_of_answers_and_their_ends_over_the_bytes_of_their_text(engine, tok):
    nats = size = 0
    for messages in DIALOGUES:
        turn = ChatFormat(tok).encode(messages)
        with torch.no_grad():
            scores = engine.model(torch.tensor([turn.ids]))[0].log_softmax(-1)
        nats -= sum(float(scores[i - 1, turn.ids[i]]) for i in range(1, len(turn.ids)) if turn.loss_mask[i])
        size += sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
    found = evaluate(engine, [AnswersTask("answers", items(DIALOGUES))])["answers"]
    assert found.value == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert (found.n, found.unit) == (2, "bits/byte")


def test_a_dialogue_without_an_answer_counts_nothing_and_none_with_one_is_an_error(engine):
    silent = [{"role": "user", "content": "hello"}]
    alone = evaluate(engine, [AnswersTask("answers", items(DIALOGUES))])["answers"]
    assert evaluate(engine, [AnswersTask("answers", items([*DIALOGUES, silent]))])["answers"].value == alone.value
    with pytest.raises(ValueError, match="none of 1 dialogues has an answer"):
        evaluate(engine, [AnswersTask("answers", items([silent]))])


def test_what_does_not_fit_the_context_is_left_out(engine):
    long = [*DIALOGUES[0], {"role": "user", "content": "x " * 300}, {"role": "assistant", "content": "never seen"}]
    a, b = (evaluate(engine, [AnswersTask("answers", items([d]))])["answers"].value for d in (DIALOGUES[0], long))
    assert a == pytest.approx(b, rel=1e-5)


def test_the_tools_of_a_dialogue_are_declared_before_it(tok):
    engine = Engine(Llama(LlamaConfig(tok.n_vocab, 32, 1, 2, 2, 32, max_seq_len=512)).init_weights(0), tok)
    tools = [{"type": "function", "function": {"name": "f"}}]
    turn = ChatFormat(tok).encode(DIALOGUES[0], tools)
    with torch.no_grad():
        scores = engine.model(torch.tensor([turn.ids]))[0].log_softmax(-1)
    nats = -sum(float(scores[i - 1, turn.ids[i]]) for i in range(1, len(turn.ids)) if turn.loss_mask[i])
    item = AnswerItem.of(Dialogue(DIALOGUES[0], tools=tools))
    found = evaluate(engine, [AnswersTask("answers", (item,))])["answers"].value
    assert found == pytest.approx(nats / math.log(2) / len("two"), rel=1e-5)
    bare = evaluate(engine, [AnswersTask("answers", items(DIALOGUES[:1]))])["answers"].value
    assert found != pytest.approx(bare, rel=1e-5)
