"""The recipe that fine-tunes an existing Llama, whole, on one as small as a test: evaluate, tune, evaluate, export."""

import json

import pytest
import torch

from herder.convert import load, save
from herder.model import Llama, LlamaConfig
from herder.recipes import build
from herder.steps import execute, ordered

TINY = (
    "sft.rows_per_step=4",
    "sft.seq_len=128",
    "sft.epochs=8",
    "sft.processes=1",
    "sft.train.optim.lr=1e-2",
    "lora_lr=3e-2",
    "evaluation.max_tokens=8",
    "evaluation.samples=2",
    "dialogues.heldout_share=0.2",
)


@pytest.fixture(scope="module")
def outside(tok, tmp_path_factory):
    """A base model, dialogues and a benchmark, as a user has them."""
    folder = tmp_path_factory.mktemp("outside")
    model = Llama(LlamaConfig(tok.n_vocab, 64, 2, 4, 2, 96, max_seq_len=160)).init_weights(0)
    save(model, tok, folder / "base")
    rows = [{"instruction": f"Say {w} {n}.", "output": f"{w}!"} for n in range(20) for w in ("yes", "no", "so", "go")]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arc = {"id": "1", "question": "What?", "choices": ["this", "that"], "answer": 0}
    (folder / "arc.jsonl").write_text("".join(json.dumps(arc | {"id": str(n)}) + "\n" for n in range(5)))
    return folder


def run(outside, runs, *more):
    settings = [f"base={outside / 'base'}", f"data={outside / 'mine.jsonl'}", *TINY, *more]
    config, last = build("smollm2", settings)
    folder = execute("smollm2", config, last, runs, None, settings)
    return {step.name: runs / step.address for step in ordered(last)}, folder


def numbers(step):
    return json.loads((step / "step.json").read_text())["numbers"]


@pytest.mark.parametrize(("method", "falls_to"), [("full", 0.5), ("lora", 0.95)])
def test_the_recipe_tunes_a_users_model_on_a_users_dialogues_and_exports_it(outside, tmp_path, method, falls_to):
    """Under an adapter the random base's head stays frozen, and with it most of the loss."""
    more = [f"benchmarks.arc_easy={outside / 'arc.jsonl'}", f"method={method}"]
    steps, _ = run(outside, tmp_path, *more, "export=hf", "export_dtype=bf16")
    before, after = (numbers(steps[f"5_evaluate/{when}"])["held-out_answers"]["value"] for when in ("before", "after"))
    assert after < before * falls_to
    assert numbers(steps["5_evaluate/after"])["arc_easy"]["n"] == 5
    tables = json.loads((steps["5_evaluate/after"] / "comparison.json").read_text())
    assert [row["measure"]["value"] for row in tables[0]["rows"]] == [after, before]
    tuned, _ = load(steps["4_posttrain/sft"] / "model")
    exported, _ = load(steps["6_export/model"] / "hf")
    for a, b in zip(tuned.parameters(), exported.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b)
    assert (steps["4_posttrain/sft"] / "adapter" / "adapter_model.safetensors").exists() == (method == "lora")


def test_what_did_not_change_is_reused_and_new_data_is_not_mistaken_for_old(outside, tmp_path):
    first, _ = run(outside, tmp_path, "sft.epochs=1", "export=hf", "export_dtype=f32")
    again, _ = run(outside, tmp_path, "sft.epochs=1", "export=meta", "export_dtype=f32")
    assert {name for name in first if first[name] != again[name]} == {"6_export/model"}
    with open(outside / "mine.jsonl", "a") as file:
        file.write('{"instruction": "Say more.", "output": "more!"}\n')
    changed, _ = run(outside, tmp_path, "sft.epochs=1", "export=hf", "export_dtype=f32")
    assert {name for name in first if first[name] == changed[name]} == {"1_model/base"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("base=no-such-model", "'no-such-model' is no model here"),
        ("data=none.jsonl", "none.jsonl does not exist; give a JSONL"),
        ("benchmarks.arc_easy=none.jsonl", "none.jsonl does not exist"),
        ("benchmarks.arc_hard=none.jsonl", "benchmark 'arc_hard' is unknown; known are arc_easy"),
        ("export=meta", "export_dtype q8_0 is a GGUF type"),
        ("lora.targets=w1", "targets names 'w1'"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_computed(outside, tmp_path, setting, says):
    with pytest.raises(ValueError, match=says):
        run(outside, tmp_path, setting)
    assert not any(tmp_path.rglob("step.json"))
