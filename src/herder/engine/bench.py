"""`herder bench engine`: what the engine reaches on this machine, beside what its memory allows.

At batch 1 a token cannot come sooner than all weights are read once, so decoding speed is told as a share of the bandwidth that
this process measures itself, over arrays larger than any cache.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from herder.engine.engine import Engine
from herder.engine.sample import Sampling


@dataclass(frozen=True)
class Workload:
    """`prompt` and `answer` tokens of a decoding run; `prefill` of the prompt whose time to first token is taken."""

    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 32
    answer: int = 64
    prefill: int = 256
    samples: int = 16
    """Of one prompt of `prefill` tokens, `answer` tokens each."""
    turns: int = 3


def bench(engine: Engine, work: Workload = Workload()) -> dict:
    """Medians over turns: tokens/s by batch, share of the bandwidth at batch 1, prefill tokens/s, seconds to the first token
    cold and with a cached prefix, samples of one prompt. Prompts are random ids, no two alike."""
    engine.generate(_prompts(engine, 1, 8, 0), _greedy(2))  # kernels, memory
    decode = {}
    for batch in work.batches:
        if batch <= engine.max_batch:
            decode[batch] = _median(lambda turn, n=batch: _decode(engine, n, work, turn), work.turns)
    cold, warm = [], []
    for turn in range(work.turns):
        prompt = _prompts(engine, 1, work.prefill, 1000 + turn)[0]
        cold.append(_first_token(engine, prompt))
        warm.append(_first_token(engine, prompt))
    samples = _median(lambda turn: _samples(engine, work, turn), work.turns)
    weights = weight_bytes(engine)
    speed = bandwidth(engine.device)
    return {
        "decode_tokens_per_second": decode,
        "weight_gigabytes": weights / 1e9,
        "bandwidth_gigabytes_per_second": speed / 1e9,
        "share_of_bandwidth": decode[1] * weights / speed if 1 in decode else None,
        "prefill_tokens_per_second": work.prefill / statistics.median(cold),
        "first_token_seconds": statistics.median(cold),
        "first_token_seconds_cached": statistics.median(warm),
        "samples_tokens_per_second": samples,
        "runner": type(engine.runner).__name__,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "quantized": engine.quantized,
        "threads": torch.get_num_threads(),
        "workload": {"prompt": work.prompt, "answer": work.answer, "prefill": work.prefill, "samples": work.samples},
    }


def table(found: dict) -> str:
    """The result for people."""
    lines = [
        f"{found['dtype']}, weights {found['quantized'] or found['dtype']}, {found['threads']} threads, {found['runner']}"
    ]
    lines += [f"decode, batch {n}: {speed:,.1f} tokens/s" for n, speed in found["decode_tokens_per_second"].items()]
    if found["share_of_bandwidth"] is not None:
        lines.append(
            f"share of the memory's bandwidth at batch 1: {found['share_of_bandwidth']:.0%} of "
            f"{found['bandwidth_gigabytes_per_second']:.1f} GB/s (weights {found['weight_gigabytes']:.3f} GB)"
        )
    lines += [
        f"prefill: {found['prefill_tokens_per_second']:,.0f} tokens/s",
        f"first token: {found['first_token_seconds'] * 1e3:.0f} ms, with a cached prefix "
        f"{found['first_token_seconds_cached'] * 1e3:.0f} ms",
        f"{found['workload']['samples']} samples of one prompt: {found['samples_tokens_per_second']:,.1f} tokens/s",
    ]
    return "\n".join(lines)


def weight_bytes(engine: Engine) -> int:
    """Bytes of weights that one decoding step reads: all but the rows of a separate embedding table."""
    model = engine.model
    read = {id(p): p for name, p in model.named_parameters() if "embed_tokens" not in name}
    read[id(model.lm_head.weight)] = model.lm_head.weight
    size = {None: None, "int8": 1.0, "int4": 0.5, "fp8": None}[engine.quantized]
    return int(sum(p.numel() * (size if size and p.dim() == 2 else p.element_size()) for p in read.values()))


def bandwidth(device: torch.device, seconds: float = 0.5) -> float:
    """Bytes a second that this process reads from memory: sums over 256 MiB with all of torch's threads, the best of them."""
    data, best = torch.ones(2**26, dtype=torch.float32, device=device), 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        data.sum()
        _wait(device)
        best = max(best, data.numel() * 4 / (time.perf_counter() - start))
    return best


def _decode(engine: Engine, batch: int, work: Workload, turn: int) -> float:
    """Tokens a second between the first and the last token of all."""
    requests = [
        request
        for prompt in _prompts(engine, batch, work.prompt, 17 * turn + batch)
        for request in engine.submit(prompt, _greedy(work.answer))
    ]
    while any(request.generated == 0 for request in requests):
        engine.step()
    before, start = sum(request.generated for request in requests), time.perf_counter()
    while engine.step():
        pass
    _wait(engine.device)
    return (sum(request.generated for request in requests) - before) / (time.perf_counter() - start)


def _first_token(engine: Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    engine.generate([prompt], _greedy(1))
    return time.perf_counter() - start


def _samples(engine: Engine, work: Workload, turn: int) -> float:
    prompt = _prompts(engine, 1, work.prefill, 2000 + turn)
    start = time.perf_counter()
    engine.generate(prompt, Sampling(n=work.samples, max_tokens=work.answer, stop_ids=(), seed=turn))
    return work.samples * work.answer / (time.perf_counter() - start)


def _greedy(tokens: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=tokens, stop_ids=())


def _prompts(engine: Engine, count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, engine.tokenizer.n_vocab, (count, length), generator=generator).tolist()


def _median(run, turns: int) -> float:
    return statistics.median(run(turn) for turn in range(turns))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
