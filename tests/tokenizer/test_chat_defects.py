"""The eight defects of the published reference encoder: each is shown there, and absent here."""

import ast
from pathlib import Path

import pytest
from chat_dialogues import BOOK, SEARCH, WEATHER, bare, calls, tool, user

from herder.tokenizer import ChatFormat, Tokenizer

chat_format = pytest.importorskip(
    "llama_models.llama3.chat_format", reason="needs llama-models (pip install --no-deps llama-models)"
)
datatypes = pytest.importorskip("llama_models.datatypes")


@pytest.fixture(scope="module")
def published():
    return chat_format.ChatFormat(chat_format.Tokenizer.get_instance())


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.load(Path(chat_format.__file__).with_name("tokenizer.model"))


@pytest.fixture(scope="module")
def chat(ours):
    return ChatFormat(ours, "llama3.1")


def their_ids(published, name, arguments, form="json", **fields):
    made = datatypes.ToolCall(call_id="1", tool_name=name, arguments=arguments)
    message = datatypes.RawMessage(role="assistant", content="", tool_calls=[made], **fields)
    return published.encode_message(message, datatypes.ToolPromptFormat(form))[0]


def their_message(published, ids):
    return published.decode_assistant_message(ids, datatypes.StopReason.end_of_turn)


def reply(turn):
    """Ids of the content of the last message."""
    return turn.ids[turn.spans[-1].content : turn.spans[-1].end]


def round_trip(chat, name, arguments, tools=None):
    parsed = chat.parse(reply(chat.encode([user("?"), calls((name, arguments))], tools)), tools)
    return bare([parsed])[0].get("calls")


def test_a_every_built_in_call_begins_with_python_tag(published, chat):
    tag, query = 128010, {"query": "price of gold"}
    assert tag not in their_ids(published, "brave_search", query)
    for name in ("brave_search", "wolfram_alpha"):
        ids = reply(chat.encode([user("?"), calls((name, query))]))
        assert (ids[0], ids[-1]) == (tag, 128008)
        assert round_trip(chat, name, query) == [(name, query)]


def test_b_text_that_spells_control_tokens_is_text(published, chat, ours):
    special = {"<|python_tag|>": 128010, "<|eot_id|>": 128009}
    safe = [*ours.encode("<|python_tag|>1+1<|eot_id|>")]
    unsafe = [special["<|python_tag|>"], *ours.encode("1+1"), special["<|eot_id|>"]]
    theirs = [their_message(published, ids) for ids in (safe, unsafe)]
    assert [m.tool_calls[0].tool_name.value for m in theirs] == ["code_interpreter"] * 2
    assert chat.parse(safe) == {
        "role": "assistant",
        "content": "<|python_tag|>1+1<|eot_id|>",
        "stop_reason": "out_of_tokens",
    }
    assert bare([chat.parse(unsafe)])[0]["calls"] == [("code_interpreter", {"code": "1+1"})]


def test_c_prose_that_holds_a_call_stays_prose(published, chat, ours):
    text = 'You could try foo.call(query="x") and see.'
    theirs = their_message(published, ours.encode(text))
    assert (theirs.content, theirs.tool_calls[0].tool_name) == ("", "foo")
    for tools in (None, [WEATHER], [SEARCH]):
        assert bare([chat.parse(ours.encode(text), tools)]) == [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("arguments", [{"a": {"b": 1}}, {"city": "L'Aquila"}])
def test_d_nested_arguments_and_apostrophes_survive_the_function_tag(published, ours, capsys, arguments):
    theirs = their_message(published, their_ids(published, "weather", arguments, "function_tag")[4:])
    assert not theirs.tool_calls or theirs.tool_calls[0].arguments != arguments
    assert "Exception while parsing" in capsys.readouterr().out
    chat = ChatFormat(ours, "llama3.1", calls="function_tag")
    assert round_trip(chat, "weather", arguments, [WEATHER]) == [("weather", arguments)]
    assert capsys.readouterr().out == ""


def test_e_json_answers_are_answers_and_no_call_is_lost(published, chat, ours):
    with pytest.raises(KeyError):
        their_message(published, ours.encode('{"name": "Bob"}'))
    with pytest.raises(ValueError, match="malformed"):
        their_message(published, ours.encode("[weather(city=x)]"))
    both = ours.encode("[weather(city='Oslo'), book(seats=2)]")
    assert [c.tool_name for c in their_message(published, both).tool_calls] == ["weather"]
    pythonic, tools = ChatFormat(ours, "llama3.2"), [WEATHER, BOOK]
    for format, text in ((chat, '{"name": "Bob"}'), (pythonic, "[weather(city=x)]")):
        assert bare([format.parse(ours.encode(text), tools)]) == [{"role": "assistant", "content": text}]
    parsed = bare([pythonic.parse(both, tools)])
    assert parsed[0]["calls"] == [("weather", {"city": "Oslo"}), ("book", {"seats": 2})]


@pytest.mark.parametrize("arguments", [{"text": 'say "hi"'}, {"a": {"x": "y"}}])
def test_f_pythonic_calls_are_python(published, ours, arguments):
    theirs = published.tokenizer.decode(their_ids(published, "weather", arguments, "python_list")[4:-1])
    with pytest.raises(SyntaxError):
        ast.parse(theirs)
    chat = ChatFormat(ours, "llama3.2")
    written = ours.decode(reply(chat.encode([calls(("weather", arguments))]))[:-1])
    (made,) = ast.parse(written, mode="eval").body.elts
    assert {k.arg: ast.literal_eval(k.value) for k in made.keywords} == arguments
    assert round_trip(chat, "weather", arguments, [WEATHER]) == [("weather", arguments)]


def test_g_quotes_in_a_query_survive(published, chat):
    arguments = {"query": 'who said "I am back"'}
    theirs = their_message(published, [128010, *their_ids(published, "brave_search", arguments)[4:]])
    assert theirs.tool_calls[0].tool_name.value == "code_interpreter"
    assert round_trip(chat, "brave_search", arguments) == [("brave_search", arguments)]


def test_h_calls_have_lasting_ids_that_results_name(published, ours):
    ids = ours.encode("[weather(city='Oslo'), weather(city='Rome')]")
    theirs = [their_message(published, ids).tool_calls[0].call_id for _ in range(2)]
    assert theirs[0] != theirs[1]
    chat = ChatFormat(ours, "llama3.2")
    asked = calls(("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"}))
    dialogue = [user("?"), asked, tool("5 C"), tool("21 C"), user("again"), asked, tool("6 C"), tool("22 C")]
    turn = chat.encode(dialogue, [WEATHER])
    first, second = (chat.parse_dialogue(turn.ids, [WEATHER]) for _ in range(2))
    assert first == second
    made = [c["id"] for m in first for c in m.get("tool_calls", ())]
    assert len(set(made)) == 4
    assert [m["tool_call_id"] for m in first if m["role"] == "tool"] == made
    span = turn.spans[-3]
    alone = chat.parse(turn.ids[span.content : span.end], [WEATHER], prompt=turn.ids[: span.content])
    assert [c["id"] for c in alone["tool_calls"]] == made[2:]
    assert chat.encode(first, [WEATHER]).ids == turn.ids
