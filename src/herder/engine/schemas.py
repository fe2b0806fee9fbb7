"""How short a JSON document can be that a schema allows: finds schemas that only endless documents meet.

The library that follows schemas token by token notices most contradictions, but not recursion that never ends. The one design
decision: a bound from below. What is not understood here counts as one character, so no schema that can be met is refused.
"""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any
from urllib.parse import unquote

_TYPES = ("null", "boolean", "number", "string", "array", "object")
_PLAIN = {"null": 4, "boolean": 4, "number": 1, "integer": 1}


def smallest(schema: Any) -> float:
    """A lower bound of the characters of the shortest document; infinite where there is none.

    Lengths behind each `$ref` start as infinite; whenever one falls, those that refer to it are counted again.
    """
    lengths: dict[str, float] = {}
    dependents: dict[str, set[str | None]] = {}
    waiting: deque[str | None] = deque([None])  # None is the schema itself
    length = math.inf
    while waiting:
        name = waiting.popleft()
        references: set[str] = set()
        found = _length(schema if name is None else _target(schema, name), lengths, references)
        for reference in references:
            if reference not in dependents:
                waiting.append(reference)
            dependents.setdefault(reference, set()).add(name)
        if name is None:
            length = found
        elif found < lengths.get(name, math.inf):
            lengths[name] = found
            waiting.extend(dependents[name])
    return length


def _target(root: Any, reference: str) -> Any:
    """What a reference within the document points to; a schema that allows everything where it cannot be found."""
    if not reference.startswith("#") or (reference != "#" and not reference.startswith("#/")):
        return True
    node = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return True
    return node


def _length(schema: Any, lengths: dict[str, float], seen: set[str]) -> float:
    """The bound of one schema, from what is known of the references in it, which are added to `seen`."""
    if schema is False:
        return math.inf
    if not isinstance(schema, dict):
        return 1

    def of(inner: Any) -> float:
        return _length(inner, lengths, seen)

    bounds: list[float] = [1]
    if isinstance(reference := schema.get("$ref"), str):
        seen.add(reference)
        bounds.append(lengths.get(reference, math.inf))
    if "const" in schema:
        return max(bounds[-1], len(json.dumps(schema["const"], ensure_ascii=False)))
    if isinstance(values := schema.get("enum"), list):
        bounds.append(min((len(json.dumps(v, ensure_ascii=False)) for v in values), default=math.inf))
        return max(bounds)
    for key, choose in (("anyOf", min), ("oneOf", min), ("allOf", max)):
        if isinstance(parts := schema.get(key), list) and parts:
            bounds.append(choose(of(part) for part in parts))
    kinds = schema.get("type", _TYPES)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    bounds.append(min((_of_type(kind, schema, of) for kind in kinds), default=math.inf))
    return max(bounds)


def _of_type(kind: Any, schema: dict, of: Any) -> float:
    if kind == "string":
        return 2 + _count(schema, "minLength")
    if kind == "array":
        items, count = schema.get("prefixItems") or [], _count(schema, "minItems")
        first, rest = items[:count], max(0, count - len(items))
        return 2 + max(0, count - 1) + sum(map(of, first)) + (rest * of(schema.get("items", True)) if rest else 0)
    if kind == "object":
        return _of_object(schema, of)
    return _PLAIN.get(kind, 1)


def _of_object(schema: dict, of: Any) -> float:
    properties, required = schema.get("properties") or {}, dict.fromkeys(schema.get("required") or ())
    other = True if schema.get("patternProperties") else schema.get("additionalProperties", True)
    parts = [len(json.dumps(name, ensure_ascii=False)) + 1 + of(properties.get(name, other)) for name in required]
    return 2 + sum(parts) + max(0, len(parts) - 1)


def _count(schema: dict, key: str) -> int:
    value = schema.get(key, 0)
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
