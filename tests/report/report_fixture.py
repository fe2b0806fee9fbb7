"""Writes the files of an invented run, as `herder run` leaves them, for the report's tests (and for looking at the page)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from herder.records import Ledger, Measure, write_jsonl

GRAPH = {
    "1_corpus/web": {},
    "1_corpus/curated": {"web": "1_corpus/web"},
    "1_corpus/mix": {"documents": "1_corpus/curated"},
    "2_tokenizer/tokenizer": {"documents": "1_corpus/mix"},
    "2_tokenizer/tokens": {"documents": "1_corpus/mix", "tokenizer": "2_tokenizer/tokenizer"},
    **{f"3_scaling/flops-{c}e13-dim{d}": {"tokens": "2_tokenizer/tokens"} for c in (1, 3) for d in (64, 96, 128)},
    "3_scaling/forecast": {f"run{i}": f"3_scaling/flops-{c}e13-dim{d}" for i, (c, d) in enumerate(
        (c, d) for c in (1, 3) for d in (64, 96, 128))},
    "4_pretrain/base": {"tokens": "2_tokenizer/tokens", "forecast": "3_scaling/forecast"},
    "4_pretrain/long": {"model": "4_pretrain/base", "tokens": "2_tokenizer/tokens"},
    "4_pretrain/anneal": {"model": "4_pretrain/long", "tokens": "2_tokenizer/tokens"},
    "4_pretrain/average": {"model": "4_pretrain/anneal"},
    "5_posttrain/dialogues": {"tokenizer": "2_tokenizer/tokenizer"},
    "5_posttrain/reward": {"model": "4_pretrain/average", "dialogues": "5_posttrain/dialogues"},
    "5_posttrain/sft-1": {"model": "4_pretrain/average", "dialogues": "5_posttrain/dialogues"},
    "5_posttrain/samples-1": {"model": "5_posttrain/sft-1", "reward": "5_posttrain/reward"},
    "5_posttrain/dpo-1": {"model": "5_posttrain/sft-1", "pairs": "5_posttrain/samples-1"},
    "5_posttrain/sft-2": {"model": "4_pretrain/average", "samples": "5_posttrain/samples-1"},
    "5_posttrain/dpo-2": {"model": "5_posttrain/sft-2", "previous": "5_posttrain/dpo-1"},
    "6_evaluate/heldout": {"model": "4_pretrain/average", "documents": "1_corpus/curated"},
    "6_evaluate/tasks": {"model": "5_posttrain/dpo-2"},
    "6_evaluate/contamination": {"documents": "1_corpus/curated"},
    "7_guard/guard": {"model": "5_posttrain/dpo-2"},
    "8_export/huggingface": {"model": "5_posttrain/dpo-2"},
}  # fmt: skip

TEXT = """Tides follow the moon. Twice a day the sea rises and falls along most coasts, because the moon pulls more
strongly on the water that is nearer to it than on the solid earth beneath.

