"""The chat dialects, one row each, and the words that announce tools and dates in them (paper sections 3.2 and 4.3.5).

There is no single "Llama 3 format": published encoders and templates differ in ids and in bytes. The one design
decision: whatever differs is a field of `Dialect`; the encoder, the parser and the exported templates read the same row.

llama3, llama3.1 and llama3.2 have the ids of Meta's published encoder, python_tag before every built-in call as its guide
shows, and pythonic calls that are Python. hf-llama3.1 has the ids of the published template of Hugging Face, with its
trimmed contents and JSON-quoted results, and differs from it in this alone:
- quotes in the arguments of a built-in call are escaped, and backslashes that would else be read as escapes;
- refused where the template drops or garbles them: text beside a call, an unknown role, tools where the first message
  behind the system message is not the user's, an argument of a built-in tool that is no text;
- an empty list of tools is no tools; a message's `stop_reason`, where it has one, decides its end token.
chatml is `<|im_start|>role`, a line break, content, `<|im_end|>` and a line break, with no system message of its own;
calls are `<tool_call>` blocks, any number of them, behind the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from herder.tokenizer.calls import (
    BUILTIN_SEARCH,
    BUILTINS,
    CODE_INTERPRETER,
    FORMS,
    Call,
    dump,
    is_json,
    read_builtin,
)

ENVIRONMENT = "Environment: ipython"
CUTOFF = "December 2023"
"""Llama 3.1's end of knowledge, as its date lines say it."""
HF_DATE = "26 Jul 2024"
"""Today's date in the published template of Llama 3.1, where none is given."""

HF_NOTE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
)  # the bytes that the published template writes: they are part of the format


@dataclass(frozen=True)
class Dialect:
    """One chat format: `begin`, then for each message `open` role `close` `after_role` content `end` `after_end`.

    `headers` maps a message's role to the role that is written; `stops` are the ends of a reply. `forms` name the ways
    to write custom calls (`calls.FORMS`), the default first, and all of them are read; without forms there are no
    tools. `functions_in` says where functions are declared: a user message of their own before the first ("message"),
    the beginning of the first one ("question"), or the system message ("system"). `dates`: "no", "may" or "must".
    `hugging_face` is the published template's way: contents are trimmed, the system message is always there, and tool
    results are written as JSON strings.
    """

    name: str
    headers: dict[str, str]
    stops: tuple[str, ...]
    forms: tuple[str, ...] = ()
    builtins: bool = False
    functions_in: str = "message"
    dates: str = "no"
    hugging_face: bool = False
    begin: str | None = "<|begin_of_text|>"
    open: str = "<|start_header_id|>"
    close: str | None = "<|end_header_id|>"
    after_role: str = "\n\n"
    end: str = "<|eot_id|>"
    after_end: str = ""
    end_of_message: str | None = None
    tag: str | None = None

    @property
    def control(self) -> list[str]:
        """The special tokens that the dialect writes."""
        names = (self.begin, self.open, self.close, self.end, self.end_of_message, self.tag)
        return [name for name in dict.fromkeys(names) if name]


_PEOPLE = {"system": "system", "user": "user", "assistant": "assistant"}
_TOOL = {"tool": "ipython", "ipython": "ipython"}
_LLAMA_TOOLS = {
    "headers": _PEOPLE | _TOOL,
    "stops": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "builtins": True,
    "end_of_message": "<|eom_id|>",
    "tag": "<|python_tag|>",
}

DIALECTS = {
    d.name: d
    for d in (
        Dialect("llama3", _PEOPLE, ("<|end_of_text|>", "<|eot_id|>")),
        Dialect("llama3.1", **_LLAMA_TOOLS, forms=("json", "function_tag"), dates="may"),
        Dialect(
            "llama3.2",
            **_LLAMA_TOOLS,
            forms=("python_list", "json", "function_tag"),
            functions_in="system",
            dates="may",
        ),
        Dialect(
            "hf-llama3.1",
            **_LLAMA_TOOLS,
            forms=("bare_json",),
            functions_in="question",
            dates="must",
            hugging_face=True,
        ),
        Dialect(
            "chatml",
            _PEOPLE | {"tool": "tool"},
            ("<|endoftext|>", "<|im_end|>"),
            forms=("tool_call",),
            functions_in="system",
            begin=None,
            open="<|im_start|>",
            close=None,
            after_role="\n",
            end="<|im_end|>",
            after_end="\n",
        ),
    )
}


