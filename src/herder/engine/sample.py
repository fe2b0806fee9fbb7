"""How the next token is chosen: penalties, bias, constraints, then greedy or temperature, top-k, top-p, min-p, batched.

The one design decision: a row needs a single uniform number per token, drawn from a stream of its own (keyed by seed,
prompt and sample index) and put through the inverse of the row's cumulative distribution. Probabilities are summed as whole
numbers, so no order of summation changes a token: it is a function of the row's own logits, settings and number, never of
its place in a batch, the batch's size or the kernel. That also makes speculation exact. As every position has its own number,
the tokens of all drafted positions are simply chosen, and a draft is right where the choice equals it.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import torch

from herder.engine.constrain import Constraint, Matcher, apply
from herder.engine.penalties import Past, change
from herder.engine.stops import checked

_LOWEST_TEMPERATURE = 1e-6
_LARGEST = 1e6
"""Of a penalty or bias: scores stay finite in fp32."""
_WHOLE = 2.0**35
"""The weight of a row's likeliest token. Weights are whole numbers up to it: 2^18 of them add up exactly in float64."""
_BLOCK = 512
_SHORTLISTS = (256, 8192, 2**62)
"""Tokens looked at under top-k, top-p and min-p, one list after the other as far as a row needs; most need the first.
Of 32 rows of 128,256 the first 256 are found in 9 ms of one core, the first 8,192 in 53; ordering all takes 363."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt. Temperature 0 is greedy; the filters apply after temperature, in the order named here.

    top_k 0, top_p 1 and min_p 0 are off; min_p keeps tokens at least that share as likely as the likeliest. `stop_ids`
    None means the tokenizer's own. `n` asks for that many independent samples of each prompt. `logprobs` asks for the
    log-probability of each token under the model itself (before anything named here), `top_logprobs` also for those of
    that many likeliest tokens.

    Scores are changed in this order: `repetition_penalty` divides positive ones and multiplies negative ones of the
    tokens of prompt and answer; `presence_penalty` is taken off once for each token of the answer so far and
    `frequency_penalty` once for every time it stands there (OpenAI's definitions); `logit_bias` (id to bias) is added;
    then `constraint` forbids what may not come next. The text ends before the first of the `stop` strings.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 128
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None
    n: int = 1
    logprobs: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0
    stop: str | tuple[str, ...] = ()
    constraint: Constraint | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field.name} is {value!r}; it must be a whole number")
            if field.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}; it must be True or False")
            if field.type == "float" and not _is_finite(value):
                raise ValueError(f"{field.name} is {value!r}; it must be a finite number")
        for name, fine, rule in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                1 / _LARGEST <= self.repetition_penalty <= _LARGEST,
                f"from {1 / _LARGEST} to {_LARGEST:g}",
            ),
            ("presence_penalty", abs(self.presence_penalty) <= _LARGEST, f"at most {_LARGEST:g} from 0"),
            ("frequency_penalty", abs(self.frequency_penalty) <= _LARGEST, f"at most {_LARGEST:g} from 0"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("n", self.n >= 1, "at least 1"),
            ("top_logprobs", self.top_logprobs >= 0, "at least 0 (0 is off)"),
        ):
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule}")
        if self.stop_ids is not None:
            object.__setattr__(self, "stop_ids", _frozen_ids(self.stop_ids))
        object.__setattr__(self, "logit_bias", _frozen_bias(self.logit_bias))
        object.__setattr__(self, "stop", checked(self.stop))
        if not isinstance(self.constraint, Constraint | None):
            raise ValueError(f"constraint is of type {type(self.constraint).__name__}; it must be a Constraint")

    @property
    def filtered(self) -> bool:
        """Whether some tokens are cut off before drawing."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    @property
    def penalised(self) -> bool:
        """Whether scores depend on the tokens so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_ids(self, n_vocab: int) -> None:
        """Raises ValueError for an id that a vocabulary of this size does not have."""
        for name, ids in (("logit_bias", [i for i, _ in self.logit_bias]), ("stop_ids", self.stop_ids or ())):
            if wrong := [i for i in ids if not 0 <= i < n_vocab]:
                raise ValueError(f"{name} names the id {wrong[0]}; the tokenizer's ids are 0 to {n_vocab - 1}")
        if self.top_logprobs > n_vocab:
            raise ValueError(f"top_logprobs is {self.top_logprobs}; the tokenizer has {n_vocab} ids")


class Request(Protocol):
    """What `choose` reads of a request. It changes nothing: the engine takes the tokens and advances the request itself."""

    sampling: Sampling
    stop_ids: Collection[int]
    matcher: Matcher | None
    """Follows `sampling.constraint`; None where there is none."""
    counts: Mapping[int, int] | None
    """How often each id was generated; may be None where the sampling is not `penalised`."""
    seen: Collection[int]
    """The ids of the prompt, read under a repetition penalty; best a frozenset, whose ids are laid out once."""

    def draw(self, ahead: int) -> float:
        """The uniform number of the token after the next `ahead` ones."""


class Choice(NamedTuple):
    """The tokens that a step gave to one request: the drafts that were right and the token after them, up to a stop id.

    `logprobs` has one per id where they were asked for, `top_logprobs` the likeliest ids with theirs, likeliest first.
    """

    ids: list[int]
    logprobs: list[float] | None
    top_logprobs: list[list[tuple[int, float]]] | None


def uniforms(seed: int, prompt: Sequence[int], index: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the random stream of sample `index` of a prompt."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16, key=f"{seed},{index}".encode()[-64:])
    key = np.frombuffer(digest.digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def choose(
    logits: torch.Tensor,
    requests: Sequence[Request],
    drafts: Sequence[Sequence[int]] | None = None,
    n_vocab: int | None = None,
) -> list[Choice]:
    """What each request's next tokens are: (rows, V) fp32 logits, which are overwritten -> one `Choice` each.

    A request has 1 + len(draft) rows, one after another: after its last token, and after each drafted token. At row j the
    tokens before it are taken to be the draft's first j, for penalties, number and constraint alike. Ids from `n_vocab` on
    are padding of the embedding table and never chosen. Raises FloatingPointError where a row holds no finite score.
    """
    drafts = drafts or [()] * len(requests)
    owners = [(r, draft, j) for r, draft in zip(requests, drafts, strict=True) for j in range(len(draft) + 1)]
    settings = [r.sampling for r, _, _ in owners]
    reported = _Reported.of(logits, settings, n_vocab)
    if n_vocab is not None:
        logits[:, n_vocab:] = -torch.inf
    draws = [r.draw(j) if r.sampling.temperature > 0 else 0.0 for r, _, j in owners]
    masks, dead = _masks(requests, drafts)
    tokens = pick(logits, settings, draws, [_past(*owner) for owner in owners], masks).tolist()
    reported.read(tokens)
    choices, first = [], 0
    for request, draft in zip(requests, drafts, strict=True):
        count = 1
        while count <= len(draft) and (token := tokens[first + count - 1]) == draft[count - 1]:
            if token in request.stop_ids or first + count in dead:
                break
            count += 1
        rows = range(first, first + count)
        choices.append(Choice([tokens[row] for row in rows], *reported.rows(rows)))
        first += len(draft) + 1
    return choices


def pick(
    logits: torch.Tensor,
    settings: Sequence[Sampling],
    draws: Sequence[float],
    past: Sequence[Past | None],
    masks: tuple[Sequence[int], np.ndarray] | None = None,
) -> torch.Tensor:
    """The next token of each row: (rows, V) fp32 logits, which may be overwritten -> (rows,) int64.

    `draws` holds one uniform number per row, `past` what penalties look at (None where there are none). `masks` are some
    rows and the bits of what they allow (`Masks.rows`). Raises FloatingPointError where a row has no finite score.
    """
    change(logits, settings, past)
    if masks is not None:
        apply(logits, *masks)
    best, chosen = logits.max(-1)  # of equal scores the first
    if not torch.isfinite(best).all():
        raise FloatingPointError("the model's logits are not finite; its weights are damaged or overflowed")
    drawn = [row for row, s in enumerate(settings) if s.temperature > 0]
    for filtered in (False, True):
        rows = [row for row in drawn if settings[row].filtered is filtered]
        if rows:
            whole = len(rows) == len(settings)
            part, highest = (logits, best) if whole else (logits[rows], best[rows])
            draw = _draw_filtered if filtered else _draw
            chosen[rows] = draw(part, highest, [settings[r] for r in rows], [draws[r] for r in rows])
    return chosen


def _column(values: Iterable[float], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(list(values), dtype=dtype, device=like.device)[:, None]


def _weights(logits: torch.Tensor, best: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Each token's probability in proportion to the likeliest one's, which is `_WHOLE`, cut to whole numbers (fp32)."""
    temperature = _column((s.temperature for s in settings), logits, torch.float32).clamp_min(_LOWEST_TEMPERATURE)
    return (logits - best[:, None]).div_(temperature).exp_().mul_(_WHOLE).floor_()


