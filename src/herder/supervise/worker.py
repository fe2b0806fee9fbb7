"""What the launcher starts in every process: the heartbeat first, then the program (`-m MODULE ARGS` or `FILE ARGS`).

So a rank is seen from its first moment on, before the imports that take most of a start, and what ends it is told.
"""

from __future__ import annotations

import runpy
import sys
import traceback

from herder.supervise import watch


def main(arguments: list[str]) -> None:
    seen = watch.begin()
    module = arguments[0] == "-m"
    sys.argv = arguments[1:] if module else arguments
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except Exception as error:
        seen.event("error", error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
