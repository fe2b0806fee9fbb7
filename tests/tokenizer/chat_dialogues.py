"""Dialogues and tools that the tests of the chat formats share."""

import json

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather of a place, in °C",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
BOOK = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}
SEARCH, ALPHA, INTERPRETER = ({"type": t} for t in ("brave_search", "wolfram_alpha", "code_interpreter"))
BUILTINS = [SEARCH, ALPHA, INTERPRETER]

TEXTS = [
    "Hi",
    "What is 2+2?",
    "Grüße aus Köln. Ça va?",
    "日本語のテキストです。",
    "Привет, мир!",
    "नमस्ते दुनिया 🙂🙃",
    "two\n\nparagraphs\n",
    "def f(x):\n    return x + 1\n",
    "trailing space ",
    "tabs\tand\tmore",
    "price: $5.00 (10% off) \\ \"quoted\" 'single'",
    "a" * 300,
    "1234567890 98.6",
    "x.",
    "{braces} [brackets] <angles>",
]
ARGUMENTS = [
    {},
    {"city": "Oslo"},
    {"city": "Oslo", "days": 3},
    {"a": {"b": {"c": [1, 2, {"d": None}]}}, "t": True, "f": False, "x": -1.5},
    {"text": 'it\'s a "quoted" line\nand another \\ one'},
    {"two words": 1, "class": 2},
    {"city": "Zürich", "note": "日本"},
]


def system(text):
    return {"role": "system", "content": text}


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def tool(text, **fields):
    return {"role": "tool", "content": text, **fields}


def call(name, arguments, number=0):
    """A call whose arguments are an object, as templates need them."""
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made, **fields):
    """An assistant message of calls, each (name, arguments)."""
    numbered = [call(name, arguments, number) for number, (name, arguments) in enumerate(made)]
    return {"role": "assistant", "content": "", "tool_calls": numbered, **fields}


def bare(messages):
    """Messages by what they say: without ids and stop reasons, arguments as objects, absent content as ""."""
    plain = []
    for message in messages:
        kept = {"role": {"ipython": "tool"}.get(message["role"], message["role"]), "content": message["content"] or ""}
        made = [c["function"] for c in message.get("tool_calls") or ()]
        if made:
            kept["calls"] = [
                (f["name"], json.loads(f["arguments"]) if isinstance(f["arguments"], str) else f["arguments"])
                for f in made
            ]
        plain.append(kept)
    return plain
