"""A user's own dialogues: JSONL or Parquet in the forms that people have, or a data set of the Hugging Face Hub by name.

Forms are told apart by their fields: OpenAI (`messages`), ShareGPT (`conversations` of from and value), Alpaca
(`instruction`, `input`, `output`, `history`), and `prompt` with `completion`. The one design decision: every row becomes a
`Dialogue` or is refused with its place, so nothing is trained on in a form that was guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from herder.config import manifest, runtime
from herder.corpus import open_source
from herder.posttrain.dialogues import DialogueConfig, reasoning_dialogues
from herder.records import Dialogue, Message, read_rows, write_dialogues

NAMED = {"no_robots": "hf:HuggingFaceH4/no_robots#train"}
"""Data sets that have a short name here; they are read over the network, through the package datasets."""

FORMS = "messages (OpenAI), conversations (ShareGPT), instruction and output (Alpaca), or prompt and completion"

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class ConversationConfig:
    """Which dialogues, and how they are split.

    `data` is a JSONL, JSON (an array) or Parquet file, a folder of them, no_robots, or hf:NAME[@REVISION][#SPLIT]; ""
    makes the verifiable `reasoning` tasks of the package reasoning-gym instead, so that a recipe runs without any data.
    `manifest` is what of the outside enters (path, size, content hash).
    """

    data: str = runtime("")
    manifest: tuple[dict, ...] = ()
    heldout_share: float = 0.1
    heldout_most: int = 200
    limit: int = 0
    """At most this many dialogues (0: all)."""
    reasoning: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share is {self.heldout_share}; it must be at least 0 and below 1")


def import_dialogues(config: ConversationConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: `train.jsonl` and `heldout.jsonl`. Dialogues that begin alike are on the same side, so no held-out question was
    trained on."""
    if not config.data:
        tasks = DialogueConfig(reasoning=config.reasoning, heldout_items=config.heldout_most, seed=config.seed)
        splits = reasoning_dialogues(tasks)
        if not splits["train"]:
            raise ValueError(
                "no dialogues: give --set data=FILE (JSONL), or install the tasks of the default with: "
                "pip install 'herder[miniature]'"
            )
        train, heldout = splits["train"], splits["heldout"]
        unanswered = 0
    else:
        train, heldout, unanswered = split(read_conversations(config.data, config.limit), config)
    if not train:
        raise ValueError(f"{config.data} gave no dialogue with an answer to train on")
    write_dialogues(train, out / "train.jsonl")
    write_dialogues(heldout, out / "heldout.jsonl")
    return {"train": len(train), "heldout": len(heldout), "without_an_answer": unanswered}


def conversations_manifest(data: str) -> tuple[dict, ...]:
    """What of the outside the dialogues are: files with their hashes, or the name of a data set."""
    if not data:
        return ()
    spec = NAMED.get(data, data)
    if spec.startswith("hf:"):
        return ({"path": spec},)
    return tuple(row for path in _files(Path(data)) for row in manifest(path))


def split(dialogues: Iterable[Dialogue], config: ConversationConfig) -> tuple[list[Dialogue], list[Dialogue], int]:
    """(training, held-out) dialogues, and how many were left out because nothing is answered in them.

    They are split by a hash of the messages before the first answer. Once `heldout_most` are held out, dialogues that begin
    otherwise than those are trained on.
    """
    train: list[Dialogue] = []
    heldout: list[Dialogue] = []
    held: set[int] = set()
    unanswered = 0
    for dialogue in dialogues:
        roles = [m["role"] for m in dialogue.messages]
        if "assistant" not in roles:
            unanswered += 1
            continue
        opening = [(m["role"], m.get("content")) for m in dialogue.messages[: roles.index("assistant")]]
        key = xxhash.xxh3_64_intdigest(json.dumps(opening).encode(), seed=config.seed)
        if key in held or (key / 2**64 < config.heldout_share and len(heldout) < config.heldout_most):
            held.add(key)
            heldout.append(dialogue)
        else:
            train.append(dialogue)
    return train, heldout, unanswered


def read_conversations(data: str, limit: int = 0) -> Iterator[Dialogue]:
    """Every dialogue of a file, folder or named data set. Raises ValueError with the place of a row in none of the forms."""
    spec = NAMED.get(data, data)
    rows = (
        _hub_rows(spec) if spec.startswith("hf:") else (pair for path in _files(Path(data)) for pair in read_rows(path))
    )
    for count, (where, row) in enumerate(rows):
        if limit and count >= limit:
            return
        yield conversation(row, where)


def conversation(row: dict, where: str) -> Dialogue:
    """One row in any of the forms as a `Dialogue`; `where` goes into errors."""
    row = {key: value for key, value in row.items() if value is not None}
    if isinstance(row.get("messages"), list):
        messages = [_openai(m, f"{where}, message {i}") for i, m in enumerate(row["messages"])]
    elif isinstance(row.get("conversations"), list):
        messages = [_sharegpt(m, f"{where}, message {i}") for i, m in enumerate(row["conversations"])]
    elif "instruction" in row and "output" in row:
        messages = _alpaca(row, where)
    elif "prompt" in row and "completion" in row:
        messages = _prompt(row, where)
    else:
        raise ValueError(
            f"{where}: fields {', '.join(map(repr, sorted(row))) or 'none'}; give one of the forms {FORMS}"
        )
    if not messages:
        raise ValueError(f"{where}: the dialogue has no message; delete the row")
    system = row.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, f"{where}, tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"{where}: tools is of type {type(tools).__name__}; give a list of tool definitions")
    task = row.get("category") or row.get("task") or ""
    return Dialogue(
        messages, id=str(row.get("id", where)), source=str(row.get("source", "")), task=str(task), tools=tools or None
    )


def _openai(message: object, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f'{where}: expected {{"role": ..., "content": ...}}, found {str(message)[:60]!r}')
    if "content" not in message and "tool_calls" not in message:
        raise ValueError(f"{where} ({message['role']}) has no content")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise ValueError(f"{where} ({message['role']}) has content that is neither text nor a list of text parts")
    known = ("role", "content", "tool_calls", "tool_call_id", "name", "stop_reason")
    return {key: message[key] for key in known if message.get(key) is not None}


def _sharegpt(message: object, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise ValueError(f'{where}: expected {{"from": ..., "value": TEXT}}, found {str(message)[:60]!r}')
    speaker, value = message.get("from"), message["value"]
    if speaker == "function_call":
        call = _json(value, where)
        if not isinstance(call, dict) or "name" not in call:
            raise ValueError(f'{where}: a function_call must hold {{"name": ..., "arguments": ...}}')
        arguments = call.get("arguments", call.get("parameters", {}))
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": str(call["name"]), "arguments": arguments}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise ValueError(
            f"{where}: speaker {speaker!r} is not known; known are {', '.join(_SHAREGPT_ROLES)}, function_call"
        )
    return {"role": _SHAREGPT_ROLES[speaker], "content": value}


def _alpaca(row: dict, where: str) -> list[Message]:
    texts = {name: row.get(name, "") for name in ("instruction", "input", "output")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name} is of type {type(value).__name__}; give text")
    messages: list[Message] = []
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise ValueError(f"{where}: history must be a list of [question, answer] pairs")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = "\n\n".join(t for t in (texts["instruction"], texts["input"]) if t)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": texts["output"]}]


def _prompt(row: dict, where: str) -> list[Message]:
    messages: list[Message] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[name]
        if isinstance(value, list):
            messages += [_openai(m, f"{where}, {name}, message {i}") for i, m in enumerate(value)]
        elif isinstance(value, str):
            messages.append({"role": role, "content": value})
        else:
            raise ValueError(f"{where}: {name} is of type {type(value).__name__}; give text or messages")
    return messages


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a JSONL or Parquet file, a folder of them, no_robots or hf:NAME")
    endings = (".jsonl", ".json", ".parquet")
    files = sorted(p for p in path.rglob("*") if p.suffix in endings) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no file that ends in {', '.join(endings)}")
    return files


def _hub_rows(spec: str) -> Iterator[tuple[str, dict]]:
    yield from ((f"{spec}, row {n}", row) for n, row in enumerate(open_source(spec).rows(), 1))


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise ValueError(f"{where}: not valid JSON ({reason})") from None
