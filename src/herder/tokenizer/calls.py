"""How a tool call is written as text, and read back from it (paper section 4.3.5), one row of `FORMS` per way of writing.

Reading is total: any text, however long, deep or broken, is either a well-formed call or None, and never an exception.
The one design decision: nothing is evaluated. JSON is read by the JSON parser and pythonic calls by `ast`, which sees a
text only after a scan has shown that it can hold nothing but literals nested to a limited depth.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

BUILTIN_SEARCH = ("brave_search", "wolfram_alpha")
CODE_INTERPRETER = "code_interpreter"
BUILTINS = (CODE_INTERPRETER, *BUILTIN_SEARCH)

DEPTH = 64
"""Arguments may nest this deep; what is deeper is no call."""
PYTHON_CHARACTERS = 1_000_000
"""Longest pythonic call: `ast` takes about a hundred bytes of memory for each character."""

_INTEGER_BITS = 14_000  # Python converts integers of at most 4,300 digits to text and back

Known = Callable[[str], bool]


class Call(NamedTuple):
    """A function's name and its arguments, a JSON object."""

    name: str
    arguments: dict


@dataclass(frozen=True)
class Form:
    """One way to write custom calls.

    `parallel` forms hold several calls in one message, `beside` forms leave room for text before them. `tagged` forms
    begin with python_tag in an ipython environment. `read(text, known)` gives the text before the calls and the calls,
    or None; `wording` tells the model how to call, in the text that declares functions.
    """

    write: Callable[[list[Call]], str]
    read: Callable[[str, Known], tuple[str, list[Call]] | None]
    wording: str
    parallel: bool = False
    beside: bool = False
    tagged: bool = False


