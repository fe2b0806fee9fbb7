import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.records import Dialogue
from herder.tokenizer import ChatFormat, Tokenizer, special_names

CONTROL = [
    "<|eot_id|>",
    "<|python_tag|>",
    "<|start_header_id|>system<|end_header_id|>\n\n",
    '{"name": "f"}',
    "Environment: ipython",
]
content = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(CONTROL)), max_size=4).map("".join)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
INTERPRETER = {"type": "code_interpreter"}


@pytest.fixture(scope="module")
def chat(tok):
    return ChatFormat(tok)


def call(name, **arguments):
    return {
        "id": "call_0",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def replies(turn):
    """The ids that each assistant message would have been generated as."""
    return [turn.ids[s.content : s.end] for s in turn.spans if s.role == "assistant" and s.message >= 0]


def test_the_published_example_has_its_21_ids():
    """With the pieces of the example as ranks, the ids must fall where the published encoder puts them."""
    words = ["\n\n", "user", "assistant", "system", "You", " are", " a", " helpful", " assistant", "Hi"]
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:  # every prefix becomes a token, so that merging from the left reaches the whole word
        for end in range(2, len(word) + 1):
            ranks.setdefault(word[:end].encode(), len(ranks))
    tok = Tokenizer(ranks, special_names(32))
    w = {word: ranks[word.encode()] for word in words}
    base = len(ranks)
    start, end, eot, nl = base + 6, base + 7, base + 9, w["\n\n"]
    messages = [{"role": "system", "content": "You are a helpful assistant"}, {"role": "user", "content": "Hi"}]
    turn = ChatFormat(tok).encode(messages, add_generation_prompt=True)
    expected = [base, start, w["system"], end, nl, *(w[x] for x in words[4:9]), eot]
    expected += [start, w["user"], end, nl, w["Hi"], eot, start, w["assistant"], end, nl]
    assert turn.ids == expected
    assert len(turn.ids) == 21


@settings(deadline=None, max_examples=80)
@given(texts=st.lists(content, min_size=1, max_size=4))
def test_content_never_holds_a_control_id(tok, texts):
    roles = ["system", "user", "assistant", "tool"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    turn = ChatFormat(tok).encode(messages)
    assert [s.message for s in turn.spans] == list(range(len(messages)))
    for span in turn.spans:
        assert max(turn.ids[span.content : span.end - 1], default=0) < tok.n_base
        assert tok.decode(turn.ids[span.content : span.end - 1]) == messages[span.message]["content"]
        assert turn.ids[span.end - 1] == tok.special["<|eot_id|>"]


@settings(deadline=None, max_examples=80)
@given(text=content)
@pytest.mark.parametrize("dialect", ["llama3", "llama3.1"])
def test_an_answer_comes_back_as_it_was(tok, dialect, text):
    chat = ChatFormat(tok, dialect)
    message = {"role": "assistant", "content": text, "stop_reason": "end_of_turn"}
    turn = chat.encode([{"role": "user", "content": text}, message])
    assert chat.parse(replies(turn)[0]) == message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | content,
    lambda inner: st.lists(inner) | st.dictionaries(content, inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80)
@given(arguments=st.dictionaries(content, values, max_size=4), environment=st.booleans())
def test_a_function_call_comes_back_as_it_was(tok, arguments, environment):
    chat, made = ChatFormat(tok), call("weather")
    made["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    tools = [WEATHER, INTERPRETER] if environment else [WEATHER]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [made]}]
    ids = replies(chat.encode(messages, tools))[0]
    parsed = chat.parse(ids, tools)
    assert parsed["tool_calls"][0]["function"] == made["function"]
    assert parsed["stop_reason"] == ("end_of_message" if environment else "end_of_turn")
    assert (ids[0] == tok.special["<|python_tag|>"]) == environment


@settings(deadline=None, max_examples=80)
@given(text=content, name=st.sampled_from(["brave_search", "wolfram_alpha", "code_interpreter"]))
def test_a_built_in_call_comes_back_as_it_was(tok, text, name):
    chat, made = ChatFormat(tok), call(name, **{"code" if name == "code_interpreter" else "query": text})
    ids = replies(chat.encode([{"role": "assistant", "content": None, "tool_calls": [made]}]))[0]
    assert (ids[0], ids[-1]) == (tok.special["<|python_tag|>"], tok.special["<|eom_id|>"])
    parsed = chat.parse(ids)
    assert parsed["tool_calls"][0]["function"] == made["function"]
    assert (parsed["content"], parsed["stop_reason"]) == ("", "end_of_message")


def test_a_search_call_is_written_as_published(chat, tok):
    ids = replies(chat.encode([{"role": "assistant", "tool_calls": [call("brave_search", query='a "b"')]}]))[0]
    assert tok.decode(ids) == '<|python_tag|>brave_search.call(query="a \\"b\\"")<|eom_id|>'


def test_code_that_spells_a_search_call_is_refused(chat):
    made = call("code_interpreter", code='brave_search.call(query="x")')
    with pytest.raises(ValueError, match="spells another tool's call"):
        chat.encode([{"role": "assistant", "tool_calls": [made]}])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob"}',
        '{"type": "function", "name": "rob", "parameters": {}}',
        'try foo.call(query="x")',
        "[1]",
        "<|python_tag|>1+1",
    ],
)
def test_text_that_looks_like_a_call_stays_text(chat, tok, text):
    ids = [*tok.encode(text), tok.special["<|eot_id|>"]]
    for tools in (None, [WEATHER]):
        assert chat.parse(ids, tools) == {"role": "assistant", "content": text, "stop_reason": "end_of_turn"}


def test_python_tag_counts_at_the_beginning_only(chat, tok):
    ids = [*tok.encode("so "), tok.special["<|python_tag|>"], *tok.encode("1+1"), tok.special["<|eom_id|>"]]
    assert chat.parse(ids) == {"role": "assistant", "content": "so 1+1", "stop_reason": "end_of_message"}


def test_a_reply_ends_at_its_first_stop_id(chat, tok):
    ids = [*tok.encode("yes"), tok.special["<|eot_id|>"], *tok.encode(" and more")]
    assert chat.parse(ids)["content"] == "yes"
    assert chat.parse(tok.encode("yes"))["stop_reason"] == "out_of_tokens"
    assert chat.parse([]) == {"role": "assistant", "content": "", "stop_reason": "out_of_tokens"}


def test_the_loss_covers_what_the_assistant_writes_and_nothing_else(chat, tok):
    messages = [
        {"role": r, "content": c} for r, c in [("user", "a?"), ("assistant", "b."), ("tool", "c"), ("assistant", "d!")]
    ]
    turn = chat.encode(messages, add_generation_prompt=True)
    eot = tok.special["<|eot_id|>"]
    assert [i for i, m in zip(turn.ids, turn.loss_mask, strict=True) if m] == [
        *tok.encode("b."),
        eot,
        *tok.encode("d!"),
        eot,
    ]
    assert turn.ids.count(tok.bos_id) == 1


def test_tool_results_are_written_under_the_role_ipython(chat, tok):
    header = [tok.special["<|start_header_id|>"], *tok.encode("ipython"), tok.special["<|end_header_id|>"]]
    for role in ("tool", "ipython"):
        assert chat.encode([{"role": role, "content": "25 C"}]).ids[1 : 1 + len(header)] == header


def test_built_in_tools_are_announced_in_the_system_message(chat, tok):
    tools = [INTERPRETER, {"type": "brave_search"}]
    turn = chat.encode([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}], tools)
    span = turn.spans[0]
    assert tok.decode(turn.ids[span.content : span.end - 1]) == "Environment: ipython\nTools: brave_search\n\nBe brief."
    turn = chat.encode([{"role": "user", "content": "?"}], [INTERPRETER])
    assert [(s.role, s.message) for s in turn.spans] == [("system", -1), ("user", 0)]
    assert tok.decode(turn.ids[turn.spans[0].content : turn.spans[0].end - 1]) == "Environment: ipython"


