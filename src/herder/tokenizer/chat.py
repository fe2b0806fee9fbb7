"""Dialogues to ids and replies back to messages (paper sections 3.2, 4.1 and 4.3.5), by named dialect.

There is no single "Llama 3 format": dialects differ in ids and in bytes, so each has a name and one row in `DIALECTS`.
The one design decision: ids are built from ids. Every content is encoded by its own call that cannot yield a control
id, and replies are parsed from ids, so text that spells a control token stays text in both directions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from herder.records import Dialogue, Message
from herder.tokenizer.bpe import Tokenizer

BUILTIN_SEARCH = ("brave_search", "wolfram_alpha")
CODE_INTERPRETER = "code_interpreter"
ENVIRONMENT = "Environment: ipython"

END_OF_TURN, END_OF_MESSAGE, OUT_OF_TOKENS = "end_of_turn", "end_of_message", "out_of_tokens"
"""Stop reasons of an assistant message: the turn is over, it goes on after a tool has run, or the limit was hit."""

_SEARCH_CALL = re.compile(rf'({"|".join(BUILTIN_SEARCH)})\.call\(query=("(?:[^"\\]|\\.)*")\)', re.DOTALL)
_FUNCTIONS_NOTE = (
    "You may call these functions. To call one, reply with nothing but a JSON object of the form "
    '{"type": "function", "name": NAME, "parameters": {ARGUMENT: VALUE}}. Answer directly where none of them helps.\n\n'
)


@dataclass(frozen=True)
class Dialect:
    """One chat format. `headers` maps a message's role to the role that is written; `stops` are the ends of a reply."""

    name: str
    headers: dict[str, str]
    stops: tuple[str, ...]
    calls: bool


_PEOPLE = {"system": "system", "user": "user", "assistant": "assistant"}
DIALECTS = {
    d.name: d
    for d in (
        Dialect("llama3", _PEOPLE, ("<|end_of_text|>", "<|eot_id|>"), calls=False),
        Dialect(
            "llama3.1",
            _PEOPLE | {"tool": "ipython", "ipython": "ipython"},
            ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
            calls=True,
        ),
    )
}


class RoleSpan(NamedTuple):
    """Where one message lies in the ids: header from `start`, content from `content`, both up to `end` (end token in).

    `message` is the index of the message, or -1 for what the format itself adds (tool definitions, generation prompt).
    """

    role: str
    start: int
    content: int
    end: int
    message: int


@dataclass(slots=True)
class Turn:
    """An encoded dialogue. `loss_mask[i]` is 1 where ids[i] is assistant content or the token that ends it."""

    ids: list[int]
    loss_mask: list[int]
    spans: list[RoleSpan]


