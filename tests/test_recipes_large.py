"""The recipes of the published sizes without running them, and the one for one to eight GPUs run with small literals."""

import json
import shlex
from pathlib import Path

import pytest

from herder.convert import load
from herder.recipes import build
from herder.recipes._trainings import dry_run, trainings
from herder.steps import execute, ordered

PARAMETERS = {"8b": 8_030_261_248, "70b": 70_553_706_496, "405b": 405_853_388_800}


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_dry_run_counts_the_published_parameters_and_every_stage_fits(size):
    lines, refused = dry_run(*build(f"llama3_{size}", []))
    assert f"parameters {PARAMETERS[size]:,}" in lines
    assert refused == []
    assert sum("GB a rank" in line for line in lines) == 3 + 6 + 1


def test_the_405b_has_the_papers_ramp_schedule_and_contexts():
    config, last = build("llama3_405b", [])
    first, second, third = config.pretrain.stages
    assert (first.steps, first.tokens_per_step, first.seq_len) == (60, 2**22, 4096)
    assert (second.tokens_per_step, second.seq_len) == (2**23, 8192)
    assert first.steps * 2**22 + second.steps * 2**23 == pytest.approx(2.87e12, abs=2**23)
    assert third.tokens_per_step == 2**24
    optim = config.pretrain.train.optim
    assert (optim.lr, optim.warmup_steps) == (8e-5, 8000)
    assert optim.lr * optim.scale(7_999, 0) == 8e-5
    assert optim.lr * optim.scale(1_200_000, 0) == pytest.approx(8e-7)
    contexts = [context.stage for context in config.contexts]
    assert len(contexts) == 6
    assert contexts[-1].seq_len == 131_072
    assert sum(stage.steps * stage.tokens_per_step for stage in contexts) == pytest.approx(800e9, rel=1e-3)
    assert sum(s.steps * s.tokens_per_step for t in trainings(last) for s in t.stages) == pytest.approx(
        15.6e12, rel=1e-4
    )
    annealed = config.anneal.stage.steps * config.anneal.stage.tokens_per_step
    assert annealed == pytest.approx(40e6, rel=0.2)  # whole steps of 16.8M


def test_learning_rates_go_on_where_pre_training_ends_and_fall_to_nothing():
    config, _ = build("llama3_405b", [])
    steps = sum(stage.steps for stage in config.pretrain.stages)
    start, end = config.pretrain.train.optim, config.contexts[0].train.optim
    assert end.lr * end.scale(0, 100) == end.lr * end.scale(99, 100) == start.lr * start.scale(steps, steps)
    falling = config.anneal.train.optim
    assert falling.lr * falling.scale(0, 2) == end.lr
    assert falling.scale(2, 2) == 0


def test_a_layout_that_cannot_run_is_named_by_its_stage():
    _, refused = dry_run(*build("llama3_70b", ["gpus=64"]))
    assert "3_pretrain/base, rows of 8,192" in refused[0]
    assert "GB on a rank" in refused[0]
    _, refused = dry_run(*build("llama3_405b", ["gpus=100"]))
    assert "does not divide the 100 processes" in refused[0]


@pytest.mark.parametrize("name", ["llama3_8b", "llama_1b"])
def test_without_data_nothing_is_run_and_the_mend_is_said(name, tmp_path):
    config, last = build(name, [])
    with pytest.raises(ValueError, match="--set data=FOLDER"):
        execute(name, config, last, tmp_path)


TINY = shlex.split("""
curate.heldout_share=0.2 tokenizer.vocab_size=320 tokenizer.n_special=16 pretrain.model.vocab_size=320 pretrain.model.dim=64
pretrain.model.n_layers=2 pretrain.model.n_kv_heads=2 pretrain.model.n_heads=4 pretrain.model.head_dim=16
pretrain.model.ffn_dim=128 pretrain.stages.0.steps=10 pretrain.stages.0.rows=4
pretrain.stages.0.seq_len=64 pretrain.stages.1.steps=10 pretrain.stages.1.rows=8 pretrain.stages.1.seq_len=64
pretrain.train.optim.lr=1e-2 pretrain.train.optim.warmup_steps=2 pretrain.heldout_tokens=2000 compression.max_documents=8
workers=1
""")


@pytest.mark.long
def test_the_first_20_steps_of_the_1b_recipe_run_from_a_folder_of_text_to_an_export(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))[:50]:
        (folder / path.name).write_text(path.read_text(encoding="utf-8", errors="replace")[:20_000], encoding="utf-8")
    settings = [f"data={folder}", *TINY]
    config, last = build("llama_1b", settings)
    execute("llama_1b", config, last, tmp_path / "runs", None, settings)
    steps = {step.name: tmp_path / "runs" / step.address for step in ordered(last)}
    rows = [json.loads(line) for line in (steps["3_pretrain/base"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(20))
    assert rows[-1]["tokens"] == 10 * 4 * 64 + 10 * 8 * 64
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    exported, tokenizer = load(steps["6_export/model"] / "gguf")
    assert exported.config.n_layers == 2
    assert tokenizer.n_vocab == 320
