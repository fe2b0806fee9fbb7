"""Converting checkpoints: seconds and peak memory, against the ways in which people do it today.

Two models with SmolLM2's tokenizer, SmolLM2-135M-Instruct itself and a random one of 1.1 GB, go every way that a peer knows:
`transformers` (from_pretrained, save_pretrained) between Hugging Face folders and from GGUF, a script of `load_file` and
`torch.save` to Meta's files and back (transformers no longer carries its own), llama.cpp's convert_hf_to_gguf.py to GGUF where
its source is at hand. Each conversion is a process of its own; imports are not timed, and memory counts above what they took.
Turns alternate, the median counts. Both sides' tensors are compared.

    OMP_NUM_THREADS=1 python benchmarks/convert.py [--turns 3] [--llama-cpp FOLDER] [--folder /dev/shm]
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from herder.convert import convert, load, open_checkpoint, save
from herder.model import Llama, LlamaConfig
from herder.steps import machine

LARGE = LlamaConfig(49_152, 2048, 6, 32, 8, 8192)
"""1.13 GB in bf16."""
HALVES = {"q_proj": "n_heads", "k_proj": "n_kv_heads"}
WAYS = {
    "hf to hf in f16": ("hf", "hf", "f16", "transformers"),
    "hf to meta": ("hf", "meta", None, "script"),
    "meta to hf": ("meta", "hf", None, "script"),
    "hf to gguf in bf16": ("hf", "gguf", "bf16", "llama.cpp"),
    "hf to gguf in q8_0": ("hf", "gguf", "q8_0", "llama.cpp"),
    "gguf to hf": ("gguf", "hf", None, "transformers"),
}
"""From, to, dtype, peer."""


def herder(source: Path, out: Path, to: str, dtype: str | None):
    return lambda: convert(source, out, to, dtype)


def transformers(source: Path, out: Path, to: str, dtype: str | None):
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.models.llama import modeling_llama, tokenization_llama

    del modeling_llama, tokenization_llama, modeling_gguf_pytorch_utils  # imported before the clock runs

    def run():
        file = {"gguf_file": source.name} if source.suffix == ".gguf" else {}
        folder = source.parent if file else source
        kind = {"f16": torch.float16, None: torch.bfloat16}[dtype]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, **file)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # left behind by its GGUF loader, refused by its own save_pretrained
            model.hf_quantizer = None
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, **file).save_pretrained(out)

    return run


def script(source: Path, out: Path, to: str, dtype: str | None):
    """What a person writes who has the memory: all tensors read, renamed, q and k turned, all written."""
    from safetensors.torch import load_file, save_file

    from herder.convert.checkpoint import to_half_split, to_interleaved
    from herder.convert.meta import own_name

    config = open_checkpoint(source).config
    names = {own_name(name): name for name in open_checkpoint(source).names()}

    def turned(name: str, tensor: torch.Tensor, turn) -> torch.Tensor:
        heads = next((getattr(config, heads) for part, heads in HALVES.items() if part in name), None)
        return tensor if heads is None else turn(tensor, heads)

    def run():
        out.mkdir()
        if to == "meta":
            read = load_file(source / "model.safetensors")
            written = {own_name(n): turned(n, t, to_interleaved) for n, t in read.items()}
            written.setdefault("output.weight", written["tok_embeddings.weight"])  # a tied head
            torch.save(written, out / "consolidated.00.pth")
        else:
            read = torch.load(source / "consolidated.00.pth", weights_only=True)
            save_file({n: turned(n, read[own], to_half_split) for own, n in names.items()}, out / "model.safetensors")

    return run


def llama_cpp(source: Path, out: Path, to: str, dtype: str | None):
    converter = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    sys.path[:0] = [str(converter.parent / "gguf-py"), str(converter.parent)]  # as when it runs by itself
    import conversion
    import transformers

    del conversion, transformers
    sys.argv = [str(converter), str(source), "--outfile", str(out), "--outtype", str(dtype)]
    return lambda: runpy.run_path(str(converter), run_name="__main__")


SIDES = {"herder": herder, "transformers": transformers, "script": script, "llama.cpp": llama_cpp}


def one(side: str, source: str, out: str, to: str, dtype: str) -> None:
    """One conversion, in a process of its own."""
    run = SIDES[side](Path(source), Path(out), to, dtype if dtype != "None" else None)
    base, started = status("VmRSS"), time.perf_counter()
    run()
    found = {"seconds": time.perf_counter() - started, "megabytes": (status("VmHWM") - base) / 1e6}
    if side == "herder":
        found["tokenizer"] = tokenizer_seconds(Path(source), Path(out))
    print(json.dumps(found))


def tokenizer_seconds(source: Path, out: Path) -> float:
    """How long the tokenizer alone takes to read and write, which the script leaves out."""
    started = time.perf_counter()
    open_checkpoint(source).tokenizer().save(out.with_name("tokenizer"))
    return time.perf_counter() - started


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes; VmHWM is the peak of resident memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def make_models(folder: Path) -> dict[str, Path]:
    """Both models as Hugging Face, Meta and GGUF."""
    convert("smollm2", folder / "smollm2" / "hf", "hf", "bf16")
    tokenizer = load("smollm2")[1]
    save(Llama(LARGE).to(torch.bfloat16), tokenizer, folder / "large" / "hf")
    models = {"SmolLM2-135M": folder / "smollm2", "1.1 GB": folder / "large"}
    for place in models.values():
        convert(place / "hf", place / "meta", "meta")
        convert(place / "hf", place / "gguf" / "model.gguf", "gguf", "bf16")
    return models


def differing(a: Path, b: Path) -> list[str]:
    """Names of the tensors in which two checkpoints differ."""
    import gguf
    from safetensors.torch import load_file

    if a.suffix == ".gguf":
        mine, theirs = ({t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(p).tensors} for p in (a, b))
    elif (a / "params.json").exists():
        mine, theirs = (torch.load(p / "consolidated.00.pth", weights_only=True, mmap=True) for p in (a, b))
    else:
        mine, theirs = (load_file(p / "model.safetensors") for p in (a, b))
    shared = mine.keys() & theirs.keys()
    return sorted(
        (mine.keys() ^ theirs.keys()) | {name for name in shared if not torch.equal(mine[name], theirs[name])}
    )


def measure(way: str, place: Path, turns: int, scratch: Path, environment: dict[str, str]) -> dict | None:
    start, to, dtype, peer = WAYS[way]
    source = place / "gguf" / "model.gguf" if start == "gguf" else place / start
    suffix, results = ".gguf" if to == "gguf" else "", {"herder": [], peer: []}
    size = sum(p.stat().st_size for p in ([source] if source.is_file() else source.iterdir())) / 1e6
    for turn in range(turns):
        for side in results:
            out = scratch / f"{side}{suffix}"
            arguments = [sys.executable, __file__, "--one", side, str(source), str(out), to, str(dtype)]
            done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | environment, check=False)
            if done.returncode:
                print(f"  {way}: {side} fails: {done.stderr.strip().splitlines()[-1][:200]}")
                return None
            results[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
        if turn == 0 and (names := differing(*(scratch / f"{side}{suffix}" for side in results))):
            print(f"  {way}: the sides differ in {len(names)} tensors, the first is {names[0]}")
        shutil.rmtree(scratch)
        scratch.mkdir()
    medians = {
        side: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for side, rows in results.items()
    }
    for side, row in medians.items():
        rate, share = size / row["seconds"], row["megabytes"] / size
        print(
            f"  {way:20} {side:14}{row['seconds']:8.2f} s{rate:9,.0f} MB/s{row['megabytes']:9,.0f} MB{share:8.2f} of it"
        )
    return {"model_megabytes": size, **medians, "ratio": medians[peer]["seconds"] / medians["herder"]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source; its converter needs sentencepiece.")
    parser.add_argument("--folder", type=Path, help="Where to write the models (8 GB).")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        scratch = Path(folder) / "out"
        scratch.mkdir()
        for name, place in make_models(Path(folder)).items():
            print(f"{name}: seconds, rate, peak memory above the imports, as a share of the source")
            for way, (*_, peer) in WAYS.items():
                if peer == "llama.cpp" and not options.llama_cpp:
                    print(f"  {way}: needs llama.cpp's source, --llama-cpp FOLDER")
                    continue
                environment = {"LLAMA_CPP": str(options.llama_cpp)}
                results[f"{name}, {way}"] = measure(way, place, options.turns, scratch, environment)
    print(json.dumps({"benchmark": "convert", "machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
