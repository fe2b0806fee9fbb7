"""Annealing to zero, averaging, and the probe that ranks data sets."""

import json
import random
from dataclasses import replace

import pytest
import torch
from pretrain.little import FLAT, MIX, OPTIM, consumed, make_base, make_tokens, pieces, settings

from herder.convert import TrainedCheckpoint, load
from herder.pretrain import AnnealConfig, ProbeConfig, anneal, average, probe
from herder.pretrain.probe import ranking
from herder.pretrain.scores import bits_per_byte, read_scores
from herder.tokenizer import Tokenizer
from herder.train import OptimConfig, Stage, TokenShards, write_shards
from herder.train.checkpoint import checkpoints
from herder.train.meter import read_metrics

HIGH = OptimConfig(kind="muon", lr=2e-2, lr_muon=5e-2, warmup_steps=5, lr_final=1.0, decay="linear")
"""A level rate so high that its noise, not the number of steps, is what holds the model back."""
TO_ZERO = replace(HIGH, warmup_steps=0, lr_final=0.0)
STAGE = Stage(12, 8, 64, {"code": 0.5, "more": 0.2, "best_code": 0.3})


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    root = tmp_path_factory.mktemp("anneal")
    tokenizer = make_tokens(root, heldout_size=400)
    make_base(root, 120, HIGH)
    best = [("best_code", tokenizer.decode(d)) for d in documents(root)[:8]]
    write_shards(best, tokenizer, root / "best" / "train")
    return root


def documents(root):
    source = TokenShards(root / "tokens" / "train").sources["code"]
    return [source.document(i).tolist() for i in range(source.n_documents)]


def inputs(little):
    return {"base": little / "base", "tokens": little / "tokens", "best": little / "best"}


@pytest.fixture(scope="module")
def annealed(little, tmp_path_factory):
    out = tmp_path_factory.mktemp("annealed")
    config = AnnealConfig(
        settings(TO_ZERO, snapshot_every=2), STAGE, average_last=3, average_decay=0.5, control=True, control_mix=MIX
    )  # fmt: skip
    return out, anneal(config, inputs(little), out)


def test_the_learning_rate_falls_on_a_line_to_zero(annealed):
    out, _ = annealed
    rates = [row["lr"] for row in read_metrics(out / "metrics.jsonl")]
    assert rates == pytest.approx([TO_ZERO.lr * (12 - step) / 12 for step in range(12)], abs=1e-6)
    control = {row["lr"] for row in read_metrics(out / "control" / "metrics.jsonl")}
    assert control == {TO_ZERO.lr}


def test_the_model_is_the_weighted_mean_of_the_newest_states(little, annealed):
    out, numbers = annealed
    base, tokenizer = load(little / "base")
    states = [TrainedCheckpoint(p, base.config, tokenizer) for p in checkpoints(out / "snapshots")[-3:]]
    assert [p.name for p in checkpoints(out / "snapshots")[-3:]] == ["step-00000008", "step-00000010", "step-00000012"]
    model, _ = load(out)
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = sum(w * s.tensor(name) for w, s in zip((1 / 7, 2 / 7, 4 / 7), states, strict=True))
    assert torch.allclose(model.get_parameter(name), wanted, atol=1e-7)
    assert numbers["averaged_states"] == 3
    last, _ = load(average(states[-1:]))
    final, _ = load(TrainedCheckpoint(out / "final", base.config, tokenizer))
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), final.parameters(), strict=True))


def test_the_gain_is_told_against_a_control_of_the_same_tokens(annealed):
    out, numbers = annealed
    rows = [json.loads(line) for line in (out / "control" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["tokens"] == 12 * 8 * 64
    gain = numbers["averaged_less_control"]
    assert gain.value == pytest.approx(numbers["heldout_bits_per_byte"].value - numbers["control"].value, abs=1e-9)
    assert gain.high < 0  # annealing is worth more than as many tokens at a level rate
    before = numbers["heldout_bits_per_byte"].value - numbers["before"].value
    assert numbers["averaged_less_before"].value == pytest.approx(before, abs=2e-3)
    titles = [table["title"] for table in json.loads((out / "comparison.json").read_text())]
    assert [t.startswith("Annealing") for t in titles] == [True, True]


def test_consumed_holds_the_upsampled_source_too(little, annealed):
    out, _ = annealed
    before, after = consumed(little / "base"), consumed(out)
    assert sum(after.values()) - sum(before.values()) == 12 * 8 * 64
    assert after["best_code"] == pytest.approx(0.3 * 12 * 8 * 64, abs=2 * 64)


def test_what_is_no_annealing_is_refused():
    with pytest.raises(ValueError, match="linearly to 0"):
        AnnealConfig(settings(FLAT, snapshot_every=2), STAGE, 1)
    with pytest.raises(ValueError, match=r"average_last is 5, but 12 steps with train\.snapshot_every=4 leave 3"):
        AnnealConfig(settings(TO_ZERO, snapshot_every=4), STAGE, 5)
    with pytest.raises(ValueError, match="the probe anneals"):
        ProbeConfig(settings(OPTIM), STAGE)


def test_sets_are_ranked_by_their_gain_over_the_control():
    import numpy as np

    nats = {
        "control": [10.0, 20.0, 30.0],
        "good": [9.0, 19.0, 28.0],
        "bad": [12.0, 22.0, 31.0],
        "same": [10.0, 20.0, 30.0],
    }
    found = ranking({name: (np.array(n), [10, 20, 30]) for name, n in nats.items()})
    assert list(found) == ["good", "same", "bad"]
    assert found["good"].low > 0 > found["bad"].high
    assert (found["same"].low, found["same"].high) == (0.0, 0.0)


@pytest.mark.long
def test_the_probe_ranks_real_text_above_shuffled_words(little, tmp_path):
    """New modules of the standard library against the same words in random order; the control is the ordinary mix."""
    import difflib
    import optparse
    import tarfile

    tokenizer = Tokenizer.load(little / "bpe")
    real = pieces([optparse, difflib, tarfile])
    draw = random.Random(0)
    shuffled = [" ".join(draw.sample(words, len(words))) for words in (text.split(" ") for text in real)]
    for name, texts in (("real", real), ("shuffled", shuffled)):
        write_shards([("code", text) for text in texts], tokenizer, little / name / "train")
    sets = {"set_real": little / "real", "set_shuffled": little / "shuffled"}
    stage = replace(STAGE, steps=80, mix=MIX)
    numbers = probe(ProbeConfig(settings(TO_ZERO), stage, heldout_tokens=20_000), inputs(little) | sets, tmp_path)
    assert numbers["best"] == "real"
    assert numbers["gain_real"].low > numbers["gain_shuffled"].high
    assert numbers["gain_real"].low > 0
    ranked = json.loads((tmp_path / "ranking.json").read_text())
    assert list(ranked) == ["real", "shuffled"]
    assert not list(tmp_path.glob("*/final"))
    control = bits_per_byte(*read_scores(tmp_path / "control"))
    assert numbers["bits_per_byte_control"] == control