class ChatFormat:
    """Encodes and parses dialogues in one dialect. Raises ValueError for a dialect that is not built."""

    def __init__(self, tokenizer: Tokenizer, dialect: str = "llama3.1"):
        if dialect not in DIALECTS:
            raise ValueError(f"dialect {dialect!r} is unknown; choose one of {', '.join(DIALECTS)}")
        self.tokenizer, self.dialect = tokenizer, DIALECTS[dialect]
        names = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *self.dialect.stops}
        names |= {"<|python_tag|>"} if self.dialect.calls else set()
        missing = sorted(names - tokenizer.special.keys())
        if missing:
            raise ValueError(
                f"dialect {dialect} needs the special token {missing[0]}, which the tokenizer does not have"
            )
        self.stop_ids = frozenset(tokenizer.special[name] for name in self.dialect.stops)
        self._newlines = tokenizer.encode("\n\n")

    def encode(
        self,
        messages: Iterable[Message] | Dialogue,
        tools: list[dict] | None = None,
        add_generation_prompt: bool = False,
    ) -> Turn:
        """Ids, loss mask and spans of a dialogue; `add_generation_prompt` opens the assistant's next message.

        `tools` are OpenAI-style: {"type": "function", "function": {...}}, or {"type": T} with T one of
        code_interpreter, brave_search, wolfram_alpha. Built-in tools are announced in the system message, functions in
        a user message before the first one (Llama 3.1). Raises ValueError, naming the message, for a role, content or
        call that the dialect lacks. A `Dialogue` brings its own tools unless others are given.
        """
        if isinstance(messages, Dialogue):
            messages, tools = messages.messages, messages.tools if tools is None else tools
        turn = Turn([self.tokenizer.special["<|begin_of_text|>"]], [0], [])
        rows = self._with_tools([*enumerate(messages)], *self._sort_tools(tools))
        first = rows[0][1] if rows else {}
        environment = first.get("role") == "system" and str(first.get("content")).startswith(ENVIRONMENT)
        for index, message in rows:
            role = self._header(message, index)
            if role == "assistant":
                self._add_assistant(turn, message, index, environment)
            else:
                self._add(turn, role, self._content(message, index), index)
        if add_generation_prompt:
            start = len(turn.ids)
            self._open(turn, "assistant")
            turn.spans.append(RoleSpan("assistant", start, len(turn.ids), len(turn.ids), -1))
        return turn

    def parse(self, ids: Iterable[int], tools: list[dict] | None = None) -> Message:
        """The message that generated ids hold: content, `tool_calls` where there are any, and `stop_reason`.

        Ids after the first stop id are not read. A call is recognised by the id of python_tag at position 0, or,
        without it, as a JSON call of a function declared in `tools`; anything else is text, whatever it spells.
        """
        ids, stop_reason = list(ids), OUT_OF_TOKENS
        for position, i in enumerate(ids):
            if i in self.stop_ids:
                eom = i == self.tokenizer.special.get("<|eom_id|>")
                ids, stop_reason = ids[:position], END_OF_MESSAGE if eom else END_OF_TURN
                break
        tagged = self.dialect.calls and bool(ids) and ids[0] == self.tokenizer.special["<|python_tag|>"]
        text = self.tokenizer.decode(ids, special=False)
        declared = {f["name"] for f in self._sort_tools(tools)[1]} if tools and self.dialect.calls else set()
        call = _read_call(text, tagged, declared if tools is not None else None)
        if call is None:
            return {"role": "assistant", "content": text, "stop_reason": stop_reason}
        digest = hashlib.blake2b(repr(ids).encode(), digest_size=8).hexdigest()
        calls = [{"id": f"call_{digest}", "type": "function", "function": call}]
        return {"role": "assistant", "content": "", "tool_calls": calls, "stop_reason": stop_reason}

    def _header(self, message: Message, index: int) -> str:
        role = message.get("role")
        if role not in self.dialect.headers:
            valid = ", ".join(self.dialect.headers)
            raise ValueError(f"message {index} has role {role!r}; dialect {self.dialect.name} knows {valid}")
        return self.dialect.headers[role]

    def _content(self, message: Message, index: int) -> str:
        content = message.get("content")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ValueError(f"message {index} ({message['role']}) has content of type {kind}; give a string")
        return content

    def _sort_tools(self, tools: list[dict] | None) -> tuple[list[str], list[dict]]:
        """Splits tool definitions into names of built-in tools and the function objects."""
        if tools and not self.dialect.calls:
            raise ValueError(f"dialect {self.dialect.name} has no tools; use llama3.1")
        builtins, functions = [], []
        for index, tool in enumerate(tools or ()):
            kind, function = tool.get("type"), tool.get("function")
            if kind in (CODE_INTERPRETER, *BUILTIN_SEARCH):
                builtins.append(kind)
            elif kind == "function" and isinstance(function, dict) and isinstance(function.get("name"), str):
                functions.append(function)
            else:
                valid = ", ".join((CODE_INTERPRETER, *BUILTIN_SEARCH))
                raise ValueError(
                    f'tool {index} is neither {{"type": "function", "function": {{"name": ...}}}} '
                    f"nor of one of the built-in types {valid}"
                )
        return builtins, functions

    def _with_tools(
        self, rows: list[tuple[int, Message]], builtins: list[str], functions: list[dict]
    ) -> list[tuple[int, Message]]:
        """The (index, message) rows with the tools written into them; rows that are added have index -1."""
        if builtins:
            listed = [name for name in builtins if name != CODE_INTERPRETER]
            # The code interpreter is on by the environment alone; it is never listed.
            lines = ENVIRONMENT + (f"\nTools: {', '.join(listed)}" if listed else "")
            if not rows or rows[0][1].get("role") != "system":
                rows = [(-1, {"role": "system", "content": lines}), *rows]
            elif not (body := self._content(rows[0][1], 0)).startswith(ENVIRONMENT):
                rows = [(0, {"role": "system", "content": f"{lines}\n\n{body}" if body else lines}), *rows[1:]]
        if functions:
            place = next((i for i, (_, message) in enumerate(rows) if message.get("role") == "user"), None)
            if place is None:
                raise ValueError("tools are defined but there is no user message that they could stand before; add one")
            note = _FUNCTIONS_NOTE + "\n".join(map(_dump, functions))
            rows = [*rows[:place], (-1, {"role": "user", "content": note}), *rows[place:]]
        return rows

    def _open(self, turn: Turn, role: str) -> None:
        special, encode = self.tokenizer.special, self.tokenizer.encode
        turn.ids += [special["<|start_header_id|>"], *encode(role), special["<|end_header_id|>"], *self._newlines]
        turn.loss_mask += [0] * (len(turn.ids) - len(turn.loss_mask))

    def _add(self, turn: Turn, role: str, text: str, index: int, tag: bool = False, end: str = "<|eot_id|>") -> None:
        special, start = self.tokenizer.special, len(turn.ids)
        self._open(turn, role)
        content = len(turn.ids)
        turn.ids += [special["<|python_tag|>"]] * tag + self.tokenizer.encode(text) + [special[end]]
        turn.loss_mask += [int(role == "assistant")] * (len(turn.ids) - content)
        turn.spans.append(RoleSpan(role, start, content, len(turn.ids), index))

    def _add_assistant(self, turn: Turn, message: Message, index: int, environment: bool) -> None:
        calls = message.get("tool_calls") or []
        if not calls:
            eom = self.dialect.calls and message.get("stop_reason") == END_OF_MESSAGE
            end = "<|eom_id|>" if eom else "<|eot_id|>"
            self._add(turn, "assistant", self._content(message, index), index, end=end)
            return
        if not self.dialect.calls:
            raise ValueError(
                f"message {index} calls a tool; dialect {self.dialect.name} has no tool calls, use llama3.1"
            )
        if len(calls) > 1:
            raise ValueError(
                f"message {index} makes {len(calls)} calls; dialect {self.dialect.name} writes one call a message, "
                "give each call its own message"
            )
        if message.get("content"):
            raise ValueError(
                f"message {index} has text beside its tool call; dialect {self.dialect.name} has no place for it"
            )
        text, builtin = _write_call(calls[0], index)
        tag = builtin or environment
        self._add(turn, "assistant", text, index, tag, "<|eom_id|>" if tag else "<|eot_id|>")


