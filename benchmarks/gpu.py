"""Training speed on one GPU: a slice of the 8B (its widths and vocabulary, fewer layers) in bf16, compiled, and in FP8.

    python benchmarks/gpu.py [--layers 6] [--rows 8] [--documents 0] [--out gpu.json]
    python benchmarks/gpu.py --tiny          # the same script in seconds on a CPU

The whole of an 8B's weights, sums, masters and moments is 160 GB, so the slice has as many layers as fit; FLOPs are counted of
the slice alone (6 a weight and token, head counted, embedding not, attention causal), and the head's share is larger than in the
whole model: both stand in the result. Every variant runs through `herder.train.train`; rates are medians of the steps after
warm-up, and one more step is profiled. Results are written after each variant, so a call that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every start and stop of the profiler is a line on stderr

import torch

from herder.model import SHAPES, Llama, LlamaConfig
from herder.steps import machine
from herder.train import Layout, OptimConfig, TrainConfig, train
from herder.train.meter import read_metrics
from herder.train.objective import Loss, Outputs, Rows, mean_log_loss

VARIANTS: dict[str, dict] = {
    "bf16": {},
    "bf16, compiled": {"compile": True},
    "fp8, compiled": {"compile": True, "float8": True},
}
WARMUP = 3
"""Steps before rates count: the first one compiles, the allocator settles in the next two."""

KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "::mm", "_mm", "addmm", "matmul"),
    "attention": ("flash", "fmha", "attention", "varlen"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "copies": ("memcpy", "memset", "copy_", "aten::copy"),
}
"""Parts of a kernel's name that tell what it does, the first kind that fits; anything else is elementwise and reductions."""


class RandomTokens:
    """An objective of random tokens, in rows of documents of equal length (0: a row is one document)."""

    needs = frozenset({"token_log_probs"})
    metrics: tuple[str, ...] = ()
    skips: tuple[int, ...] = ()

    def __init__(self, vocab: int, rows: int, seq_len: int, document: int = 0, steps: int = 1):
        self.vocab, self.n_rows, self.seq_len, self.document, self.steps = (
            vocab,
            rows,
            seq_len,
            document or seq_len,
            steps,
        )

    def batch(self, step: int) -> list[int]:
        return [step * self.n_rows + row for row in range(self.n_rows)]

    def rows(self, items: list[int]) -> Rows:
        draws = [
            torch.randint(self.vocab, (self.seq_len + 1,), generator=torch.Generator().manual_seed(i)) for i in items
        ]
        tokens = torch.stack(draws)
        doc_ids = (torch.arange(self.seq_len) // self.document).expand(len(items), -1).contiguous()
        weights = torch.ones(len(items), self.seq_len)
        return Rows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, doc_ids)

    def loss(self, outputs: Outputs, rows: Rows) -> Loss:
        return mean_log_loss(outputs, rows)


class Profiled(RandomTokens):
    """Watches the step before the last from within the loop, from its asking for a batch to the next step's."""

    def watch(self, cuda: bool) -> Profiled:
        kinds = torch.profiler.ProfilerActivity
        self.profile, self.seconds = torch.profiler.profile(activities=[kinds.CUDA if cuda else kinds.CPU]), 0.0
        return self

    def batch(self, step: int) -> list[int]:
        if step == self.steps - 2:
            _synchronize()
            self.profile.__enter__()
            self.seconds = time.perf_counter()
        if step == self.steps - 1:
            _synchronize()
            self.seconds = time.perf_counter() - self.seconds
            self.profile.__exit__(None, None, None)
        return super().batch(step)


def measure(config: LlamaConfig, options: argparse.Namespace, compile: bool = False, float8: bool = False) -> dict:
    """One variant: rates, memory and where a step's time goes."""
    cuda = options.device == "cuda"
    layout = Layout(micro_batch=options.micro_batch, compile=compile)
    more = {"float8": True} if float8 else {}
    run = TrainConfig(
        optim=OptimConfig(warmup_steps=1), layout=layout, device=options.device, checkpoint_seconds=1e9, **more
    )
    sizes = (config.vocab_size, options.rows, options.seq, options.documents, WARMUP + options.steps + 2)
    objective = Profiled(*sizes).watch(cuda)
    with torch.device(options.device):
        model = Llama(config)  # torch's own initialisation, on the device: drawing ours on the CPU takes half a minute
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(model, objective, run, Path(folder))
        took = time.perf_counter() - start
        rows = read_metrics(Path(folder) / "metrics.jsonl")
    steady = rows[WARMUP:-2]
    rates = {name: statistics.median(row[name] for row in steady) for name in ("tokens_per_second", "tflops", "mfu")}
    return rates | {
        "loss": [rows[0]["loss"], rows[-1]["loss"]],
        "first_step_seconds": rows[0]["seconds"],
        "all_seconds": round(took, 1),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "profile": summarise(objective.profile, objective.seconds, cuda),
    }


