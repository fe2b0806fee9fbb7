"""Longer contexts behind gates."""

import json

import numpy as np
import pytest
import torch
from pretrain.little import FLAT, MIX, consumed, make_base, make_tokens, settings
from pretrain.test_needle import Copier

from herder.convert import load
from herder.pretrain import ContextConfig, Gate, NeedleConfig, extend_context, needle_test
from herder.pretrain.context import Found, refusal
from herder.pretrain.scores import Beyond, read_scores
from herder.records import Measure
from herder.train import Stage, TokenShards
from herder.train.meter import read_metrics

NEEDLE = NeedleConfig(lengths=(1.0,), depths=(0.0, 1.0))
OPEN = Gate(short_margin=1.0, beyond_margin=None, min_needle=0.0)


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    root = tmp_path_factory.mktemp("context")
    make_tokens(root)
    make_base(root)
    return root


def config(gate, steps=6, **more):
    stage = Stage(steps, 4, 128, MIX)
    return ContextConfig(settings(FLAT), stage, gate, needle=NEEDLE, beyond_tokens=2000, **more)


def inputs(little):
    return {"base": little / "base", "tokens": little / "tokens"}


@pytest.fixture(scope="module")
def longer(little, tmp_path_factory):
    out = tmp_path_factory.mktemp("longer")
    return out, extend_context(config(OPEN), inputs(little), out)


def test_the_longer_model_goes_on_from_the_state_and_the_data_before(little, longer):
    out, numbers = longer
    model, _ = load(out)
    assert (numbers["context"], numbers["rounds"], model.config.max_seq_len) == (128, 1, 128)
    before, after = consumed(little / "base"), consumed(out)
    assert sum(after.values()) - sum(before.values()) == 6 * 4 * 128
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(6))
    assert rows[0]["loss"] < 4.8  # a fresh model starts at log 512 = 6.2
    assert (out / "final").is_dir()
    assert not (out / "round-0" / "final").exists()


def test_scores_before_are_those_of_the_step_before_and_pairs_are_of_the_same_documents(little, longer):
    out, numbers = longer
    assert numbers["short_before"].value == pytest.approx(numbers["short_after"].value - numbers["gate_short"].value)
    nats, size = read_scores(little / "base")
    assert numbers["short_before"].value == pytest.approx(nats.sum() / np.log(2) / sum(size))
    width = numbers["gate_short"].high - numbers["gate_short"].low
    assert width < (numbers["short_after"].high - numbers["short_after"].low) / 2
    titles = [table["title"] for table in json.loads((out / "comparison.json").read_text())]
    assert len(titles) == 3
    assert "needles found" in titles[2]


def test_a_finished_step_that_was_killed_before_its_record_is_not_trained_again(little, longer):
    out, numbers = longer
    stamp = (out / "final").stat().st_mtime_ns
    again = extend_context(config(OPEN), inputs(little), out)
    assert (out / "final").stat().st_mtime_ns == stamp
    assert again == numbers


def test_a_stage_that_fails_is_trained_on_and_then_refused_naming_the_score(little, tmp_path):
    strict = Gate(short_margin=1.0, beyond_margin=None, min_needle=1.0)
    says = r"128 tokens does not pass its gate after 10 steps: needles found are 0\.0% .* where 100% are asked for"
    with pytest.raises(ValueError, match=says):
        extend_context(config(strict, steps=4, extra_rounds=2, extra_steps=3), inputs(little), tmp_path)
    tokens = [read_metrics(tmp_path / f"round-{n}" / "metrics.jsonl")[-1]["tokens"] for n in range(3)]
    assert tokens == [4 * 512, 3 * 512, 3 * 512]
    first, second = (tmp_path / f"round-{n}" / "metrics.jsonl" for n in (1, 2))
    assert first.read_text() != second.read_text()  # each round goes on with other data
    assert not (tmp_path / "model").exists()


def test_a_known_good_retriever_passes_the_gate_and_a_broken_one_does_not(tok, corpus):
    hay = [tok.encode(text[:1200]) for text in corpus]
    level = Measure.mean([0.0, 0.01, -0.01])
    for reach, passes in ((10**9, True), (60, False)):
        found = needle_test(Copier(tok, 512, reach), hay, NeedleConfig())
        said = refusal(Gate(), Found(level, level, found.score))
        assert (said == "") is passes
        assert passes or "needles found are 25.0%" in said


@pytest.mark.parametrize(
    ("short", "beyond", "gate", "says"),
    [
        ((0.02, 0.01), (0.0, 0.1), Gate(min_needle=0.0), "short rows are worse by 0.020"),
        ((0.02, 0.03), (0.0, 0.1), Gate(min_needle=0.0), ""),  # within the interval
        ((0.02, 0.01), (0.0, 0.1), Gate(short_margin=0.03, min_needle=0.0), ""),
        ((-0.2, 0.01), (0.3, 0.1), Gate(min_needle=0.0), "beyond the old context cost more .* 0.300"),
        ((-0.2, 0.01), (0.3, 0.4), Gate(min_needle=0.0), ""),
        ((-0.2, 0.01), (0.3, 0.1), Gate(beyond_margin=None, min_needle=0.0), ""),
    ],
)
def test_the_gate_names_the_score_that_fails(short, beyond, gate, says):
    import re

    found = Found(*(Measure(v, 9, v - half, v + half) for v, half in (short, beyond)), Measure.share(0, 5))
    said = refusal(gate, found)
    assert re.search(says, said) if says else said == ""


def test_losses_beyond_are_those_of_the_documents_own_tokens(little, longer):
    out, _ = longer
    model, _ = load(out)
    shards = TokenShards(little / "tokens" / "heldout")
    found = Beyond(shards, 64, 128, 10**6).nats(model)
    long = [shards.sources["code"].document(i) for i in range(shards.sources["code"].n_documents)]
    long = [torch.tensor(d[:129].astype(np.int64)) for d in long if len(d) > 128]
    assert len(found) == len(long)
    for ids, (before, beyond) in list(zip(long, found, strict=True))[:5]:
        logits = model(ids[None, :-1])[0].detach().log_softmax(-1)
        nats = -logits.gather(-1, ids[1:, None])[:, 0]
        assert before == pytest.approx(float(nats[32:64].mean()), abs=1e-4)
        assert beyond == pytest.approx(float(nats[64:].mean()), abs=1e-4)


def test_what_cannot_be_extended_gets_a_sentence(little, tmp_path):
    short = ContextConfig(settings(FLAT), Stage(1, 1, 64, MIX))
    with pytest.raises(ValueError, match="the model has learned rows of 64 already"):
        extend_context(short, inputs(little), tmp_path)
    with pytest.raises(ValueError, match=r"no held-out document has more than 4160 tokens"):
        Beyond(TokenShards(little / "tokens" / "heldout"), 4096, 8192, 10)
    with pytest.raises(ValueError, match="extra_steps is 0"):
        ContextConfig(settings(FLAT), Stage(1, 1, 64, MIX), extra_rounds=1)
