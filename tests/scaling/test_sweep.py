"""A sweep's points, its forecast against a known loss form, and the comparison with the truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from train.toy import Words, documents

from herder.convert import load
from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig
from herder.records import Measure
from herder.scaling.mix import MixChoice, MixConfig, choose_mix, compare_mixes, mix_search
from herder.scaling.mixing import lattice
from herder.scaling.sweep import Budget, SweepConfig, check, forecast, points, sweep, train_point, training_flops
from herder.steps import Step, ordered
from herder.tokenizer import train as train_tokenizer
from herder.train import Layout, OptimConfig, Stage, TokenShards, TrainConfig, write_shards
from herder.train.heldout import HeldOut

BASE = LlamaConfig(300, 64, 3, 4, 2, 160, max_seq_len=64, tie_embeddings=True)
SMALL = {
    "dim16": replace(BASE, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=0, ffn_dim=48),
    "dim32": replace(BASE, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=0, ffn_dim=96),
}
MIX = {"a": 0.5, "b": 0.25, "c": 0.25}
TRAIN = TrainConfig(
    OptimConfig(lr=1e-2, warmup_steps=9, lr_final=0.2, decay="linear", decay_steps=7000),
    dtype="float32",
    device="cpu",
    layout=Layout(micro_batch=4, shard=1),
)
TARGET = PretrainConfig(
    BASE, TRAIN, (Stage(1000, 4, 16, {"a": 1.0, "b": 1.0}), Stage(500, 4, 32, {"c": 1.0})), heldout_tokens=10_000
)
SWEEP = SweepConfig(
    shapes={name: replace(s, vocab_size=999) for name, s in SMALL.items()},
    budgets=(Budget(1 / 200, 2, ("dim16", "dim32")), Budget(1 / 50, 4, ("dim16", "dim32"))),
    lr=1e-2,
    lr_muon=1e-2,
    lr_exponent=0.25,
    warmup_share=0.1,
)


def test_points_spend_their_share_with_the_target_s_vocabulary_and_mix_biggest_first():
    found = points(SWEEP, TARGET)
    assert len(found) == 4
    shares = [training_flops(run) / training_flops(TARGET) for run in found.values()]
    assert shares == pytest.approx([1 / 50, 1 / 50, 1 / 200, 1 / 200], rel=0.03)
    assert [run.model.dim for run in found.values()] == [32, 16, 32, 16]
    assert {run.model.vocab_size for run in found.values()} == {300}
    stage = next(iter(found.values())).stages[0]
    assert stage.mix == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})
    assert (stage.rows, stage.seq_len) == (4, 32)


def test_peaks_fall_with_size_by_the_exponent_and_warm_up_is_a_share():
    large, small = list(points(SWEEP, TARGET).values())[:2]
    ratio = (large.model.n_params / small.model.n_params) ** -0.25
    assert small.train.optim.lr == 1e-2
    assert large.train.optim.lr == pytest.approx(1e-2 * ratio)
    assert large.train.optim.warmup_steps == round(0.1 * large.stages[0].steps)
    assert (large.train.optim.lr_final, large.train.optim.decay) == (TRAIN.optim.lr_final, TRAIN.optim.decay)


def test_the_forecast_needs_every_point_and_not_the_target():
    nothing = Step("tokens", train_point, None)
    last = sweep(SWEEP, TARGET, {"tokens": nothing, "tokenizer": nothing}, "3_scaling")
    assert len(last.inputs) == 4
    assert {s.name for s in ordered([last])} == {
        "tokens",
        "3_scaling/forecast",
        *(f"3_scaling/{n}" for n in last.inputs),
    }
    assert last.config.flops == training_flops(TARGET)
    assert last.config.tokens == 1000 * 4 * 32  # 1,000 steps of 4 x 16 and 500 of 4 x 32


def test_literals_that_make_no_sweep_are_refused():
    with pytest.raises(ValueError, match="must be a part of the target's"):
        Budget(1.5, 2, ("dim16",))
    with pytest.raises(ValueError, match="names the shape 'dim99'"):
        replace(SWEEP, budgets=(Budget(0.1, 2, ("dim99",)),))


def loss_of(params, tokens):
    return 2.0 + 400 * params**-0.4 + 400 * tokens**-0.4


def write_points(folder, noise=0.0, budgets=(1e11, 2.5e11, 6e11, 1.5e12), bits=0.5):
    rng, inputs = np.random.default_rng(1), {}
    for number, flops in enumerate(b for b in budgets for _ in range(4)):
        tokens = (flops / 6) ** 0.5 * 2.0 ** (number % 4 - 1.5)  # the form is symmetric: as many parameters as tokens
        params = flops / 6 / tokens
        loss = loss_of(params, tokens) + rng.normal(0, noise)
        row = {"params": params, "tokens": tokens, "flops": flops, "loss": loss}
        inputs[str(number)] = folder / str(number)
        inputs[str(number)].mkdir(parents=True)
        row["bits_per_byte"] = Measure(bits * loss, 9, unit="bits per byte").to_json()
        (inputs[str(number)] / "point.json").write_text(json.dumps(row))
    return inputs


PLANNED = sweep(SWEEP, TARGET, {}, "s").config


def test_the_forecast_of_a_known_form_covers_the_truth_in_nats_and_bits(tmp_path):
    planned = replace(PLANNED, params=3_000_000, tokens=2_000_000, flops=3.6e13)
    numbers = forecast(planned, write_points(tmp_path, noise=0.003), tmp_path)
    truth = loss_of(3e6, 2e6)
    assert numbers["forecast_loss"].low < truth < numbers["forecast_loss"].high
    assert numbers["forecast_bits_per_byte"].value == pytest.approx(0.5 * numbers["forecast_loss"].value)
    assert numbers["times_largest_point"] == pytest.approx(24)
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["times_optimal"] for row in found["overtraining"]["rows"]][-1] == 100
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 16
    assert (tmp_path / "scaling.png").exists()


def test_points_that_make_no_law_are_told_and_do_not_end_the_run(tmp_path):
    numbers = forecast(PLANNED, write_points(tmp_path, budgets=(1e11,)), tmp_path)
    assert "2 budgets" in numbers["law_refused"]
    assert "8 points" in numbers["forecast_refused"]
    (tmp_path / "step.json").write_text(json.dumps({"numbers": {"heldout_bits_per_byte": Measure(2.0).to_json()}}))
    assert "8 points" in check(None, {"forecast": tmp_path, "base": tmp_path}, tmp_path)["forecast_refused"]


@pytest.mark.parametrize(("truth", "said"), [(2.02, "inside"), (2.2, "OUTSIDE")])
def test_the_check_says_whether_the_truth_lies_inside(tmp_path, truth, said):
    target = {"bits_per_byte": Measure(2.0, 16, 1.95, 2.05).to_json(), "best_point": 2.4, "times_largest_point": 20.0}
    (tmp_path / "scaling.json").write_text(json.dumps({"target": target}))
    measure = Measure(truth, 200, truth - 0.3, truth + 0.3, "bits per byte").to_json()
    (tmp_path / "step.json").write_text(json.dumps({"numbers": {"heldout_bits_per_byte": measure}}))
    numbers = check(None, {"forecast": tmp_path, "base": tmp_path}, tmp_path)
    assert numbers["truth_inside"] == said
    assert numbers["error"] == pytest.approx(truth / 2 - 1)
    table = json.loads((tmp_path / "comparison.json").read_text())[0]
    assert said in table["rows"][1]["note"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(documents(0, 240), Words(), folder / "tokens/train", threads=1)
    write_shards(documents(1, 60), Words(), folder / "tokens/heldout", threads=1)
    texts = [text for _, text in documents(0, 240)]
    train_tokenizer(iter(texts), 290, n_special=12).save(folder / "tokenizer")
    return {"tokens": folder / "tokens", "tokenizer": folder / "tokenizer"}


RUN = PretrainConfig(SMALL["dim16"], TRAIN, (Stage(40, 4, 32, MIX),), heldout_tokens=10_000)


def test_a_point_is_measured_as_its_saved_model_measures(data, tmp_path):
    train_point(RUN, data, tmp_path)
    row = json.loads((tmp_path / "point.json").read_text())
    held = HeldOut(TokenShards(data["tokens"] / "heldout"), 32, 10_000)
    model, _ = load(tmp_path / "model")
    nats = held.nats(model)
    assert row["loss"] == pytest.approx(nats.sum() / held.targets.sum(), rel=1e-4)
    assert row["bits_per_byte"]["value"] == pytest.approx(held(model).value, rel=1e-4)
    assert row["loss"] < 0.9 * np.log(300)  # it has learned: 20 letters of 300 ids
    per_domain = {n: nats[np.array(held.sources) == n].sum() for n in "abc"}
    assert {n: m["value"] * 1.0 for n, m in row["domains"].items()} == pytest.approx(
        {n: per_domain[n] / held.targets[np.array(held.sources) == n].sum() for n in "abc"}, rel=1e-4
    )
    assert row["tokens"] == 40 * 4 * 32
    assert row["flops"] == pytest.approx(row["tokens"] * RUN.model.flops_per_token(16.5))


def test_an_interrupted_point_continues_to_the_same_loss(data, tmp_path, monkeypatch):
    often = replace(RUN, train=replace(TRAIN, checkpoint_seconds=0.0))
    train_point(often, data, tmp_path / "whole")
    calls, plain = [], HeldOut.nats

    def broken(held, model):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return plain(held, model)

    monkeypatch.setattr(HeldOut, "nats", broken)
    with pytest.raises(KeyboardInterrupt):
        train_point(often, data, tmp_path / "cut")
    train_point(often, data, tmp_path / "cut")
    a, b = (json.loads((tmp_path / name / "point.json").read_text()) for name in ("whole", "cut"))
    assert a == b


def test_a_mix_that_a_step_chose_replaces_the_configuration_s(data, tmp_path):
    (tmp_path / "choice").mkdir()
    (tmp_path / "choice/mix.json").write_text(json.dumps({"best": {"a": 0.1, "b": 0.8, "c": 0.1}}))
    train_point(RUN, {**data, "mix": tmp_path / "choice"}, tmp_path / "out")
    assert json.loads((tmp_path / "out/point.json").read_text())["mix"] == pytest.approx({"a": 0.1, "b": 0.8, "c": 0.1})


SEARCH = MixConfig(
    weights=MIX, degree=3, model=SMALL["dim16"], steps=20, rows_per_step=4, check_model=SMALL["dim32"], check_steps=30,
    check_rows_per_step=4, check_seeds=(0, 1),
)  # fmt: skip


def test_the_search_trains_a_lattice_then_default_and_chosen_mix_with_the_same_seeds():
    nothing = Step("tokens", train_point, None)
    last = mix_search(SEARCH, TARGET, {"tokens": nothing, "tokenizer": nothing}, "3_mix")
    assert sorted(last.inputs) == ["choice", "chosen-0", "chosen-1", "default-0", "default-1"]
    choice = last.inputs["choice"]
    assert len([name for name in choice.inputs if name.startswith("mix-")]) == 10
    assert last.inputs["chosen-1"].inputs["mix"] is choice
    assert "mix" not in last.inputs["default-1"].inputs
    assert last.inputs["chosen-1"].config == last.inputs["default-1"].config
    assert last.inputs["chosen-1"].config.seed == 1


def measured_run(folder, nats, mix=MIX):
    """A run's artifact: two held-out documents of each of three domains, of 100 targets each."""
    folder.mkdir(parents=True)
    nats = np.repeat(np.asarray(nats, float), 2) * (1 + 0.01 * np.arange(6))
    np.save(folder / "nats.npy", np.stack([nats, np.full(6, 100.0), np.full(6, 300.0)]))
    domains = {n: Measure(float(nats[2 * i : 2 * i + 2].sum() / 200), 2).to_json() for i, n in enumerate("abc")}
    row = {"mix": mix, "domains": domains, "documents": {"a": 2, "b": 2, "c": 2}}
    (folder / "point.json").write_text(json.dumps(row))
    return folder