def summarise(profile: torch.profiler.profile, seconds: float, cuda: bool) -> dict:
    """Shares of the profiled step by kind of kernel, what was idle, and the longest kernels."""
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profile.key_averages():
        took = event.self_device_time_total if cuda else event.self_cpu_time_total
        if took > 0:
            times[event.key] += took / 1e6
            calls[event.key] += event.count
    kinds: dict[str, float] = defaultdict(float)
    for name, took in times.items():
        kinds[kind_of(name)] += took / seconds
    busy = sum(kinds.values())
    longest = sorted(times, key=times.__getitem__, reverse=True)[:15]
    return {
        "step_seconds": seconds,
        "shares": {
            **{k: round(v, 4) for k, v in sorted(kinds.items(), key=lambda kv: -kv[1])},
            "idle": round(1 - busy, 4),
        },
        "longest": [
            {"name": name[:120], "share": round(times[name] / seconds, 4), "calls": calls[name]} for name in longest
        ],
    }


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "elementwise and reductions")


def slices(options: argparse.Namespace) -> Iterator[LlamaConfig]:
    """The slice asked for, then ever smaller ones for a GPU that cannot hold it."""
    base = SHAPES["miniature" if options.tiny else "llama3.1-8b"]
    for layers in range(options.layers, 0, -2):
        yield dataclasses.replace(base, n_layers=layers)


def variant(options: argparse.Namespace, name: str, settings: dict) -> dict:
    """Measured on the largest slice that fits, or the reason why not."""
    for config in slices(options):
        try:
            found = measure(config, options, **settings)
        except torch.OutOfMemoryError:
            found = None
        except (ValueError, RuntimeError) as error:  # one variant that cannot run must not cost the others
            return {"failed": str(error).strip().splitlines()[0]}
        finally:
            _free()
        if found is not None:
            head = config.vocab_size * config.dim
            products = config.n_params_active - config.dim * (2 * config.n_layers + 1)
            return {"layers": config.n_layers, "parameters": config.n_params, "head_share": head / products, **found}
        print(f"{name}: {config.n_layers} layers do not fit")
    return {"failed": "not even the smallest slice fits"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seq", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8, help="rows a step, accumulated over micro-batches")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="steps that count")
    parser.add_argument("--documents", type=int, default=0, help="tokens a document; 0: a row is one document")
    parser.add_argument("--seconds", type=float, default=440, help="no variant starts later than this")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="the miniature's widths, on whatever device there is")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.tiny:
        options.layers, options.seq, options.rows, options.steps = 2, 64, 2, 2
    elif options.device == "cpu":
        parser.error("no CUDA device here; --tiny runs the same script on a CPU")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    asked = {k: v for k, v in vars(options).items() if k not in ("out", "seconds")}
    result = {"benchmark": "gpu", "device": name, "machine": machine(), "torch": torch.__version__, "options": asked}
    result["variants"], start = {}, time.perf_counter()
    for label, settings in VARIANTS.items():
        late = time.perf_counter() - start > options.seconds
        found = {"failed": "no time left"} if late else variant(options, label, settings)
        result["variants"][label] = found
        options.out.write_text(json.dumps(result, indent=1))
        print(line(label, found), flush=True)
    print(f"written: {options.out}")


def line(label: str, found: dict) -> str:
    if "failed" in found:
        return f"{label:<16} failed: {found['failed']}"
    shares = ", ".join(f"{k} {100 * v:.0f}%" for k, v in found["profile"]["shares"].items())
    return (
        f"{label:<16}{found['tokens_per_second']:>9,.0f} tokens/s {found['tflops']:>7.1f} TFLOP/s {100 * found['mfu']:>5.1f}% "
        f"MFU, {found['layers']} layers; {shares}"
    )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
