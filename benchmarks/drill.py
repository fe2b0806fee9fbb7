"""The fault drill in full: eight ranks on this machine, every fault in a run of its own, compared bit for bit.

There is no peer: neither torchtitan nor Megatron-LM ships such a drill. What is told is whether each fault was seen, by what
and after how many seconds, the steps computed again, the effective training time of that run (of the tiny model's run most is
starting; the undisturbed run's share stands beside it), and whether the final weights and moments are those of the undisturbed
run. Takes about ten minutes on two cores.

    python benchmarks/drill.py [--short] [--out DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from herder.drill import drill, prepared, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--layout", default="", help="for instance tp=2,pp=2")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = drill(prepared(given.short, layout=given.layout), given.out or Path(tempfile.mkdtemp(prefix="drill-")))
    machine = result["machine"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, {result['date']}, {result['seconds']:.0f} s"
    )
    print(table(result))
    for row in result["faults"]:
        print(f"{row['fault']}: {row.get('said', '')}")


if __name__ == "__main__":
    main()
