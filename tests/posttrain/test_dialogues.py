"""Dialogues from documents: right answers, split by source, a control that only permutes."""

import random

import pyarrow as pa
import pytest

from herder.posttrain import DialogueConfig, make_dialogues
from herder.posttrain.dialogues import (
    FAMILIES,
    corpus_dialogues,
    guess_language,
    read_function,
    reasoning_dialogues,
    shuffled,
)
from herder.records import Document, Span, read_dialogues, write_documents, write_table

SIGNATURE = "def dumps(obj, *, skipkeys=False, indent=None, **kw)"


def function_page(number=0, signature=SIGNATURE):
    head = f"json.dumps{number}"
    text = f"{head}\n\n{signature}\n\nSerialize an object to a string. More is said later.\n\nSource code\n\nreturn 1"
    at = len(head) + 2
    spans = [Span(0, len(head), "heading"), Span(at, at + len(signature), "code", "python")]
    return Document(f"f{number}", f"http://x/{number}", text, spans=spans)


def lead(number=0):
    name = f"Oslo {number}"
    text = (
        f"{name}\n\n{name} is the capital of Norway and the seat of its parliament. It was founded in 1049 and burned in "
        "1624, and the Norwegian king rebuilt it with many parks."
    )
    return Document(
        f"w{number}", f"http://w/{number}", text, title=f"{name} - Site", spans=[Span(0, len(name), "heading")]
    )


def made(document, seed=0):
    found = corpus_dialogues(iter([document]), DialogueConfig(), random.Random(seed))
    return {d.task: (d.messages[0]["content"], d.messages[1]["content"]) for d in found}


def test_questions_about_a_function_have_the_answers_of_its_signature():
    found = made(function_page())
    assert found["parameter_count"][1] == "4"
    assert found["default_count"][1] == "2"
    assert found["any_number"][1] == "yes"
    assert found["method_or_function"][1] == "function"
    assert made(function_page(signature="def close(self)"))["method_or_function"][1] == "method"
    assert found["describe"][1] == "Serialize an object to a string."
    prompt, rest = found["complete_signature"]
    assert (
        SIGNATURE
        in prompt.replace("Complete this signature.\n\n", "").replace("How does this signature go on?\n\n", "") + rest
    )


def test_questions_about_a_text_have_answers_that_stand_in_it():
    found = made(lead())
    assert found["sentence_count"][1] == "2"
    assert found["language"][1] == "English"
    assert found["fact"][1] == "Oslo 0 is the capital of Norway and the seat of its parliament."


@pytest.mark.parametrize("code", ["def broken(", "x = 1", "def f(:)", "def f(a)\nmore"])
def test_what_is_no_signature_gives_no_function(code):
    page = function_page(signature=code)
    assert read_function(page) is None


def test_a_question_is_asked_in_the_language_of_the_text():
    assert guess_language("La ciudad es la capital de la provincia y fue fundada en el siglo X.") == "es"
    assert guess_language("La ville est la capitale du pays et une des plus grandes dans le monde.") == "fr"
    assert guess_language("12 34 56") is None


@pytest.fixture
def corpus(tmp_path):
    documents = [function_page(i, f"def f{i}(a{i}, b{i})") for i in range(40)] + [lead(i) for i in range(40)]
    write_documents(documents, tmp_path / "c" / "documents" / "part-00000.parquet")
    ids = [d.id for d in documents]
    split = ["heldout" if i % 4 == 0 else "train" for i in range(len(ids))]
    for name, values in (("fate", ["kept"] * len(ids)), ("split", split)):
        write_table(pa.table({"id": ids, name: values}), tmp_path / "c" / "attributes" / name / "part-00000.parquet")
    return tmp_path / "c"


def test_train_and_heldout_dialogues_come_from_different_documents(corpus, tmp_path):
    numbers = make_dialogues(DialogueConfig(), {"corpus": corpus}, tmp_path)
    train, heldout = (list(read_dialogues(tmp_path / f"{name}.jsonl")) for name in ("train", "heldout"))
    assert numbers["train"] == len(train) > 100
    assert len(heldout) > 30
    assert not {d.source for d in train} & {d.source for d in heldout}
    assert not {d.messages[0]["content"] for d in train} & {d.messages[0]["content"] for d in heldout}


def test_the_control_permutes_answers_within_a_family_and_nothing_else(corpus, tmp_path):
    make_dialogues(DialogueConfig(), {"corpus": corpus}, tmp_path)
    train = list(read_dialogues(tmp_path / "train.jsonl"))
    control = list(read_dialogues(tmp_path / "shuffled.jsonl"))
    assert control == shuffled(train, 0)
    assert [d.messages[0] for d in control] == [d.messages[0] for d in train]
    for task in {d.task for d in train}:
        a, b = ([d.messages[1]["content"] for d in ds if d.task == task] for ds in (train, control))
        assert sorted(a) == sorted(b)
    moved = [a.messages != b.messages for a, b in zip(train, control, strict=True) if a.task == "fact"]
    assert sum(moved) > len(moved) / 2


def test_reasoning_tasks_share_no_question_between_splits():
    pytest.importorskip("reasoning_gym")
    settings = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    found = reasoning_dialogues(
        DialogueConfig(reasoning={"chain_sum": 300}, reasoning_settings=settings, heldout_items=50)
    )
    asked = [{d.messages[0]["content"] for d in found[split]} for split in ("train", "heldout")]
    assert asked[0]
    assert not asked[0] & asked[1]
    for dialogue in found["train"][:20]:
        left, sign, right = dialogue.messages[0]["content"].rsplit(": ", 1)[1].split()[:3]
        assert int(dialogue.messages[1]["content"]) == int(left) + int(right) * (1 if sign == "+" else -1)


def test_an_unknown_family_is_named(corpus, tmp_path):
    with pytest.raises(ValueError, match="'riddles'; the families are " + ", ".join(FAMILIES)):
        make_dialogues(DialogueConfig(families={"riddles": 1.0}), {"corpus": corpus}, tmp_path)
