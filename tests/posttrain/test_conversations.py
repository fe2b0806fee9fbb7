"""A user's dialogues in the forms that people have, by hand-written rows of each form."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herder.posttrain import ConversationConfig, conversations_manifest, import_dialogues, read_conversations
from herder.records import read_dialogues

SIDES = ("train", "heldout")
QUESTION, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def messages(path):
    return [d.messages for d in read_conversations(str(path))]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
        # the row form of the No Robots set
        (
            {"prompt": "hi", "prompt_id": "1", "messages": [QUESTION, ANSWER], "category": "Chat"},
            [QUESTION, ANSWER],
        ),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, [QUESTION, ANSWER]),
        (
            {
                "system": "Be kind.",
                "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
            },
            [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER],
        ),
        ({"instruction": "hi", "input": "", "output": "hello"}, [QUESTION, ANSWER]),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3", "history": [["hi", "hello"]]},
            [
                QUESTION,
                ANSWER,
                {"role": "user", "content": "Add.\n\n1 and 2"},
                {"role": "assistant", "content": "3"},
            ],
        ),
        ({"prompt": "hi", "completion": "hello"}, [QUESTION, ANSWER]),
        ({"prompt": [QUESTION], "completion": [ANSWER]}, [QUESTION, ANSWER]),
    ],
)
def test_each_form_gives_the_same_messages(tmp_path, row, expected):
    assert messages(write(tmp_path / "a.jsonl", [row])) == [expected]
    (tmp_path / "b.json").write_text(json.dumps([row, row]))
    assert messages(tmp_path / "b.json") == [expected, expected]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    assert messages(tmp_path / "c.parquet") == [expected]


def test_content_in_parts_comes_through(tmp_path):
    parts = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert messages(write(tmp_path / "a.jsonl", [{"messages": [parts, ANSWER]}])) == [[parts, ANSWER]]


def test_tool_calls_come_through_in_openai_and_sharegpt_form(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    openai = {
        "messages": [
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
        ],
        "tools": '[{"type": "function", "function": {"name": "f"}}]',
    }
    a, b = read_conversations(str(write(tmp_path / "a.jsonl", [openai, sharegpt])))
    assert a.tools == b.tools == openai["tools"]
    assert a.messages[1]["tool_calls"] == b.messages[1]["tool_calls"] == [call]
    assert [m["role"] for m in a.messages] == [m["role"] for m in b.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "hi"}, r"row 2: fields 'text'; give one of the forms"),
        ({"messages": []}, "row 2: the dialogue has no message"),
        ({"messages": ["hi"]}, r"row 2, message 0: expected \{"),
        ({"messages": [{"role": "user"}]}, r"row 2, message 0 \(user\) has no content"),
        ({"conversations": [{"from": "alien", "value": "hi"}]}, "row 2, message 0: speaker 'alien' is not known"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "row 2, message 0: not valid JSON"),
        ({"instruction": "hi", "output": 3}, "row 2: output is of type int"),
        ({"instruction": "hi", "output": "x", "history": [["a"]]}, "row 2: history must be"),
        ({"instruction": "hi", "output": "x", "history": 5}, "row 2: history must be"),
        (
            {"conversations": [{"from": ["human"], "value": "hi"}]},
            r"row 2, message 0: speaker \['human'\] is not known",
        ),
        ({"messages": [QUESTION], "tools": 5}, "row 2: tools is of type int"),
        ({"messages": [QUESTION], "tools": "5"}, "row 2: tools is of type int"),
        ({"messages": [QUESTION, {"role": "assistant", "content": 5}]}, r"row 2, message 1 \(assistant\) has content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"row 2, message 0 \(user\) has content"),
    ],
)
def test_a_row_in_none_of_the_forms_is_named(tmp_path, row, says):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(ValueError, match=says):
        list(read_conversations(str(path)))


def test_a_file_that_is_not_there_or_not_json_says_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist; give a JSONL"):
        list(read_conversations(str(tmp_path / "none.jsonl")))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: not valid JSON"):
        list(read_conversations(str(tmp_path / "bad.jsonl")))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read as Parquet"):
        list(read_conversations(str(tmp_path / "bad.parquet")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file that ends in"):
        list(read_conversations(str(tmp_path / "empty")))


def test_no_question_is_on_both_sides_and_the_split_does_not_depend_on_the_order(tmp_path):
    rows = [{"prompt": f"question {i % 150}", "completion": f"answer {i}"} for i in range(300)]
    rows.append({"messages": [{"role": "user", "content": "never answered"}]})
    sides = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        path = write(tmp_path / f"{name}.jsonl", order)
        numbers = import_dialogues(ConversationConfig(str(path), heldout_share=0.2), {}, tmp_path / name)
        train, heldout = (list(read_dialogues(tmp_path / name / f"{s}.jsonl")) for s in SIDES)
        assert numbers == {"train": len(train), "heldout": len(heldout), "without_an_answer": 1}
        sides.append([{d.messages[0]["content"] for d in side} for side in (train, heldout)])
    assert sides[0] == sides[1]
    assert not sides[0][0] & sides[0][1]
    assert len(sides[0][0] | sides[0][1]) == 150
    assert 15 <= len(sides[0][1]) <= 45


def test_a_question_that_is_held_out_stays_so_when_enough_are(tmp_path):
    rows = [{"prompt": f"question {i % 20}", "completion": f"answer {i}"} for i in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    import_dialogues(ConversationConfig(str(path), heldout_share=0.9, heldout_most=5), {}, tmp_path)
    train, heldout = ([d.messages[0]["content"] for d in read_dialogues(tmp_path / f"{s}.jsonl")] for s in SIDES)
    assert not set(train) & set(heldout)
    assert (len(set(heldout)), len(heldout), len(train)) == (5, 15, 45)


def test_the_manifest_changes_with_the_content_and_not_with_the_place(tmp_path):
    (tmp_path / "x").mkdir()
    a = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    moved = write(tmp_path / "x" / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    assert conversations_manifest(str(a)) == conversations_manifest(str(moved))
    before = conversations_manifest(str(a))
    write(a, [{"prompt": "a", "completion": "c"}])
    assert conversations_manifest(str(a)) != before
    assert conversations_manifest("no_robots") == ({"path": "hf:HuggingFaceH4/no_robots#train"},)


def test_without_data_the_verifiable_tasks_are_the_dialogues(tmp_path):
    pytest.importorskip("reasoning_gym", reason="needs the package reasoning-gym")
    config = ConversationConfig(reasoning={"syllogism": 30}, heldout_most=10)
    numbers = import_dialogues(config, {}, tmp_path)
    assert numbers["heldout"] == 10
    assert {d.task for d in read_dialogues(tmp_path / "train.jsonl")} == {"syllogism"}
    with pytest.raises(ValueError, match="no dialogues: give --set data=FILE"):
        import_dialogues(ConversationConfig(), {}, tmp_path)


def test_a_data_set_in_the_hubs_layout_is_read_by_its_name(tmp_path):
    """As `no_robots` is, over the network; here the data set is a local folder."""
    pytest.importorskip("datasets", reason="needs the package datasets")
    row = {"prompt": "hi", "prompt_id": "1", "messages": [QUESTION, ANSWER], "category": "Chat"}
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", [row] * 3)
    found = list(read_conversations(f"hf:{folder}", limit=2))
    assert [d.messages for d in found] == [[QUESTION, ANSWER]] * 2
    assert found[0].task == "Chat"