def test_the_choice_lies_where_the_runs_were_best_and_keeps_the_bound_on_epochs(data, tmp_path):
    inputs = {"tokens": data["tokens"]}
    for number, mix in enumerate(lattice("abc", 3, 0.02)):
        nats = [100 * (2 + np.exp(-1.5 * mix[n])) for n in "abc"]
        inputs[f"mix-{number}"] = measured_run(tmp_path / str(number), nats, mix)
    size = TokenShards(data["tokens"] / "train").sources["a"].n_tokens
    chosen = MixChoice({"a": 1.0}, MIX, tokens=8 * size, least_share=0.02, max_epochs=4.0)
    numbers = choose_mix(chosen, inputs, tmp_path)
    assert numbers["share_a"].value == pytest.approx(0.5, abs=1e-6)  # half of 8 epochs' tokens is four epochs
    assert numbers["predicted_gain"].value == pytest.approx(0, abs=1e-6)  # the default already has that share
    found = json.loads((tmp_path / "mix.json").read_text())
    assert sum(found["best"].values()) == pytest.approx(1)
    free = choose_mix(replace(chosen, tokens=1), inputs, tmp_path)
    assert free["share_a"].value > 0.9
    assert free["predicted_gain"].low > 0


def test_the_gain_is_told_by_domain_and_over_seeds(tmp_path):
    (tmp_path / "choice").mkdir()
    choice = {"best": MIX, "weights": MIX, "predicted": {"gain": Measure(0.1, 10, 0.0, 0.2).to_json()}}
    (tmp_path / "choice/mix.json").write_text(json.dumps(choice))
    inputs = {"choice": tmp_path / "choice"}
    for seed, gain in ((0, 20.0), (1, 40.0)):
        inputs[f"default-{seed}"] = measured_run(tmp_path / f"default-{seed}", [300, 300, 300])
        inputs[f"chosen-{seed}"] = measured_run(tmp_path / f"chosen-{seed}", [300 - gain, 300, 300])
    numbers = compare_mixes(MixChoice(MIX, MIX, 1, 0.0, 4.0), inputs, tmp_path)
    assert numbers["gain_a"].value == pytest.approx(0.3, rel=0.02)
    assert numbers["gain_b"].value == pytest.approx(0, abs=1e-12)
    assert numbers["gain"].value == pytest.approx(0.15, rel=0.02)
    assert numbers["gain_over_seeds"].value == pytest.approx(numbers["gain"].value)
    assert numbers["gain_over_seeds"].low < 0 < numbers["gain_over_seeds"].high  # two pairs tell little