def _write_call(call: dict, index: int) -> tuple[str, bool]:
    """The text of one call, and whether it is a built-in one (which python_tag always introduces)."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f'message {index} has a tool call without {{"function": {{"name": ..., "arguments": ...}}}}')
    name, arguments = function["name"], function.get("arguments", "{}")
    parameters = _json_object(arguments)
    if parameters is None:
        raise ValueError(
            f"message {index} calls {name} with arguments that are not a JSON object: {str(arguments)[:80]!r}"
        )
    if name in BUILTIN_SEARCH and parameters.keys() == {"query"} and isinstance(parameters["query"], str):
        return f"{name}.call(query={_dump(parameters['query'])})", True
    if name == CODE_INTERPRETER and parameters.keys() == {"code"} and isinstance(parameters["code"], str):
        code = parameters["code"]
        if _read_call(code, tagged=True, declared=None)["name"] != CODE_INTERPRETER:
            raise ValueError(
                f"message {index} runs code that spells another tool's call and would be read as that call"
            )
        return code, True
    if name in (CODE_INTERPRETER, *BUILTIN_SEARCH):
        key = "code" if name == CODE_INTERPRETER else "query"
        raise ValueError(f'message {index} calls {name} with other arguments than {{"{key}": TEXT}}')
    return _dump({"type": "function", "name": name, "parameters": parameters}), False


def _read_call(text: str, tagged: bool, declared: set[str] | None) -> dict | None:
    """The call that a reply's text makes, as {"name", "arguments"}, or None where it is plain text.

    `declared` holds the names of declared functions; None where the caller does not know them: then the tag decides.
    """
    if tagged and (match := _SEARCH_CALL.fullmatch(text)):
        query = _json(match[2])
        if isinstance(query, str):
            return {"name": match[1], "arguments": _dump({"query": query})}
    call = _json_object(text)
    if (
        call is not None
        and call.keys() <= {"type", "name", "parameters"}
        and call.get("type", "function") == "function"
    ):
        name, parameters = call.get("name"), call.get("parameters")
        known = tagged if declared is None else name in declared
        if known and isinstance(name, str) and isinstance(parameters, dict):
            return {"name": name, "arguments": _dump(parameters)}
    return {"name": CODE_INTERPRETER, "arguments": _dump({"code": text})} if tagged else None


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json(text: object) -> object:
    """The JSON value of a text; None where it is none (NaN and infinities are not JSON)."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (TypeError, ValueError, RecursionError):
        return None


def _json_object(value: object) -> dict | None:
    """A JSON object given as text (or already as a dict); None where it is none."""
    value = _json(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else None
