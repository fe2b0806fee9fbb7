"""The exported templates as `transformers` renders and tokenizes them, against the ids of `ChatFormat`."""

import json

import jinja2
import pytest
from chat_dialogues import (
    ALPHA,
    ARGUMENTS,
    BOOK,
    BUILTINS,
    INTERPRETER,
    SEARCH,
    TEXTS,
    WEATHER,
    assistant,
    call,
    calls,
    system,
    tool,
    user,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herder.tokenizer import DIALECTS, ChatFormat, Tokenizer, chat_template
from herder.tokenizer.bpe import Conventions

transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")

FORMS = [(d.name, form) for d in DIALECTS.values() for form in d.forms or (None,)]


@pytest.fixture(scope="module")
def chatml_tok(tok):
    """The corpus' own tokenizer, with ChatML's special tokens."""
    return Tokenizer(tok.ranks, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], tok.pattern)


@pytest.fixture(scope="module")
def toks(tok, chatml_tok):
    return {dialect: chatml_tok if dialect == "chatml" else tok for dialect in DIALECTS}


@pytest.fixture(scope="module")
def theirs(toks, tmp_path_factory):
    """One of transformers' tokenizers for each of ours, without any template."""
    loaded = {}
    for dialect, tok in toks.items():
        folder = tmp_path_factory.mktemp(dialect)
        tok.save(folder)
        loaded[dialect] = transformers.AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.fixture
def ids(theirs):
    def render(dialect, form, messages, tools, **fields):
        template = chat_template(dialect, form)
        made = theirs[dialect].apply_chat_template(
            messages, tools, chat_template=template, tokenize=True, return_dict=False, **fields
        )
        return list(made)

    return render


PLAIN = [
    *[[user(text)] for text in TEXTS],
    *[[system(text), user("Go on."), assistant(text), user(text)] for text in TEXTS],
    [user("a"), user("b"), assistant("c"), system("d")],
    [user("a"), assistant("b", stop_reason="end_of_message"), assistant("c", stop_reason="end_of_turn")],
    [user("cut"), assistant("an answer that", stop_reason="out_of_tokens"), user("go on")],
    [system(""), user("An empty system message.")],
]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialogues_render_to_the_same_ids(toks, ids, dialect):
    chat = ChatFormat(toks[dialect], dialect)
    for messages in PLAIN:
        for prompt in (False, True):
            expected = chat.encode(messages, add_generation_prompt=prompt).ids
            assert ids(dialect, None, messages, None, add_generation_prompt=prompt) == expected


def scenes(dialect, form):
    """Dialogues with tools, and with calls and results."""
    row = DIALECTS[dialect]
    sets = [[WEATHER], [WEATHER, BOOK], *([[WEATHER, *BUILTINS], BUILTINS, [SEARCH, ALPHA]] if row.builtins else [])]
    for tools in sets:
        yield [user("What is the weather?")], tools
        yield [system("Be brief."), user("What is the weather?"), assistant("Where?"), user("Oslo")], tools
    for arguments in ARGUMENTS:
        for tools in (None, *sets):
            messages = [user("?"), calls(("weather", arguments)), tool("5 °C"), assistant("It is 5 °C."), user("Ah.")]
            yield messages, tools
            yield [system("Be brief."), *messages], tools
    if row.builtins:
        for query in ("gold", 'say "hi"', "\\frac{1}{2} \\\\ \\", "two\nlines"):
            yield [user("?"), calls(("brave_search", {"query": query})), tool("[]"), assistant("No.")], BUILTINS
        yield [user("?"), calls(("code_interpreter", {"code": "a = 1\nprint('a')"})), tool("1")], [INTERPRETER]
        yield [system("Environment: ipython\n\nBe brief."), user("?"), calls(("weather", {"city": "Oslo"}))], None
        ended = calls(("wolfram_alpha", {"query": "1+1"}), stop_reason="end_of_turn")
        yield [user("?"), ended, tool("2")], BUILTINS
    if form in ("python_list", "tool_call"):
        both = calls(("weather", {"city": "Oslo"}), ("book", {"seats": {"row": [1, None, True]}}))
        yield [user("?"), both, tool("5"), tool("ok", tool_call_id="call_1"), assistant("Done.")], [WEATHER, BOOK]
    if form == "tool_call":
        yield [user("?"), assistant("Let me see.", tool_calls=[call("weather", {})]), tool("5")], [WEATHER]


@pytest.mark.parametrize(("dialect", "form"), [pair for pair in FORMS if pair[1]])
def test_tools_and_calls_render_to_the_same_ids(toks, ids, dialect, form):
    chat, seen = ChatFormat(toks[dialect], dialect, calls=form), 0
    for messages, tools in scenes(dialect, form):
        for prompt in (False, True):
            expected = chat.encode(messages, tools, add_generation_prompt=prompt).ids
            assert ids(dialect, form, messages, tools, add_generation_prompt=prompt) == expected
            seen += 1
    assert seen >= 40


