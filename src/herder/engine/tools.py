"""Forced tool choice: the constraint under which a reply is a call of a declared function (paper section 4.3.5).

The one design decision: calls are spelled exactly as `ChatFormat` writes them, spaces included, so what the model was trained to
write is what it is held to, and what it writes is read back as a call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from herder.engine.constrain import Constraint, check_finite
from herder.tokenizer import ChatFormat
from herder.tokenizer.calls import FORMS, dump
from herder.tokenizer.dialects import Tools

SPELLED = {
    "json": ('{{"type": "function", "name": {name}, "parameters": ', "}"),
    "bare_json": ('{{"name": {name}, "parameters": ', "}"),
    "function_tag": ("<function={bare}>", "</function>"),
    "tool_call": ('<tool_call>\n{{"name": {name}, "arguments": ', "}\n</tool_call>"),
}
"""What stands before and behind the arguments in each form that holds them as JSON."""

_LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def tool_constraint(
    chat: ChatFormat, tools: list[dict], names: Sequence[str] | None = None, *, parallel: bool = False
) -> Constraint:
    """The constraint under which a reply calls one of `tools` (OpenAI-style definitions), or one of those in `names`.

    Arguments meet the function's `parameters`, a JSON schema. `parallel` admits several calls where the form has room for
    them. Where the chat format writes calls as Python, the dialect's JSON form is used, which is read as well. Built-in
    tools stand behind a control token and cannot be forced. Raises ValueError, naming the tool, for what cannot be called.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in Tools.sort(tools, chat.dialect).functions}
    if names is not None:
        if unknown := [name for name in names if name not in functions]:
            raise ValueError(
                f"{unknown[0]!r} is no function among the tools, which are {', '.join(functions) or 'none'}"
            )
        functions = {name: functions[name] for name in names}
    if not functions:
        raise ValueError("no function is declared that could be called; give at least one in tools")
    form = next(name for name in (chat.form, *chat.dialect.forms) if name in SPELLED)
    repeat = ' ("\\n" call)*' if parallel and FORMS[form].parallel else ""
    rules = [f"start: call{repeat}", "call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    for index, function in enumerate(functions.values()):
        before, behind = (_literal(part) for part in _around(function["name"], form))
        rules.append(f"call_{index}: {before} arguments_{index} {behind}")
        rules.append(f"arguments_{index}: %json {json.dumps(_arguments(function))}")
    return Constraint(grammar="\n".join(rules))


def _around(name: str, form: str) -> list[str]:
    if form == "function_tag" and (not name or any(c == ">" or c.isspace() for c in name)):
        raise ValueError(f"the name {name!r} cannot stand in <function=...>")
    before, behind = SPELLED[form]
    return [before.format(name=dump(name, ascii=form == "json"), bare=name), behind]


def _arguments(function: dict) -> dict:
    """The schema of a function's arguments, in the layout of `ChatFormat`; none are allowed where it declares none."""
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise ValueError(f"the parameters of {function['name']} are no JSON schema of an object")
    schema = {**schema, "type": "object"}
    check_finite(schema, f"the schema of the parameters of {function['name']}")
    return {**schema, "x-guidance": _LAYOUT}


def _literal(text: str) -> str:
    return json.dumps(text)
