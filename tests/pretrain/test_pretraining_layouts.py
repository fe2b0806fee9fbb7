"""Every step of pre-training under layouts that cut the model: what it exports and measures is what one process would."""

from dataclasses import replace

import pytest
from pretrain.little import HELDOUT, MIX, SHAPE, make_tokens, settings

from herder.convert import load
from herder.pretrain import (
    AnnealConfig,
    ContextConfig,
    Gate,
    NeedleConfig,
    PretrainConfig,
    anneal,
    extend_context,
    pretrain,
)
from herder.train import Layout, OptimConfig, Stage, TokenShards
from herder.train.heldout import HeldOut

ADAMW = OptimConfig(lr=4e-3, warmup_steps=2, lr_final=1.0, decay="linear")
CUT = {"fsdp": Layout(micro_batch=4), "tp": Layout(tp=2, micro_batch=4)}


def on(layout, optim, **more):
    return replace(settings(optim, dtype="float32", **more), layout=layout)


@pytest.mark.long
@pytest.mark.parametrize("name", list(CUT))
def test_base_longer_context_and_annealing_under_a_layout(name, tmp_path):
    layout = CUT[name]
    make_tokens(tmp_path)
    inputs = {"tokens": tmp_path / "tokens", "tokenizer": tmp_path / "bpe"}
    stages = (Stage(12, 8, 32, MIX), Stage(12, 8, 64, MIX))
    config = PretrainConfig(SHAPE, on(layout, ADAMW), stages, heldout_tokens=HELDOUT, processes=2)
    found = {}
    for step in ("alone", "base", "longer", "annealed"):
        (tmp_path / step).mkdir()
    alone = replace(config, train=on(Layout(micro_batch=4, shard=1), ADAMW), processes=1)
    one = pretrain(alone, inputs, tmp_path / "alone")["heldout_bits_per_byte"]
    found["base"] = pretrain(config, inputs, tmp_path / "base")
    assert found["base"]["heldout_bits_per_byte"].value == pytest.approx(one.value, abs=2e-3)
    longer = ContextConfig(
        on(layout, replace(ADAMW, warmup_steps=0)),
        Stage(3, 4, 128, MIX),
        Gate(1.0, None, 0.0),
        needle=NeedleConfig((1.0,), (0.5,)),
        beyond_tokens=2000,
        processes=2,
    )
    found["longer"] = extend_context(longer, {"base": tmp_path / "base", **inputs}, tmp_path / "longer")
    optim = replace(ADAMW, warmup_steps=0, lr_final=0.0)
    annealing = AnnealConfig(on(layout, optim, snapshot_every=1), Stage(4, 4, 128, MIX), average_last=2, processes=2)
    found["annealed"] = anneal(annealing, {"base": tmp_path / "longer", **inputs}, tmp_path / "annealed")
    heldout = TokenShards(tmp_path / "tokens" / "heldout")
    for step, rows in (("base", 64), ("longer", 128), ("annealed", 128)):
        model, _ = load(tmp_path / step)
        assert found[step]["heldout_bits_per_byte"].value == pytest.approx(
            HeldOut(heldout, rows, HELDOUT)(model).value, abs=1e-4
        )
