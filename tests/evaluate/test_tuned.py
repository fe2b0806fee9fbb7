"""Which held-out dialogues are asked anew, and how."""

from herder.evaluate import evaluate
from herder.evaluate.task import _prompt_ids
from herder.evaluate.tuned import ModelEvaluation, tasks_of
from herder.records import Dialogue
from herder.tokenizer import ChatFormat

QUESTION, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def samples(*dialogues):
    (task,) = (t for t in tasks_of(ModelEvaluation(max_tokens=2), list(dialogues)) if t.name == "samples")
    return task


def test_a_dialogue_without_a_question_or_without_an_answer_is_not_asked():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    bad = [[ANSWER], [QUESTION], [QUESTION, call], [QUESTION, {"role": "assistant", "content": ""}]]
    task = samples(*(Dialogue(messages) for messages in bad), Dialogue([QUESTION, ANSWER]))
    assert [item.prompt for item in task.items] == [(QUESTION,)]


def test_an_answer_in_parts_is_compared_as_one_text(engine):
    parts = [{"type": "text", "text": "t"}, {"type": "text", "text": "wo"}]
    task = samples(Dialogue([QUESTION, {"role": "assistant", "content": parts}]))
    assert task.items[0].gold == ("two",)
    assert evaluate(engine, [task])["samples"].n == 1


def test_a_dialogue_is_asked_with_its_tools(tok):
    (item,) = samples(Dialogue([QUESTION, ANSWER], tools=TOOLS)).items
    chat = ChatFormat(tok)
    assert _prompt_ids(tok, chat, item) == chat.encode([QUESTION], TOOLS, add_generation_prompt=True).ids
