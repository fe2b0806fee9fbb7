"""Typed configuration: frozen dataclasses, what of them is identity, and overrides from the command line.

Identity is what is computed, execution is where: a field made by `runtime(...)` (workers, device, micro-batch) stays out of
the canonical encoding, and everything else must be plain data, since an address that depends on a callable or an unknown
object would not be stable between processes.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash


def runtime(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING) -> Any:
    """A field that says where or how fast, never what: it is recorded and does not enter a step's address."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"runtime": True})
    return dataclasses.field(default=default, metadata={"runtime": True})


def manifest(path: Path) -> tuple[dict, ...]:
    """What a file, or every file of a folder, is: name, size and content hash, wherever it lies. How outside data enters a
    configuration. Raises ValueError where there is nothing."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise ValueError(f"{path} does not exist or holds no file; give a path that does")
    found = []
    for file in files:
        digest, size = xxhash.xxh3_128(), 0
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
                size += len(block)
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        found.append({"path": name, "bytes": size, "xxh3": digest.hexdigest()})
    return tuple(found)


def at_least_one(config: Any, *names: str) -> None:
    """Raises ValueError, naming the field, where a count of this configuration is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")


def encode(value: Any, where: str = "config", only: str = "identity") -> Any:
    """Plain JSON data of a configuration: the identity fields, the "runtime" fields, or "all" of them.

    Raises ValueError, naming the field, for what has no stable identity: callables, sets, NaN, unknown objects.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers have an identity")
        return value
    if isinstance(value, tuple | list):
        return [encode(v, f"{where}[{i}]", only) for i, v in enumerate(value)]
    if isinstance(value, dict):
        if bad := [k for k in value if not isinstance(k, str)]:
            raise ValueError(f"{where} has the key {bad[0]!r}; keys must be strings")
        return {k: encode(value[k], f"{where}.{k}", only) for k in sorted(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value, where, only)
    kind = "a callable" if callable(value) else f"of type {type(value).__name__}"
    raise ValueError(
        f"{where} is {kind}, which has no stable identity; use numbers, strings, tuples or frozen dataclasses"
    )


def _encode_fields(value: Any, where: str, only: str) -> dict:
    encoded = {}
    for f in dataclasses.fields(value):
        is_runtime, inner = bool(f.metadata.get("runtime")), getattr(value, f.name)
        if is_runtime and only == "identity":
            continue
        if only == "runtime" and not is_runtime:
            if dataclasses.is_dataclass(inner) and (found := _encode_fields(inner, f"{where}.{f.name}", only)):
                encoded[f.name] = found
            continue
        encoded[f.name] = encode(inner, f"{where}.{f.name}", "all" if is_runtime else only)
    if only == "identity":
        encoded["type"] = type(value).__name__
    return encoded


def digest(data: Any, length: int = 8) -> str:
    """Hexadecimal digest of JSON data in canonical form."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:length]


def override(config: Any, settings: Iterable[str]) -> Any:
    """A copy of a frozen dataclass with `key.sub=value` settings applied, each checked against the field's type.

    A dictionary's entries are set, and added, by `key.entry=value`, those of a tuple set by number (`stages.0.steps=20`).
    Raises ValueError for an unknown key (naming the nearest valid one), a value of another type, or a missing "=".
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} has no '='; write --set key=value")
        config = _set(config, key.strip().split("."), text.strip(), key.strip(), config)
    return config


def _set(config: Any, path: list[str], text: str, key: str, root: Any, hint: Any = None) -> Any:
    name = path[0]
    if isinstance(config, dict):
        if len(path) > 1:
            raise ValueError(f"{key!r} goes past {name!r}, which is an entry and has no fields")
        return config | {name: parse(text, typing.get_args(hint)[-1], key)}
    if isinstance(config, tuple):
        return _set_entry(config, path, text, key, root, hint)
    hints = typing.get_type_hints(type(config))
    if name not in {f.name for f in dataclasses.fields(config)}:
        raise ValueError(f"unknown key {key!r}{_nearest(key, root)}")
    current = getattr(config, name)
    if len(path) > 1:
        if not dataclasses.is_dataclass(current) and not isinstance(current, dict | tuple):
            raise ValueError(f"{key!r} goes past {name!r}, which is {type(current).__name__} and has no fields")
        value = _set(current, path[1:], text, key, root, hints[name])
    elif dataclasses.is_dataclass(current):
        raise ValueError(f"{key!r} is a group of settings; set one of them: {', '.join(_keys(current, key + '.'))}")
    else:
        value = parse(text, hints[name], key)
    return dataclasses.replace(config, **{name: value})


def _set_entry(config: tuple, path: list[str], text: str, key: str, root: Any, hint: Any) -> tuple:
    """`_set` for the entry of a tuple that the path begins with."""
    if not path[0].isdigit() or int(path[0]) >= len(config):
        raise ValueError(f"unknown key {key!r}{_nearest(key, root)}")
    at = int(path[0])
    kinds = typing.get_args(hint)
    kind = kinds[0] if len(kinds) == 2 and kinds[1] is Ellipsis else kinds[at]
    value = _set(config[at], path[1:], text, key, root, kind) if len(path) > 1 else parse(text, kind, key)
    return (*config[:at], value, *config[at + 1 :])


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for f in dataclasses.fields(config):
        inner = getattr(config, f.name)
        if isinstance(inner, tuple) and inner and all(map(dataclasses.is_dataclass, inner)):
            for i, entry in enumerate(inner):
                keys += _keys(entry, f"{prefix}{f.name}.{i}.")
        elif dataclasses.is_dataclass(inner):
            keys += _keys(inner, f"{prefix}{f.name}.")
        else:
            keys += [f"{prefix}{f.name}.{k}" for k in inner] if isinstance(inner, dict) else [prefix + f.name]
    return keys


def _nearest(key: str, root: Any) -> str:
    keys = _keys(root)
    by_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = difflib.get_close_matches(key, by_leaf or keys, n=1, cutoff=0.0 if by_leaf else 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; valid keys are {', '.join(keys[:12])} ..."


def parse(text: str, hint: Any, key: str) -> Any:
    """Reads text as a value of the annotated type. Raises ValueError that names the key and the type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            if type(None) in args and text.lower() in ("none", "null"):
                return None
            for option in (a for a in args if a is not type(None)):
                try:
                    return parse(text, option, key)
                except ValueError:
                    continue
            raise ValueError
        if origin is typing.Literal:
            for choice in args:
                if text == str(choice):
                    return choice
            raise ValueError
        if origin is tuple:
            parts = [p.strip().strip("'\"") for p in text.strip("()[]").split(",") if p.strip()]
            return tuple(parse(p, args[0] if args else str, key) for p in parts)
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if hint is int:
            number = float(text.replace("_", "")) if "e" in text.lower() else int(text.replace("_", ""))
            if number != int(number):
                raise ValueError
            return int(number)
        if hint is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        if hint is str:
            return text
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"{key} = {text!r} is not {_describe(hint)}; give a value of that type") from None
    raise ValueError(f"{key} cannot be set from the command line (it is {_describe(hint)}); set it in the recipe")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(str(a)) for a in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint) or str(hint).replace("typing.", "")
