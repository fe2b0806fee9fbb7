"""Whether the newest miniature run learned what it claims: `python .ci/learned.py RUNS`, exit status 1 where it did not.

Every claim is a pair of disjoint 95% intervals, a floor, or the README's memory. Seconds are printed, not judged: a busy machine
is no fault of the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from herder.records import Measure
from herder.steps import find_run, read_json

MOST_MIB, LEAST_ANSWERS = 4096, 0.70


def main(runs: Path) -> int:
    run = find_run(runs, "miniature")
    steps = {row["name"]: row for row in read_json(run / "run.json")["steps"]}
    records = {name: read_json(runs / row["address"] / "step.json") for name, row in steps.items()}
    bits, answers = (records[f"5_evaluate/{name}"]["numbers"] for name in ("compression", "answers"))
    ours, after = measure(bits, "bits_per_byte"), measure(answers, "all_tasks_after")
    claims = {
        "bits per byte below xz": ours.below(measure(bits, "xz")),
        "bits per byte below a Kneser-Ney bigram": ours.below(measure(bits, "kneser_ney_2")),
        "at least 70% of answers are well formed": measure(answers, "answers_that_work").low >= LEAST_ANSWERS,
        "answers were not well formed before": measure(answers, "answers_well_before").high < 0.05,
        f"under {MOST_MIB} MiB": max(record["peak_memory_mib"] for record in records.values()) < MOST_MIB,
    }
    annealed = records["3_pretrain/annealed"]["numbers"]
    claims["annealing gains on held-out documents"] = measure(annealed, "averaged_less_before").high < 0
    for context in (512, 1024):
        scores = records[f"3_pretrain/context_{context}"]["numbers"]
        claims[f"short documents recover from a context of {context}"] = measure(scores, "gate_short").low <= 0
    for name in ("most_frequent_answer", "nearest_training_question", "shuffled", "before"):
        claims[f"held-out questions above: {name.replace('_', ' ')}"] = after.above(
            measure(answers, f"all_tasks_{name}")
        )
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    print(f"{sum(record['seconds'] for record in records.values()):.0f} s in all steps")
    print(f"bits per byte {ours}, 5-gram {measure(bits, 'kneser_ney_5')}; held-out questions right {after}")
    return 0 if all(claims.values()) else 1


def measure(numbers: dict, name: str) -> Measure:
    return Measure.from_json(numbers[name])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
