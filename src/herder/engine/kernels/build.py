"""Compiles the kernels with the system's C++ compiler, once for each processor, compiler and source, and loads them.

The one design decision: a plain C interface without torch's headers, so that it compiles in seconds and a library outlives
updates of torch. It lies in the user's cache folder under the hash of everything it depends on.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_SOURCES = ("kernels.cpp", "attention.h", "products.h", "team.h", "vectors.h")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-w")
_TARGETS = (("-march=native",), ("-mcpu=native",), ())
"""Tried in this order: not every compiler knows its processor by the first name, or at all."""
_SECONDS = 180


class _Unavailable(Exception):
    pass


def unavailable() -> str:
    """Why there are no kernels, in one sentence; "" where there are."""
    found = _load()
    return found if isinstance(found, str) else ""


def library() -> ctypes.CDLL:
    """The loaded kernels, compiled first where need be. Raises ValueError with the reason where there are none."""
    found = _load()
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.cache
def _load() -> ctypes.CDLL | str:
    if os.environ.get("HERDER_KERNELS", "1") == "0":
        return "the kernels are switched off by HERDER_KERNELS=0"
    if os.name != "posix":
        return f"the kernels need a POSIX system and this is {platform.system()}"
    try:
        return ctypes.CDLL(str(_compiled(_compiler())))
    except _Unavailable as error:
        return str(error)
    except OSError as error:
        return f"the compiled kernels do not load ({error}); set HERDER_KERNELS=0 to silence this"


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    what = f"CXX names {asked}, which is not there" if asked else "there is no C++ compiler (c++, g++ or clang++)"
    raise _Unavailable(f"the kernels are not compiled: {what}; install one, for example with `apt-get install g++`")


def _compiled(compiler: str) -> Path:
    """The library's path, after compiling it where it is not there. Several processes may do so at once: each writes a file of
    its own and renames it."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"the kernels are not compiled: {compiler} does not run ({error})") from None
    key = hashlib.sha256("\0".join([compiler, version, _processor(), *_FLAGS, *map(str, _TARGETS)]).encode())
    for name in _SOURCES:
        key.update((_HERE / name).read_bytes())
    target = _folder() / f"kernels-{key.hexdigest()[:20]}.so"
    if target.exists():
        return target
    part = target.with_name(f"{target.stem}.{os.getpid()}.part")
    try:
        said = ""
        for native in _TARGETS:
            command = [compiler, *_FLAGS, *native, "-o", str(part), str(_HERE / _SOURCES[0])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == 0:
                os.replace(part, target)
                return target
            said = said or next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    finally:
        part.unlink(missing_ok=True)
    raise _Unavailable(f"the kernels are not compiled: {compiler} fails ({said.strip()})")


def _folder() -> Path:
    """herder's folder in the user's cache; a private one of this process where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="herder-kernels-"))


def _processor() -> str:
    """What the compiler will compile for: the architecture, and the features that the system lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name", "CPU part", "isa")
    found = {line.split(":")[0].strip(): line for line in reversed(lines) if line.startswith(wanted)}
    return "\n".join([platform.machine(), platform.processor(), *sorted(found.values())])
