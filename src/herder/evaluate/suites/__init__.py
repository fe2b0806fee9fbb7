"""Published benchmarks as tasks (paper 5.1), read from files that the user has: nothing is shipped, nothing is downloaded.

`SUITES[name](path, limit)` gives a task; a file may be JSONL as the data set's authors or the Hugging Face Hub write it, plain
or gzip, or Parquet.
"""

from herder.evaluate.suites.choice import arc, piqa

SUITES = {"arc_easy": arc("arc_easy"), "arc_challenge": arc("arc_challenge"), "piqa": piqa}

__all__ = ["SUITES"]
