"""`herder plan` on the command line: what it prints, and that bad input ends in a sentence and exit code 2."""

import json
import sys

import pytest

from herder import cli


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["herder", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_row_2_of_table_4_as_json(monkeypatch, capsys):
    """41% MFU are printed for it; the plan has not been fitted on it."""
    asked = ["--gpus", "16384", "--gpu", "h100", "--layout", "tp=8,cp=1,pp=16,dp=128", "--seq", "8192", "--json"]
    code, out, _ = call(monkeypatch, capsys, "llama3.1-405b", *asked)
    told = json.loads(out)
    assert code == 0
    assert told["mfu"] == pytest.approx(0.404, abs=0.015)
    assert told["memory_per_rank_bytes"] < 80e9
    assert told["step_seconds"] == pytest.approx(2**24 / told["tokens_per_second"])
    assert told["faults"]["effective"] > 0.9
    assert {"restart_seconds", "checkpoint_seconds", "checkpoint_every_seconds"} <= told["faults"].keys()


def test_a_recipe_is_planned_with_its_own_shape_batch_and_tokens(monkeypatch, capsys):
    _, out, _ = call(monkeypatch, capsys, "miniature", "--gpus", "1", "--set", "pretrain.stages.0.steps=100", "--json")
    told = json.loads(out)
    assert (told["parameters"], told["seq_len"], told["tokens_per_batch"]) == (3_221_952, 256, 2048)
    assert told["tokens"] >= 100 * 2048


def test_what_is_said_about_carbon_is_an_input(monkeypatch, capsys):
    asked = ["llama3.1-8b", "--gpus", "64", "--tokens", "1e12", "--json", "--carbon"]
    clean, dirty = (
        json.loads(call(monkeypatch, capsys, *asked, kg)[1])["cost"]["carbon_tons"] for kg in ("0.1", "0.4")
    )
    assert dirty == pytest.approx(4 * clean)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["llama3.1-405b", "--gpus", "1"], "needs 8120.1 GB on a rank, a h100 has 80"),
        (["llama3.1-8b", "--gpus", "0"], "gpus is 0"),
        (["llama3.1-8b", "--gpus", "8", "--gpu", "h1000"], "unknown GPU 'h1000'; known are a100"),
        (["llama3.1-8b", "--gpus", "8", "--layout", "tp=3,dp=2"], "is 6, not 8 GPUs"),
        (["llama3.1-8b", "--gpus", "6", "--layout", "tp=3,dp=2"], "n_heads 32 is not divisible by tp 3"),
        (["llama3.1-8b", "--gpus", "64", "--layout", "pp=64"], "32 layers are fewer than the pp = 64 stages"),
        (["llama3.1-8b", "--gpus", "8", "--seq", "8200", "--batch", "65600", "--layout", "cp=8"], "2 x cp = 16"),
        (["llama3.1-8b", "--gpus", "8", "--layout", "dp=x"], "layout part dp = 'x' is not a whole number"),
        (["llama3.1-8b", "--gpus", "8", "--gpu", "a100", "--fp8"], "a100 has no fp8"),
        (["smollm2", "--gpus", "8"], "smollm2 trains no base model"),
        (["llama9", "--gpus", "8"], "'llama9' is neither a recipe nor a shape"),
    ],
)
def test_bad_input_ends_in_a_sentence(monkeypatch, capsys, asked, says):
    code, out, err = call(monkeypatch, capsys, *asked)
    assert code == 2
    assert says in err
    assert "Traceback" not in out + err
