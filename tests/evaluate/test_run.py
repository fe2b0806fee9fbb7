import json

import pytest
import torch

from herder.engine import Engine, Sampling
from herder.evaluate import BitsPerByteTask, ChoiceItem, ChoiceTask, GenerationItem, GenerationTask, TextItem, evaluate
from herder.model import Llama
from herder.records import Measure, read_jsonl

WORDS = ["def", "class", "return", "import", "self", "lambda", "yield", "raise"]
TASKS = (
    ChoiceTask("choice", tuple(ChoiceItem(f"{w} x", ("a", "the end", ")"), i % 3) for i, w in enumerate(WORDS))),
    GenerationTask(
        "answer", tuple(GenerationItem(w, ("a",), id=w) for w in WORDS), Sampling(max_tokens=9, seed=1, logprobs=True)
    ),
    BitsPerByteTask("bytes", tuple(TextItem(f"{w} = {w}({i})" * (i + 1)) for i, w in enumerate(WORDS))),
)


def rows(path):
    return sorted(list(read_jsonl(path))[1:], key=lambda row: row["item"])


def close(a, b):
    return a.n == b.n and all(getattr(a, f) == pytest.approx(getattr(b, f), abs=1e-5) for f in ("value", "low", "high"))


def test_the_numbers_do_not_depend_on_the_batch_size(engine):
    one, eight = (evaluate(engine, TASKS, batch_size=size) for size in (1, 8))
    assert one.keys() == eight.keys()
    assert all(close(one[name], eight[name]) for name in one)


def test_the_numbers_do_not_depend_on_what_the_engine_runs_at_once(engine):
    alone = evaluate(Engine(engine.model, engine.tokenizer, max_batch=1), TASKS)
    together = evaluate(engine, TASKS)
    assert all(close(alone[name], together[name]) for name in alone)


def test_every_item_is_kept_with_its_evidence(engine, tmp_path):
    measures = evaluate(engine, TASKS, tmp_path)
    for task in TASKS:
        found = rows(tmp_path / f"{task.name}.jsonl")
        assert [row["item"] for row in found] == list(range(8))
        assert all(row.keys() >= {"prompt", "output", "gold", "score", "logprob", "parsed"} for row in found)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: Measure.from_json(m) for name, m in results["measures"].items()} == measures
    assert results["measures"]["choice"]["n"] == 8


class Interrupted(Exception):
    pass


def test_an_interrupted_evaluation_resumes_and_reuses_what_is_done(engine, tmp_path, monkeypatch):
    whole = evaluate(engine, TASKS, tmp_path / "whole")
    ran = []
    original = ChoiceTask.run

    def run(self, engine, chat, items):
        for row in original(self, engine, chat, items):
            if len(ran) == 5:
                raise Interrupted
            ran.append(row["item"])
            yield row

    monkeypatch.setattr(ChoiceTask, "run", run)
    with pytest.raises(Interrupted):
        evaluate(engine, TASKS, tmp_path / "cut", batch_size=2)
    path = tmp_path / "cut" / "choice.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"item": 5, "sco')  # as a process killed in the middle of a write leaves it
    monkeypatch.setattr(
        ChoiceTask, "run", lambda *args: (row for row in original(*args) if ran.append(row["item"]) is None)
    )
    assert evaluate(engine, TASKS, tmp_path / "cut") == whole
    assert ran == list(range(8))
    assert rows(path) == rows(tmp_path / "whole" / "choice.jsonl")


def test_a_finished_evaluation_runs_nothing_again(engine, tmp_path, monkeypatch):
    first = evaluate(engine, TASKS, tmp_path)
    for method in ("score", "completed"):
        monkeypatch.setattr(Engine, method, lambda *args: pytest.fail("the model ran again"))
    assert evaluate(engine, TASKS, tmp_path) == first


def test_another_model_is_refused(engine, tmp_path):
    evaluate(engine, TASKS[:1], tmp_path)
    other = Llama(engine.model.config).init_weights(0)
    with torch.no_grad():
        other.load_state_dict(engine.model.state_dict())
        other.model.norm.weight[3] += 0.001
    with pytest.raises(ValueError, match="results of another model"):
        evaluate(Engine(other, engine.tokenizer), TASKS[:1], tmp_path)


def test_another_version_of_a_task_is_refused(engine, tmp_path):
    evaluate(engine, TASKS[:1], tmp_path)
    changed = ChoiceTask("choice", (*TASKS[0].items[:-1], ChoiceItem("new", ("a", "b"), 0)))
    with pytest.raises(ValueError, match="another version of this task"):
        evaluate(engine, [changed], tmp_path)


def test_results_of_several_calls_stand_together(engine, tmp_path):
    for task in TASKS:
        evaluate(engine, [task], tmp_path)
    measures = json.loads((tmp_path / "results.json").read_text())["measures"]
    assert {"choice", "answer", "bytes", "answer/unparsed", "choice/acc_norm"} <= measures.keys()


def test_two_tasks_of_one_name_are_refused(engine):
    with pytest.raises(ValueError, match="two tasks are called 'choice'"):
        evaluate(engine, [TASKS[0], TASKS[0]])


def test_a_broken_line_is_named(engine, tmp_path):
    evaluate(engine, TASKS[:1], tmp_path)
    path = tmp_path / "choice.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    with pytest.raises(ValueError, match="line 3: not a row of results"):
        evaluate(engine, TASKS[:1], tmp_path)
