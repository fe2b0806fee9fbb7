"""Reading calls from texts: what is one, what is none, and that no text does harm."""

import time

import pytest

from herder.tokenizer.calls import FORMS, PYTHON_CHARACTERS, Call, read_builtin, write_builtin


def read(form, text):
    """The calls of functions f and g in a text, None where it holds none."""
    found = FORMS[form].read(text, {"f", "g", "my.f", "größe"}.__contains__)
    return found and found[1]


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        ("json", '{"type": "function", "name": "f", "parameters": {"a": {"b": [1]}}}', {"a": {"b": [1]}}),
        ("json", '{\n  "name": "f",\n  "parameters": {}\n}\n', {}),
        ("bare_json", '{"name": "f", "parameters": {"a": "it\'s"}}', {"a": "it's"}),
        ("function_tag", '<function=f>{"a": {"b": "</function>"}}</function>', {"a": {"b": "</function>"}}),
        ("tool_call", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', {"a": 1}),
        ("tool_call", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>\n', {"a": 1}),
        ("python_list", "[f(a='x')]", {"a": "x"}),
        ("python_list", "[f(a='it\\'s', b=-1.5e-3, c=[1, (2, 3)], d={'k': None})]", None),
        ("python_list", "[f(a=true, b=null, c=False)]", {"a": True, "b": None, "c": False}),
        ("python_list", "[\n  f(\n    a=1,\n  ),\n]", {"a": 1}),
        ("python_list", "[f(a=')](][')]", {"a": ")](]["}),
        ("python_list", '[f(**{"two words": 1}, a=2)]', {"two words": 1, "a": 2}),
        ("python_list", r"[f(a='\d \u00e9 \n')]", {"a": "\\d é \n"}),
        ("python_list", "[f()]", {}),
    ],
)
def test_what_is_a_call(form, text, arguments):
    if arguments is None:
        arguments = {"a": "it's", "b": -1.5e-3, "c": [1, [2, 3]], "d": {"k": None}}
    assert read(form, text) == [Call("f", arguments)]


def test_dotted_and_foreign_names_are_names():
    assert read("python_list", "[my.f(a=1), größe(b=2)]") == [Call("my.f", {"a": 1}), Call("größe", {"b": 2})]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", '{"name": "f"}'),
        ("json", '{"name": "f", "parameters": {}, "more": 1}'),
        ("json", '{"name": "f", "parameters": [1]}'),
        ("json", '{"name": "h", "parameters": {}}'),
        ("json", '{"name": "f", "parameters": {"a": NaN}}'),
        ("json", '{"type": "tool", "name": "f", "parameters": {}}'),
        ("json", '{"name": ["f"], "parameters": {}}'),
        ("json", '{"name": "f", "parameters": {}'),
        ("json", 'Sure: {"name": "f", "parameters": {}}'),
        ("json", '{"name": "f", "parameters": {"a": %s}}' % ("1" * 5000)),
        ("function_tag", "<function=f>{'a': 1}</function>"),
        ("function_tag", "<function=f>{}"),
        ("tool_call", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> and more'),
        ("tool_call", '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>'),
        ("tool_call", "</tool_call>"),
        ("python_list", "[f(a=x)]"),
        ("python_list", "[f(1)]"),
        ("python_list", "[]"),
        ("python_list", "f(a=1)"),
        ("python_list", "[f(a=1), h(a=1)]"),
        ("python_list", "[f(a=1, a=2)]"),
        ("python_list", '[f(a=1, **{"a": 2})]'),
        ("python_list", "[f(a={'k': 1, 'k': 2})]"),
        ("python_list", "[f(a={1: 2})]"),
        ("python_list", "[f(a=1e999)]"),
        ("python_list", "[f(a=1j)]"),
        ("python_list", "[f(a=b'x')]"),
        ("python_list", "[f(a=f'{x}')]"),
        ("python_list", "[f(a=1+1)]"),
        ("python_list", "[f(a=__import__('os'))]"),
        ("python_list", "[f(a=[x for x in y])]"),
        ("python_list", "[f(a=1) if True else g()]"),
        ("python_list", "[f(a=lambda: 1)]"),
        ("python_list", "[f(a=...)]"),
        ("python_list", "[f(a=1)](b)"),
        ("python_list", "[f()()]"),
        ("python_list", "[f(a='\0')]"),
        ("python_list", "[f(a=%s)]" % ("9" * 5000)),
        ("python_list", "[f(a='x)]"),
        ("python_list", "[f(a=1) # g\n]"),
        ("python_list", "[f(*[1])]"),
        ("python_list", "[f(**1)]"),
    ],
)
def test_what_is_no_call(form, text):
    assert read(form, text) is None


