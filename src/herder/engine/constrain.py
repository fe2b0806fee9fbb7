"""Answers that must match a JSON schema, a regular expression or a grammar, on `llguidance` (paper section 4.3.5: tool calls).

The one design decision: the library sees ordinary tokens only, as bytes, and one end token that is ours. Special tokens can so
never stand inside of what is constrained, whatever a grammar spells, and the tokens that end a turn are let in by this module
exactly where the grammar may end.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from herder.engine.schemas import smallest
from herder.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

COMPILED = 64
"""Constraints that stay compiled; the samples of one prompt and the requests of one client mostly share theirs."""
LONGEST_DOCUMENT = 2**24
"""Characters; a schema whose shortest document is longer fits no context."""
WHITESPACE = r"[ \n\t]{1,32}"
"""Between the parts of a JSON document. Without a bound small models write line breaks until their tokens run out."""

_TOKEN_REFERENCE = re.compile(r"<[\[|]")
_LITERALS = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|//[^\n]*|#[^\n]*')


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must match as a whole: exactly one of a JSON schema (a dictionary, or JSON text), a regular expression
    (Rust's syntax, no look-around) or a context-free grammar (Lark's syntax, as llguidance reads it)."""

    json_schema: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self):
        given = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "nothing"
            raise ValueError(f"a constraint has {named}; give exactly one of json_schema, regex and grammar")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} is of type {type(value).__name__}; it must be text")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))


class Masks:
    """Constraints for one tokenizer. Raises ImportError with the command that installs llguidance where it is missing."""

    def __init__(self, tokenizer: Tokenizer):
        library = _library()
        self._library, self.tokenizer = library, tokenizer
        self._vocabulary = library.LLTokenizer(library.TokenizerWrapper(_Ordinary(tokenizer)))
        self._words = (tokenizer.n_vocab + 32) // 32  # one bit more than ids: the library's end token
        self.ordinary = self._bits(set(range(tokenizer.n_vocab)) - tokenizer.special_ids)
        self._executor = library.LLExecutor()
        self._compiled = lru_cache(COMPILED)(self._compile)

    def matcher(self, constraint: Constraint, stop_ids: Collection[int] | None = None) -> Matcher:
        """Follows one request. Of `stop_ids` (None: the tokenizer's) the special ones may end it.

        Raises ValueError for a schema, expression or grammar that cannot be read or met.
        """
        ends = self.tokenizer.special_ids.intersection(self.tokenizer.stop_ids if stop_ids is None else stop_ids)
        return Matcher(self, self._compiled(constraint).deep_copy(), ends)

    def rows(self, matchers: Sequence[Matcher], drafts: Sequence[Sequence[int]]) -> np.ndarray:
        """The tokens that may come next for each matcher, and after each of its drafted tokens: (rows, words) int32, a bit for
        each id from the lowest bit of the first word on. A row without a bit allows nothing. Matchers stay where they are."""
        counts = [1 + len(draft) for draft in drafts]
        first = np.cumsum([0, *counts])
        bits = np.zeros((first[-1], self._words), dtype=np.int32)
        fill = self._library.numpy.fill_next_token_bitmask_par
        fill(self._executor, [(m.inner, int(at)) for m, at in zip(matchers, first, strict=False) if not m.ended], bits)
        for matcher, draft, at in zip(matchers, drafts, first, strict=False):
            matcher.finish_row(bits[at])
            if not bits[at].any() and not matcher.may_end:
                matcher.error = _first_line(matcher.inner.get_error()) or "it allows nothing more"
            bits[at + 1 : at + 1 + len(draft)] = self.ordinary
            self._follow(matcher, draft, bits[at:])
        return bits

    def _follow(self, matcher: Matcher, draft: Sequence[int], bits: np.ndarray) -> None:
        """The rows behind drafted tokens. What follows a token that is not allowed is never used: that draft is refused."""
        taken = 0
        for token in draft:
            if not _has(bits[taken], token) or token in matcher.ends:
                break
            matcher.advance(token)
            taken += 1
            self._library.numpy.fill_next_token_bitmask(matcher.inner, bits, taken)
            matcher.finish_row(bits[taken])
        matcher.rollback(taken)

    def _bits(self, ids: Collection[int]) -> np.ndarray:
        flags = np.zeros(self._words * 32, dtype=np.uint8)
        flags[list(ids)] = 1
        return np.packbits(flags, bitorder="little").view(np.int32)

    def _compile(self, constraint: Constraint) -> llguidance.LLMatcher:
        kind = _kind(constraint)
        try:
            grammar = self._grammar(constraint)
        except ValueError as error:
            raise ValueError(f"{kind} cannot be used: {_first_line(str(error))}") from None
        matcher = self._library.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{kind} cannot be used: {_first_line(matcher.get_error())}")
        if constraint.json_schema is not None:
            check_finite(json.loads(constraint.json_schema), kind)
        probe = Matcher(self, matcher.deep_copy(), frozenset())
        row = self.rows([probe], [()])[0]
        if not row.any() and not probe.may_end:
            raise ValueError(f"{kind} cannot be met: nothing matches it")
        return matcher

    def _grammar(self, constraint: Constraint) -> str:
        library = self._library.LLMatcher
        if constraint.json_schema is not None:
            return library.grammar_from_json_schema(constraint.json_schema, defaults={"whitespace_pattern": WHITESPACE})
        if constraint.regex is not None:
            return library.grammar_from_regex(constraint.regex)
        if _TOKEN_REFERENCE.search(_LITERALS.sub("", constraint.grammar)):
            raise ValueError("it names a special token; only text may be constrained, take it out")
        return library.grammar_from_lark(constraint.grammar)


