"""Supervised fine-tuning: what is packed, what is learned from, and that it learns."""

import pytest
import torch

from herder.model import Llama, LlamaConfig
from herder.posttrain import SupervisedFineTuning
from herder.posttrain.sft import _encoded
from herder.records import Dialogue
from herder.tokenizer import ChatFormat
from herder.train import OptimConfig, TrainConfig, train
from herder.train.objective import Outputs


def dialogues(count=40):
    for i in range(count):
        answer = " ".join(["yes"] * (1 + i % 7))
        yield [{"role": "user", "content": f"question {i} " * (1 + i % 3)}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def turns(tok):
    chat = ChatFormat(tok)
    return [chat.encode(d) for d in dialogues()]


def objective(tok, turns, seq_len=96, rows=4, epochs=1.0):
    return SupervisedFineTuning(turns, seq_len, rows, epochs, seed=0, pad_id=tok.pad_id)


def test_every_dialogue_of_an_epoch_is_packed_once_and_whole(tok, turns):
    o = objective(tok, turns)
    rows = o.rows(o._epoch(0))
    found = []
    for r in range(len(rows)):
        for number in rows.doc_ids[r].unique().tolist():
            if number >= 0:
                inside = rows.doc_ids[r] == number
                found.append((*rows.tokens[r][inside].tolist(), rows.targets[r][inside][-1].item()))
    assert sorted(found) == sorted(tuple(t.ids) for t in turns)


def test_only_answers_and_their_end_are_targets(tok, turns):
    o = objective(tok, turns)
    rows = o.rows(o._epoch(0))
    weighted = int(rows.weights.sum())
    assert weighted == sum(sum(t.loss_mask) for t in turns)
    targets = rows.targets[rows.weights > 0].tolist()
    assert targets.count(tok.special["<|eot_id|>"]) == len(turns)
    assert tok.special["<|start_header_id|>"] not in targets


def test_rows_of_a_step_are_a_function_of_the_step_across_epochs(tok, turns):
    a, b = objective(tok, turns, epochs=3), objective(tok, turns, epochs=3)
    steps = [a.batch(s) for s in range(a.steps)]
    assert [b.batch(s) for s in reversed(range(b.steps))] == steps[::-1]
    flat = [row for step in steps for row in step]
    assert flat == [row for epoch in range(4) for row in a._epoch(epoch)][: len(flat)]
    assert len(flat) > 2 * len(a._epoch(0))
    assert a._epoch(0) != a._epoch(1)


def test_the_loss_is_that_of_each_dialogue_alone(tok, turns):
    model = Llama(LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=128)).init_weights(0)
    o = objective(tok, turns)
    rows = o.rows(o._epoch(0))
    logp = model(rows.tokens, rows.doc_ids).log_softmax(-1).gather(-1, rows.targets[..., None]).flatten()
    loss = o.loss(Outputs(logp[rows.select]), rows)
    alone = 0.0
    for turn in turns:
        ids, mask = torch.tensor(turn.ids), torch.tensor(turn.loss_mask[1:], dtype=torch.float32)
        each = model(ids[None, :-1])[0].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        alone -= float((each * mask).sum())
    assert float(loss.sum) == pytest.approx(alone, rel=1e-4)
    assert float(loss.weight) == sum(sum(t.loss_mask) for t in turns)


def test_a_small_model_learns_the_answers(tok, turns, tmp_path):
    model = Llama(LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=128)).init_weights(0)
    config = TrainConfig(OptimConfig(kind="adamw", lr=1e-2, warmup_steps=2), device="cpu")
    assert train(model, objective(tok, turns, epochs=12), config, tmp_path)["loss"] < 1.0


def test_dialogues_that_do_not_fit_are_counted_and_none_at_all_is_refused(tok, turns):
    short = sorted(len(t.ids) for t in turns)[len(turns) // 2]
    o = objective(tok, turns, seq_len=short - 1)
    assert o.left_out == sum(len(t.ids) > short for t in turns)
    with pytest.raises(ValueError, match="raise seq_len"):
        objective(tok, turns, seq_len=4)


def test_a_dialogue_that_the_format_cannot_say_is_named(tok):
    with pytest.raises(ValueError, match="dialogue row-7: message 0 has role 'robot'"):
        _encoded(ChatFormat(tok), Dialogue([{"role": "robot", "content": "x"}], id="row-7"))
