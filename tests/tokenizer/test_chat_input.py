"""What a chat format does with bad input: one sentence that names the message, or text that stays text."""

import json
import time
from types import SimpleNamespace

import pytest
from chat_dialogues import BOOK, INTERPRETER, SEARCH, WEATHER, assistant, bare, call, calls, system, tool, user

from herder.tokenizer import DIALECTS, ChatFormat, Tokenizer

LOOP: list = []
LOOP.append(LOOP)


@pytest.fixture(scope="module")
def toks(tok):
    chatml = Tokenizer(tok.ranks, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], tok.pattern)
    return {dialect: chatml if dialect == "chatml" else tok for dialect in DIALECTS}


@pytest.fixture(params=list(DIALECTS))
def chat(request, toks):
    return ChatFormat(toks[request.param], request.param)


def content(chat, turn, number):
    span = turn.spans[number]
    return turn.ids[span.content : span.end - 1]


def test_the_tokenizers_own_dialect_is_the_default(toks):
    for dialect, tok in toks.items():
        assert ChatFormat(tok).dialect.name == ("chatml" if dialect == "chatml" else "llama3.1")
    plain = Tokenizer(toks["llama3"].ranks, ["<|end|>"], toks["llama3"].pattern)
    with pytest.raises(ValueError, match="no chat format's; name one of llama3"):
        ChatFormat(plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dialect": "alpaca"}, "'alpaca' is unknown; choose one of llama3"),
        ({"dialect": "chatml"}, "needs the special token <|im_start|>"),
        ({"dialect": "llama3.1", "calls": "python_list"}, "does not write calls as 'python_list'; its forms are json"),
        ({"dialect": "llama3", "calls": "json"}, "it has no calls"),
        ({"dialect": "llama3", "date": "today"}, "no date lines"),
    ],
)
def test_what_a_dialect_lacks_is_refused(tok, options, said):
    with pytest.raises(ValueError, match=said):
        ChatFormat(tok, **options)


BAD = [
    ([], "has no messages"),
    (["Hi"], "message 0 is of type str"),
    ("Hi", "message 0 is of type str"),
    ([user("a"), {"content": "b"}], "message 1 has role None"),
    ([{"role": "robot", "content": "b"}], "role 'robot'; dialect .* knows system, user"),
    ([{"role": ["user"], "content": "b"}], "message 0 has role"),
    ([user(None)], "message 0 .* content of type NoneType"),
    ([user("a"), assistant(None)], "message 1 .* content of type NoneType"),
    ([user(b"a")], "content of type bytes"),
    ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "part of type 'image_url'; give text parts only"),
    ([user([{"type": "text"}])], "part of type 'text'"),
    ([user(["a"])], "part of type 'str'"),
    ([user("a", tool_calls=[call("f", {})])], "only the assistant calls tools"),
    ([assistant("a", context="b")], "message 0 has a context"),
    ([user("a", context=["b"])], "message 0 has a context"),
]


@pytest.mark.parametrize(("messages", "said"), BAD)
def test_broken_messages_are_named(chat, messages, said):
    with pytest.raises(ValueError, match=said):
        chat.encode(messages)


def broken(function):
    return [user("a"), {"role": "assistant", "content": None, "tool_calls": [function]}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (broken("f"), "message 1 has a tool call without"),
        (broken({"function": {"name": "", "arguments": "{}"}}), "message 1 has a tool call without"),
        (broken({"function": {"name": "f", "arguments": '{"a": '}}), "message 1 calls f with arguments that are not"),
        (broken({"function": {"name": "f", "arguments": "[1]"}}), "not a JSON object: '\\[1\\]'"),
        (broken({"function": {"name": "f", "arguments": '{"a": NaN}'}}), "not a JSON object"),
        (broken({"function": {"name": "f", "arguments": {"a": float("inf")}}}), "not a JSON object"),
        (broken({"function": {"name": "f", "arguments": {"a": LOOP}}}), "not a JSON object"),
        (broken({"function": {"name": "f", "arguments": {1: 2}}}), "not a JSON object"),
        (broken({"function": {"name": "f", "arguments": "[" * 100_000}}), "not a JSON object"),
        ([user("a"), {"role": "assistant", "tool_calls": {"name": "f"}}], "tool_calls of type dict"),
        ([calls(("f", {})), tool("1", tool_call_id="call_9")], "'call_9', which is made nowhere before it"),
        ([calls(("f", {})), tool("1"), tool("1", tool_call_id="call_0")], "answered or passed already"),
        ([calls(("f", {})), tool("1", tool_call_id=["call_0"])], "made nowhere before it"),
    ],
)
@pytest.mark.parametrize("dialect", [name for name, row in DIALECTS.items() if row.forms])
def test_broken_calls_are_named(toks, dialect, messages, said):
    with pytest.raises(ValueError, match=said):
        ChatFormat(toks[dialect], dialect).encode(messages)


