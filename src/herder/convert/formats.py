"""Which format lies somewhere, and the table of formats that can be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from herder.convert.checkpoint import Checkpoint
from herder.convert.gguf import GgufCheckpoint, write_gguf
from herder.convert.huggingface import WEIGHTS, HuggingFaceCheckpoint, write_hf
from herder.convert.meta import MetaCheckpoint, write_meta
from herder.convert.tensorfiles import float_type

WRITERS: dict[str, Callable[[Checkpoint, Path, str | None], object]] = {
    "hf": lambda checkpoint, out, dtype: write_hf(checkpoint, out, float_type(dtype)),
    "meta": lambda checkpoint, out, dtype: write_meta(checkpoint, out, float_type(dtype)),
    "gguf": write_gguf,
}
"""By format: (checkpoint, out, dtype's name or None for as stored) -> anything; writes `out` whole or not at all."""


def format_of(path: Path) -> tuple[str, Path] | None:
    """The format of what lies at `path` and where exactly: ("hf" or "meta", folder) or ("gguf", file); None where none does.

    A folder that holds a model in its subfolder `model`, as a training step's does, stands for that.
    """
    if path.is_file():
        with open(path, "rb") as file:
            return ("gguf", path) if file.read(4) == b"GGUF" or path.suffix == ".gguf" else None
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() and any((folder / name).exists() for name in WEIGHTS):
            return "hf", folder
        if (folder / "params.json").is_file() and any(folder.glob("consolidated*.pth")):
            return "meta", folder
        if len(files := sorted(folder.glob("*.gguf"))) == 1:
            return "gguf", files[0]
        if (folder / "config.json").is_file():
            return "hf", folder
    return None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The model at this path, with names and shapes checked and no weight read.

    Raises ValueError, naming file and tensor, for what is no model or a damaged one.
    """
    path = Path(path)
    found = format_of(path)
    if found is None and len(files := sorted(p.name for p in path.glob("*.gguf") if p.is_file())) > 1:
        raise ValueError(f"{path} holds several models ({', '.join(files[:5])}); give the path of one file")
    if found is None:
        raise ValueError(
            f"{path} {'holds no model' if path.exists() else 'does not exist'}; give a folder with config.json or params.json "
            "and its weights, or a .gguf file"
        )
    kind, place = found
    if kind == "gguf":
        return GgufCheckpoint(place)
    return MetaCheckpoint(place) if kind == "meta" else HuggingFaceCheckpoint(place)
