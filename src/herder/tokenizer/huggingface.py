"""Hugging Face's tokenizer.json and tokenizer_config.json, read and written (paper section 3.2).

Only byte-level BPE without normalizing is read; everything else is refused in a sentence, since near ids are worse than none.
Added tokens are all taken as special, also those the file calls ordinary: herder never makes them out of text. Written files
list every way to write each token as two tokens, which is what makes merging by list equal to merging by rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from herder.tokenizer import patterns
from herder.tokenizer.bpe import Conventions, Tokenizer
from herder.tokenizer.merges import rank_order, reached, splits


def _alphabet() -> list[str]:
    """The printable character by which byte-level files spell each byte: itself where it is visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


class _Bytes(dict):
    """Character code -> byte; a code that spells no byte leads out of latin-1, so that encoding fails."""

    def __missing__(self, code: int) -> int:
        return 0xFFFF


MOST_IDS, MOST_CHARACTERS = 2**31, 4096
"""Bounds on a file's ids and on the length of a token; the longest of published vocabularies are runs of some 500 signs."""
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_SPELLED = _alphabet()
_WRITE = dict(enumerate(_SPELLED))
_READ = _Bytes((ord(character), byte) for byte, character in enumerate(_SPELLED))


def spell(token: bytes) -> str:
    """A token as byte-level files spell it."""
    return token.decode("latin-1").translate(_WRITE)


def unspell(text: str) -> bytes | None:
    """The bytes that a spelled token stands for; None where it holds a character that spells no byte."""
    try:
        return text.translate(_READ).encode("latin-1")
    except UnicodeEncodeError:
        return None


def vocabulary(
    tokens: Iterable[tuple[str, int]],
    merges: Iterable[str | list[str]],
    specials: dict[str, int],
    pattern: str,
    whole_pieces: bool,
    conventions: Conventions,
) -> Tokenizer:
    """The tokenizer of spelled tokens with their ids and spelled merges, as tokenizer.json and GGUF files hold them."""
    taken, spelled, strange = frozenset(specials.values()), {}, {}
    ids: dict[bytes, int] = {}
    for text, id_ in tokens:
        if id_ in taken:
            continue
        if len(text) > MOST_CHARACTERS:
            raise ValueError(
                f"token {id_} has {len(text)} characters; {MOST_CHARACTERS} are the most that herder takes"
            )
        token = unspell(text)
        if token and token not in ids:
            spelled[text], ids[token] = token, id_
        elif token or id_ in strange:
            raise ValueError(f"token {text!r} with the id {id_} is in the vocabulary twice")
        else:
            strange[id_] = text.encode("utf-8", "replace")
    ranks, idle = rank_order(ids, _pairs(merges, spelled), whole_pieces)
    unreached = strange | {id_: token for token, id_ in idle.items()}
    return Tokenizer(ranks, specials, pattern, unreached=unreached, conventions=conventions, lossy=True)


def _pairs(merges: Iterable[str | list[str]], spelled: dict[str, bytes]) -> Iterable[tuple[bytes, bytes]]:
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2:
            raise ValueError(f"merge {number} is {merge!r}, where a pair of tokens belongs")
        try:
            yield spelled[parts[0]], spelled[parts[1]]
        except (KeyError, TypeError):
            raise ValueError(f"merge {number} ({merge!r}) joins what is not in the vocabulary") from None


def read(path: Path) -> Tokenizer:
    """Reads a tokenizer.json and, where they lie beside it, tokenizer_config.json, special_tokens_map.json and the chat template.

    Raises ValueError naming the file for damage and for what is not byte-level BPE as herder can express it.
    """
    data, beside = _json(path), {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside |= _json(path.with_name(name)) if path.with_name(name).is_file() else {}
    if (template := path.with_name("chat_template.jinja")).is_file():  # where transformers puts it since 4.50
        beside["chat_template"] = template.read_text(encoding="utf-8", errors="replace")
    try:
        return _from_json(data, beside)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); copy the file again") from None


def _from_json(data: dict[str, Any], beside: dict[str, Any]) -> Tokenizer:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "vocab" not in model:
        kind = model.get("type") if isinstance(model, dict) else None
        raise ValueError(f"its model is {kind!r}; herder reads byte-level BPE")
    if not isinstance(model["vocab"], dict):
        raise ValueError(f"its vocabulary is a {type(model['vocab']).__name__}; byte-level BPE has an object")
    if "merges" not in model:
        raise ValueError("it has a vocabulary but no merges; copy the file again")
    _check_plain(data, model)
    specials = _specials(data.get("added_tokens") or [], model["vocab"])
    tokens = [(str(token), _id(i)) for token, i in model["vocab"].items()]
    whole = bool(model.get("ignore_merges", False))
    known = _conventions(data, beside, specials)
    tokenizer = vocabulary(
        tokens, model["merges"], specials, patterns.from_chain(data.get("pre_tokenizer")), whole, known
    )
    if tokenizer.missing and model.get("unk_token") and tokenizer._lost:
        raise ValueError(f"it writes {model['unk_token']!r} for some bytes, which herder cannot express")
    return tokenizer