def _draw(
    logits: torch.Tensor, best: torch.Tensor, settings: Sequence[Sampling], draws: Sequence[float]
) -> torch.Tensor:
    return _invert(_weights(logits, best, settings), _column(draws, logits, torch.float64))


def _draw_filtered(
    logits: torch.Tensor, best: torch.Tensor, settings: Sequence[Sampling], draws: Sequence[float]
) -> torch.Tensor:
    """One draw for each row under top-k, top-p or min-p: from the shortlist where what is kept ends within it."""
    weights, u = _weights(logits, best, settings), _column(draws, logits, torch.float64)
    total, chosen = weights.sum(-1, keepdim=True, dtype=torch.float64), torch.empty_like(u[:, 0], dtype=torch.int64)
    rows, vocabulary = list(range(len(settings))), logits.shape[-1]
    for most in _SHORTLISTS:
        most = min(most + 1, vocabulary)
        whole = len(rows) == len(settings)
        asked = [settings[row] for row in rows]
        scores, order = _ranked(logits if whole else logits[rows], most)
        kept = _cut((weights if whole else weights[rows]).gather(-1, order), total[rows], asked)
        chosen[rows] = order.gather(-1, _invert(kept, u[rows])[:, None])[:, 0]
        if most == vocabulary:
            break
        # Rows that keep more need a longer list; so do those that keep a score which others beyond the list may have too.
        last = scores.gather(-1, (kept > 0).sum(-1, keepdim=True) - 1)
        beyond = (last <= scores[:, -1:]) | (_column((s.top_k for s in asked), logits, torch.int64) >= most)
        rows = [row for row, more in zip(rows, beyond[:, 0].tolist(), strict=True) if more]
        if not rows:
            break
    return chosen


