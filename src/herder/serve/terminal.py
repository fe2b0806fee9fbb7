"""`herder chat`: a conversation in the terminal, streamed.

The history is kept as messages and encoded anew each turn; when it no longer fits, the oldest turns go and the user is
told. The one design decision: whatever the model writes is text, so control characters never reach the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import unicodedata
from collections.abc import Callable

from herder.engine import Engine, Sampling
from herder.records import Message
from herder.tokenizer import ChatFormat

COMMANDS = {
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message (without TEXT: remove it)",
    "/quit": "leave",
}
PROMPT = "> "


def chat(
    engine: Engine,
    chat_format: ChatFormat,
    sampling: Sampling,
    read: Callable[[str], str] = input,
    write: Callable[..., None] = print,
    system: str = "",
) -> list[Message]:
    """Reads lines and streams answers until /quit or the end of input; returns the conversation.

    Ctrl-C stops the answer that is being written and keeps what there is of it. `read` and `write` are called as `input`
    and `print` are.
    """
    conversation = _Conversation(engine, chat_format, sampling, write, system)
    write(_help())
    while True:
        try:
            line = read(PROMPT).strip()
        except EOFError:
            write("")  # the shell's prompt gets a line of its own
            break
        except KeyboardInterrupt:
            write("\n(leave with /quit or Ctrl-D)")
            continue
        command, _, argument = line.partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            conversation.turns.clear()
            write("(the conversation is forgotten)")
        elif command == "/system":
            conversation.system = argument.strip()
            write("(the system message is set)" if conversation.system else "(there is no system message)")
        elif line.startswith("/"):
            write(f"{command} is no command. {_help()}")
        elif line:
            conversation.say(line)
    return conversation.messages()


class _Conversation:
    def __init__(self, engine: Engine, chat_format: ChatFormat, sampling: Sampling, write: Callable, system: str):
        if sampling.stop_ids is None:
            sampling = dataclasses.replace(sampling, stop_ids=tuple(chat_format.stop_ids))
        self.engine, self.format, self.sampling, self.write, self.system = engine, chat_format, sampling, write, system
        self.turns: list[list[Message]] = []
        """Each turn: what the user said and what was answered."""

    def messages(self) -> list[Message]:
        opening: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return opening + [message for turn in self.turns for message in turn]

    def say(self, text: str) -> None:
        """Adds what the user said, and streams and adds the answer."""
        self.turns.append([{"role": "user", "content": text}])
        prompt = self._fitting_prompt()
        if prompt is None:
            self.turns.pop()
            self.write(f"(this is too long for the model's context of {self.engine.context} tokens)")
            return
        ids, note = [], ""
        with contextlib.closing(self.engine.stream(prompt, self.sampling)) as pieces:
            try:
                for piece in pieces:
                    ids += piece.ids
                    self.write(printable(piece.text), end="", flush=True)
                    if piece.stop_reason == "length":
                        note = " (cut: the limit of tokens is reached)"
            except KeyboardInterrupt:
                note = " (stopped)"
        self.write(note)
        self.turns[-1].append(self.format.parse(ids))

    def _fitting_prompt(self) -> list[int] | None:
        """The prompt's ids with room for an answer, or None where even the last message alone leaves none."""
        room = self.engine.context - min(self.sampling.max_tokens, self.engine.context // 4) - 1
        dropped = 0
        while True:
            ids = self.format.encode(self.messages(), add_generation_prompt=True).ids
            if len(ids) <= room:
                break
            if len(self.turns) == 1:
                return None
            del self.turns[0]
            dropped += 1
        if dropped:
            turns = "turn was" if dropped == 1 else f"{dropped} turns were"
            self.write(f"(the oldest {turns} dropped: the context holds {self.engine.context} tokens)")
        return ids


def printable(text: str) -> str:
    """Text without control characters other than line breaks and tabs, which could steer the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def _help() -> str:
    return "Commands: " + ", ".join(f"{name} ({what})" for name, what in COMMANDS.items()) + "; Ctrl-C stops an answer."