@pytest.mark.parametrize("tools", ["f", 5, {"type": "brave_search"}])
def test_tools_that_are_no_list_are_refused(chat, tools):
    with pytest.raises(ValueError, match=r"tools are of type .*; give a list"):
        chat.encode([user("a")], tools)


def test_results_out_of_order_are_refused(tok):
    both = calls(("f", {}), ("g", {}))
    with pytest.raises(ValueError, match="message 1 answers the call 'call_1' before those"):
        ChatFormat(tok, "llama3.2").encode([both, tool("1", tool_call_id="call_1"), tool("0", tool_call_id="call_0")])


@pytest.mark.parametrize(
    "tools",
    [["f"], [{"type": "function"}], [{"type": "retrieval"}], [{"type": "function", "function": {"name": 1}}]],
)
def test_broken_tools_are_named(tok, tools):
    with pytest.raises(ValueError, match="tool 0 is neither"):
        ChatFormat(tok, "llama3.1").encode([user("a")], tools)
    deep = {"type": "function", "function": {"name": "f", "parameters": LOOP}}
    with pytest.raises(ValueError, match=r"tool 0 \(f\) holds something that JSON cannot say"):
        ChatFormat(tok, "llama3.1").encode([user("a")], [deep])


def test_content_may_be_none_beside_calls_and_text_parts_are_text(tok, toks):
    chat = ChatFormat(tok, "llama3.1")
    made = {"role": "assistant", "content": None, "tool_calls": [call("weather", {"city": "Oslo"})]}
    assert chat.encode([user("?"), made]).ids == chat.encode([user("?"), made | {"content": ""}]).ids
    for dialect, own in toks.items():
        chat = ChatFormat(own, dialect)
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
        assert bare(chat.parse_dialogue(chat.encode([user(parts)]).ids)) == bare([user("one two")])


def test_every_special_tokens_text_is_text_everywhere(chat):
    tok = chat.tokenizer
    text = "".join(tok.special)
    messages = [system(text), user(text), assistant(text)]
    tools = None
    if chat.dialect.forms:
        function = {"name": text.replace(">", "").replace("<", ""), "description": text, "parameters": {text: text}}
        tools = [WEATHER, {"type": "function", "function": function}]
        messages += [calls(("weather", {text: text})), tool(text)]
    turn = chat.encode(messages, tools)
    for span in turn.spans:
        assert tok.special_ids.isdisjoint(turn.ids[span.content : span.end - 1])
    assert bare(chat.parse_dialogue(turn.ids, tools)) == bare(messages)


