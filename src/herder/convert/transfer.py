"""Models in and out of memory, and from one format to another."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from herder import progress
from herder.convert.catalog import resolve
from herder.convert.checkpoint import Checkpoint, check_tokenizer, verify, weightless
from herder.convert.formats import WRITERS, format_of, open_checkpoint
from herder.model import Llama
from herder.tokenizer import Tokenizer


class InMemory(Checkpoint):
    """A model of ours as a checkpoint, so that saving is converting."""

    def __init__(self, model: Llama, tokenizer: Tokenizer):
        self.config, self._tokenizer = model.config, tokenizer
        self._tensors = {name: p.detach() for name, p in model.named_parameters()}
        self.dtype = next(iter(self._tensors.values())).dtype

    def names(self) -> list[str]:
        return list(self._tensors)

    def stored(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer


def save(model: Llama, tokenizer: Tokenizer, out: str | Path, format: str = "hf", dtype: str | None = None) -> Path:
    """Writes a model, whole or not at all; an older model there is replaced. `dtype` None keeps the model's.

    Raises ValueError for an unknown format, sizes that do not fit, or a folder that holds something else.
    """
    check_tokenizer(tokenizer, model.config)
    return export(InMemory(model, tokenizer), out, format, dtype)


def export(checkpoint: Checkpoint, out: str | Path, format: str = "hf", dtype: str | None = None) -> Path:
    """`save` for weights that are not in memory (a checkpoint of training, an average): one tensor after the other."""
    out = Path(out)
    _writer(format)(checkpoint, out, dtype)
    return out


def load(source: str | Path | Checkpoint, dtype: torch.dtype = torch.float32) -> tuple[Llama, Tokenizer]:
    """Reads a model, tensor by tensor, from a folder or file, a run, a name that `resolve` knows, or an open checkpoint.

    Raises ValueError, naming file and tensor, for what is missing, damaged or of another shape.
    """
    checkpoint = _opened(resolve(source)) if isinstance(source, str | Path) else source
    tokenizer = checkpoint.tokenizer()
    with weightless():
        model = Llama(checkpoint.config)
    model = model.to(dtype).to_empty(device="cpu")
    if checkpoint.config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(name))
    return model.eval(), tokenizer


def convert(source: str | Path, out: str | Path, to: str, dtype: str | None = None) -> dict[str, float]:
    """Writes the model at `source` in the format `to`, streaming: a few tensors are in memory at a time.

    dtype: f32, f16, bf16, for GGUF also q8_0 and q4_0; None keeps what is stored. Returns headline numbers.
    """
    write, out, started = _writer(to), Path(out), time.perf_counter()
    source = resolve(source)
    checkpoint, place = _opened(source), format_of(source)[1].resolve()
    if place == out.resolve() or out.resolve() in place.parents:
        raise ValueError(f"{out} is where the model is read from; give another place to write to")
    told = write(_Reported(checkpoint), out, dtype)
    files = [out] if out.is_file() else [p for p in out.rglob("*") if p.is_file()]
    numbers = {
        "parameters": checkpoint.config.n_params,
        "tensors": len(checkpoint.names()),
        "bytes": sum(p.stat().st_size for p in files),
        "seconds": time.perf_counter() - started,
    }
    if isinstance(told, dict):
        numbers["bytes"] = told["bytes"]  # a GGUF may be written into a folder that holds other things
    if isinstance(told, dict) and told["fallbacks"]:
        numbers["tensors kept in f16, for their rows are no multiple of 32"] = len(told["fallbacks"])
    return numbers


class _Reported(Checkpoint):
    """A checkpoint that reports progress as its tensors are read, whoever writes them."""

    def __init__(self, inner: Checkpoint):
        self.inner, self.config, self.dtype, self.seen = inner, inner.config, inner.dtype, set()

    def names(self) -> list[str]:
        return self.inner.names()

    def stored(self, name: str) -> torch.dtype:
        return self.inner.stored(name)

    def tensor(self, name: str) -> torch.Tensor:
        self.seen.add(name)
        progress.report(len(self.seen), len(self.names()), "tensors")
        return self.inner.tensor(name)

    def tokenizer(self) -> Tokenizer:
        return self.inner.tokenizer()


def _writer(format: str):
    if format not in WRITERS:
        raise ValueError(f"format {format!r} is not known; the formats are: {', '.join(WRITERS)}")
    return WRITERS[format]


def _opened(path: Path) -> Checkpoint:
    """The checkpoint, after its checksums."""
    if found := format_of(path):
        kind, place = found
        if kind != "gguf":
            verify(place)
    return open_checkpoint(path)
