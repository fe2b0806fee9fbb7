"""`Engine`: generation, streaming, scoring and reading for a Llama, on CPU or CUDA (paper section 6).

Requests join and leave between steps; a step computes single tokens of those that run and pieces of new prompts together
(continuous batching, chunked prefill), over pages that equal prefixes share. The one design decision: scheduling, computing and
choosing are three parts that meet here alone, each replaceable, and none of them changes what a request gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from herder.engine.adapters import AdapterRunner, read_adapter
from herder.engine.asked import check_ids, check_update, prompt_ids
from herder.engine.cache import SIZE, Pages, blocks_for
from herder.engine.constrain import Masks
from herder.engine.graphs import GraphRunner
from herder.engine.kernels import NativeRunner, supports, unavailable
from herder.engine.quantize import quantize
from herder.engine.request import Completion, Generation, Piece, Reading
from herder.engine.runner import Batch, Runner, TorchRunner
from herder.engine.sample import Choice, Sampling, choose
from herder.engine.scheduler import Scheduler
from herder.engine.sequence import Sequence as Positions
from herder.engine.sequence import Step
from herder.engine.speculate import Proposer
from herder.model import Llama
from herder.tokenizer import Tokenizer

TOKEN_BUDGET = 2048
"""Tokens of one step; bounds the memory of activations and the time between two tokens of those that run."""
LOGITS_ELEMENTS = 2**25
"""Elements of one block of logits when scoring (128 MiB in fp32)."""

_DEFAULT = Sampling()


class Engine:
    """Runs `model` with the ids of `tokenizer`.

    The engine reads the model when it is made, and what is changed afterwards only through `update`: kernels keep weights in an
    order of their own, and cached prefixes are of the weights that computed them.

    `max_batch` is how many sequences run at once; `cache_tokens` how many positions are kept (a share of the memory unless
    given), `kv_dtype` as what (int8 halves them), `token_budget` how many tokens one step computes at most. `overcommit` above 1
    admits requests whose longest answers may not all fit; when pages run out the least urgent is computed again. `proposer`
    makes a proposer of drafts for each request (`PromptLookup`, or one of `draft`): it changes the speed and no token.
    `native` computes with C++ kernels where the device is a CPU and a compiler is there.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        quantized: Literal["int8", "int4", "fp8"] | None = None,
        kv_dtype: torch.dtype | None = None,
        cache_tokens: int | None = None,
        token_budget: int = TOKEN_BUDGET,
        overcommit: float = 1.0,
        proposer: Callable[[], Proposer] | None = None,
        native: bool = True,
    ):
        if model.config.vocab_size < tokenizer.n_vocab:
            raise ValueError(
                f"the model has {model.config.vocab_size} token embeddings but the tokenizer {tokenizer.n_vocab} ids; "
                "give the tokenizer that the model was trained with"
            )
        for name, value in {"max_batch": max_batch, "token_budget": token_budget}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        weight = next(model.parameters())
        self.dtype, self.device = dtype or weight.dtype, torch.device(device or weight.device)
        if (self.dtype, self.device) != (weight.dtype, weight.device):
            model = copy.deepcopy(model).to(device=self.device, dtype=self.dtype)
        self.quantized, self.native, self.proposer = quantized, native, proposer
        self.model, self.tokenizer, self.max_batch, self.version = model, tokenizer, max_batch, 0
        self.token_budget, self.overcommit = max(token_budget, max_batch), overcommit
        blocks = blocks_for(model.config, max_batch, kv_dtype or self.dtype, self.device, cache_tokens)
        self.pages = Pages(model.config, blocks, kv_dtype or self.dtype, self.device, compute=self.dtype)
        self.scheduler = self._scheduler()
        self.runner = self._runner()
        self.adapted: AdapterRunner | None = None
        self._owners: dict[Positions, Generation | Reading] = {}

    @cached_property
    def _masks(self) -> Masks:
        return Masks(self.tokenizer)

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
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} samplings; give one for all or one for each")
        made = [
            self._generations(prompt, s, number) for number, (prompt, s) in enumerate(zip(prompts, each, strict=True))
        ]
        requests = [request for group in made for request in group]
        for index, request in enumerate(requests):
            request.index = index
        return self._completed(requests)

    def stream(self, prompt: Sequence[int], sampling: Sampling = _DEFAULT) -> Iterator[Piece]:
        """Continues one prompt, piece by piece; a piece never ends within a character. Several streams may be read in turns:
        what one of them computes serves all."""
        if sampling.n != 1:
            raise ValueError(f"n is {sampling.n}; a stream gives one completion, set n to 1")
        return self._stream(self._generations(prompt, sampling, 0)[0])

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling = _DEFAULT,
        *,
        priority: int = 0,
        client: str = "",
        adapter: str = "",
    ) -> list[Generation]:
        """Queues a prompt for `step` and returns its `n` continuations, whose `pieces` and `stop_reason` tell how far they are.

        A smaller `priority` goes first; between clients the one that was served least.
        """
        made = self._generations(prompt, sampling, 0, priority=priority, client=client, adapter=adapter)
        self._add(made)
        return made

    def cancel(self, requests: Iterable[Generation | Reading]) -> None:
        """Drops requests in whatever phase they are; finished ones are left as they are."""
        for request in requests:
            if self._owners.pop(request.sequence, None) is not None:
                self.scheduler.cancel(request.sequence)

    @torch.inference_mode()
    def step(self) -> list[Generation | Reading]:
        """Computes the next tokens of what waits and runs; the requests that got something. Empty where nothing is to do."""
        step = self.scheduler.schedule()
        if not step.spans:
            return []
        try:
            self.pages.copy(step.copies)
            batch, counts = self._batch(step)
            return self._take(step, counts, (self.adapted if batch.adapters else self.runner).run(batch))
        except BaseException:
            self._abandon("the engine broke off in a step; start this generation again")
            self.scheduler = self._scheduler()
            raise

    def score(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], adapter: str = ""
    ) -> list[np.ndarray]:
        """Natural log-probabilities of each continuation's tokens after its context: (tokens,) float32 arrays. Equal contexts
        and equal beginnings are computed once.

        Raises ValueError for an empty context, an id that is none, or a row that exceeds the context.
        """
        if len(contexts) != len(continuations):
            raise ValueError(f"{len(contexts)} contexts but {len(continuations)} continuations; give one for each")
        readings: list[Reading | None] = []
        for index, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            ids, row = [int(i) for i in continuation], [*map(int, context), *map(int, continuation)]
            if len(context) == 0:
                raise ValueError(f"context {index} is empty; give at least the token of begin_of_text")
            check_ids(row, f"context and continuation {index}", self.model.config)
            if len(row) - 1 > self.context:
                raise ValueError(
                    f"context and continuation {index} have {len(row)} tokens; the model's context of {self.context} "
                    f"scores {self.context + 1} at most, cut the context on its left"
                )
            group = ("score", adapter, tuple(row[: len(context)]))
            positions = Positions(row[:-1], 0, len(context) - 1, group=group, namespace=adapter, client="score")
            readings.append(Reading(positions, self._log_probs, ids, self._known(adapter)) if ids else None)
        self._read([reading for reading in readings if reading is not None])
        return [np.zeros(0, np.float32) if r is None else np.concatenate(r.parts) for r in readings]

    def embed(self, rows: Sequence[Sequence[int]], adapter: str = "") -> np.ndarray:
        """(rows, dim) float32: the normalised hidden state at each row's last position, which sees all of it. What a reward head
        or a comparison of texts reads. Raises ValueError as `generate` does."""
        readings = []
        for index, row in enumerate(rows):
            ids = prompt_ids(row, f"row {index}", self.model.config, self.context)
            positions = Positions(ids, 0, len(ids) - 1, group=("embed", tuple(ids)), namespace=adapter, client="embed")
            readings.append(Reading(positions, lambda hidden, _: hidden.float(), [], self._known(adapter)))
        self._read(readings)
        return (
            np.stack([r.parts[0][0] for r in readings])
            if readings
            else np.zeros((0, self.model.config.dim), np.float32)
        )

    def reward(self, rows: Sequence[Sequence[int]], head: torch.Tensor) -> np.ndarray:
        """(rows,) float32 scores: the last hidden states times a reward head (dim,)."""
        return self.embed(rows) @ head.detach().float().cpu().numpy()

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Adds a low-rank adapter (PEFT's two files) under a name that `submit` and `score` take. Rows of several adapters and of
        none share a batch. Raises ValueError for one that does not fit, or a name that is taken."""
        if not name or (self.adapted is not None and name in self.adapted.adapters):
            raise ValueError(f"the adapter's name {name!r} is empty or taken; choose another")
        if self.quantized is not None:
            raise ValueError(
                "adapters stand beside full weights, and this engine's are quantized; make one without `quantized`"
            )
        known = {} if self.adapted is None else self.adapted.adapters
        self.adapted = AdapterRunner(self.model, self.pages, known | {name: read_adapter(folder, self.model)})

    def _known(self, adapter: str) -> str:
        if adapter and (self.adapted is None or adapter not in self.adapted.adapters):
            raise ValueError(f"there is no adapter {adapter!r}; load_adapter brings one")
        return adapter

    def update(self, named_tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> None:
        """Swaps all weights, or none: raises ValueError naming what is missing, unknown or of another shape. Requests that run
        end with an error: half of their tokens would be of other weights."""
        new, own = dict(named_tensors), dict(self.model.named_parameters())
        check_update(new, own, dict(self.model.named_parameters(remove_duplicate=False)))
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(new[name])
        self.version += 1
        self._abandon("the engine's weights were updated while this generation ran; start it again")
        self.scheduler.forget()
        self.pages.clear()
        self.runner = self._runner()

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            self.pages.blocks,
            SIZE,
            max_sequences=self.max_batch,
            token_budget=self.token_budget,
            overcommit=self.overcommit,
        )

    def _runner(self) -> Runner:
        model = self.model if self.quantized is None else quantize(self.model, self.quantized)
        if self.native and not supports(model) and not unavailable():
            return NativeRunner(model, self.pages)
        return (GraphRunner if self.device.type == "cuda" else TorchRunner)(model, self.pages)

    def _generations(self, prompt: Sequence[int], s: Sampling, number: int, **more) -> list[Generation]:
        ids = prompt_ids(prompt, f"prompt {number}", self.model.config, self.context - 1)
        s.check_ids(self.tokenizer.n_vocab)
        self._known(more.get("adapter", ""))
        limit = min(s.max_tokens, self.context - len(ids))
        return [
            Generation(
                sample,
                sample,
                ids,
                s,
                limit,
                self.tokenizer,
                matcher=None if s.constraint is None else self._masks.matcher(s.constraint, s.stop_ids),
                proposer=self.proposer() if self.proposer else None,
                **more,
            )
            for sample in range(s.n)
        ]

    def _add(self, requests: Sequence[Generation | Reading]) -> None:
        added: list[Generation | Reading] = []
        try:
            for request in requests:
                self.scheduler.add(request.sequence)
                self._owners[request.sequence] = request
                added.append(request)
        except ValueError:
            self.cancel(added)
            raise

    def _completed(self, requests: list[Generation]) -> Iterator[tuple[int, Completion]]:
        # Longest first: what does not fit in memory fails at once.
        self._add(sorted(requests, key=lambda r: -r.prompt_length))
        mine, version = set(requests), self.version
        try:
            while mine:
                for request in self.step():
                    if request in mine and request.stop_reason is not None:
                        mine.discard(request)
                        yield request.index, request.completion(version)
                if failed := next((r.error for r in mine if r.error), None):
                    raise RuntimeError(failed)
        finally:
            self.cancel(mine)

    def _stream(self, request: Generation) -> Iterator[Piece]:
        self._add([request])
        try:
            while request.stop_reason is None or request.pieces:
                if request.pieces:
                    yield request.pieces.popleft()
                elif request.error:
                    raise RuntimeError(request.error)
                else:
                    self.step()
        finally:
            self.cancel([request])

    def _read(self, readings: list[Reading]) -> None:
        self._add(sorted(readings, key=lambda r: -len(r.sequence.tokens)))
        try:
            while any(r.sequence in self._owners for r in readings):
                self.step()
                if failed := next((r.error for r in readings if r.error), None):
                    raise RuntimeError(failed)
        finally:
            self.cancel(readings)

    def _batch(self, step: Step) -> tuple[Batch, list[int]]:
        """The rows of a step, and how many outputs each span asks for: its last ones."""
        tokens, positions, spans, select, adapters, counts = [], [], [], [], [], []
        for span in step.spans:
            sequence, owner = span.sequence, self._owners[span.sequence]
            ids = sequence.tokens if not sequence.drafts else [*sequence.tokens, *sequence.drafts]
            first, end = len(tokens), span.start + span.count
            read = owner.first + owner.taken if isinstance(owner, Reading) else len(sequence.tokens) - 1
            tokens += ids[span.start : end]
            positions += range(span.start, end)
            spans.append((first, span.count, sequence.blocks))
            counts.append(max(0, end - max(read, span.start)))
            select += range(first + span.count - counts[-1], first + span.count)
            adapters.append(owner.adapter)
        return Batch(tokens, positions, spans, select, adapters if any(adapters) else []), counts

    def _take(self, step: Step, counts: list[int], hidden: torch.Tensor) -> list[Generation | Reading]:
        """Hands the outputs of a step to their requests, commits it and lets the finished ones go."""
        valid, choosing, at = [span.count for span in step.spans], [], 0
        touched: list[Generation | Reading] = []
        for number, (span, count) in enumerate(zip(step.spans, counts, strict=True)):
            owner = self._owners[span.sequence]
            if count and isinstance(owner, Reading):
                targets = owner.targets[owner.taken : owner.taken + count]
                owner.parts.append(owner.read(hidden[at : at + count], targets).cpu().numpy())
                owner.taken += count
            elif count:
                choosing.append((number, owner, range(at, at + count)))
            at += count
        for (number, owner, rows), choice in zip(choosing, self._choose(choosing, hidden), strict=True):
            touched.append(owner)
            valid[number] += self._accept(owner, choice) - len(rows)
        self.scheduler.commit(step, valid)
        for span in step.spans:
            owner = self._owners[span.sequence]
            if isinstance(owner, Reading) and owner.taken < len(span.sequence.tokens) - owner.first:
                continue
            if isinstance(owner, Reading):
                touched.append(owner)
            elif owner.stop_reason is None and owner.error is None:
                continue
            del self._owners[span.sequence]
            self.scheduler.finish(span.sequence)
        return touched

    def _choose(self, choosing: list[tuple[int, Generation, range]], hidden: torch.Tensor) -> list[Choice | None]:
        """One choice for each; None for a request whose constraint broke off, which then says so in its `error`."""
        going = [(owner, rows) for _, owner, rows in choosing if owner.error is None]
        if not going:
            return [None] * len(choosing)
        rows = [row for _, part in going for row in part]
        logits = self.runner.logits(hidden if len(rows) == len(hidden) else hidden[rows])
        owners = [owner for owner, _ in going]
        try:
            found = choose(logits, owners, [owner.sequence.drafts for owner in owners], self.tokenizer.n_vocab)
        except FloatingPointError:
            broken = [owner for owner in owners if owner.matcher is not None and owner.matcher.error]
            if not broken:
                raise
            for owner in broken:
                owner.error = f"the constraint broke off: {owner.matcher.error}"
            return self._choose(choosing, hidden)
        by_owner = dict(zip(owners, found, strict=True))
        return [by_owner.get(owner) for _, owner, _ in choosing]

    def _accept(self, request: Generation, choice: Choice | None) -> int:
        """Takes what was chosen, up to where the request ends, and proposes what may follow; how many tokens were taken."""
        drafts, request.sequence.drafts = request.sequence.drafts, []
        if choice is None:
            return 0
        taken = 0
        for i, token in enumerate(choice.ids):
            request.take(
                token,
                choice.logprobs[i] if choice.logprobs else None,
                choice.top_logprobs[i] if choice.top_logprobs else None,
            )
            taken += 1
            if request.stop_reason is not None:
                return taken
        if request.proposer is not None:
            request.proposer.judged(len(drafts), taken - 1)
            room = request.limit - request.generated - 1
            request.sequence.drafts = request.proposer.propose(request.sequence.tokens)[: max(0, room)]
        return taken

    def _log_probs(self, hidden: torch.Tensor, targets: list[int]) -> torch.Tensor:
        """(rows, dim) hidden states and a target each -> (rows,) log-probabilities."""
        target, parts = torch.tensor(targets, device=hidden.device), []
        block = max(1, LOGITS_ELEMENTS // self.model.config.vocab_size)
        for h, wanted in zip(hidden.split(block), target.split(block), strict=True):
            logits = self.runner.logits(h)
            parts.append(logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
        return torch.cat(parts)

    def _abandon(self, why: str) -> None:
        for sequence, owner in self._owners.items():
            owner.error = why
            self.scheduler.cancel(sequence)
        self._owners.clear()