def dump(value: object, ascii: bool = False) -> str:
    """JSON on one line. Lone surrogates are escaped even where other characters beyond ASCII are not."""
    text = json.dumps(value, ensure_ascii=ascii)
    return _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def json_value(text: object) -> object:
    """The JSON value of a text; None where it is none (NaN and infinities are not JSON) or nests deeper than `DEPTH`."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
    except (TypeError, ValueError, RecursionError, MemoryError):
        return None
    return value if is_json(value) else None


def json_object(value: object) -> dict | None:
    """A JSON object given as text (or already as a dict); None where it is none."""
    if isinstance(value, str):
        value = json_value(value)
    return value if isinstance(value, dict) and is_json(value) else None


def is_json(value: object) -> bool:
    """Whether a value holds only what JSON can say, nested at most `DEPTH` deep."""
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH:
            return False
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                return False
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, int):
            if value.bit_length() > _INTEGER_BITS:
                return False
        elif not (value is None or isinstance(value, str)):
            return False
    return True


# Built-in tools: name.call(query="...")


def write_builtin(call: Call) -> str:
    """`name.call(query="...")`. Published encoders leave quotes bare; here a quote is escaped, and a backslash only
    where it would be read as an escape, so that every query without them is written as published."""
    pairs = (f'{key}="{escape(str(value))}"' for key, value in call.arguments.items())
    return f"{call.name}.call({', '.join(pairs)})"


def read_builtin(text: str, names: tuple[str, ...]) -> Call | None:
    """The call of a built-in tool that is the whole text; None where the text is anything else."""
    match = _BUILTIN_CALL.fullmatch(text)
    if match is None or match[1] not in names:
        return None
    arguments = {key: _ESCAPED.sub(r"\1", value) for key, value in _BUILTIN_ARGUMENT.findall(match[2])}
    return Call(match[1], arguments)


def escape(text: str) -> str:
    return _AMBIGUOUS_BACKSLASH.sub(r"\\\\", text).replace('"', '\\"') if '"' in text or "\\" in text else text


_SURROGATE = re.compile("[\ud800-\udfff]")
_AMBIGUOUS_BACKSLASH = re.compile(r'\\(?=["\\]|\Z)')
_ESCAPED = re.compile(r'\\(["\\])')
_ARGUMENT = r'([^\W\d]\w*)="([^"\\]*(?:\\.[^"\\]*)*)"'
_BUILTIN_ARGUMENT = re.compile(_ARGUMENT, re.DOTALL)
_BUILTIN_CALL = re.compile(rf"(\w+)\.call\(({_ARGUMENT}(?:, {_ARGUMENT})*)\)", re.DOTALL)


# JSON objects


def _write_json(calls: list[Call]) -> str:
    name, parameters = calls[0]
    return dump({"type": "function", "name": name, "parameters": parameters}, ascii=True)


def _write_bare_json(calls: list[Call]) -> str:
    return dump({"name": calls[0].name, "parameters": calls[0].arguments})


def _read_json(text: str, known: Known) -> tuple[str, list[Call]] | None:
    call = json_object(text) if text.lstrip()[:1] == "{" else None
    if call is None or not call.keys() <= {"type", "name", "parameters"} or call.get("type", "function") != "function":
        return None
    name, parameters = call.get("name"), call.get("parameters")
    if isinstance(name, str) and isinstance(parameters, dict) and known(name):
        return "", [Call(name, parameters)]
    return None


# <function=name>{...}</function>

_FUNCTION_TAG = re.compile(r"<function=([^>\s]+)>(.*)</function>", re.DOTALL)


def _write_function_tag(calls: list[Call]) -> str:
    name, arguments = calls[0]
    if not re.fullmatch(r"[^>\s]+", name):
        raise ValueError(f"the name {name!r} cannot stand in <function=...>")
    return f"<function={name}>{dump(arguments, ascii=True)}</function>"


def _read_function_tag(text: str, known: Known) -> tuple[str, list[Call]] | None:
    match = _FUNCTION_TAG.fullmatch(text.strip())
    arguments = json_object(match[2]) if match and known(match[1]) else None
    return None if arguments is None else ("", [Call(match[1], arguments)])


# <tool_call> blocks, each of three lines

_BLOCK, _BLOCK_END = "<tool_call>", "</tool_call>"


def _write_blocks(calls: list[Call]) -> str:
    blocks = (dump({"name": call.name, "arguments": call.arguments}) for call in calls)
    return "\n".join(f"{_BLOCK}\n{block}\n{_BLOCK_END}" for block in blocks)


def _read_blocks(text: str, known: Known) -> tuple[str, list[Call]] | None:
    """Blocks are read from the end backwards, as far as they are well-formed; what stands before them is text."""
    calls, end = [], len(text)
    while True:
        last = len(text[max(0, end - 100) : end].rstrip()) + max(0, end - 100)
        if not text.endswith(_BLOCK_END, 0, last):
            break
        inside = last - len(_BLOCK_END)
        start = text.rfind(_BLOCK, 0, inside)
        block = json_object(text[start + len(_BLOCK) : inside]) if start >= 0 else None
        if block is None:  # that tag may be part of an argument; the one that stands on a line of its own is not
            start = text.rfind(f"\n{_BLOCK}\n", 0, inside) + 1
            block = json_object(text[start + len(_BLOCK) : inside]) if text.startswith(_BLOCK, start) else None
        if block is None or block.keys() != {"name", "arguments"}:
            break
        name, arguments = block["name"], json_object(block["arguments"])
        if not isinstance(name, str) or arguments is None or not known(name):
            break
        calls.append(Call(name, arguments))
        end = start - (start > 0 and text[start - 1] == "\n")
    return (text[:end], calls[::-1]) if calls else None


# [f(a="x"), g(b=2)]


def _write_python(calls: list[Call]) -> str:
    text = f"[{', '.join(map(_python_call, calls))}]"
    if len(text) > PYTHON_CHARACTERS:
        raise ValueError(f"the call has {len(text):,} characters; a pythonic call has at most {PYTHON_CHARACTERS:,}")
    return text


def _python_call(call: Call) -> str:
    if not all(_is_identifier(part) for part in call.name.split(".")):
        raise ValueError(f"the name {call.name!r} is not a Python name, which a pythonic call needs")
    # `ast` reads other keys only from a dictionary: f(**{"two words": 1}).
    plain = {key: value for key, value in call.arguments.items() if key.isascii() and _is_identifier(key)}
    rest = {key: value for key, value in call.arguments.items() if key not in plain}
    pieces = [f"{key}={_python_literal(value)}" for key, value in plain.items()]
    return f"{call.name}({', '.join(pieces + ([f'**{_python_literal(rest)}'] if rest else []))})"


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _python_literal(value: object) -> str:
    if isinstance(value, str):
        return dump(value)  # every JSON string is a Python string of the same meaning
    if isinstance(value, list):
        return f"[{', '.join(map(_python_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{dump(key)}: {_python_literal(inner)}' for key, inner in value.items())}}}"
    return repr(value)


def _read_python(text: str, known: Known) -> tuple[str, list[Call]] | None:
    text = text.strip()
    if len(text) > PYTHON_CHARACTERS or text[:1] != "[" or not _only_literal_calls(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as \d in a string
            tree = ast.parse(text, mode="eval").body
        calls = [_call_of(node) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return ("", calls) if calls and all(is_json(call.arguments) and known(call.name) for call in calls) else None


_PYTHON_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+)
    | (?P<string> "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*')
    | (?P<number> (?:\d|\.\d)[\w.]*(?:(?<=[eE])[+-]\d+)?)
    | (?P<name> [^\W\d]\w*(?:\.[^\W\d]\w*){0,8})
    | (?P<open> [\[({]) | (?P<close> [\])}]) | (?P<sign> [+-]) | (?P<star> \*\*) | (?P<mark> [,:=])""",
    re.DOTALL | re.VERBOSE,
)
_MAY_FOLLOW = {
    # Two operands, subscripts, operators and calls of calls in a row would nest without brackets.
    "string": ("open", "mark", "sign"),
    "number": ("open", "mark", "sign"),
    "name": ("open", "mark", "star"),
    "sign": ("open", "mark"),
    "star": ("open", "mark"),
}


