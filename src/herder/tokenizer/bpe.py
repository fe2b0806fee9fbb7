"""Byte-level BPE with the Llama 3 splitting pattern (paper section 3.2), trained by rustbpe and encoded by tiktoken.

Special ids lie after the base ranks, under the names published with Llama 3.1. The one design decision: encoding knows
no special token at all. Text never yields a special id, whatever it holds; control ids are only ever placed by code
that builds id lists (`ChatFormat`, the packing of documents).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rustbpe
import tiktoken

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into pieces before merging."""

PUBLISHED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
LLAMA3_SPECIALS = 256
"""Special ids of the published vocabulary: 128,000 ranks and 256 specials make 128,256."""

CHUNK_CHARACTERS = 400_000
RUN_CHARACTERS = 25_000
"""Guards of the published encoder: on longer chunks or runs the expression turns slow or overflows its stack."""

_LONG_RUN = re.compile(rf"\s{{{RUN_CHARACTERS + 1},}}|\S{{{RUN_CHARACTERS + 1},}}")
_SPARE_MERGES = 64

RANKS_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer_config.json"


def special_names(count: int = LLAMA3_SPECIALS) -> list[str]:
    """The first `count` special tokens of the published order; those after the named ones are numbered reserves."""
    if count < len(PUBLISHED_SPECIALS):
        raise ValueError(f"n_special is {count}; the named special tokens alone are {len(PUBLISHED_SPECIALS)}")
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(2, count - len(PUBLISHED_SPECIALS) + 2))
    return [*PUBLISHED_SPECIALS, *reserved]


def train(texts: Iterable[str], vocab_size: int, n_special: int = LLAMA3_SPECIALS, pattern: str = PATTERN) -> Tokenizer:
    """Trains a tokenizer of exactly `vocab_size` ids, `n_special` of them special, on a stream of texts.

    The same texts give the same ranks. Raises ValueError where the texts are too few for that many merges.
    """
    wanted = vocab_size - n_special
    if wanted < 256:
        raise ValueError(
            f"vocab_size {vocab_size} leaves {wanted} base tokens beside {n_special} special; 256 are bytes"
        )
    trainer = rustbpe.Tokenizer()
    # Two merges can spell the same bytes; tiktoken needs distinct ones, so a few spare merges stand in for the repeats.
    trainer.train_from_iterator(iter(texts), wanted + _SPARE_MERGES, pattern=pattern)
    ordered = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = list(dict.fromkeys(bytes(token) for token, _ in ordered))[:wanted]
    if len(tokens) < wanted:
        raise ValueError(
            f"the texts give only {len(tokens)} base tokens of the {wanted} asked for; "
            f"give more text or set vocab_size to {len(tokens) + n_special} or less"
        )
    return Tokenizer({token: rank for rank, token in enumerate(tokens)}, special_names(n_special), pattern)