def _ranked(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest scores of each row, falling, and their ids; equal scores by id, whatever the selection leaves."""
    if count == logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    scores, ids = logits.topk(count, -1)
    ids, places = ids.sort(-1)
    scores, places = scores.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    return scores, ids.gather(-1, places)


def _cut(weights: torch.Tensor, total: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Zeroes what the filters cut off; (rows, tokens) falling weights of rows that sum to `total` with all their tokens."""
    width = weights.shape[-1]
    top_k = _column((min(s.top_k or width, width) for s in settings), weights, torch.int64)
    top_p = _column((s.top_p for s in settings), weights, torch.float64)
    min_p = _column((s.min_p for s in settings), weights, torch.float64)
    mass = weights.cumsum(-1, dtype=torch.float64)
    limited = torch.tensor([bool(s.top_k) for s in settings], device=weights.device)[:, None]
    total = torch.where(limited, mass.gather(-1, top_k - 1), total)
    keep = mass - weights < top_p * total  # a token stays while the mass before it is short of top_p
    keep &= torch.arange(width, device=weights.device) < top_k
    return weights * keep * (weights >= min_p * _WHOLE)


def _invert(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The place in each row where the cumulative mass passes the share u of the whole; only where there is mass."""
    # The mass of whole blocks first: of 32 rows of 128,256 it takes 5 ms of one core, running sums over all 28.
    count = weights.shape[-1] // _BLOCK
    blocks = weights[:, : count * _BLOCK].unflatten(-1, (count, _BLOCK)).sum(-1, dtype=torch.float64)
    rest = weights[:, count * _BLOCK :].sum(-1, keepdim=True, dtype=torch.float64)
    ends = torch.cat([blocks, rest], -1).cumsum(-1)
    target = torch.minimum((u * ends[:, -1:]).floor_(), ends[:, -1:] - 1)
    block = torch.searchsorted(ends, target, right=True)
    ids = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = ids < weights.shape[-1]
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp_min(0)), 0)
    mass = (weights.gather(-1, ids.clamp_max(weights.shape[-1] - 1)) * inside).cumsum(-1, dtype=torch.float64)
    return (block * _BLOCK + torch.searchsorted(mass + before, target, right=True))[:, 0]


def _past(request: Request, draft: Sequence[int], ahead: int) -> Past | None:
    """What the penalties of a row look at that stands behind the first `ahead` drafted tokens."""
    if not request.sampling.penalised:
        return None
    counts = request.counts or {}
    if ahead:
        counts = dict(counts)
        for token in draft[:ahead]:
            counts[token] = counts.get(token, 0) + 1
    return Past(request.seen, counts)


def _masks(
    requests: Sequence[Request], drafts: Sequence[Sequence[int]]
) -> tuple[tuple[list[int], np.ndarray] | None, set[int]]:
    """Rows under a constraint with what they allow, and those of drafts that lead to where it allows nothing at all."""
    rows, matchers, ahead, first, heads = [], [], [], 0, set()
    for request, draft in zip(requests, drafts, strict=True):
        if request.matcher is not None:
            rows += range(first, first + len(draft) + 1)
            heads.add(first)
            matchers.append(request.matcher)
            ahead.append(draft)
        first += len(draft) + 1
    if not rows:
        return None, set()
    masks = matchers[0].masks
    bits = masks.rows(matchers, ahead)
    dead = {rows[place]: place for place in (~bits.any(1)).nonzero()[0] if rows[place] not in heads}
    bits[list(dead.values())] = masks.ordinary
    return (rows, bits), set(dead)


class _Reported:
    """Log-probabilities under the model itself, of the rows that ask for them; taken before the logits are changed."""

    def __init__(self, logits: torch.Tensor, settings: Sequence[Sampling], rows: list[int], n_vocab: int | None):
        self._places = {row: place for place, row in enumerate(rows)}
        self._own: list[float] = []
        self._top: dict[int, list[tuple[int, float]]] = {}
        if not rows:
            return
        self._logprobs = logits[rows].log_softmax(-1)
        by_count: dict[int, list[int]] = {}
        for row in rows:
            if settings[row].top_logprobs:
                by_count.setdefault(settings[row].top_logprobs, []).append(row)
        for count, group in by_count.items():
            values, ids = self._logprobs[[self._places[row] for row in group], :n_vocab].topk(count, -1)
            for row, row_ids, row_values in zip(group, ids.tolist(), values.tolist(), strict=True):
                self._top[row] = list(zip(row_ids, row_values, strict=True))

    @classmethod
    def of(cls, logits: torch.Tensor, settings: Sequence[Sampling], n_vocab: int | None) -> _Reported:
        return cls(logits, settings, [r for r, s in enumerate(settings) if s.logprobs or s.top_logprobs], n_vocab)

    def read(self, tokens: list[int]) -> None:
        """Notes the log-probabilities of the tokens that were chosen, one per row."""
        if self._places:
            chosen = torch.tensor([tokens[row] for row in self._places], device=self._logprobs.device)
            self._own = self._logprobs.gather(-1, chosen[:, None])[:, 0].tolist()

    def rows(self, rows: range) -> tuple[list[float] | None, list[list[tuple[int, float]]] | None]:
        own = [self._own[self._places[row]] for row in rows] if rows[0] in self._places else None
        return own, [self._top[row] for row in rows] if rows[0] in self._top else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0


def _frozen_ids(ids: object) -> tuple[int, ...]:
    """Stop ids, sorted. Raises ValueError for what is no id."""
    if not isinstance(ids, Iterable) or isinstance(ids, str):
        raise ValueError(f"stop_ids is {ids!r}; it must be a list of ids, or None for the tokenizer's own")
    ids = list(ids)
    if wrong := [i for i in ids if not _is_id(i)]:
        raise ValueError(f"stop_ids holds {wrong[0]!r}; ids are whole numbers from 0 on")
    return tuple(sorted({int(i) for i in ids}))


def _frozen_bias(bias: object) -> tuple[tuple[int, float], ...]:
    """A logit bias as pairs, sorted by id. Raises ValueError for what is no id or no finite number."""
    try:
        pairs = dict(bias)
    except (TypeError, ValueError):
        raise ValueError(f"logit_bias is {bias!r}; it must map ids to numbers") from None
    for id_, value in pairs.items():
        if not _is_id(id_):
            raise ValueError(f"logit_bias has the key {id_!r}; its keys are ids of tokens, whole numbers from 0 on")
        if not _is_finite(value) or abs(value) > _LARGEST:
            raise ValueError(f"logit_bias of id {id_} is {value!r}; it must be a number at most {_LARGEST:g} from 0")
    return tuple((int(id_), float(pairs[id_])) for id_ in sorted(pairs))