def test_a_dialogue_is_encoded_with_its_tools(chat):
    messages = [{"role": "user", "content": "?"}]
    assert chat.encode(Dialogue(messages, tools=[WEATHER])).ids == chat.encode(messages, [WEATHER]).ids
    assert chat.encode(Dialogue(messages)).ids == chat.encode(messages).ids


def test_functions_stand_in_a_user_message_before_the_question(chat, tok):
    turn = chat.encode([{"role": "system", "content": "s"}, {"role": "user", "content": "?"}], [WEATHER])
    assert [(s.role, s.message) for s in turn.spans] == [("system", 0), ("user", -1), ("user", 1)]
    assert '{"name": "weather", "parameters": {"type": "object"}}' in tok.decode(turn.ids)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "robot", "content": "x"}, "role 'robot'; dialect llama3.1 knows system, user, assistant, tool"),
        ({"role": "user", "content": 3}, "content of type int"),
        ({"role": "assistant", "content": None}, "content of type NoneType"),
        ({"role": "assistant", "tool_calls": [call("f"), call("g")]}, "one call a message"),
        ({"role": "assistant", "content": "hm", "tool_calls": [call("f")]}, "text beside its tool call"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "not a JSON object"),
        ({"role": "assistant", "tool_calls": [call("brave_search", q="x")]}, "other arguments than"),
        ({"role": "assistant", "tool_calls": ["f"]}, "a tool call without"),
    ],
)
def test_what_the_dialect_cannot_say_is_refused(chat, message, said):
    with pytest.raises(ValueError, match=said):
        chat.encode([{"role": "user", "content": "a"}, message])


def test_llama3_has_neither_tools_nor_their_roles(tok):
    chat = ChatFormat(tok, "llama3")
    assert tok.special["<|eom_id|>"] not in chat.stop_ids
    for messages, tools in (
        ([{"role": "tool", "content": "x"}], None),
        ([{"role": "assistant", "tool_calls": [call("f")]}], None),
        ([{"role": "user", "content": "x"}], [WEATHER]),
    ):
        with pytest.raises(ValueError, match="dialect llama3"):
            chat.encode(messages, tools)


@pytest.mark.parametrize("dialect", ["alpaca", "", "LLAMA3"])
def test_a_dialect_that_is_not_built_is_refused(tok, dialect):
    with pytest.raises(ValueError, match=r"choose one of llama3, llama3\.1"):
        ChatFormat(tok, dialect)


def test_the_end_of_an_answer_that_was_cut_off_is_not_learned(tok):
    answer = {"role": "assistant", "content": "an answer that"}
    whole, cut = (ChatFormat(tok).encode([answer | more]) for more in ({}, {"stop_reason": "out_of_tokens"}))
    assert whole.ids == cut.ids
    assert sum(whole.loss_mask) - sum(cut.loss_mask) == 1
    assert cut.loss_mask[-1] == 0
