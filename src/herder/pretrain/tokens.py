"""From curated documents to a tokenizer and token shards (paper 3.1.2 and 3.2)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from herder.config import runtime
from herder.records import Document, Ledger, read_attribute, read_documents, read_shard, shard_names
from herder.tokenizer import Tokenizer
from herder.tokenizer import train as train_bpe
from herder.train import write_shards

MULTILINGUAL = "multilingual"


@dataclass(frozen=True)
class TokenizeConfig:
    code_share: float = 0.3
    """Share of characters inside code spans from which on a document counts as code."""
    main_language: str = "en"
    threads: int = runtime(2)


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: int
    """All ids, the special ones included."""
    n_special: int = 256
    extension_share: float = 0.0
    """Share of the ordinary ids that are learned on the multilingual domain after the others, which are learned on the rest
    (Llama 3: 27,744 of 128,000, 0.21675)."""
    domains: TokenizeConfig = TokenizeConfig()
    max_characters: int = 20_000_000
    """Characters of training text the merges are learned from, taken evenly over the corpus."""

    def __post_init__(self):
        if not 0 <= self.extension_share < 1:
            raise ValueError(f"extension_share is {self.extension_share}; it must be at least 0 and below 1")

    @property
    def extension_size(self) -> int:
        return round(self.extension_share * (self.vocab_size - self.n_special))


EXTENSION_CHARACTERS = 100
"""Characters of multilingual text for each id of the extension below which a corpus cannot support one."""


def train_tokenizer(config: TokenizerConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: learns byte-level BPE from the training split of inputs["corpus"] into `out`, in the paper's two parts where the
    corpus has text enough in other languages, otherwise in one (`extension_tokens` says which)."""
    sizes: dict[str, int] = {}
    for domain, document in by_domain(inputs["corpus"], config.domains, "train"):
        sizes[domain] = sizes.get(domain, 0) + len(document.text)
    total = sum(sizes.values())
    if total == 0:
        raise ValueError(f"{inputs['corpus']} kept no training document, so there is nothing to learn a tokenizer from")
    every = max(1, round(total / config.max_characters))
    other = sizes.get(MULTILINGUAL, 0)
    extended = config.extension_size > 0 and total > other >= EXTENSION_CHARACTERS * every * config.extension_size

    def texts(wanted: Callable[[str], bool]) -> Iterator[str]:
        found = itertools.islice(by_domain(inputs["corpus"], config.domains, "train"), 0, None, every)
        return (document.text for domain, document in found if wanted(domain))

    tokenizer = train_bpe(
        texts(lambda domain: not extended or domain != MULTILINGUAL),
        config.vocab_size,
        n_special=config.n_special,
        extension=texts(lambda domain: domain == MULTILINGUAL) if extended else None,
        extension_size=config.extension_size if extended else 0,
    )
    tokenizer.save(out)
    sample = [d.text for d in itertools.islice(read_documents(inputs["corpus"], split="heldout"), 2000)]
    characters = sum(map(len, sample))
    tokens = sum(map(len, tokenizer.encode_batch(sample)))
    return {
        "vocab_size": tokenizer.n_vocab,
        "extension_tokens": config.extension_size if extended else 0,
        "heldout_characters_per_token": round(characters / max(tokens, 1), 3),
    }


def tokenize(config: TokenizeConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: token shards of inputs["corpus"], one source per domain, under `out/train` and `out/heldout`."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    ledgers: dict[str, list[Ledger]] = {}
    for split in ("train", "heldout"):
        documents = ((domain, d.text) for domain, d in by_domain(inputs["corpus"], config, split))
        ledgers[split] = write_shards(documents, tokenizer, out / split, config.threads)
    (out / "ledger.json").write_text(json.dumps([ledger.to_json() for ledger in ledgers["train"]], indent=1))
    tokens = {split: sum(ledger.tokens for ledger in found) for split, found in ledgers.items()}
    size = {split: sum(ledger.bytes for ledger in found) for split, found in ledgers.items()}
    return {
        "train_tokens": tokens["train"],
        "heldout_tokens": tokens["heldout"],
        "bytes_per_token": round(size["train"] / tokens["train"], 3),
        **{f"{ledger.source}_tokens": ledger.tokens for ledger in ledgers["train"]},
    }


def by_domain(corpus: Path, config: TokenizeConfig, split: str) -> Iterator[tuple[str, Document]]:
    """(domain, document) of every kept document of a split."""
    for name in shard_names(corpus):
        attribute = read_attribute(corpus, "language", name)
        languages = dict(zip(attribute["id"].to_pylist(), attribute["language"].to_pylist(), strict=True))
        for document in read_shard(corpus, name, split=split):
            yield domain_of(document, languages[document.id], config), document


def domain_of(document: Document, language: str, config: TokenizeConfig) -> str:
    """general, code or multilingual: the parts of the paper's mix (3.1.2) that a document's own features tell apart."""
    code = sum(span.end - span.start for span in document.spans if span.kind == "code")
    if code >= config.code_share * max(len(document.text), 1):
        return "code"
    return "general" if language == config.main_language else MULTILINGUAL
