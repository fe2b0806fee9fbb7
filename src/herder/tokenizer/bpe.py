"""Byte-level BPE in the form that encodes fastest: tokens in merging order, encoded by tiktoken (paper section 3.2).

Every file that can be loaded comes to this one form. The one design decision: encoding knows no special token at all. Text
never yields a special id, whatever it holds; control ids are only ever placed by code that builds id lists (`ChatFormat`, the
packing of documents). Ids are whatever the file says, in any order; they are ranks only in the Llama family.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import regex
import tiktoken

from herder.tokenizer.patterns import EXHAUSTIVE, grouped
from herder.tokenizer.patterns import LLAMA3 as PATTERN

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

STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>")
"""Special tokens that end a generation wherever a tokenizer has them; its end token is one too, whatever its name."""

CHUNK_CHARACTERS = 400_000
RUN_CHARACTERS = 25_000
"""Guards of the published encoder: on longer chunks or runs the expression turns slow or overflows its stack."""

BATCH_TEXTS = 32
"""Texts that a thread takes at a time."""

_KIND = re.compile(r"\s+|\S+")
_ASCII = frozenset(map(chr, range(128)))
_LEADS = ((0, 0x80, 0, 0), (0xC0, 0xE0, 6, 0x80), (0xE0, 0xF0, 12, 0x800), (0xF0, 0xF8, 18, 0x10000))
"""UTF-8's first bytes: from, to, bits in the bytes that follow, least character that is written so."""


def special_names(count: int = LLAMA3_SPECIALS) -> list[str]:
    """The first `count` special tokens of the published order; those after the named ones are numbered reserves."""
    if count < len(PUBLISHED_SPECIALS):
        raise ValueError(f"n_special is {count}; the named special tokens alone are {len(PUBLISHED_SPECIALS)}")
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(2, count - len(PUBLISHED_SPECIALS) + 2))
    return [*PUBLISHED_SPECIALS, *reserved]


@dataclass(frozen=True)
class Conventions:
    """What a tokenizer's files say beside its vocabulary. Names of special tokens; "" where there is none.

    `add_bos`: whether plain text is published with begin_of_text before it; `dialect`: the chat format that was recorded;
    `system`: the system message that the model was trained with where a dialogue has none.
    """

    bos: str = ""
    eos: str = ""
    pad: str = ""
    add_bos: bool = False
    dialect: str = ""
    system: str = ""

    @classmethod
    def of(cls, specials: Iterable[str]) -> Conventions:
        """What the names of the Llama 3 family call for; empty for others."""
        names = set(specials)
        if "<|begin_of_text|>" not in names:
            return cls()
        eos, pad = "<|end_of_text|>", "<|finetune_right_pad_id|>"
        return cls("<|begin_of_text|>", eos if eos in names else "", pad if pad in names else "", add_bos=True)


