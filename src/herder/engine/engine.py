"""`Engine`: generation, streaming and scoring for a Llama, on CPU or CUDA (paper section 6).

Requests join and leave the running batch between steps (continuous batching); identical prompts are prefilled once. The
one design decision: everything a request needs (random stream, limits, stop ids) hangs on the request, so its result is
the same whatever shares the batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from herder.engine.cache import SlotCache
from herder.engine.sample import Sampling, pick, uniforms
from herder.model import Llama
from herder.tokenizer import StreamDecoder, Tokenizer

PREFILL_TOKENS = 8192
"""Padded tokens of one prefill or scoring batch; bounds the memory of activations."""
LOGITS_ELEMENTS = 2**25
"""Elements of one block of logits when scoring (128 MiB in fp32)."""

_DEFAULT = Sampling()


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation. `ids` include the stop id where there was one; `text` holds no special token.

    `stop_reason` is "stop" (a stop id) or "length" (max_tokens or the context was reached); `version` counts the weight
    updates of the engine that produced it. `logprobs` are natural logarithms, one per id, where they were asked for.
    """

    ids: list[int]
    text: str
    stop_reason: str
    version: int
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step of a stream adds: ids, and the characters they complete. `stop_reason` is set on the last piece."""

    text: str
    ids: list[int]
    stop_reason: str | None = None


@dataclass(slots=True, eq=False)
class _Request:
    index: int
    prompt: list[int]
    sampling: Sampling
    limit: int
    stop_ids: frozenset[int]
    draws: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    stop_reason: str | None = None

    def take(self, token: int, logprob: float | None) -> None:
        self.ids.append(token)
        self.seen.add(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.stop_ids:
            self.stop_reason = "stop"
        elif len(self.ids) >= self.limit:
            self.stop_reason = "length"


class Engine:
    """Runs `model` with the ids of `tokenizer`.

    The engine reads the model it is given; only where `dtype` or `device` ask for a change does it make a copy of its
    own. `max_batch` is how many sequences run at once.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        if model.config.vocab_size < tokenizer.n_vocab:
            raise ValueError(
                f"the model has {model.config.vocab_size} token embeddings but the tokenizer {tokenizer.n_vocab} ids; "
                "give the tokenizer that the model was trained with"
            )
        weight = next(model.parameters())
        self.dtype, self.device = dtype or weight.dtype, torch.device(device or weight.device)
        if (self.dtype, self.device) != (weight.dtype, weight.device):
            model = copy.deepcopy(model).to(device=self.device, dtype=self.dtype)
        self.model, self.tokenizer, self.max_batch, self.version = model, tokenizer, max_batch, 0

    @property
    def context(self) -> int:
        """Positions that the model was made for."""
        return self.model.config.max_seq_len

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] = _DEFAULT
    ) -> list[Completion]:
        """Continues each prompt (token ids): `n` completions for each, prompt after prompt.

        `sampling` is one for all or one per prompt. A prompt's samples depend on its ids, `seed` and its index among
        `n`, so the same prompt twice with the same seed gives the same text. Raises ValueError for a prompt that is
        empty, too long for the context or holds ids that are none.
        """
        done = dict(self.completed(prompts, sampling))
        return [done[index] for index in range(len(done))]

    def completed(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] = _DEFAULT
    ) -> Iterator[tuple[int, Completion]]:
        """`generate` as a stream of (index in its result, completion), each as soon as it is finished."""
        requests = self._requests(prompts, sampling)
        return self._completed(requests)

    def stream(self, prompt: Sequence[int], sampling: Sampling = _DEFAULT) -> Iterator[Piece]:
        """Continues one prompt, piece by piece; a piece never ends within a character."""
        if sampling.n != 1:
            raise ValueError(f"n is {sampling.n}; a stream gives one completion, set n to 1")
        return self._stream(self._requests([prompt], sampling))

    @torch.inference_mode()
    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Natural log-probabilities of each continuation's tokens after its context: (tokens,) float32 arrays.

        Raises ValueError for an empty context, an id that is none, or a row that exceeds the context.
        """
        if len(contexts) != len(continuations):
            raise ValueError(f"{len(contexts)} contexts but {len(continuations)} continuations; give one for each")
        rows = []
        for index, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            row = [*map(int, context), *map(int, continuation)]
            if len(context) == 0:
                raise ValueError(f"context {index} is empty; give at least the token of begin_of_text")
            self._check_ids(row, f"context and continuation {index}")
            if len(row) - 1 > self.context:
                raise ValueError(
                    f"context and continuation {index} have {len(row)} tokens; the model's context of {self.context} "
                    f"scores {self.context + 1} at most, cut the context on its left"
                )
            rows.append((row, len(continuation)))
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        order = sorted((i for i, (_, count) in enumerate(rows) if count), key=lambda i: -len(rows[i][0]))
        for batch in _batches(order, lambda i: len(rows[i][0]) - 1, PREFILL_TOKENS, PREFILL_TOKENS):
            for i, values in zip(batch, self._score_rows([rows[i] for i in batch]), strict=True):
                results[i] = values
        return results

    def update(self, named_tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> None:
        """Swaps all weights, or none: raises ValueError naming what is missing, unknown or of another shape."""
        new, own = dict(named_tensors), dict(self.model.named_parameters())
        aliases = {name: p for name, p in self.model.named_parameters(remove_duplicate=False) if name not in own}
        if missing := sorted(own.keys() - new.keys()):
            raise ValueError(f"the update lacks {len(missing)} of {len(own)} weights, the first is {missing[0]}")
        if extra := sorted(new.keys() - own.keys() - aliases.keys()):
            raise ValueError(f"the update has {len(extra)} weights that the model has not, the first is {extra[0]}")
        for name, tensor in new.items():
            target = own[name] if name in own else aliases[name]
            if tensor.shape != target.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)} in the update, {tuple(target.shape)} in the model"
                )
            if name in aliases:
                twin = next(n for n, p in own.items() if p is target)
                if not torch.equal(tensor, new[twin]):
                    raise ValueError(f"{name} and {twin} differ in the update, but the model ties them")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(new[name])
        self.version += 1

    def _check_ids(self, ids: list[int], what: str) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self.model.config.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.model.config.vocab_size)
            raise ValueError(f"{what} holds the id {wrong}; the model knows 0 to {self.model.config.vocab_size - 1}")

    def _requests(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[_Request]:
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} samplings; give one for all or one for each")
        requests: list[_Request] = []
        for number, (prompt, s) in enumerate(zip(prompts, each, strict=True)):
            if isinstance(prompt, str):
                raise ValueError(f"prompt {number} is text; encode it with the tokenizer or a chat format first")
            ids = [int(i) for i in prompt]
            if not ids:
                raise ValueError(f"prompt {number} is empty; give at least the token of begin_of_text")
            if len(ids) >= self.context:
                raise ValueError(
                    f"prompt {number} has {len(ids)} tokens; the model's context is {self.context}, "
                    "and at least one must be left for the answer"
                )
            self._check_ids(ids, f"prompt {number}")
            stop_ids = self.tokenizer.stop_ids if s.stop_ids is None else frozenset(s.stop_ids)
            limit = min(s.max_tokens, self.context - len(ids))
            for sample in range(s.n):
                draws = uniforms(s.seed, ids, sample, limit).tolist() if s.temperature > 0 else [0.0] * limit
                seen = set(ids) if s.repetition_penalty != 1 else set()
                requests.append(_Request(len(requests), ids, s, limit, stop_ids, draws, seen=seen))
        return requests

    def _completed(self, requests: list[_Request]) -> Iterator[tuple[int, Completion]]:
        version = self.version
        for rows in self._run(requests):
            for r in rows:
                if r.stop_reason is not None:
                    text = self.tokenizer.decode(r.ids, special=False)
                    logprobs = r.logprobs if r.sampling.logprobs else None
                    yield r.index, Completion(r.ids, text, r.stop_reason, version, logprobs)

    def _stream(self, requests: list[_Request]) -> Iterator[Piece]:
        decoder = StreamDecoder(self.tokenizer)
        for (request,) in self._run(requests):
            text = decoder.push(request.ids[-1:])
            if request.stop_reason is not None:
                text += decoder.finish()
            yield Piece(text, request.ids[-1:], request.stop_reason)

    @torch.inference_mode()
    def _run(self, requests: list[_Request]) -> Iterator[list[_Request]]:
        """Runs requests to their end; after each step yields the rows that took a token."""
        if not requests:
            return
        version, slots = self.version, min(self.max_batch, len(requests))
        # Longest first: prompts of one prefill are alike in length, and what does not fit in memory fails at once.
        waiting = deque(sorted(requests, key=lambda r: -len(r.prompt)))
        capacity = max(len(r.prompt) + r.limit for r in requests)
        cache = SlotCache(self.model.config, slots, capacity, self.dtype, self.device)
        running: list[_Request] = []
        while waiting or running:
            if version != self.version:
                raise RuntimeError("the engine's weights were updated while this generation ran; start it again")
            # A prefill for every single free slot would cost more than the slot idling for some steps.
            if waiting and slots - len(running) >= max(1, slots // 4 if running else 1):
                rows = self._admit(waiting, slots - len(running))
                logits = self._prefill(cache, rows, len(running))
                running += rows
            else:
                rows, logits = list(running), self._decode(cache, running)
            self._choose(rows, logits)
            _leave(cache, running)
            yield rows

    def _admit(self, waiting: deque[_Request], free: int) -> list[_Request]:
        most = max(1, PREFILL_TOKENS // len(waiting[0].prompt))
        return [waiting.popleft() for _ in range(min(free, most, len(waiting)))]

    def _prefill(self, cache: SlotCache, rows: list[_Request], first_slot: int) -> torch.Tensor:
        """Fills slots first_slot.. with the rows' prompts; (rows, V) logits after them. Equal prompts are run once."""
        unique: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            unique.setdefault(tuple(row.prompt), []).append(i)
        longest = max(map(len, unique))
        tokens = torch.tensor([[*p, *[0] * (longest - len(p))] for p in unique], device=self.device)
        last = torch.tensor([j * longest + len(p) - 1 for j, p in enumerate(unique)], device=self.device)
        attend = cache.prefill([first_slot + copies[0] for copies in unique.values()])
        logits = self.model(tokens, attend=attend, select=last)
        source = [0] * len(rows)
        for j, (prompt, copies) in enumerate(unique.items()):
            for i in copies:
                source[i] = j
                if i != copies[0]:
                    cache.copy(first_slot + copies[0], first_slot + i, len(prompt))
        return logits[source]

    def _decode(self, cache: SlotCache, rows: list[_Request]) -> torch.Tensor:
        """Feeds each row's last token; (rows, V) logits."""
        places = [len(r.prompt) + len(r.ids) - 1 for r in rows]
        tokens = torch.tensor([r.ids[-1:] for r in rows], device=self.device)
        positions = torch.tensor(places, device=self.device)[:, None]
        return self.model(tokens, positions=positions, attend=cache.decode(places))[:, 0]

    def _choose(self, rows: list[_Request], logits: torch.Tensor) -> None:
        logits = logits.float()
        wanted = any(r.sampling.logprobs for r in rows)
        raw = logits.log_softmax(-1) if wanted else None
        logits[:, self.tokenizer.n_vocab :] = -torch.inf  # padding of the embedding table is no token
        if not torch.isfinite(logits.amax(-1)).all():
            raise FloatingPointError("the model's logits are not finite; its weights are damaged or overflowed")
        chosen = pick(logits, [r.sampling for r in rows], [r.draws[len(r.ids)] for r in rows], [r.seen for r in rows])
        logprobs = [None] * len(rows) if raw is None else raw.gather(-1, chosen[:, None])[:, 0].tolist()
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs, strict=True):
            row.take(token, logprob)

    def _score_rows(self, rows: list[tuple[list[int], int]]) -> list[np.ndarray]:
        """Rows (context + continuation, number of scored tokens), longest first, as one right-padded batch."""
        length = len(rows[0][0]) - 1
        tokens = torch.tensor([[*row[:-1], *[0] * (length + 1 - len(row))] for row, _ in rows], device=self.device)
        places = [j * length + i for j, (row, n) in enumerate(rows) for i in range(len(row) - 1 - n, len(row) - 1)]
        targets = torch.tensor([i for row, n in rows for i in row[-n:]], device=self.device)
        hidden = self.model.hidden(tokens, select=torch.tensor(places, device=self.device))
        block, parts = max(1, LOGITS_ELEMENTS // self.model.config.vocab_size), []
        for h, target in zip(hidden.split(block), targets.split(block), strict=True):
            logits = self.model.lm_head(h).float()
            parts.append(logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1))
        values = torch.cat(parts).cpu().numpy()
        return np.split(values, np.cumsum([n for _, n in rows])[:-1])


def _batches(order: list[int], length, tokens: int, rows: int) -> Iterator[list[int]]:
    """Cuts indices, longest first, into batches of at most `tokens` padded tokens (and at least one row)."""
    start = 0
    while start < len(order):
        count = max(1, min(rows, tokens // max(1, length(order[start]))))
        yield order[start : start + count]
        start += count


def _leave(cache: SlotCache, running: list[_Request]) -> None:
    """Takes finished rows out of `running`, whose index is the slot; the last row moves into each hole."""
    i = 0
    while i < len(running):
        if running[i].stop_reason is None:
            i += 1
            continue
        last = running.pop()
        if i < len(running):
            running[i] = last
            if last.stop_reason is None:
                cache.copy(len(running), i, len(last.prompt) + len(last.ids) - 1)
