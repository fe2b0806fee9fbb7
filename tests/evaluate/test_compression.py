"""Bits per byte beside compressors and n-grams: every row against a computation of its own."""

import json
import lzma
import math

import pyarrow as pa
import pytest

from herder.convert import load
from herder.evaluate import CompressionConfig, KneserNey, compare_compression
from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig, TokenizeConfig, TokenizerConfig, pretrain, tokenize, train_tokenizer
from herder.records import Document, read_documents, write_documents, write_table
from herder.train import OptimConfig, Stage, TokenShards, TrainConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("compression")
    text = "Lake {} lies {} metres high and is fed by the river {} from the north. "
    documents = [Document(f"d{i}", "", text.format(i, i * 7 % 400, i % 9) * 2) for i in range(120)]
    write_documents(documents, root / "corpus" / "documents" / "p.parquet")
    ids = [d.id for d in documents]
    columns = {"fate": ["kept"] * 120, "split": ["heldout" if i % 10 == 0 else "train" for i in range(120)]}
    for name, values in (columns | {"language": ["en"] * 120}).items():
        write_table(pa.table({"id": ids, name: values}), root / "corpus" / "attributes" / name / "p.parquet")
    for name in ("bpe", "tokens", "model", "out"):
        (root / name).mkdir()
    train_tokenizer(TokenizerConfig(350, n_special=16), {"corpus": root / "corpus"}, root / "bpe")
    tokenize(TokenizeConfig(), {"corpus": root / "corpus", "tokenizer": root / "bpe"}, root / "tokens")
    shape = LlamaConfig(350, 32, 2, 4, 2, 48, max_seq_len=64)
    config = TrainConfig(OptimConfig(kind="muon", lr=1e-2, warmup_steps=5), device="cpu")
    config = PretrainConfig(shape, config, stages=(Stage(40, 4, 64, {"general": 1.0}),))
    pretrain(config, {"tokens": root / "tokens", "tokenizer": root / "bpe"}, root / "model")
    inputs = {name: root / name for name in ("corpus", "tokens", "model")}
    return root, compare_compression(CompressionConfig(orders=(2,)), inputs, root / "out")


def test_the_models_figure_is_its_log_likelihood_over_bytes(made):
    root, numbers = made
    model, tokenizer = load(root / "model")
    import torch

    nats, size = 0.0, 0
    for document in read_documents(root / "corpus", split="heldout"):
        ids = torch.tensor([tokenizer.encode(document.text, bos=True)])
        assert ids.shape[1] <= 65  # one window
        logp = model(ids[:, :-1]).detach().log_softmax(-1).gather(-1, ids[:, 1:, None])
        nats -= float(logp.sum())
        size += len(document.text.encode())
    assert numbers["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert numbers["bits_per_byte"].n == numbers["documents"] == 12


def test_the_n_gram_saw_the_tokens_that_the_model_saw_and_no_held_out_one(made):
    root, numbers = made
    tokenizer = load(root / "model")[1]
    source = TokenShards(root / "tokens" / "train").sources["general"]
    used = json.loads((root / "model" / "consumed.json").read_text())["tokens"]["general"]
    assert used >= source.n_tokens  # more than an epoch: the n-gram sees every training document once
    seen = [source.document(i) for i in range(source.n_documents)]
    texts = [d.text for d in read_documents(root / "corpus", split="heldout")]
    nats = KneserNey(seen, tokenizer.n_vocab, 2).nats([tokenizer.encode(t, bos=True) for t in texts])
    expected = sum(float(n[1:].sum()) for n in nats) / math.log(2) / sum(len(t.encode()) for t in texts)
    assert numbers["kneser_ney_2"].value == pytest.approx(expected)


def test_xz_is_the_compressed_size_of_the_held_out_text(made):
    root, numbers = made
    data = "\n".join(d.text for d in read_documents(root / "corpus", split="heldout")).encode()
    assert numbers["xz"].value == pytest.approx(
        8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
    )
    rows = json.loads((root / "out" / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["this model", "Kneser-Ney 2-gram", "xz", "gzip"]
