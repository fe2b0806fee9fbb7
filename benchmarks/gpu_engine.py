"""The engine on one GPU: an 8B-shaped model's decoding, prefill and throughput, in bf16 and FP8, in one call.

Weights are random; speeds do not depend on them. Share of bandwidth is of what this process measures by summing 256 MiB. One call
takes at most eight minutes on an H100.

    python benchmarks/gpu_engine.py [--layers 32] [--batches 1,8,64,256] [--prefill 4096] [--out gpu-engine.json] [--tiny]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import inspect
import json
import time
from pathlib import Path

import torch

from herder.engine import Engine
from herder.engine.bench import Workload, bench, table
from herder.model import SHAPES, Llama
from herder.steps import machine
from herder.tokenizer import train as train_tokenizer

VARIANTS = {"bf16": None, "fp8": "fp8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=360, help="no variant starts later than this")
    parser.add_argument("--out", type=Path, default=Path("gpu-engine.json"))
    parser.add_argument("--tiny", action="store_true", help="the miniature's widths, on whatever device there is")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.tiny:
        options.layers, options.batches, options.prefill, options.answer = 2, "1,4", 64, 8
    elif device == "cpu":
        parser.error("no CUDA device here; --tiny runs the same script on a CPU")
    batches = tuple(map(int, options.batches.split(",")))
    shape = SHAPES["miniature" if options.tiny else "llama3.1-8b"]
    config = dataclasses.replace(shape, n_layers=options.layers, max_seq_len=max(512, 2 * options.prefill))
    tokenizer = train_tokenizer([inspect.getsource(inspect)], vocab_size=1024, n_special=256)
    with torch.device(device):
        model = Llama(config).to(torch.bfloat16)
    result = {"benchmark": "gpu_engine", "machine": machine(), "torch": torch.__version__, "variants": {}}
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    work = Workload(batches, options.prompt, options.answer, options.prefill, samples=16)
    tokens = max(batches) * (options.prompt + options.answer + 16) + 20 * options.prefill
    start = time.perf_counter()
    for name, quantized in VARIANTS.items():
        if time.perf_counter() - start > options.seconds:
            result["variants"][name] = {"failed": "no time left"}
            continue
        try:
            engine = Engine(
                model,
                tokenizer,
                max_batch=max(batches),
                quantized=quantized,
                cache_tokens=tokens,
                token_budget=max(4096, options.prefill),
            )
            found = bench(engine, work)
        except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:  # one variant must not cost the other
            result["variants"][name] = {"failed": str(error).strip().splitlines()[0]}
            print(f"{name}: failed: {result['variants'][name]['failed']}", flush=True)
            continue
        flops = config.flops_per_token((options.prefill + 1) / 2) / 3  # forward only
        found["prefill_tflops"] = found["prefill_tokens_per_second"] * flops / 1e12
        result["variants"][name] = found
        print(f"{name}\n{table(found)}\nprefill: {found['prefill_tflops']:.1f} TFLOP/s\n", flush=True)
        options.out.write_text(json.dumps(result, indent=1))
        del engine
        gc.collect()
    options.out.write_text(json.dumps(result, indent=1))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
