"""Bits per byte of held-out documents: the model beside compressors and n-grams that saw the same tokens (paper 3.2.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from herder.config import runtime
from herder.convert import load
from herder.engine import Engine
from herder.evaluate.baselines import bits_per_byte, compressed_bits_per_byte
from herder.evaluate.ngram import KneserNey
from herder.evaluate.run import evaluate
from herder.evaluate.task import BitsPerByteTask, TextItem
from herder.progress import report
from herder.records import read_documents
from herder.train import TokenShards
from herder.train.data import consumed


@dataclass(frozen=True)
class CompressionConfig:
    orders: tuple[int, ...] = (2, 5)
    """Kneser-Ney n-grams to stand beside the model."""
    max_documents: int = 1000
    device: str = runtime("cpu")


def compare_compression(config: CompressionConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: inputs["model"] against xz, gzip and n-grams trained on the tokens it consumed (inputs["tokens"], and inputs["best"]
    where it was annealed on them), on the held-out documents of inputs["corpus"]; writes `comparison.json` for the report."""
    model, tokenizer = load(inputs["model"])
    documents = list(read_documents(inputs["corpus"], split="heldout"))[: config.max_documents]
    if not documents:
        raise ValueError(f"{inputs['corpus']} has no held-out document to measure on; raise curate.heldout_share")
    texts = [d.text for d in documents]
    task = BitsPerByteTask("bits_per_byte", tuple(TextItem(d.text, d.id) for d in documents))
    found = {"model": evaluate(Engine(model, tokenizer, device=config.device), [task], out)["bits_per_byte"]}
    rows = [
        {"name": "this model", "measure": found["model"].to_json(), "note": f"{model.config.n_params:,} parameters"}
    ]
    used = json.loads((inputs["model"] / "consumed.json").read_text())
    shards = TokenShards(*(inputs[name] / "train" for name in ("tokens", "best") if name in inputs))
    seen = list(consumed(shards, used["tokens"], used["seed"]))
    encoded = [[tokenizer.document_ids[0], *tokenizer.encode(text)] for text in texts]
    for number, order in enumerate(config.orders):
        report(number, len(config.orders), "n-gram models")
        nats = KneserNey(seen, tokenizer.n_vocab, order).nats(encoded)
        name = f"kneser_ney_{order}"
        found[name] = bits_per_byte([float(n[1:].sum()) for n in nats], texts)
        rows.append(
            {"name": f"Kneser-Ney {order}-gram", "measure": found[name].to_json(), "note": "on the same tokens"}
        )
    for method in ("xz", "gzip"):
        found[method] = compressed_bits_per_byte(texts, method)
        rows.append({"name": method, "measure": found[method].to_json(), "note": "all held-out text as one stream"})
    table = {"title": "Bits per byte of held-out documents (lower is better)", "unit": "bits per byte", "rows": rows}
    (out / "comparison.json").write_text(json.dumps(table, indent=1, ensure_ascii=False))
    return {"documents": len(documents), "bits_per_byte": found.pop("model"), **found}
