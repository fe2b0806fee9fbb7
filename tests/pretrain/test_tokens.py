"""From curated documents to a tokenizer, token shards and a base model."""

import json

import pyarrow as pa
import pytest

from herder.convert import load
from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig, TokenizeConfig, TokenizerConfig, pretrain, tokenize, train_tokenizer
from herder.pretrain.tokens import domain_of
from herder.records import Document, Span, write_documents, write_table
from herder.tokenizer import Tokenizer, train
from herder.train import OptimConfig, Stage, TokenShards, TrainConfig


def documents():
    code = "def add(a, b):\n    return a + b\n" * 3
    for i in range(60):
        yield Document(f"e{i}", "", f"The town number {i} lies by the river and has a market of its own. " * 3), "en"
        yield Document(f"f{i}", "", f"La ville numéro {i} se trouve près de la rivière et du marché. " * 3), "fr"
        yield Document(f"c{i}", "", f"add{i}\n\n{code}", spans=[Span(6, 6 + len(code), "code", "python")]), "en"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    found, languages = zip(*documents(), strict=True)
    write_documents(found, folder / "documents" / "part-00000.parquet")
    ids = [d.id for d in found]
    columns = {
        "fate": ["too_short" if d.id == "e0" else "kept" for d in found],
        "split": ["heldout" if int(d.id[1:]) % 10 == 1 else "train" for d in found],
        "language": list(languages),
    }
    for name, values in columns.items():
        write_table(pa.table({"id": ids, name: values}), folder / "attributes" / name / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    for name in ("bpe", "tokens"):
        (out / name).mkdir()
    numbers = train_tokenizer(TokenizerConfig(400, n_special=16), {"corpus": corpus}, out / "bpe")
    more = tokenize(TokenizeConfig(), {"corpus": corpus, "tokenizer": out / "bpe"}, out / "tokens")
    return out, numbers, more


def test_the_tokenizer_has_the_size_asked_for(made):
    out, numbers, _ = made
    assert Tokenizer.load(out / "bpe").n_vocab == numbers["vocab_size"] == 400
    assert numbers["heldout_characters_per_token"] > 1.5


def test_the_extension_is_learned_on_the_other_languages_and_leaves_the_first_part_as_it_was(corpus, tmp_path):
    numbers, tokenizers = {}, {}
    for share in (0.0, 0.125):
        out = tmp_path / str(share)
        config = TokenizerConfig(336, n_special=16, extension_share=share)
        numbers[share] = train_tokenizer(config, {"corpus": corpus}, out)["extension_tokens"]
        tokenizers[share] = Tokenizer.load(out)
    assert numbers == {0.0: 0, 0.125: 40}
    whole = [d.text for d, _ in documents() if d.id != "e0" and int(d.id[1:]) % 10 != 1]
    english = train([t for t in whole if not t.startswith("La ville")], 336 - 40, n_special=16)
    two_parts = list(tokenizers[0.125].ranks)
    assert two_parts[:280] == list(english.ranks)
    assert any("é".encode() in token for token in two_parts[280:])
    assert list(tokenizers[0.0].ranks) != two_parts


def test_a_corpus_with_too_little_in_other_languages_gets_one_part(corpus, tmp_path):
    config = TokenizerConfig(400, n_special=16, extension_share=0.4)  # 154 ids from some 3,500 characters
    assert train_tokenizer(config, {"corpus": corpus}, tmp_path)["extension_tokens"] == 0
    with pytest.raises(ValueError, match=r"extension_share is 1\.0"):
        TokenizerConfig(400, extension_share=1.0)


def test_documents_go_to_the_shards_of_their_domain_and_split(made):
    out, _, numbers = made
    train, heldout = (TokenShards(out / "tokens" / s).sources for s in ("train", "heldout"))
    assert {n: s.n_documents for n, s in train.items()} == {"general": 53, "multilingual": 54, "code": 54}
    assert {n: s.n_documents for n, s in heldout.items()} == {"general": 6, "multilingual": 6, "code": 6}
    tokenizer = Tokenizer.load(out / "bpe")
    assert tokenizer.decode(train["multilingual"].document(0)[1:-1].tolist()).startswith("La ville numéro")
    assert numbers["train_tokens"] == sum(s.n_tokens for s in train.values())
    ledger = json.loads((out / "tokens" / "ledger.json").read_text())
    assert sum(row["documents"] for row in ledger) == 161


def test_code_is_told_by_its_share_of_characters():
    text = "x" * 100
    some, much = [Span(0, 20, "code")], [Span(0, 40, "code")]
    config = TokenizeConfig(code_share=0.3)
    assert domain_of(Document("a", "", text, spans=some), "en", config) == "general"
    assert domain_of(Document("a", "", text, spans=much), "fr", config) == "code"
    assert domain_of(Document("a", "", text), "fr", config) == "multilingual"


def test_a_base_model_is_trained_and_says_what_it_consumed(made, tmp_path):
    out, _, _ = made
    config = PretrainConfig(
        model=LlamaConfig(400, 32, 2, 4, 2, 48, max_seq_len=64),
        train=TrainConfig(OptimConfig(kind="muon", lr=1e-2, warmup_steps=5), device="cpu", heldout_every=20),
        stages=(Stage(60, 4, 64, {"general": 0.5, "code": 0.25, "multilingual": 0.25, "maths": 0.3}),),
        optional_sources=True,
    )
    numbers = pretrain(config, {"tokens": out / "tokens", "tokenizer": out / "bpe"}, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = [row["heldout_bits_per_byte"] for row in rows if "heldout_bits_per_byte" in row]
    assert len(curve) == 3
    assert curve[-1] < curve[0] < 8
    assert numbers["heldout_bits_per_byte"].n == 18
    mixture = json.loads((tmp_path / "mixture.json").read_text())
    assert mixture["general"]["realised"] == pytest.approx(0.5, abs=0.01)
    consumed = json.loads((tmp_path / "consumed.json").read_text())["tokens"]
    assert sum(consumed.values()) == 60 * 4 * 64
    assert load(tmp_path)[0].config == config.model


def test_a_model_smaller_than_its_tokenizer_is_refused(made, tmp_path):
    out, _, _ = made
    config = PretrainConfig(LlamaConfig(100, 32, 2, 4, 2, 48), TrainConfig(), (Stage(1, 1, 8, {"general": 1.0}),))
    with pytest.raises(ValueError, match=r"model\.vocab_size 100 is below the tokenizer's 400"):
        pretrain(config, {"tokens": out / "tokens", "tokenizer": out / "bpe"}, tmp_path)


def test_a_corpus_without_training_text_is_refused(tmp_path):
    write_documents([Document("a", "", "x")], tmp_path / "documents" / "p.parquet")
    for name in ("fate", "split", "language"):
        write_table(pa.table({"id": ["a"], name: ["too_short"]}), tmp_path / "attributes" / name / "p.parquet")
    with pytest.raises(ValueError, match="kept no training document"):
        train_tokenizer(TokenizerConfig(400, 16), {"corpus": tmp_path}, tmp_path / "bpe")