@pytest.mark.parametrize("dialect", [name for name, row in DIALECTS.items() if row.dates != "no"])
def test_dates_render_to_the_same_ids(toks, ids, dialect):
    chat = ChatFormat(toks[dialect], dialect, date="01 Mar 2025")
    tools = [WEATHER, SEARCH]
    for messages in ([user("Hi")], [system("Be brief."), user("Hi")]):
        assert ids(dialect, None, messages, tools, date_string="01 Mar 2025") == chat.encode(messages, tools).ids


@pytest.mark.parametrize("dialect", DIALECTS)
def test_continuing_the_last_message_renders_to_the_same_ids(toks, ids, dialect):
    messages = [user("Count."), assistant("One, two,")]
    expected = ChatFormat(toks[dialect], dialect).encode(messages, continue_last=True).ids
    assert ids(dialect, None, messages, None, continue_final_message=True) == expected


@pytest.mark.parametrize(("dialect", "form"), FORMS)
def test_templates_compile_and_render_in_a_sandbox(dialect, form):
    def refuse(sentence):
        raise jinja2.TemplateError(sentence)

    for trim in (False, True):
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
        sandbox.globals["raise_exception"] = refuse
        template = sandbox.from_string(chat_template(dialect, form))
        text = template.render(messages=[user("Hi")], add_generation_prompt=True)
        row = DIALECTS[dialect]
        assert text.endswith(f"Hi{row.end}{row.after_end}{row.open}assistant{row.close or ''}{row.after_role}")


@pytest.mark.parametrize(
    ("dialect", "messages", "tools"),
    [
        ("llama3", [user("Hi")], [WEATHER]),
        ("llama3", [user("Hi"), calls(("f", {}))], None),
        ("llama3.1", [{"role": "robot", "content": "x"}], None),
        ("llama3.1", [system("x")], [WEATHER]),
        ("llama3.1", [user("x")], [{"type": "retrieval"}]),
        ("llama3.1", [user("?"), calls(("f", {}), ("g", {}))], None),
        ("llama3.1", [user("?"), assistant("hm", tool_calls=[call("f", {})])], None),
        ("llama3.1", [user([{"type": "image"}])], None),
        ("hf-llama3.1", [assistant("x"), user("x")], [WEATHER]),
    ],
)
def test_templates_refuse_what_the_encoder_refuses(toks, ids, dialect, messages, tools):
    with pytest.raises(ValueError, match=r"dialect|message|tool"):
        ChatFormat(toks[dialect], dialect).encode(messages, tools)
    with pytest.raises(jinja2.TemplateError):
        ids(dialect, None, messages, tools)


def test_an_unknown_dialect_or_form_has_no_template():
    with pytest.raises(ValueError, match="choose one of llama3"):
        chat_template("alpaca")
    with pytest.raises(ValueError, match="does not write calls"):
        chat_template("chatml", "json")


DEFAULT = "You are a helpful AI assistant named Llama."
PUBLISHED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named Llama.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("beside", [False, True], ids=["in the configuration", "in a file of its own"])
@pytest.mark.parametrize("template", [PUBLISHED, PUBLISHED.replace("\n", "\\n")], ids=["line breaks", "escaped"])
def test_a_published_default_system_message_is_kept_and_written_where_a_dialogue_has_none(
    tok, tmp_path, template, beside
):
    """SmolLM2's template in the spellings and places it is published in: herder, its own template and that one give the
    same ids."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    conventions = Conventions("<|im_start|>", "<|im_end|>", "<|im_end|>")
    Tokenizer(tok.ranks, specials, conventions=conventions).save(tmp_path / "published", "" if beside else template)
    if beside:
        (tmp_path / "published" / "chat_template.jinja").write_text(template)
    config = tmp_path / "published" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "herder"}))
    ours = Tokenizer.load(tmp_path / "published" / "tokenizer.json")
    ours.save(tmp_path / "ours", chat_template(ours.dialect, system=ours.conventions.system))
    assert Tokenizer.load(tmp_path / "ours").conventions.system == ours.conventions.system == DEFAULT
    auto = [transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("published", "ours")]
    chat = ChatFormat(ours)
    for messages in ([user("hi")], [user("hi"), assistant("yes"), user("so")], [system("Be brief."), user("hi")]):
        turn = chat.encode(messages, add_generation_prompt=True)
        for tokenizer in auto:
            assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == turn.ids
        assert [m["role"] for m in chat.parse_dialogue(turn.ids)] == [m["role"] for m in messages]
        assert sum(turn.loss_mask) == sum(
            len(tok.encode(m["content"])) + 1 for m in messages if m["role"] == "assistant"
        )