class Tokenizer:
    """Text to ids and back. `special` maps the name of each special token to its id, `ranks` each ordinary token that text can
    become to its id, in merging order."""

    def __init__(
        self,
        ranks: dict[bytes, int],
        specials: Iterable[str] | dict[str, int],
        pattern: str = PATTERN,
        *,
        unreached: dict[int, bytes] | None = None,
        conventions: Conventions | None = None,
        lossy: bool = False,
    ):
        """`ranks` in merging order: of all neighbours the pair that spells the earliest token merges first.

        Specials given as a list of names follow the other ids. `unreached` are ids that decode to bytes but that no text
        becomes. `lossy` allows that bytes have no token: as in `tokenizers`, they vanish from a text. Raises ValueError where
        ids do not run from 0 without holes and repeats.
        """
        self.ranks, self.pattern, self.unreached = ranks, pattern, dict(unreached or {})
        self.n_base = len(ranks) + len(self.unreached)
        names = specials if isinstance(specials, dict) else _numbered(specials, self.n_base)
        self.special: dict[str, int] = dict(sorted(names.items(), key=lambda item: item[1]))
        self.special_ids = frozenset(self.special.values())
        self.n_vocab = self.n_base + len(self.special)
        _check_ids([*ranks.values(), *self.unreached, *self.special.values()], self.n_vocab)
        self.missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        if self.missing and not lossy:
            raise ValueError(f"the tokenizer has no token for byte {self.missing[0]}; all 256 bytes need one")
        self._lost = _characters_with(self.missing)
        if self._lost and pattern not in EXHAUSTIVE:
            raise ValueError(f"the tokenizer has no token for byte {self.missing[0]} and cuts text in a way of its own")
        self.conventions = conventions or Conventions.of(self.special)
        for kind in ("bos", "eos", "pad"):
            if (name := getattr(self.conventions, kind)) and name not in self.special:
                raise ValueError(f"the {kind} token {name!r} is not among the tokenizer's special tokens")
        pieces = {id_: token for token, id_ in ranks.items()} | self.unreached
        plain = [pieces.get(i, b"") for i in range(self.n_vocab)]
        self._plain, self._pieces = plain, plain.copy()
        for name, id_ in self.special.items():
            self._pieces[id_] = name.encode("utf-8", "replace")
        self._open(ranks)

    def _open(self, ranks: dict[bytes, int]) -> None:
        """The encoder; it takes ids for ranks where they rise in merging order, else a table leads from ranks to ids."""
        ids, self._ids = np.fromiter(ranks.values(), dtype=np.int64, count=len(ranks)), None
        if (np.diff(ids) < 0).any():
            ranks, self._ids = {token: rank for rank, token in enumerate(ranks)}, ids
        try:
            self._encoding = tiktoken.Encoding(
                "herder", pat_str=grouped(self.pattern), mergeable_ranks=ranks, special_tokens={}
            )
        except ValueError as error:
            raise ValueError(f"the splitting expression {self.pattern!r} cannot be read ({error})") from None

    @property
    def bos_id(self) -> int:
        """The id before every document: begin_of_text, or the end token where there is no other (GPT-2 does so)."""
        return self.special[self.conventions.bos] if self.conventions.bos else self.eos_id

    @property
    def eos_id(self) -> int:
        if not self.conventions.eos:
            raise ValueError("the tokenizer names no end token; add eos_token to its tokenizer_config.json")
        return self.special[self.conventions.eos]

    @property
    def pad_id(self) -> int:
        """The id of padding; the end token where there is none."""
        return self.special[self.conventions.pad] if self.conventions.pad else self.eos_id

    @property
    def add_bos(self) -> bool:
        """Whether the published tokenizer puts `bos_id` before plain text."""
        return self.conventions.add_bos

    @property
    def document_ids(self) -> tuple[int, int]:
        """The ids that stand before and after a document of running text: begin and end of text. Chat families whose begin
        opens a message instead (SmolLM2) have their end of text on both sides."""
        end = next((self.special[n] for n in ("<|end_of_text|>", "<|endoftext|>") if n in self.special), self.eos_id)
        return (self.bos_id if self.add_bos else end), end

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: the end token and every one of `STOPS` that is there."""
        names = {name for name in (*STOPS, self.conventions.eos) if name in self.special}
        return frozenset(self.special[name] for name in names)

    @property
    def dialect(self) -> str:
        """The chat dialect that its files record or its special tokens call for; "" where neither does."""
        if self.conventions.dialect:
            return self.conventions.dialect
        if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= self.special.keys():
            return "llama3.1" if {"<|eom_id|>", "<|python_tag|>"} <= self.special.keys() else "llama3"
        return "chatml" if {"<|im_start|>", "<|im_end|>"} <= self.special.keys() else ""

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two tokenizers share only if they encode and decode alike."""
        digest = hashlib.sha256(self.pattern.encode())
        rows = [(b"%d" % i, token) for token, i in self.ranks.items()]
        rows += [(b"s%d" % i, name.encode("utf-8", "replace")) for name, i in self.special.items()]
        rows += [(b"u%d" % i, token) for i, token in sorted(self.unreached.items())]
        digest.update(b"".join(b"\n%s %d %s" % (kind, len(token), token) for kind, token in rows))
        return digest.hexdigest()[:16]

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of the text, never special ones; `bos` and `eos` put `bos_id` before and `eos_id` behind.

        Lone surrogates become U+FFFD. Text beyond the guards is cut first, exactly where the published encoder cuts.
        """
        encode = self._encode if self._lost is None or not self._lost.search(text) else self._encode_lossy
        if len(text) <= RUN_CHARACTERS:
            ids = encode(text)
        else:
            ids = []
            for piece in guarded(text):
                ids += encode(piece)
        if bos:
            ids.insert(0, self.bos_id)
        if eos:
            ids.append(self.eos_id)
        return ids

    def _encode(self, text: str) -> list[int]:
        try:
            ids = self._encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # tiktoken's engine has a limit on going back and forth
                raise
            shown = self.pattern if len(self.pattern) < 80 else self.pattern[:77] + "..."
            raise ValueError(
                f"the splitting expression {shown} gives up on this text of {len(text)} characters; cut the text"
            ) from None
        return ids if self._ids is None else self._ids[ids].tolist()

    def encode_piece(self, piece: bytes) -> list[int]:
        """Ids of one piece that the pattern has already cut out."""
        ids = self._encoding._encode_single_piece(piece)
        return ids if self._ids is None else self._ids[ids].tolist()

    def _encode_lossy(self, text: str) -> list[int]:
        """`_encode` for a text with bytes that have no token: they go after it was cut into pieces, before merging."""
        whole, ids = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), []
        for match in regex.finditer(self.pattern, _as_tiktoken_reads(whole)):
            if piece := whole[match.start() : match.end()].encode().translate(None, self.missing):
                ids += self.encode_piece(piece)
        return ids

    def encode_batch(self, texts: list[str], threads: int = 2, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """`encode` for each text, on `threads` threads (the encoder runs outside Python's lock)."""
        if threads <= 1 or len(texts) < 2:
            return [self.encode(text, bos, eos) for text in texts]
        size = min(BATCH_TEXTS, -(-len(texts) // threads))
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda part: [self.encode(text, bos, eos) for text in part], parts)
            return [ids for part in done for ids in part]

    def decode_bytes(self, ids: Iterable[int], special: bool = True) -> bytes:
        """The bytes of the ids; special ids are written as their names, or left out where `special` is False."""
        ids, pieces = list(ids), self._pieces if special else self._plain
        if ids and (min(ids) < 0 or max(ids) >= self.n_vocab):
            wrong = next(i for i in ids if not 0 <= i < self.n_vocab)
            raise ValueError(f"id {wrong} is not one of this tokenizer's {self.n_vocab} ids (0 to {self.n_vocab - 1})")
        return b"".join([pieces[i] for i in ids])

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """`decode_bytes` as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, special).decode("utf-8", errors="replace")

    def save(self, folder: Path | str, chat_template: str = "") -> None:
        """Writes tokenizer.json and tokenizer_config.json of Hugging Face's and, where ids are ranks, tokenizer.model of
        tiktoken's; each whole or not at all. `chat_template` is what Hugging Face's tools shall render."""
        from herder.tokenizer.files import save

        save(self, Path(folder), chat_template)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Reads a folder or a file: herder's own, tiktoken ranks (Meta's tokenizer.model), Hugging Face's tokenizer.json, GGUF.

        A bare ranks file gets the Llama 3 pattern and its 256 special tokens. Raises ValueError naming the file and the place
        where something is damaged or not expressible.
        """
        from herder.tokenizer.files import load

        return load(Path(path))


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
        yield from cut_runs(text[start : start + CHUNK_CHARACTERS], RUN_CHARACTERS, _KIND)


def cut_runs(text: str, longest: int, kind: re.Pattern) -> Iterator[str]:
    """Cuts runs of more than `longest` characters of one kind after every `longest` of them, and nothing else.

    `kind` matches any run whole. Time is linear: only the run that reaches over the end of each stretch is looked at.
    """
    begin = start = 0
    while len(text) - start > longest:
        window = text[start : start + longest + 1]
        tail = kind.match(window[::-1]).end()
        if tail > longest:
            start += longest
            yield text[begin:start]
            begin = start
        else:
            start += len(window) - tail
    yield text[begin:]


@cache
def _class_of_tiktoken(name: str) -> tiktoken.Encoding:
    """An encoder that keeps the characters of a Unicode class and drops all others."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return tiktoken.Encoding(name, pat_str=rf"\p{{{name}}}", mergeable_ranks=ranks, special_tokens={})


def _as_tiktoken_reads(text: str) -> str:
    """The text with characters on whose class `regex` and tiktoken disagree (those of newer Unicode versions) replaced, one by
    one, by others of the class that tiktoken sees: `regex` then cuts it where tiktoken cuts the text."""
    rare, stand_ins = "".join(sorted(set(text) - _ASCII)), {}
    for name, inside, outside in (("L", "é", "§"), ("N", "½", "§")):
        encoder = _class_of_tiktoken(name)
        theirs = set(bytes(encoder.encode_ordinary(rare)).decode())
        for character in theirs ^ set(regex.findall(rf"\p{{{name}}}", rare)):
            stand_ins[ord(character)] = inside if character in theirs else stand_ins.get(ord(character), outside)
    return text.translate(stand_ins)


def _numbered(names: Iterable[str], first: int) -> dict[str, int]:
    names = list(names)
    if len(set(names)) != len(names):
        raise ValueError("the special tokens of a tokenizer must have distinct names")
    return {name: first + i for i, name in enumerate(names)}


def _check_ids(ids: list[int], n_vocab: int) -> None:
    found = np.sort(np.asarray(ids, dtype=np.int64))
    if np.array_equal(found, np.arange(n_vocab)):
        return
    if len(repeated := found[1:][np.diff(found) == 0]):
        raise ValueError(f"id {repeated[0]} belongs to more than one token")
    hole = int(np.setdiff1d(np.arange(n_vocab), found)[0])
    raise ValueError(f"no token has the id {hole}, while the {n_vocab} ids of its tokens must be 0 to {n_vocab - 1}")


def _characters_with(missing: bytes) -> re.Pattern | None:
    """A search for the characters whose UTF-8 form holds one of these bytes; None where text cannot hold them."""
    ranges = []
    for byte in missing:
        if 0x80 <= byte < 0xC0:
            raise ValueError(f"the tokenizer has no token for byte {byte}, which most scripts need")
        for low, high, bits, least in _LEADS:
            first = max(byte - low << bits, least)
            last = min((byte - low + 1 << bits) - 1, 0x10FFFF)
            if low <= byte < high and first <= last:
                ranges.append(f"{re.escape(chr(first))}-{re.escape(chr(last))}")
    # Two surrogates may spell a character that is among these.
    return re.compile(f"[{''.join(ranges)}\ud800-\udfff]") if ranges else None
