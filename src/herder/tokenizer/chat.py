"""Dialogues to ids and replies back to messages (paper sections 3.2, 4.1 and 4.3.5), by named dialect.

The one design decision: ids are built from ids. Every content is encoded by its own call that cannot yield a control
id, and replies are parsed from ids, so text that spells a control token stays text in both directions. What differs
between dialects stands in `dialects.py`, how calls are written in `calls.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from herder.records import Dialogue, Message
from herder.tokenizer.bpe import Tokenizer
from herder.tokenizer.calls import (
    BUILTIN_SEARCH,
    BUILTINS,
    CODE_INTERPRETER,
    FORMS,
    Call,
    dump,
    json_value,
    read_builtin,
    write_builtin,
)
from herder.tokenizer.dialects import (
    CUTOFF,
    DIALECTS,
    ENVIRONMENT,
    HF_DATE,
    Tools,
    announcement,
    functions_note,
    read_reply,
)
from herder.tokenizer.messages import Digest, announces, calls_of, check_continuable, checked, texts_of

END_OF_TURN, END_OF_MESSAGE, OUT_OF_TOKENS = "end_of_turn", "end_of_message", "out_of_tokens"
"""Stop reasons of an assistant message: the turn is over, it goes on after a tool has run, or the limit was hit."""


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
    """An encoded dialogue. `loss_mask[i]` is 1 where ids[i] is assistant content or the token that ends it, the end of a message
    that was cut off ("out_of_tokens") excepted."""

    ids: list[int]
    loss_mask: list[int]
    spans: list[RoleSpan]


class _Row(NamedTuple):
    """A message to be written: its index (-1 for the format's own), and the format's text before its content."""

    index: int
    message: Message
    before: str = ""


class ChatFormat:
    """Encodes and parses dialogues in one dialect.

    `dialect` None takes the one that the tokenizer's special tokens call for. `calls` names the form in which custom
    calls are written ("json", "function_tag", "python_list", "tool_call": the dialect's first where None); all forms of
    the dialect are read. `date` ("26 Jul 2024") puts the lines of the end of knowledge (`cutoff`) and of today's date
    before the system message; hf-llama3.1 always has them. A tokenizer that records a default system message
    (`conventions.system`) has it written where a dialogue begins with none. Raises ValueError for what a dialect or
    tokenizer lacks.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dialect: str | None = None,
        *,
        calls: str | None = None,
        date: str | None = None,
        cutoff: str = CUTOFF,
    ):
        name = tokenizer.dialect if dialect is None else dialect
        if not name and dialect is None:
            raise ValueError(f"the tokenizer's special tokens are no chat format's; name one of {', '.join(DIALECTS)}")
        if name not in DIALECTS:
            raise ValueError(f"dialect {name!r} is unknown; choose one of {', '.join(DIALECTS)}")
        self.tokenizer, self.dialect = tokenizer, DIALECTS[name]
        for token in self.dialect.control:
            if token not in tokenizer.special:
                raise ValueError(f"dialect {name} needs the special token {token}, which the tokenizer does not have")
        if calls is not None and calls not in self.dialect.forms:
            forms = f"its forms are {', '.join(self.dialect.forms)}" if self.dialect.forms else "it has no calls"
            raise ValueError(f"dialect {name} does not write calls as {calls!r}; {forms}")
        if date is not None and self.dialect.dates == "no":
            raise ValueError(f"dialect {name} has no date lines; leave `date` out")
        self.form = calls or (self.dialect.forms[0] if self.dialect.forms else None)
        self.date, self.cutoff = date or (HF_DATE if self.dialect.dates == "must" else None), cutoff
        self.stop_ids = frozenset(
            tokenizer.special[token] for token in self.dialect.stops if token in tokenizer.special
        )
        self.system = (
            tokenizer.conventions.system if name == tokenizer.dialect and not self.dialect.hugging_face else ""
        )
        self._headers = {role: self._header(role) for role in dict.fromkeys(self.dialect.headers.values())}
        self._after_end = tokenizer.encode(self.dialect.after_end)

    def encode(
        self,
        messages: Iterable[Message] | Dialogue,
        tools: list[dict] | None = None,
        add_generation_prompt: bool = False,
        continue_last: bool = False,
    ) -> Turn:
        """Ids, loss mask and spans of a dialogue.

        `add_generation_prompt` opens a new assistant message, whatever stands before it; `continue_last` instead leaves
        the last message, which must be the assistant's text, without its end, to be continued. `tools` are
        OpenAI-style: {"type": "function", "function": {...}}, or {"type": T} with T one of code_interpreter,
        brave_search, wolfram_alpha; a system message that begins with "Environment: ipython" announces built-in tools
        itself and is left as it is. Results answer calls in the order of the calls; a `tool_call_id` that says otherwise
        is refused. From the first user message on, the ids of a dialogue begin those of every longer one. Raises
        ValueError, naming the message, for a role, content or call that the dialect lacks. A `Dialogue` brings its own
        tools unless others are given.
        """
        if isinstance(messages, Dialogue):
            messages, tools = messages.messages, messages.tools if tools is None else tools
        messages, tools = checked(messages), Tools.sort(tools, self.dialect)
        if continue_last:
            check_continuable(messages[-1], add_generation_prompt)
        turn = Turn([], [], [])
        if self.dialect.begin:
            self._put(turn, [self.tokenizer.special[self.dialect.begin]])
        environment = self._environment(messages, tools)
        for row in self._rows(messages, tools):
            role = self._role(row.message, row.index)
            texts, tag, eom = self._body(row, tools, environment)
            # One call for both: how a text splits depends on what stands before it, and templates have it in one piece.
            texts = [row.before + "".join(texts[:1]), *texts[1:]]
            self._add(turn, role, texts, row.index, tag, eom)
            if row.message.get("stop_reason") == OUT_OF_TOKENS:
                turn.loss_mask[turn.spans[-1].end - 1] = 0  # the model did not end it, and shall not learn to
        if continue_last:
            self._reopen(turn)
        if add_generation_prompt:
            start = len(turn.ids)
            self._put(turn, self._headers["assistant"])
            turn.spans.append(RoleSpan("assistant", start, len(turn.ids), len(turn.ids), -1))
        return turn

    def parse(self, ids: Iterable[int], tools: list[dict] | None = None, prompt: Sequence[int] = ()) -> Message:
        """The message that generated ids hold: content, `tool_calls` where there are any, and `stop_reason`.

        Ids after the first stop id are not read. A call is recognised by the id of python_tag at position 0, or,
        without it, as a well-formed call of a function declared in `tools`; where `tools` are given, a call of anything
        else is text, whatever it spells. The ids of calls are a digest of `prompt` (the ids before the reply) and
        reply: the same in every run, and distinct within a dialogue where the prompt is given.
        """
        known = Tools.sort(tools, self.dialect).names if tools is not None else None
        return self._message(list(ids), known, Digest(prompt))

    def parse_dialogue(self, ids: Sequence[int], tools: list[dict] | None = None) -> list[Message]:
        """The messages of an encoded dialogue; what the format added for `tools` and dates is taken out again.

        Results get the ids of the calls they answer, in order. A generation prompt at the end is no message; an
        assistant message without an end is one, with stop reason "out_of_tokens". A context comes back as part of its
        message's content. Raises ValueError, naming the position, where ids are not a dialogue of this dialect.
        """
        ids, messages, waiting, before = list(ids), [], [], Digest()
        known = Tools.sort(tools, self.dialect).names if tools is not None else None
        for role, start, end in self._scan(ids):
            before.extend_to(ids, start)
            if role == "assistant":
                message = self._message(ids[start:end], known, before)
                waiting = [call["id"] for call in message.get("tool_calls", ())]
            else:
                message = {"role": role, "content": self.tokenizer.decode(ids[start : end - 1], special=False)}
            if role == "tool":
                message["content"] = self._unquoted(message["content"])
                if waiting:
                    message["tool_call_id"] = waiting.pop(0)
            messages.append(message)
        return self._without_announcements(messages, Tools.sort(tools, self.dialect))

    # Writing

    def _header(self, role: str) -> list[int]:
        special, dialect = self.tokenizer.special, self.dialect
        close = [special[dialect.close]] if dialect.close else []
        encode = self.tokenizer.encode
        return [special[dialect.open], *encode(role), *close, *encode(dialect.after_role)]

    def _role(self, message: Message, index: int) -> str:
        role = message.get("role")
        if not isinstance(role, str) or role not in self.dialect.headers:
            valid = ", ".join(self.dialect.headers)
            raise ValueError(f"message {index} has role {role!r}; dialect {self.dialect.name} knows {valid}")
        return self.dialect.headers[role]

    def _environment(self, messages: list[Message], tools: Tools) -> bool:
        """Whether the dialogue takes place in an ipython environment."""
        if self.dialect.hugging_face or tools.builtins:
            return bool(tools.builtins)
        return self.dialect.builtins and announces(messages)

    def _rows(self, messages: list[Message], tools: Tools) -> Iterator[_Row]:
        """The messages, with tools and dates written before them, or as messages of their own (index -1)."""
        rows = [_Row(index, message) for index, message in enumerate(messages)]
        opening = self._opening(tools, announces(messages))
        if messages[0].get("role") == "system":
            yield _Row(0, rows.pop(0).message, f"{opening}\n\n" if opening else "")
        elif self.system:
            yield _Row(-1, {"role": "system", "content": "\n\n".join(filter(None, (opening, self.system)))})
        elif opening:
            yield _Row(-1, {"role": "system", "content": opening + "\n\n" * self.dialect.hugging_face})
        note = self._note(tools)
        if note:
            place = next((at for at, row in enumerate(rows) if row.message.get("role") == "user"), None)
            if place is None or (place > 0 and self.dialect.hugging_face):
                raise ValueError("tools are defined but there is no user message that they could stand before; add one")
            if self.dialect.functions_in == "question":
                rows[place] = rows[place]._replace(before=note)
            else:
                rows.insert(place, _Row(-1, {"role": "user", "content": note}))
        yield from rows

    def _opening(self, tools: Tools, own: bool) -> str:
        """What stands before the system message, without the blank line between the two; `own` where that message
        announces the environment itself."""
        parts = []
        if not own or self.dialect.hugging_face:
            functions = bool(tools.functions)
            parts.append(announcement(self.dialect, tools.builtins, self.date, self.cutoff, functions))
        if tools.functions and self.dialect.functions_in == "system":
            parts.append(functions_note(self.dialect, tools.functions, self.form))
        return "\n\n".join(filter(None, parts))

    def _note(self, tools: Tools) -> str:
        """What declares functions in a user message."""
        wanted = tools.functions and self.dialect.functions_in != "system"
        return functions_note(self.dialect, tools.functions, self.form) if wanted else ""

    def _body(self, row: _Row, tools: Tools, environment: bool) -> tuple[list[str], bool, bool]:
        """The texts of a message, each to be encoded alone, whether python_tag comes first, and whether eom ends it."""
        index, message = row.index, row.message
        if index < 0:
            return [message["content"]], False, False
        if message["role"] != "assistant":
            texts = texts_of(message, index)
            quotes = self.dialect.hugging_face and self.dialect.headers[message["role"]] == "ipython"
            return [dump("".join(texts))] if quotes else self._trimmed(texts), False, False
        calls = calls_of(message, index)
        eom = message.get("stop_reason") == END_OF_MESSAGE and self.dialect.end_of_message is not None
        if not calls:
            return self._trimmed(texts_of(message, index)), False, eom
        beside = texts_of(message, index) if message.get("content") else []
        text, tag, ends = self._written(calls, index, environment, tools, any(beside))
        if "stop_reason" not in message:
            eom = ends
        return ["".join(beside) + "\n" + text if any(beside) else text], tag, eom

    def _written(
        self, calls: list[Call], index: int, environment: bool, tools: Tools, beside: bool
    ) -> tuple[str, bool, bool]:
        """The text of a message's calls, whether python_tag begins it and whether eom ends it by default."""
        name = self.dialect.name
        if self.form is None:
            raise ValueError(f"message {index} calls a tool; dialect {name} has no tool calls, use llama3.1")
        form, first = FORMS[self.form], calls[0]
        builtin = next((c for c in calls if c.name in self._builtins(tools)), None)
        if len(calls) > 1 and (builtin or not form.parallel):
            raise ValueError(
                f"message {index} makes {len(calls)} calls; dialect {name} writes one call a message"
                f"{' where a built-in tool is called' if form.parallel else ''}, give each call its own message"
            )
        if beside and not form.beside:
            raise ValueError(f"message {index} has text beside its tool call; dialect {name} has no place for it")
        if builtin:
            return self._builtin(first, index, tools), True, True
        try:
            text = form.write(calls)
        except ValueError as error:
            raise ValueError(f"message {index} calls {first.name}: {error}") from None
        tag = form.tagged and environment
        return text, tag, tag or (environment and self.dialect.hugging_face)

    def _builtins(self, tools: Tools) -> tuple[str, ...]:
        """Names that mean a built-in tool here; the published template knows only those that are switched on."""
        if self.dialect.hugging_face:
            return tools.builtins
        return BUILTINS if self.dialect.builtins else ()

    def _builtin(self, call: Call, index: int, tools: Tools) -> str:
        name, arguments = call
        if self.dialect.hugging_face:
            text = write_builtin(call)
            if read_builtin(text, (name,)) != call:
                raise ValueError(f"message {index} calls {name} with arguments that are not all text with plain names")
            return text
        key = "code" if name == CODE_INTERPRETER else "query"
        if arguments.keys() != {key} or not isinstance(arguments[key], str):
            raise ValueError(f'message {index} calls {name} with other arguments than {{"{key}": TEXT}}')
        if name in BUILTIN_SEARCH:
            return write_builtin(call)
        read = read_reply(self.dialect, arguments[key], True, tools.names or None)[1]
        if read and read[0].name != CODE_INTERPRETER:
            raise ValueError(
                f"message {index} runs code that spells another tool's call and would be read as that call"
            )
        return arguments[key]

    def _trimmed(self, texts: list[str]) -> list[str]:
        return ["".join(texts).strip()] if self.dialect.hugging_face else texts

    def _unquoted(self, content: str) -> str:
        value = json_value(content) if self.dialect.hugging_face else None
        return value if isinstance(value, str) else content

    def _put(self, turn: Turn, ids: list[int], loss: bool = False) -> None:
        turn.ids += ids
        turn.loss_mask += [int(loss)] * len(ids)

    def _add(self, turn: Turn, role: str, texts: list[str], index: int, tag: bool, eom: bool) -> None:
        special, dialect, start = self.tokenizer.special, self.dialect, len(turn.ids)
        self._put(turn, self._headers[role])
        content = len(turn.ids)
        ids = [special[dialect.tag]] if tag else []
        for text in filter(None, texts):
            ids += self.tokenizer.encode(text)
        ids.append(special[dialect.end_of_message if eom else dialect.end])
        self._put(turn, ids, loss=role == "assistant")
        turn.spans.append(RoleSpan(role, start, content, len(turn.ids), index))
        self._put(turn, self._after_end)

    def _reopen(self, turn: Turn) -> None:
        """Takes the end of the last message back."""
        end = turn.spans[-1].end - 1
        del turn.ids[end:], turn.loss_mask[end:]
        turn.spans[-1] = turn.spans[-1]._replace(end=end)

    # Reading

    def _message(self, ids: list[int], known: frozenset[str] | None, before: Digest) -> Message:
        """The message of a reply's ids, up to its first stop id."""
        stop_reason, special = OUT_OF_TOKENS, self.tokenizer.special
        end = next((at for at, i in enumerate(ids) if i in self.stop_ids), None)
        if end is not None:
            eom = ids[end] == special.get(self.dialect.end_of_message)
            ids, stop_reason = ids[:end], END_OF_MESSAGE if eom else END_OF_TURN
        tagged = self.dialect.tag is not None and ids[:1] == [special[self.dialect.tag]]
        content, calls = read_reply(self.dialect, self.tokenizer.decode(ids, special=False), tagged, known)
        message: Message = {"role": "assistant", "content": content}
        if calls:
            digest = before.of(ids)
            message["tool_calls"] = [
                {
                    "id": f"call_{digest}_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": dump(call.arguments)},
                }
                for number, call in enumerate(calls)
            ]
        message["stop_reason"] = stop_reason
        return message

    def _scan(self, ids: list[int]) -> Iterator[tuple[str, int, int]]:
        """Role, start of the content and end (end token in) of each message; ValueError where ids are no dialogue."""
        special, dialect = self.tokenizer.special, self.dialect
        ends = self.stop_ids
        never = {special[name] for name in (dialect.begin, dialect.open, dialect.close) if name}
        at = 1 if dialect.begin and ids[:1] == [special[dialect.begin]] else 0
        while at < len(ids):
            role = next((r for r, header in self._headers.items() if ids[at : at + len(header)] == header), None)
            if role is None:
                roles = ", ".join(self._headers)
                raise ValueError(f"no message begins at position {at}; a header of {dialect.name} has one of {roles}")
            start = at = at + len(self._headers[role])
            while at < len(ids) and ids[at] not in ends:
                if ids[at] in never:
                    raise ValueError(f"position {at}, inside of a message ({role}), holds a control id ({ids[at]})")
                at += 1
            if at == len(ids) and role != "assistant":
                raise ValueError(f"the last message ({role}), from position {start} on, has no end")
            if at == len(ids) == start:
                return  # a generation prompt
            at = min(at + 1, len(ids))
            yield "tool" if role == "ipython" else role, start, at
            if ids[at : at + len(self._after_end)] == self._after_end:
                at += len(self._after_end)

    def _without_announcements(self, messages: list[Message], tools: Tools) -> list[Message]:
        """The messages without what `_rows` put before them."""
        opening, note = self._opening(tools, own=False), self._note(tools)
        system = messages[0] if messages and messages[0]["role"] == "system" else None
        if system and opening and system["content"] == opening + "\n\n" * self.dialect.hugging_face:
            del messages[0]
        elif system:
            for before, behind in ((self._opening(tools, own=True), ENVIRONMENT), (opening, "")):
                if before and system["content"].startswith(f"{before}\n\n{behind}"):
                    system["content"] = system["content"][len(before) + 2 :]
                    break
        if system and self.system and system["content"] == self.system:
            del messages[0]
        first = next((m for m in messages if m["role"] == "user"), None) if note else None
        if first is not None and first["content"].startswith(note):
            if self.dialect.functions_in == "question":
                first["content"] = first["content"][len(note) :]
            elif first["content"] == note:
                messages.remove(first)
        return messages
