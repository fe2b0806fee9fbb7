"""What fewer bits cost a model: the gate of `herder.engine.gate` for every scheme.

The reference is the model in fp32. Held-out text is the token shards of a run (documents cut to the context); responses are the
reference's own, sampled at temperature 1 after the beginnings of those documents.

    OMP_NUM_THREADS=2 python benchmarks/quantize.py MODEL SHARDS [--rows 400] [--responses 1000]

MODEL is a model folder, SHARDS the `heldout` folder of a run's token shards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from herder.convert import load
from herder.engine import Engine, Sampling
from herder.engine.gate import gate
from herder.train import TokenShards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--responses", type=int, default=1000)
    given = parser.parse_args()
    model, tokenizer = load(given.model)
    reference = Engine(model.float(), tokenizer)
    documents = texts(TokenShards(given.shards), reference.context)
    rows = documents[: given.rows]
    prompts = [row[:16] for row in documents if len(row) > 16][: given.responses]
    answers = reference.generate(prompts, Sampling(max_tokens=48))
    responses = [(prompt, done.ids) for prompt, done in zip(prompts, answers, strict=True)]
    print(f"{len(rows)} rows, {len(responses)} responses, {sum(len(r) for _, r in responses):,} tokens in them")
    print("| scheme | rise of perplexity over fp32 | log-likelihood of responses, nats per token | moved (allowed) | |")
    print("|---|---:|---:|---:|---|")
    schemes = {"int8": {"quantized": "int8"}, "int4": {"quantized": "int4"}, "fp8": {"quantized": "fp8"}}
    schemes["int8 keys and values"] = {"kv_dtype": torch.int8}
    found = {}
    for name, settings in schemes.items():
        other = Engine(model, tokenizer, **settings)
        verdict = gate(reference, other, settings.get("quantized", "int8"), rows, responses)
        shift = verdict.responses
        print(
            f"| {name} | {100 * (verdict.perplexity.value - 1):.3f}% [{100 * (verdict.perplexity.low - 1):.3f}, "
            f"{100 * (verdict.perplexity.high - 1):.3f}] | {shift.difference} | {shift.distance:.4f} ({shift.allowed:.4f}) | "
            f"{verdict.reason or 'passed'} |",
            flush=True,
        )
        found[name] = verdict.to_json()
    print(json.dumps(found))


def texts(shards: TokenShards, context: int) -> list[list[int]]:
    """Documents, interleaved over sources, cut to the context."""
    each = [
        [[int(i) for i in source.document(number)[:context]] for number in range(min(300, source.n_documents))]
        for source in shards.sources.values()
    ]
    longest = max(map(len, each))
    return [rows[i] for i in range(longest) for rows in each if i < len(rows) and len(rows[i]) > 1]


if __name__ == "__main__":
    main()