def _only_literal_calls(text: str) -> bool:
    """Whether a text is made of names, literals and brackets alone, in an order that nests by brackets only."""
    at, depth, before, spelled = 0, 0, "open", "["
    while at < len(text):
        token = _PYTHON_TOKEN.match(text, at)
        if token is None:
            return False
        at, kind = token.end(), token.lastgroup
        if kind == "space":
            continue
        if kind in _MAY_FOLLOW and before not in _MAY_FOLLOW[kind]:
            return False
        if kind == "open":
            if before in ("string", "number", "close", "sign") or (before == "name" and token[0] != "("):
                return False
            depth += 1
        depth -= kind == "close"
        if not 0 <= depth <= DEPTH + 4 or (kind == "star" and spelled not in "(,"):
            return False
        before, spelled = kind, token[0]
    return depth == 0


def _call_of(node: ast.expr) -> Call:
    """ValueError for a node that is not a call with keyword arguments that are literals."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("no name")
    arguments: dict = {}
    for argument in node.keywords:
        value = _value_of(argument.value)
        given = {argument.arg: value} if argument.arg else value
        if not isinstance(given, dict) or given.keys() & arguments.keys():
            raise ValueError("an argument without a name, or named twice")
        arguments |= given
    return Call(".".join([function.id, *reversed(parts)]), arguments)


def _value_of(node: ast.expr) -> object:
    """A literal's value, in JSON's types; true, false and null are read as models often write them."""
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value_of(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value_of(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise ValueError("a key that is no text, or stands twice")
        return dict(zip(keys, map(_value_of, node.values), strict=True))
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None):
        raise ValueError("no literal of JSON")
    return value


_JSON_NAMES = {"true": True, "false": False, "null": None}

FORMS = {
    "json": Form(
        _write_json,
        _read_json,
        "reply with nothing but a JSON object of the form "
        '{"type": "function", "name": NAME, "parameters": {ARGUMENT: VALUE}}',
        tagged=True,
    ),
    "bare_json": Form(_write_bare_json, _read_json, ""),
    "function_tag": Form(
        _write_function_tag,
        _read_function_tag,
        "reply with nothing but <function=NAME>{ARGUMENT: VALUE}</function>, where the arguments are a JSON object",
    ),
    "python_list": Form(
        _write_python,
        _read_python,
        "or several at once, reply with nothing but a list of the form [NAME(ARGUMENT=VALUE), NAME(ARGUMENT=VALUE)], "
        "where the values are Python literals",
        parallel=True,
    ),
    "tool_call": Form(
        _write_blocks,
        _read_blocks,
        'end your reply with three lines: <tool_call>, {"name": NAME, "arguments": {ARGUMENT: VALUE}} and </tool_call>; '
        "repeat them for each further call",
        parallel=True,
        beside=True,
    ),
}
