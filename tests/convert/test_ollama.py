"""Modelfiles, read by a small Modelfile parser and rendered by a small Go-template interpreter of the test's own."""

import re

import pytest

from herder.convert.ollama import _literal, go_template, modelfile
from herder.tokenizer import DIALECTS, ChatFormat, Tokenizer

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUES = [
    [{"role": "user", "content": "Hi"}],
    [SYSTEM, {"role": "user", "content": "  Grüße {{ .System }} \n\n"}],
    [
        SYSTEM,
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    ],
]


def parse(template: str) -> list:
    """Nested lists of text, actions, and (head, body, else body)."""
    parts = ACTION.split(template)
    tokens = [(i % 2, part.strip() if i % 2 else part) for i, part in enumerate(parts)]

    def block(stops: tuple[str, ...]) -> tuple[list, str]:
        out = []
        while tokens:
            is_action, value = tokens.pop(0)
            if is_action and value in stops:
                return out, value
            if is_action and value.split()[0] in ("if", "range"):
                body, stop = block(("end", "else"))
                out.append((value, body, block(("end",))[0] if stop == "else" else []))
            else:
                out.append(("action", value) if is_action else value)
        assert not stops, "an action is not closed"
        return out, ""

    return block(())[0]


def evaluate(expression: str, scope: dict):
    """Calls in prefix notation, fields of the dot and of $, variables, quoted text, whole numbers."""
    words, stack = re.findall(r'"[^"]*"|[()]|[^\s()]+', expression), [[]]
    for word in words:
        if word == "(":
            stack.append([])
        elif word == ")":
            inner = stack.pop()
            stack[-1].append(apply(inner))
        else:
            stack[-1].append(operand(word, scope))
    return apply(stack[0])


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda *a: all(a),
    "or": lambda *a: any(a),
    "not": lambda a: not a,
    "len": len,
    "slice": lambda a, start: a[start:],
}


def apply(words: list):
    return words[0](*words[1:]) if callable(words[0]) else words[0]


def operand(word: str, scope: dict):
    if word[0] == '"':
        return word[1:-1]
    if word.isdigit():
        return int(word)
    if word in FUNCTIONS:
        return FUNCTIONS[word]
    base, _, field = word.partition(".")
    value = scope[base or "."]
    return value[field] if field else value


def execute(nodes: list, scope: dict) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
        elif node[0] == "action":
            name, assigned, value = node[1].partition(":=")
            if assigned:
                scope[name.strip()] = evaluate(value, scope)
            else:
                out += str(evaluate(node[1], scope))
        elif node[0].startswith("range"):
            index, item, source = re.fullmatch(r"range (\S+), (\S+) := (.+)", node[0]).groups()
            for i, element in enumerate(evaluate(source, scope)):
                out += execute(node[1], scope | {index: i, item: element, ".": element})
        else:
            out += execute(node[1] if evaluate(node[0].removeprefix("if "), scope) else node[2], dict(scope))
    return out


def render(template: str, messages: list[dict]) -> str:
    """As Ollama runs a template: messages with their roles and contents, and all system texts in .System."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    data = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages], "System": system}
    return execute(parse(template), {"$": data, ".": data})


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("messages", DIALOGUES)
def test_the_template_renders_what_the_chat_format_encodes(tok, name, messages):
    if name == "chatml":
        tok = Tokenizer(tok.ranks, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if name == "hf-llama3.1":
        messages = [m | {"content": m["content"].strip()} for m in messages]  # Go templates cannot trim
    expected = tok.decode(ChatFormat(tok, name).encode(messages, add_generation_prompt=True).ids)
    begin = DIALECTS[name].begin or ""  # Ollama's tokenizer places it
    assert begin + render(go_template(DIALECTS[name]), messages) == expected


def test_chatml_has_its_published_text():
    assert render(go_template(DIALECTS["chatml"]), DIALOGUES[2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_31_has_its_published_text():
    assert render(go_template(DIALECTS["llama3.1"]), [SYSTEM, *DIALOGUES[0]]) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_tool_result_is_written_under_the_role_of_the_dialect():
    messages = [*DIALOGUES[0], {"role": "assistant", "content": "x"}, {"role": "tool", "content": "42"}]
    assert "ipython<|end_header_id|>\n\n42<|eot_id|>" in render(go_template(DIALECTS["llama3.1"]), messages)
    assert "<|im_start|>tool\n42<|im_end|>" in render(go_template(DIALECTS["chatml"]), messages)


def test_a_last_message_of_the_assistant_is_left_open():
    messages = [*DIALOGUES[0], {"role": "assistant", "content": "The answer is"}]
    for name in DIALECTS:
        assert render(go_template(DIALECTS[name]), messages).endswith("The answer is")


def test_braces_of_a_text_are_not_actions():
    assert execute(parse(_literal("a {{ b }} {{{{")), {}) == "a {{ b }} {{{{"


INSTRUCTION = re.compile(r'(FROM|TEMPLATE|PARAMETER [a-z_]+) (?:"""((?:.|\n)*?)"""|"(.*)"|(.*))\n')


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Ollama's Modelfile: comments, and instructions whose value is bare, or quoted once or three times, never escaped."""
    out, at = [], 0
    while at < len(text):
        if text[at] == "#":
            at = text.index("\n", at) + 1
            continue
        match = INSTRUCTION.match(text, at)
        assert match, text[at : at + 60]
        out.append((match[1], next(value for value in match.groups()[1:] if value is not None)))
        at = match.end()
    return out


def test_the_modelfile_names_the_model_the_template_and_where_replies_end(tok):
    commands = read_modelfile(modelfile("my model-Q8_0.gguf", tok))
    stops = {value for name, value in commands if name == "PARAMETER stop"}
    assert commands[0] == ("FROM", "./my model-Q8_0.gguf")
    assert commands[1] == ("TEMPLATE", go_template(DIALECTS["llama3.1"]))
    assert stops == {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}
    assert len(commands) == 5


@pytest.mark.parametrize("name", ["a\nTEMPLATE x.gguf", "a\x00.gguf", " a.gguf"])
def test_a_file_name_that_would_end_its_line_is_refused(tok, name):
    with pytest.raises(ValueError, match="a Modelfile cannot hold"):
        modelfile(name, tok)