class Tokenizer:
    """Base ranks 0..n-1, then the special ids. `special` maps each special token's published name to its id."""

    def __init__(self, ranks: dict[bytes, int], specials: Iterable[str], pattern: str = PATTERN):
        names = list(specials)
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"the {len(ranks)} ranks of a tokenizer must be 0 to {len(ranks) - 1}, each once")
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"the tokenizer has no token for byte {missing[0]}; every one of the 256 bytes needs one")
        if len(set(names)) != len(names):
            raise ValueError("the special tokens of a tokenizer must have distinct names")
        self.ranks, self.pattern = ranks, pattern
        self.special = {name: len(ranks) + i for i, name in enumerate(names)}
        self.n_vocab = len(ranks) + len(names)
        self._encoding = tiktoken.Encoding("herder", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._pieces = sorted(ranks, key=ranks.__getitem__) + [name.encode() for name in names]

    @property
    def n_base(self) -> int:
        """How many ids are ordinary; ids from here on are special."""
        return len(self.ranks)

    @property
    def bos_id(self) -> int:
        return self.special["<|begin_of_text|>"]

    @property
    def eos_id(self) -> int:
        return self.special["<|end_of_text|>"]

    @property
    def pad_id(self) -> int:
        return self.special["<|finetune_right_pad_id|>"]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: end_of_text, eom_id, eot_id."""
        return frozenset(self.special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id"))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two tokenizers share only if they encode and decode alike."""
        digest = hashlib.sha256(self.pattern.encode() + b"\0" + "\0".join(self.special).encode())
        for piece in self._pieces[: self.n_base]:
            digest.update(len(piece).to_bytes(4, "big") + piece)
        return digest.hexdigest()[:16]

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of the text, never special ones; `bos` and `eos` put begin_of_text before and end_of_text behind.

        Lone surrogates become U+FFFD. Text beyond the guards is cut first, as the published encoder does.
        """
        if len(text) <= RUN_CHARACTERS:
            ids = self._encoding.encode_ordinary(text)
        else:
            ids = [i for piece in guarded(text) for i in self._encoding.encode_ordinary(piece)]
        if bos:
            ids.insert(0, self.bos_id)
        if eos:
            ids.append(self.eos_id)
        return ids

    def encode_batch(self, texts: list[str], threads: int = 2, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """`encode` for each text, on `threads` threads (the encoder runs outside Python's lock)."""
        if threads <= 1 or len(texts) < 2:
            return [self.encode(text, bos, eos) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda text: self.encode(text, bos, eos), texts))

    def decode_bytes(self, ids: Iterable[int], special: bool = True) -> bytes:
        """The bytes of the ids; special ids are written as their names, or left out where `special` is False."""
        out, limit = [], self.n_vocab if special else self.n_base
        for i in ids:
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"id {i} is not one of this tokenizer's {self.n_vocab} ids (0 to {self.n_vocab - 1})")
            if i < limit:
                out.append(self._pieces[i])
        return b"".join(out)

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """`decode_bytes` as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, special).decode("utf-8", errors="replace")

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.model (tiktoken's text of ranks) and tokenizer_config.json, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (
            f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(self._pieces[: self.n_base])
        )
        _write(folder / RANKS_FILE, "".join(lines))
        fields = {"pattern": self.pattern, "n_base": self.n_base, "special": list(self.special)}
        _write(folder / CONFIG_FILE, json.dumps({"herder": fields}, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Reads a folder written by `save`, or a file of tiktoken ranks.

        A bare ranks file gets the Llama 3 pattern and its 256 special tokens. Raises ValueError naming file and line
        where something is damaged.
        """
        path = Path(path)
        ranks_path = path / RANKS_FILE if path.is_dir() else path
        if not ranks_path.is_file():
            raise ValueError(f"{ranks_path} does not exist; give a folder that holds {RANKS_FILE}, or a file of ranks")
        ranks, config_path = read_ranks(ranks_path), ranks_path.with_name(CONFIG_FILE)
        if not path.is_dir() or not config_path.exists():
            return cls(ranks, special_names())
        try:
            fields = json.loads(config_path.read_text(encoding="utf-8"))["herder"]
            pattern, n_base, specials = (
                str(fields["pattern"]),
                int(fields["n_base"]),
                [str(s) for s in fields["special"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{config_path} is damaged ({error!r}); save the tokenizer again") from None
        if len(ranks) != n_base:
            raise ValueError(f"{ranks_path} holds {len(ranks)} ranks where {CONFIG_FILE} says {n_base}; copy it again")
        return cls(ranks, specials, pattern)


class StreamDecoder:
    """Decodes ids one by one without ever splitting a character; special ids give no text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete; bytes of an unfinished character wait for the next call."""
        return self._decoder.decode(self.tokenizer.decode_bytes(ids, special=False))

    def finish(self) -> str:
        """What is left: U+FFFD where the last character never completed."""
        return self._decoder.decode(b"", final=True)


def guarded(text: str) -> Iterator[str]:
    """Cuts text into chunks of at most 400,000 characters with no run of more than 25,000 characters of a kind.

    A kind is whitespace or everything else, as in the published encoder.
    """
    for start in range(0, len(text), CHUNK_CHARACTERS):
        chunk, begin = text[start : start + CHUNK_CHARACTERS], 0
        for run in _LONG_RUN.finditer(chunk):
            for cut in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
                yield chunk[begin:cut]
                begin = cut
        yield chunk[begin:]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads tiktoken's text of ranks (a base64 token and its rank a line); ValueError names the broken line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
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


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
