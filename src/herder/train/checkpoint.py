"""Checkpoints of a training run: whole or absent, verified on load, the oldest pruned.

`checkpoints/step-00000120/` holds `state.safetensors` and `state.json` (step, skips, checksum). It is written under another
name and renamed; a checkpoint that fails its checksum is named, and the one before it is used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], facts: dict, keep: int = 2) -> Path:
    """Writes `folder/step-<step>` and keeps the newest `keep`. A full disk raises OSError and leaves nothing half-written."""
    final = folder / f"step-{step:08d}"
    part = folder / f"{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_tensors(tensors, part / "state.safetensors")
        facts = {**facts, "step": step, "checksum": checksum(part / "state.safetensors")}
        (part / "state.json").write_text(json.dumps(facts))
        for name in ("state.safetensors", "state.json"):
            with open(part / name, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes one safetensors file. A full disk raises OSError, as it does everywhere else."""
    try:
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".part")


def load_latest(folder: Path, warn=print) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The newest checkpoint that passes its checksum, or None where there is none; damaged ones are named and passed over."""
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warn(f"{error}; trying the one before")
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and facts of one checkpoint. Raises ValueError where a byte has changed or a file is missing."""
    try:
        facts = json.loads((path / "state.json").read_text())
        found = checksum(path / "state.safetensors")
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {path} is incomplete ({error})") from None
    if found != facts.get("checksum"):
        raise ValueError(f"checkpoint {path} is damaged: its checksum is {found}, written as {facts.get('checksum')}")
    return load_file(path / "state.safetensors"), facts


def checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