@dataclass(frozen=True)
class Tools:
    """Tool definitions, sorted: names of built-in tools, and the definitions of functions as they were given."""

    builtins: tuple[str, ...] = ()
    functions: tuple[dict, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.builtins) | {tool["function"]["name"] for tool in self.functions}

    @classmethod
    def sort(cls, tools: list[dict] | None, dialect: Dialect) -> Tools:
        """Raises ValueError, naming the tool, for a definition that the dialect cannot announce."""
        if not isinstance(tools, list | tuple | None):
            raise ValueError(f"tools are of type {type(tools).__name__}; give a list of definitions")
        if tools and not dialect.forms:
            raise ValueError(f"dialect {dialect.name} has no tools; use llama3.1")
        builtins, functions = [], []
        for index, tool in enumerate(tools or ()):
            kind, function = (tool.get("type"), tool.get("function")) if isinstance(tool, dict) else (None, None)
            if kind in BUILTINS and dialect.builtins:
                builtins.append(kind)
            elif kind in BUILTINS:
                raise ValueError(f"tool {index} is the built-in {kind}; dialect {dialect.name} has functions only")
            elif kind == "function" and isinstance(function, dict) and isinstance(function.get("name"), str):
                if not is_json(tool):
                    raise ValueError(f"tool {index} ({function['name']}) holds something that JSON cannot say")
                functions.append(tool)
            else:
                raise ValueError(
                    f'tool {index} is neither {{"type": "function", "function": {{"name": ...}}}} '
                    f"nor of one of the built-in types {', '.join(BUILTINS)}"
                )
        return cls(tuple(builtins), tuple(functions))


def announcement(dialect: Dialect, builtins: tuple[str, ...], date: str | None, cutoff: str, functions: bool) -> str:
    """The lines of the environment, the built-in tools and the dates, that stand before a system message."""
    listed = ", ".join(name for name in builtins if name != CODE_INTERPRETER)  # the environment alone switches it on
    dates = [f"Cutting Knowledge Date: {cutoff}", f"Today Date: {date}"] if date else []
    if dialect.hugging_face:
        environment = [ENVIRONMENT] if builtins or functions else []
        return "\n".join(environment + ([f"Tools: {listed}\n"] if builtins else []) + dates)
    return "\n".join(([ENVIRONMENT] if builtins else []) + ([f"Tools: {listed}"] if listed else []) + dates)


def functions_note(dialect: Dialect, functions: tuple[dict, ...], form: str) -> str:
    """The text that declares functions, and how to call them."""
    if dialect.hugging_face:
        return HF_NOTE + "".join(json.dumps(tool, ensure_ascii=False, indent=4) + "\n\n" for tool in functions)
    return note_opening(form) + "\n".join(dump(tool["function"]) for tool in functions)


def note_opening(form: str) -> str:
    wording = FORMS[form].wording
    return f"You may call these functions. To call one, {wording}. Answer directly where none of them helps.\n\n"


def read_reply(dialect: Dialect, text: str, tagged: bool, known: frozenset[str] | None) -> tuple[str, list[Call]]:
    """The content and the calls of a reply's text, `tagged` where python_tag stood before it.

    `known` holds the declared names. Where it is None they are unknown, and the tag alone makes a call.
    """

    def is_known(name: str) -> bool:
        return tagged if known is None else name in known

    if tagged:
        call = read_builtin(text, BUILTINS if dialect.hugging_face else BUILTIN_SEARCH)
        if call is not None and is_known(call.name):
            return "", [call]
    for name in dialect.forms if tagged or known else ():
        found = None if tagged and name == "function_tag" else FORMS[name].read(text, is_known)
        if found is not None:
            return found
    if tagged and is_known(CODE_INTERPRETER):
        return "", [Call(CODE_INTERPRETER, {"code": text})]
    return text, []
