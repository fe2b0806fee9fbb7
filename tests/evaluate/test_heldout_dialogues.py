"""Held-out dialogues: what is compared, what is scored, and what the tables say."""

import json

import pytest

from herder.convert import save
from herder.evaluate import DialogueEvaluation, evaluate_dialogues
from herder.model import Llama, LlamaConfig
from herder.posttrain import FineTuneConfig, fine_tune
from herder.records import Dialogue, write_dialogues
from herder.train import OptimConfig, TrainConfig


def ask(task, number, question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Dialogue(messages, id=f"{task}/{number}", source=str(number), task=task)


def dialogues(numbers):
    for i in numbers:
        yield ask("parity", i, f"Is it {'left' if i % 3 else 'right'} at {i}?", "yes" if i % 3 else "no")
        yield ask("talk", i, f"Say something of {i}.", "something")


@pytest.fixture(scope="module")
def made(tok, tmp_path_factory):
    root = tmp_path_factory.mktemp("dialogues")
    save(
        Llama(LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 64, max_seq_len=128)).init_weights(0),
        tok,
        root / "before" / "model",
    )
    write_dialogues(dialogues(range(60)), root / "dialogues" / "train.jsonl")
    write_dialogues(dialogues(range(60, 90)), root / "dialogues" / "heldout.jsonl")
    config = FineTuneConfig(TrainConfig(OptimConfig(kind="muon", lr=1e-2, warmup_steps=5), device="cpu"), 8.0, 4, 128)
    (root / "after").mkdir()
    fine_tune(config, {"base": root / "before", "dialogues": root / "dialogues"}, root / "after")
    inputs = {name: root / name for name in ("dialogues", "before", "after")}
    (root / "out").mkdir()
    config = DialogueEvaluation(open_families=("talk",), max_tokens=8)
    return evaluate_dialogues(config, inputs, root / "out"), root / "out", inputs, config


def test_before_and_after_are_told_for_form_and_for_answers(made):
    numbers, *_ = made
    assert numbers["items"] == 60
    assert numbers["answers_well_before"].value < 0.2
    assert numbers["answers_that_work"] == numbers["answers_well_after"]
    assert numbers["answers_well_after"].value > 0.9
    assert numbers["answers_well_after"].n == 60


def test_only_families_with_one_right_answer_are_scored(made):
    numbers, *_ = made
    assert "parity_after" in numbers
    assert "talk_after" not in numbers
    assert numbers["accuracy"].n == 30
    assert numbers["accuracy"] == numbers["all_tasks_after"]


def test_the_baselines_are_the_commonest_answer_and_the_nearest_question(made):
    numbers, *_ = made
    # 20 of 30 held-out numbers are not divisible by three, and "yes" is the commonest training answer.
    assert numbers["all_tasks_most_frequent_answer"].value == pytest.approx(20 / 30)
    assert numbers["all_tasks_nearest_training_question"].value == 1.0  # "left" and "right" tell the answer


def test_the_fine_tuned_model_leads_every_table_and_samples_are_kept(made):
    _, out, *_ = made
    tables = json.loads((out / "comparison.json").read_text())
    assert [t["rows"][0]["name"] for t in tables] == ["fine-tuned"] * 3
    answers = json.loads((out / "answers.json").read_text())
    assert {a["task"] for a in answers} == {"parity", "talk"}
    assert all(a["correct"] is None for a in answers if a["task"] == "talk")


def test_a_second_call_reads_what_the_first_one_answered(made, monkeypatch):
    numbers, out, inputs, config = made
    from herder.engine import Engine

    monkeypatch.setattr(Engine, "completed", lambda *args: pytest.fail("an answer was asked for again"))
    assert evaluate_dialogues(config, inputs, out) == numbers