SIZE = 10_000_000
HOSTILE = {
    "brackets": "[" * SIZE,
    "closed brackets": "[f(a=" + "[" * (SIZE // 2) + "]" * (SIZE // 2) + ")]",
    "short brackets": "[f(a=" + "[" * 400_000 + "]" * 400_000 + ")]",
    "objects": '{"a":' * (SIZE // 5),
    "a nested call": '{"name": "f", "parameters": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
    "signs": "[f(a=" + "-" * 900_000 + "1)]",
    "negations": "[f(a=" + "not " * 200_000 + "1)]",
    "sums": "[f(a=1" + "+1" * 400_000 + ")]",
    "attributes": "[f" + ".a" * 400_000 + "()]",
    "subscripts": "[f" + "[0]" * 300_000 + "()]",
    "calls of calls": "[f" + "()" * 400_000 + "]",
    "strings": "[f(a=" + "'a' " * 200_000 + ")]",
    "one string": "[f(a='" + "x" * SIZE + "')]",
    "an open string": "[f(a='" + "\\" * 900_000,
    "function tags": "<function=f>" * (SIZE // 12),
    "tool calls": '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>\n' * 150_000,
    "inline tool calls": "<tool_call>\n" + '<tool_call>{"name": "f", "arguments": 1}</tool_call>' * 100_000,
    "ends of tool calls": "<tool_call>\n" * 300_000 + "</tool_call>" * 300_000,
    "white space": "[" + " " * SIZE,
    "lines before an end": "\n" * SIZE + "</tool_call>",
    "queries": 'f.call(query="x", ' * 400_000,
    "backslashes": 'f.call(query="' + "\\" * SIZE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_long_or_breaks_the_process(name):
    begun = time.process_time()
    for form in FORMS:
        assert read(form, HOSTILE[name]) is None
    assert read_builtin(HOSTILE[name], ("f",)) is None
    assert time.process_time() - begun < 20  # quadratic time would be hours


@pytest.mark.parametrize("form", FORMS)
def test_deep_arguments_are_no_call_and_depth_within_the_limit_is(form):
    def nested(depth):
        value = {}
        for _ in range(depth):
            value = {"a": value}
        return value

    assert read(form, FORMS[form].write([Call("f", nested(60))])) == [Call("f", nested(60))]
    assert read(form, FORMS[form].write([Call("f", nested(70))])) is None


def test_a_pythonic_call_that_could_not_be_read_is_not_written():
    with pytest.raises(ValueError, match="is not a Python name"):
        FORMS["python_list"].write([Call("get-weather", {})])
    with pytest.raises(ValueError, match="at most 1,000,000"):
        FORMS["python_list"].write([Call("f", {"a": "x" * PYTHON_CHARACTERS})])
    with pytest.raises(ValueError, match="cannot stand in"):
        FORMS["function_tag"].write([Call("a>b", {})])


@pytest.mark.parametrize("query", ["gold", '"', "\\", '\\"', "\\\\", "a\\d", "", 'x" or "y', "\n", '\\\\"\\', "é"])
def test_built_in_queries_come_back(query):
    call = Call("brave_search", {"query": query, "region": query})
    assert read_builtin(write_builtin(call), ("brave_search",)) == call
    assert read_builtin(write_builtin(call), ("wolfram_alpha",)) is None