The range of a tide depends on the shape of the coast: in a narrow bay the water piles up, in the open ocean it hardly moves."""


def write_run(root: Path, seed: int = 0) -> Path:
    """Writes runs/miniature and its step folders under `root`; returns the run's folder."""
    rng = random.Random(seed)
    address = {name: f"{name}-{rng.randrange(16**8):08x}" for name in GRAPH}
    listed = []
    for name, inputs in GRAPH.items():
        folder = root / address[name]
        folder.mkdir(parents=True)
        seconds = {"4_pretrain/base": 268.4, "5_posttrain/dpo-1": 41.0}.get(name, rng.uniform(0.2, 30))
        record = {
            "name": name, "address": address[name], "version": 1,
            "identity": {"lr_peak": 3e-3, "layers": 6, "stages": [{"batch": 16, "steps": 400}], "note": "as in table 3"},
            "runtime": {"workers": 2, "device": "cpu"}, "inputs": {k: address[v] for k, v in inputs.items()},
            "git": "0123abcd", "source_hash": "77aa", "started": "2026-01-02T03:04:05", "seconds": seconds,
            "peak_memory_mib": rng.randrange(300, 2400), "host": "laptop", "numbers": numbers(name, rng),
        }  # fmt: skip
        dump(folder / "step.json", record)
        write_extras(folder, name, rng)
        reused = name.startswith(("1_", "2_")) and name != "1_corpus/mix"
        listed.append(
            {"name": name, "address": address[name], "reused": reused, "seconds": 0.01 if reused else seconds}
        )
    machine = {"cpu": "Example CPU 3.1 GHz", "cores": 2, "memory_gib": 15.6, "python": "3.12.3", "torch": "2.13.0"}
    run = {
        "recipe": "miniature", "config": {"pretrain": {"lr_peak": 3e-3, "steps": 400}, "seed": 1}, "herder": "0.1.0",
        "git": "0123abcdef012345", "started": "2026-01-02T03:04:05+00:00", "seconds": 761.2, "machine": machine,
        "overrides": ["pretrain.lr_peak=3e-3"], "steps": listed,
    }  # fmt: skip
    dump(root / "miniature" / "run.json", run)
    return root / "miniature"


def dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def numbers(name: str, rng: random.Random) -> dict:
    if name == "4_pretrain/base":
        return {
            "parameters": 3_412_992,
            "tokens": 13_107_200,
            "bits_per_byte": Measure(1.712, 812, 1.69, 1.73).to_json(),
        }
    if name == "6_evaluate/tasks":
        tasks = {
            task: Measure.share(rng.randrange(80, 200), 200).to_json() for task in ("addition", "reverse", "capitals")
        }
        return {"answers_that_work": Measure.share(412, 600).to_json(), "tasks": tasks, "sampling": "greedy"}
    if name == "6_evaluate/heldout":
        return {"bits_per_byte": Measure(1.512, 812, 1.494, 1.53, "bits per byte").to_json()}
    return {"documents": rng.randrange(1000, 9000)}


def write_extras(folder: Path, name: str, rng: random.Random) -> None:
    if name.startswith(("3_scaling/flops", "4_pretrain/base", "4_pretrain/long", "4_pretrain/anneal", "5_posttrain/sft",
                        "5_posttrain/dpo", "5_posttrain/reward")):  # fmt: skip
        write_jsonl(metrics(name, rng), folder / "metrics.jsonl")
    if name == "1_corpus/curated":
        removed = {"near_duplicate": 1410, "language": 822, "exact_duplicate": 640, "boilerplate": 512, "quality": 388,
                   "repetition": 203, "too_short": 190, "pii": 41, "url_blocked": 29}  # fmt: skip
        web = Ledger("web", 9000, 182_000_000, 9000 - sum(removed.values()), 14_800_000, 3_900_000, removed)
        code = Ledger("code", 1200, 8_100_000, 1100, 6_900_000, 2_100_000, {"parse": 60, "exact_duplicate": 40})
        dump(folder / "ledger.json", [web.to_json(), code.to_json()])
        dump(folder / "samples.json", samples(rng))
        shares = {f: {k: Measure.share(rng.randrange(170, 200), 200).to_json() for k in ("precision", "recall")}
                  for f in ("near_duplicate", "language", "boilerplate", "pii")}  # fmt: skip
        dump(folder / "audit.json", shares)
    if name == "1_corpus/mix":
        shares = {"web": 0.5, "math": 0.25, "code": 0.17, "other languages": 0.08}
        rows = {
            s: {"target": t, "realised": t + rng.uniform(-0.01, 0.01), "tokens": int(t * 6e6)}
            for s, t in shares.items()
        }
        dump(folder / "mixture.json", rows)
    if name == "6_evaluate/heldout":
        rows = [
            ("herder, 3.4M parameters", 1.512, 1.494, 1.53, "after annealing and averaging"),
            ("xz -9e", 2.31, 2.27, 2.35, ""),
            ("Kneser-Ney 5-gram", 1.94, 1.92, 1.96, "same training tokens"),
            ("bigram", 3.02, 2.99, 3.05, ""),
        ]
        measures = [{"name": n, "measure": Measure(v, 812, lo, hi).to_json(), "note": t} for n, v, lo, hi, t in rows]
        dump(
            folder / "comparison.json",
            {"title": "Bits per byte on held-out documents", "unit": "lower is better", "rows": measures},
        )
    if name == "6_evaluate/tasks":
        rows = [("aligned model", 412), ("base model, 3 examples", 221), ("most frequent answer", 64)]
        measures = [{"name": n, "measure": Measure.share(hits, 600).to_json(), "note": ""} for n, hits in rows]
        dump(folder / "comparison.json", {"title": "Answers that work, all tasks", "unit": "%", "rows": measures})
        dump(folder / "answers.json", answers(rng))


