"""Where a tokenizer lies: herder's own folders, tiktoken ranks, Hugging Face's files, the header of a GGUF (paper section 3.2).

Which kind a path is, is told by what lies there. In a folder that herder wrote, tokenizer.model is read: the ranks say in a
tenth of the time what tokenizer.json's merges say.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

from herder.gguf import read_gguf
from herder.tokenizer import huggingface, patterns
from herder.tokenizer.bpe import Conventions, Tokenizer, special_names

RANKS_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"

GGUF_SPECIAL = {2, 3, 4}
GGUF_UNUSED = 5
"""`tokenizer.ggml.token_type`: 1 is ordinary text, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 a byte."""
GGUF_DIALECT, GGUF_SYSTEM = "herder.dialect", "herder.system"
"""Where our own GGUF files record `Conventions.dialect` and `.system`."""


def load(path: Path) -> Tokenizer:
    """Reads the tokenizer at `path`, a file or a folder. Raises ValueError as `Tokenizer.load` says."""
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give a folder that holds {RANKS_FILE} or {JSON_FILE}, or one of these files"
        )
    if not path.is_dir():
        if path.suffix == ".gguf" or _begins(path, b"GGUF"):
            return _from_gguf(path)
        return huggingface.read(path) if path.suffix == ".json" else _from_ranks(path)
    own = _own_fields(path / CONFIG_FILE)
    if own is not None and (path / RANKS_FILE).is_file():
        return _from_own(path, own)
    if (path / JSON_FILE).is_file():
        return huggingface.read(path / JSON_FILE)
    if (path / RANKS_FILE).is_file():
        return _from_ranks(path / RANKS_FILE)
    raise ValueError(
        f"{path} has no tokenizer: neither {JSON_FILE} nor {RANKS_FILE} lies in it; copy one of them there"
    )


def save(tokenizer: Tokenizer, folder: Path, chat_template: str) -> None:
    """Writes the files that `Tokenizer.save` names; a tokenizer.model of other ids that lay there goes."""
    data, config = huggingface.write(tokenizer, chat_template)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / JSON_FILE, data)
    if ids_are_ranks(tokenizer):
        lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in tokenizer.ranks.items())
        _write(folder / RANKS_FILE, "".join(lines))
    else:
        (folder / RANKS_FILE).unlink(missing_ok=True)
    _write(folder / CONFIG_FILE, config + "\n")


def ids_are_ranks(tokenizer: Tokenizer) -> bool:
    """Whether the ids are 0, 1, 2 ... in merging order and the special ones follow, as in the Llama 3 family."""
    ids = [*tokenizer.ranks.values(), *tokenizer.special.values()]
    return not tokenizer.unreached and not tokenizer.missing and ids == list(range(tokenizer.n_vocab))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads tiktoken's text of ranks (a base64 token and its rank a line); ValueError names the broken line."""
    data, ranks = path.read_bytes(), {}
    if data[:1] == b"\n" and b"<unk>" in data[:64]:
        raise ValueError(
            f"{path} is a SentencePiece model (Llama 2's kind); herder reads byte-level BPE, Llama 3's kind"
        )
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            piece, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a base64 token and its rank; copy the file again"
            ) from None
        if value != len(ranks) or piece in ranks or not piece:
            raise ValueError(
                f"{path}, line {number}: rank {value} stands where rank {len(ranks)} with a new token was expected; "
                "a rank is missing or repeated, copy the file again"
            )
        ranks[piece] = value
    if not ranks:
        raise ValueError(f"{path} holds no ranks; copy the file again")
    return ranks


def _from_ranks(path: Path) -> Tokenizer:
    """A bare file of ranks: Meta's, so the Llama 3 pattern and its 256 special tokens."""
    return _named(path, lambda: Tokenizer(read_ranks(path), special_names()))


def _from_own(folder: Path, own: dict[str, Any]) -> Tokenizer:
    ranks, config = read_ranks(folder / RANKS_FILE), folder / CONFIG_FILE
    try:
        pattern, n_base, specials = str(own["pattern"]), int(own["n_base"]), [str(name) for name in own["special"]]
        add_bos = bool(own.get("add_bos", True))
        dialect, system = (str(own.get(name, "")) for name in ("dialect", "system"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} is damaged ({error!r}); save the tokenizer again") from None
    if len(ranks) != n_base:
        raise ValueError(
            f"{folder / RANKS_FILE} holds {len(ranks)} ranks where {CONFIG_FILE} says {n_base}; copy it again"
        )
    usual = Conventions.of(specials)
    known = Conventions(usual.bos, usual.eos, usual.pad, add_bos, dialect, system)
    return _named(config, lambda: Tokenizer(ranks, specials, pattern, conventions=known))


def _own_fields(path: Path) -> dict[str, Any] | None:
    """What herder wrote into a tokenizer_config.json; None where the file is not there or another's."""
    if not path.is_file():
        return None
    try:
        own = json.loads(path.read_bytes()).get("herder")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); save the tokenizer again") from None
    return own if isinstance(own, dict) else None


def _from_gguf(path: Path) -> Tokenizer:
    """The tokenizer in the header of a GGUF file. Tokens that the file marks as unused fill up its end and are left out."""
    data = read_gguf(path).metadata
    prefix = "tokenizer.ggml."
    if f"{prefix}model" not in data:
        raise ValueError(f"{path} has no tokenizer; take a GGUF file that holds one")
    if data[f"{prefix}model"] != "gpt2":
        raise ValueError(
            f"{path}: its tokenizer is of the kind {data[f'{prefix}model']!r}; herder reads byte-level BPE ('gpt2')"
        )
    tokens, merges = data.get(f"{prefix}tokens"), data.get(f"{prefix}merges")
    if not _texts(tokens) or not _texts(merges):
        raise ValueError(
            f"{path}: its tokenizer lacks {'merges' if _texts(tokens) else 'tokens'}; convert the model again"
        )
    types = data.get(f"{prefix}token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(
            f"{path}: its tokenizer has {len(tokens)} tokens but types for another number; convert it again"
        )
    used = max((i + 1 for i, kind in enumerate(types) if kind != GGUF_UNUSED), default=0)
    return _named(path, lambda: _from_lists(data, tokens[:used], types[:used], merges))


def _begins(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _from_lists(data: dict[str, Any], tokens: list[str], types: list[int], merges: list[str]) -> Tokenizer:
    pre = data.get("tokenizer.ggml.pre")
    pattern = patterns.from_gguf(pre)
    specials = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind in GGUF_SPECIAL}
    if len(specials) != sum(kind in GGUF_SPECIAL for kind in types):
        raise ValueError("two of its special tokens have the same text")
    names, usual, found = list(tokens), Conventions.of(specials), {}
    for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        i = data.get(f"tokenizer.ggml.{key}_token_id", -1)
        name = names[i] if isinstance(i, int) and 0 <= i < len(names) else ""
        found[kind] = getattr(usual, kind) or (name if name in specials else "")
    whole = pre in patterns.GGUF_WHOLE_PIECES
    known = Conventions(
        **found,
        add_bos=bool(data.get("tokenizer.ggml.add_bos_token", whole)),
        dialect=str(data.get(GGUF_DIALECT, "")),
        system=str(data.get(GGUF_SYSTEM, huggingface.default_system(data.get("tokenizer.chat_template")))),
    )
    return huggingface.vocabulary(zip(tokens, range(len(tokens)), strict=True), merges, specials, pattern, whole, known)


def _named(path: Path, make: Any) -> Tokenizer:
    """Calls `make`; a ValueError gets the file's name in front."""
    try:
        return make()
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