class Matcher:
    """Where one request stands in its constraint. `ends` are the ids that may end it, `error` says why it broke off."""

    def __init__(self, masks: Masks, inner: llguidance.LLMatcher, ends: Collection[int]):
        self.masks, self.inner, self.ends = masks, inner, frozenset(ends)
        self.ended, self.error = False, ""
        self._end_bits = masks._bits(self.ends)

    @property
    def may_end(self) -> bool:
        """Whether what was generated matches as it stands."""
        return not self.inner.is_error() and self.inner.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether nothing may follow: the turn was ended, or all is said and no id is there to end it by."""
        return self.ended or (not self.ends and self.may_end and not self.allowed().any())

    def allowed(self) -> np.ndarray:
        """(n_vocab,) bool: the ids that may come next."""
        bits = self.masks.rows([self], [()])[0].view(np.uint8)
        return np.unpackbits(bits, bitorder="little", count=self.masks.tokenizer.n_vocab).astype(bool)

    def advance(self, token: int) -> None:
        """Takes the token that was chosen. Raises ValueError for one that is not allowed here.

        Where the library gives up (its grammar has grown beyond its limits) nothing is allowed from then on.
        """
        if token in self.ends and self.may_end and not self.ended:
            self.ended = True
        elif self.ended or token in self.masks.tokenizer.special_ids or not self._consume(token):
            raise ValueError(f"token {token} is not allowed here by the constraint")

    def _consume(self, token: int) -> bool:
        return self.inner.try_consume_tokens([token]) == 1 or self.inner.is_error()

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens."""
        if count and self.ended:
            self.ended, count = False, count - 1
        if count:
            self.inner.rollback(count)

    def finish_row(self, bits: np.ndarray) -> None:
        """Makes the library's row ours: no special token but those that end the turn, where the grammar may end."""
        bits &= self.masks.ordinary
        if self.may_end:
            bits |= self._end_bits


def check_finite(schema: Any, kind: str) -> None:
    """Raises ValueError for a schema that no document of a length that fits a context can meet."""
    length = smallest(schema)
    if length == math.inf:
        raise ValueError(f"{kind} cannot be met: every document that it allows would be endless; end its recursion")
    if length > LONGEST_DOCUMENT:
        raise ValueError(f"{kind} cannot be met: the shortest document that it allows has {length:,.0f} characters")


def apply(logits: torch.Tensor, rows: Sequence[int], bits: np.ndarray) -> None:
    """Forbids in these rows of the (R, V) logits every token whose bit is 0, and what lies beyond the bits, in place."""
    width = min(logits.shape[1], 32 * bits.shape[1])
    forbidden = np.unpackbits(~bits.view(np.uint8), axis=-1, bitorder="little", count=width).view(bool)
    forbidden = torch.from_numpy(forbidden).to(logits.device)
    if list(rows) == list(range(len(logits))):
        logits[:, :width].masked_fill_(forbidden, -torch.inf)
    else:
        logits[rows, :width] = logits[rows, :width].masked_fill_(forbidden, -torch.inf)
    logits[rows, width:] = -torch.inf


class _Ordinary:
    """What llguidance asks of a tokenizer: bytes of each id, those of special ids empty, and an end token behind them all.

    No text holds byte 255, and the library marks its special tokens by it, so tokens with it are empty here too.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        pieces = [tokenizer.decode_bytes([i], special=False) for i in range(tokenizer.n_vocab)]
        self.tokens = [b"" if b"\xff" in piece else piece for piece in pieces] + [b"<|end of what is constrained|>"]
        self.eos_token_id = tokenizer.n_vocab
        self.special_token_ids = [tokenizer.n_vocab]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


def _library() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ImportError:
        raise ImportError('constraints need llguidance: pip install "herder[constrain]"') from None
    return llguidance


def _schema_text(schema: object) -> str:
    """The schema as JSON text, always written alike."""
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps({"allOf": [value]} if isinstance(value, bool) else value, allow_nan=False)
    except RecursionError:
        raise ValueError("json_schema nests too deeply; no document of such depth could be read back") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema is no JSON: {error}") from None
    if not isinstance(value, Mapping | bool):
        raise ValueError(f"json_schema is {text[:40]}; a JSON schema is an object")
    return text


def _kind(constraint: Constraint) -> str:
    if constraint.json_schema is not None:
        return "the JSON schema"
    return "the regular expression" if constraint.regex is not None else "the grammar"


def _first_line(error: str) -> str:
    """What llguidance says, without the state and grammar that it prints after it."""
    return " ".join(error.partition("\n<state>")[0].split())[:300]


def _has(bits: np.ndarray, token: int) -> bool:
    return bool(bits[token // 32] >> (token % 32) & 1)
