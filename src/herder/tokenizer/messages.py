"""OpenAI-style messages, checked: what an encoder may rely on, and one sentence for everything else (paper section 4.1).

The one design decision: a message is checked before anything is encoded, and what the format cannot say is refused, never
dropped or repaired in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from herder.records import Message
from herder.tokenizer.calls import Call, json_object
from herder.tokenizer.dialects import ENVIRONMENT


def checked(messages: Iterable[Message]) -> list[Message]:
    """The messages as a list; ValueError where there is none, or one is no message, or answers a call out of order."""
    messages, made, waiting = list(messages), set(), []
    if not messages:
        raise ValueError("the dialogue has no messages; give at least one")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            kind = type(message).__name__
            raise ValueError(f'message {index} is of type {kind}; give {{"role": ..., "content": ...}}')
        if message.get("role") == "assistant":
            calls = message.get("tool_calls")
            ids = [c.get("id") for c in calls if isinstance(c, dict)] if isinstance(calls, list) else []
            waiting = [i for i in ids if isinstance(i, str)]
            made.update(waiting)
        elif message.get("tool_calls"):
            raise ValueError(f"message {index} ({message.get('role')}) has tool_calls; only the assistant calls tools")
        if message.get("context") is not None and (
            message.get("role") != "user" or not isinstance(message["context"], str)
        ):
            raise ValueError(f"message {index} has a context; it must be text, and stand in a user message")
        if message.get("role") in ("tool", "ipython"):
            _match(message.get("tool_call_id"), waiting, made, index)
    return messages


def _match(answered: object, waiting: list[str], made: set[str], index: int) -> None:
    """Takes the call that a result answers from those that wait; without an id it is the first."""
    if not answered:
        del waiting[:1]
    elif answered not in waiting:
        fault = "was answered or passed already" if str(answered) in made else "is made nowhere before it"
        raise ValueError(f"message {index} answers the call {str(answered)[:80]!r}, which {fault}")
    elif answered != waiting.pop(0):
        raise ValueError(
            f"message {index} answers the call {answered!r} before those that were made earlier; "
            "results are matched to calls by their order, put them in the order of the calls"
        )


def check_continuable(last: Message, add_generation_prompt: bool) -> None:
    """ValueError where the last message is not text that a model could go on with."""
    if add_generation_prompt:
        raise ValueError("continue_last and add_generation_prompt exclude each other; choose one")
    if last.get("role") != "assistant" or last.get("tool_calls"):
        raise ValueError("continue_last needs a last message that is the assistant's text; leave it out")


def texts_of(message: Message, index: int) -> list[str]:
    """The pieces of a message's content, as they were given, and its context behind a blank line."""
    content, role = message.get("content"), message.get("role")
    pieces = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for piece in pieces:
        if isinstance(piece, dict) and piece.get("type") == "text" and isinstance(piece.get("text"), str):
            texts.append(piece["text"])
        elif isinstance(content, list):
            kind = piece.get("type") if isinstance(piece, dict) else type(piece).__name__
            raise ValueError(f"message {index} ({role}) has a part of type {str(kind)[:80]!r}; give text parts only")
        else:
            kind = type(content).__name__
            raise ValueError(f"message {index} ({role}) has content of type {kind}; give a string")
    context = message.get("context")
    return texts if context is None else [*texts, "\n\n", context]


def announces(messages: list[Message]) -> bool:
    """Whether the dialogue begins with a system message that announces the ipython environment itself."""
    return messages[0].get("role") == "system" and "".join(texts_of(messages[0], 0)).startswith(ENVIRONMENT)


def calls_of(message: Message, index: int) -> list[Call]:
    """The calls of an assistant message; ValueError where one is broken."""
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise ValueError(f"message {index} has tool_calls of type {type(calls).__name__}; give a list")
    found = []
    for call in calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(
                f'message {index} has a tool call without {{"function": {{"name": ..., "arguments": ...}}}}'
            )
        arguments = function.get("arguments", "{}")
        parameters = json_object(arguments)
        if parameters is None:
            shown = str(arguments)[:80] if isinstance(arguments, str) else type(arguments).__name__
            raise ValueError(
                f"message {index} calls {function['name']} with arguments that are not a JSON object: {shown!r}"
            )
        found.append(Call(function["name"], parameters))
    return found


class Digest:
    """A digest of the ids before a reply, from which the ids of its calls are made."""

    def __init__(self, ids: Sequence[int] = ()):
        self._hash, self._length = hashlib.blake2b(digest_size=8), 0
        self.extend_to(ids, len(ids))

    def extend_to(self, ids: Sequence[int], end: int) -> None:
        self._hash.update(np.asarray(ids[self._length : end], dtype="<u4").tobytes())
        self._length = end

    def of(self, reply: Sequence[int]) -> str:
        digest = self._hash.copy()
        digest.update(np.asarray(reply, dtype="<u4").tobytes())
        return digest.hexdigest()