def test_lone_surrogates_become_replacement_characters_and_nul_stays(chat):
    turn = chat.encode([user("a\ud800b\0c"), assistant("\udfff\0")])
    back = [m["content"] for m in chat.parse_dialogue(turn.ids)]
    assert back == ["a\ufffdb\0c", "\ufffd\0"]
    if chat.dialect.forms:
        given = {"text": "\ud800 \0"}
        ids = chat.encode([user("?"), calls(("weather", given))], [WEATHER]).ids
        (made,) = chat.parse_dialogue(ids, [WEATHER])[-1]["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == given


@pytest.mark.parametrize("text", ["x" * 10_000_000, "word " * 2_000_000, "<|eot_id|>" * 1_000_000])
def test_ten_megabytes_in_one_message_take_seconds(tok, text):
    chat, begun = ChatFormat(tok, "llama3.1"), time.process_time()
    turn = chat.encode([user(text)])
    assert time.process_time() - begun < 60
    assert tok.decode(content(chat, turn, 0)) == text
    assert tok.special_ids.isdisjoint(content(chat, turn, 0))


def test_a_generation_prompt_opens_a_new_message_also_behind_the_assistant(chat):
    messages = [user("Count."), assistant("One,")]
    done, prompt = chat.encode(messages), chat.encode(messages, add_generation_prompt=True)
    header = chat.encode([user("Count.")], add_generation_prompt=True).ids[len(chat.encode([user("Count.")]).ids) :]
    assert prompt.ids == done.ids + header
    assert bare(chat.parse_dialogue(prompt.ids)) == bare(messages)


def test_the_last_message_can_be_continued(chat):
    messages = [user("Count."), assistant("One, two,")]
    whole, left = chat.encode(messages), chat.encode(messages, continue_last=True)
    assert whole.ids[: len(left.ids)] == left.ids
    assert whole.loss_mask[: len(left.ids)] == left.loss_mask
    assert left.spans[-1].end == len(left.ids) == len(left.loss_mask)
    assert left.ids[-1] not in chat.stop_ids
    assert chat.parse_dialogue(left.ids)[-1] == messages[-1] | {"stop_reason": "out_of_tokens"}
    with pytest.raises(ValueError, match="exclude each other"):
        chat.encode(messages, add_generation_prompt=True, continue_last=True)
    for last in (user("x"), *([calls(("f", {}))] if chat.dialect.forms else [])):
        with pytest.raises(ValueError, match="the assistant's text"):
            chat.encode([user("Count."), last], continue_last=True)


def test_ids_that_are_no_dialogue_are_refused_with_their_position(chat):
    tok, whole = chat.tokenizer, chat.encode([user("Hi"), assistant("Ho")])
    first, second = whole.spans[-2:]
    for ids, said in (
        (tok.encode("Hi"), "no message begins at position 0"),
        (whole.ids[: first.end - 1], "has no end"),
        (whole.ids[: first.content - 1], f"no message begins at position {first.start}"),
        (whole.ids[: first.content] + whole.ids[second.start :], f"position {first.content}, inside of a message"),
    ):
        with pytest.raises(ValueError, match=said):
            chat.parse_dialogue(ids)
    for ids in ([tok.n_vocab], [-1]):
        with pytest.raises(ValueError, match=r"not one of|id"):
            chat.parse(ids)


def test_a_call_to_what_is_not_declared_is_text(tok):
    chat = ChatFormat(tok, "llama3.1")
    tag = tok.special["<|python_tag|>"]
    for text, declared in (
        ('brave_search.call(query="x")', SEARCH),
        ("print(1)", INTERPRETER),
        ('{"name": "book", "parameters": {}}', BOOK),
    ):
        ids = [tag, *tok.encode(text)]
        assert bare([chat.parse(ids, [WEATHER])]) == [assistant(text)]
        assert len(chat.parse(ids, [declared])["tool_calls"]) == len(chat.parse(ids)["tool_calls"]) == 1


def test_long_dialogues_parse_in_linear_time(tok):
    chat = ChatFormat(tok, "llama3.1")
    messages = [m for i in range(2000) for m in (user(f"Weather {i}?"), calls(("weather", {"n": i})), tool("5"))]
    ids, begun = chat.encode(messages, [WEATHER]).ids, time.process_time()
    back = chat.parse_dialogue(ids, [WEATHER])
    assert time.process_time() - begun < 20
    assert len({m["tool_calls"][0]["id"] for m in back[1::3]}) == 2000


def test_a_dialogue_may_come_from_anywhere_that_yields_messages(tok):
    chat = ChatFormat(tok, "llama3.1")
    assert chat.encode(iter([user("Hi")])).ids == chat.encode([user("Hi")]).ids
    with pytest.raises(ValueError, match="message 0 is of type SimpleNamespace"):
        chat.encode([SimpleNamespace(role="user", content="Hi")])