def _specials(rows: list[dict[str, Any]], vocab: dict[str, Any]) -> dict[str, int]:
    """Added tokens and their ids. Raises ValueError where `tokenizers` would give one another id than the file says: that of
    the vocabulary where it stands there, else the next one behind the vocabulary."""
    specials: dict[str, int] = {}
    following = len(vocab)
    for row in rows:
        name, i = str(row["content"]), _id(row["id"])
        if name in specials:
            raise ValueError(f"two of its added tokens are {name!r}")
        given = vocab.get(name, following)
        if given != i:
            raise ValueError(f"its added token {name!r} says it has the id {i}, but by the vocabulary it gets {given}")
        specials[name], following = i, max(following, i + 1)
    return specials


def _check_plain(data: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuses what would change ids and has no place in herder's form."""
    if normalizer := data.get("normalizer"):
        raise ValueError(f"it normalizes text ({normalizer.get('type')}) before encoding, which herder does not do")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(field):
            raise ValueError(f"its model uses {field} ({model[field]!r}), which herder cannot express")
    decoder = data.get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        raise ValueError(f"its decoder is {decoder.get('type')!r}; herder reads byte-level BPE")


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_IDS:
        raise ValueError(f"{value!r} stands where a token's id belongs")
    return value


def _conventions(data: dict[str, Any], beside: dict[str, Any], specials: dict[str, int]) -> Conventions:
    """Begin, end and padding tokens, from the config where it names them, else from the names of the Llama 3 family."""
    usual, own = Conventions.of(specials), beside.get("herder") or {}
    found = {}
    for kind in (
        "bos",
        "eos",
        "pad",
    ):  # an instruct model's file names its end of turn as the end; the family's names win
        value = beside.get(f"{kind}_token")
        name = value.get("content") if isinstance(value, dict) else value
        found[kind] = getattr(usual, kind) or (name if isinstance(name, str) and name in specials else "")
    add_bos = _adds_bos(data.get("post_processor"), found["bos"])
    published = default_system(beside.get("chat_template"))
    return Conventions(
        **found,
        add_bos=bool(beside.get("add_bos_token", add_bos)),
        dialect=str(own.get("dialect", "")),
        system=str(own.get("system", published)),
    )


_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^{}'\"|<>\\]+)<\|im_end\|>")


def default_system(template: Any) -> str:
    """The system message that a published ChatML template writes where a dialogue has none; "" where it has no such text.
    The template is searched as text, never rendered."""
    found = _DEFAULT_SYSTEM.search(template) if isinstance(template, str) else None
    return found[1] if found else ""


def _adds_bos(processor: dict | None, bos: str) -> bool:
    """Whether a template among the post-processors begins with the begin token."""
    steps = (processor or {}).get("processors") or [processor or {}]
    first = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    return bool(bos) and any(piece.get("SpecialToken", {}).get("id") == bos for piece in first)


def write(tokenizer: Tokenizer, chat_template: str = "") -> tuple[str, str]:
    """The texts of tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` reads to the same ids."""
    tokens = list(tokenizer.ranks)
    rows = splits(tokens)
    spelled = [spell(token) for token in tokens]
    vocab = dict(zip(spelled, tokenizer.ranks.values(), strict=True))
    for i, token in sorted(tokenizer.unreached.items()):
        text = spell(token) if spell(token) not in vocab else token.decode("utf-8", "replace")
        _place(vocab, text, i)
    whole_pieces = not tokenizer.unreached
    if list(tokenizer.special.values()) != list(range(tokenizer.n_base, tokenizer.n_vocab)):
        # Added tokens get the ids behind the vocabulary, whatever the file says, unless they stand in it. There a piece of text
        # must not be taken for one of them.
        whole_pieces = whole_pieces and int((reached(tokens, rows) >= 0).sum()) < sum(
            len(token) > 1 for token in tokens
        )
        for name, i in tokenizer.special.items():
            _place(vocab, name, i)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name} | _FLAGS for name, i in tokenizer.special.items()],
        "normalizer": None,
        "pre_tokenizer": patterns.to_chain(tokenizer.pattern),
        "post_processor": _post_processor(tokenizer),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_pieces,
            "vocab": vocab,
            "merges": [[spelled[left], spelled[right]] for left, right, _ in rows.tolist()],
        },
    }
    return json.dumps(data, ensure_ascii=False), json.dumps(
        _config(tokenizer, chat_template), ensure_ascii=False, indent=1
    )


def _place(vocab: dict[str, int], text: str, id_: int) -> None:
    if text in vocab:
        raise ValueError(
            f"tokens {vocab[text]} and {id_} are both {text!r}; tokenizer.json has no place for the second"
        )
    vocab[text] = id_


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if not tokenizer.add_bos:
        return byte_level
    bos = {"SpecialToken": {"id": tokenizer.conventions.bos, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    name = tokenizer.conventions.bos
    template = {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def _config(tokenizer: Tokenizer, chat_template: str) -> dict[str, Any]:
    known = tokenizer.conventions
    names = {f"{kind}_token": getattr(known, kind) for kind in ("bos", "eos", "pad") if getattr(known, kind)}
    own = {"pattern": tokenizer.pattern, "n_base": tokenizer.n_base, "special": list(tokenizer.special)}
    recorded = {name: value for name, value in (("dialect", known.dialect), ("system", known.system)) if value}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(i): _FLAGS | {"content": name} for name, i in tokenizer.special.items()},
        **names,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **({"chat_template": chat_template} if chat_template else {}),
        "herder": own | recorded | {"add_bos": known.add_bos},
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__} where an object belongs; copy the file again")
    return data
