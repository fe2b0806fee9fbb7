"""The best documents are told by their signals, and never hold a benchmark's training item."""

import json

import numpy as np
import pyarrow as pa
import pytest

from herder.pretrain import BestConfig, TokenizerConfig, select_best, train_tokenizer
from herder.pretrain.best import quality
from herder.records import Document, read_jsonl, write_documents, write_table
from herder.tokenizer import Tokenizer
from herder.train import TokenShards

ITEM = "A weaver in the town of Orlen makes eleven ells of cloth on the first day and six ells more on the second"


def text(i):
    return (
        f"The harbour number {i} is open in summer, and the boats come back in the evening with what they caught. " * 3
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty documents; the higher the number the better the signals; number 18 holds a benchmark's training item."""
    folder = tmp_path_factory.mktemp("best")
    documents = [Document(f"d{i}", f"https://x.org/{i}", text(i)) for i in range(20)]
    documents[18].text = f"{text(18)}\n\n{ITEM}. How many ells is that in both days? Seventeen."
    write_documents(documents, folder / "documents" / "p.parquet")
    columns = {
        "fate": {"fate": ["kept"] * 20},
        "split": {"split": ["heldout" if i == 19 else "train" for i in range(20)]},
        "language": {"language": ["en"] * 20},
        "stats": {
            "alphabetic_words": [0.5 + i / 50 for i in range(20)],
            "bullet_lines": [1 - i / 20 for i in range(20)],
        },
    }
    for name, values in columns.items():
        table = pa.table({"id": [d.id for d in documents], **values})
        write_table(table, folder / "attributes" / name / "p.parquet")
    (folder / "bench").mkdir()
    (folder / "bench" / "benchmark.jsonl").write_text(json.dumps({"question": ITEM, "answer": "Seventeen"}) + "\n")
    train_tokenizer(TokenizerConfig(300, n_special=16), {"corpus": folder}, folder / "bpe")
    return folder


SIGNALS = {"alphabetic_words": 1.0, "bullet_lines": -1.0}


def chosen(corpus, out, benchmarks=True, **settings):
    config = BestConfig(**{"signals": SIGNALS, "share": 0.25} | settings)
    inputs = {"corpus": corpus, "tokenizer": corpus / "bpe"} | ({"benchmarks": corpus / "bench"} if benchmarks else {})
    numbers = select_best(config, inputs, out)
    source, tokenizer = TokenShards(out / "train").sources["best_general"], Tokenizer.load(corpus / "bpe")
    found = [tokenizer.decode(source.document(i).tolist()) for i in range(source.n_documents)]
    return numbers, {int(t.split("number ")[1].split()[0]) for t in found}


def test_the_best_quarter_is_taken_and_a_planted_training_item_is_left_out(corpus, tmp_path):
    numbers, found = chosen(corpus, tmp_path)
    assert found == {14, 15, 16, 17}  # of 19 training documents the best 5 are 14 to 18
    assert numbers["excluded_for_benchmarks"] == 1
    (row,) = read_jsonl(tmp_path / "excluded.jsonl")
    assert (row["id"], row["url"]) == ("d18", "https://x.org/18")
    assert row["overlap"] > 0.8


def test_without_a_benchmark_the_same_document_is_taken(corpus, tmp_path):
    numbers, found = chosen(corpus, tmp_path, benchmarks=False)
    assert found == {14, 15, 16, 17, 18}
    assert numbers["excluded_for_benchmarks"] == 0


def test_turning_the_signals_turns_the_choice(corpus, tmp_path):
    _, found = chosen(corpus, tmp_path, signals={"alphabetic_words": -1.0, "bullet_lines": 1.0})
    assert found == {0, 1, 2, 3, 4}


def test_ranks_of_equal_values_are_equal_and_weights_count():
    values = np.array([[1.0, 5.0], [1.0, 7.0], [2.0, 5.0]])
    assert quality(values, {"a": 3.0, "b": 1.0}).tolist() == pytest.approx([2.0, 2.5, 3.5])


def test_an_unknown_signal_gets_a_sentence(corpus, tmp_path):
    with pytest.raises(ValueError, match="signals names 'charm'; stats has alphabetic_words, bullet_lines"):
        chosen(corpus, tmp_path, signals={"charm": 1.0})
    with pytest.raises(ValueError, match="no such file"):
        select_best(BestConfig(benchmarks="/no/such.jsonl"), {"corpus": corpus, "tokenizer": corpus / "bpe"}, tmp_path)