def metrics(name: str, rng: random.Random) -> list[dict]:
    steps = 400 if "base" in name else 120
    floor = rng.uniform(2.2, 2.6)
    rows = []
    for i in range(1, steps + 1):
        loss = floor + 5.5 * math.exp(-i / (steps / 8)) + rng.gauss(0, 0.06)
        row = {"step": i, "tokens": i * 32768, "loss": loss, "grad_norm": abs(rng.gauss(0.8, 0.15)), "mfu": rng.gauss(0.4, 0.01),
               "lr": 3e-3 * min(1, i / 40) * (1 - i / steps * 0.9), "tokens_per_second": rng.gauss(48000, 1200),
               "tflops": rng.gauss(0.09, 0.003), "seconds": i * 0.67}  # fmt: skip
        if i % 40 == 0:
            row["heldout_bits_per_byte"] = loss / 1.6
        if "dpo" in name:
            row["reward_margin"] = 1.2 * (1 - math.exp(-i / 30)) + rng.gauss(0, 0.1)
        rows.append(row)
    return rows


def samples(rng: random.Random) -> dict:
    kept = [
        {
            "id": f"id{i:04x}",
            "url": f"https://example.org/page/{i}",
            "source": "web",
            "title": f"Tides, part {i}",
            "text": TEXT,
        }
        for i in range(12)
    ]
    fates = {
        "near_duplicate": "0.93 like id0007",
        "language": "unknown, 0.31",
        "repetition": "top 2-gram 0.41 > 0.20",
        "pii": "4 addresses",
    }
    removed = [
        {"id": f"id1{i:03x}", "url": f"https://spam.example/{i}", "source": "web", "fate": fate, "detail": detail}
        | {"text": TEXT * rng.randrange(1, 4)}
        for fate, detail in fates.items()
        for i in range(6)
    ]
    return {"kept": kept, "removed": removed}


def answers(rng: random.Random) -> list[dict]:
    rows = []
    for i in range(30):
        a, b, right = rng.randrange(100), rng.randrange(100), rng.random() < 0.7
        task, prompt, gold = (
            ("addition", f"What is {a} + {b}?", str(a + b)) if i % 2 else
            ("word_reverse", "Write the word 'herder' backwards. Answer with the word alone.", "redreh")
        )  # fmt: skip
        messages = [{"role": "system", "content": "You are a helpful assistant."}] * (i % 5 == 0) + [
            {"role": "user", "content": prompt}
        ]
        answer = gold if right else gold[::-1]
        rows.append(
            {
                "task": task,
                "prompt": prompt,
                "messages": messages,
                "answer": f"The answer is {answer}.",
                "gold": gold,
                "correct": right,
            }
        )
    return rows


if __name__ == "__main__":
    import sys

    from herder.report import write_report

    print(write_report(write_run(Path(sys.argv[1]))))
