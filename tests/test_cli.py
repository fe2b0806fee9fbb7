"""The command line: sentences and exit codes."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest

TOY = textwrap.dedent("""
    from dataclasses import dataclass
    from herder.steps import Step

    @dataclass(frozen=True)
    class Config:
        lr: float = 1e-3
        fail: str = ""

    def work(config, inputs, out):
        if config.fail == "disk":
            raise OSError(28, "No space left on device")
        if config.fail == "bug":
            raise RuntimeError("a bug")
        if config.fail == "interrupt":
            raise KeyboardInterrupt
        return {"lr": config.lr}

    def recipe(config):
        return Step("1_work", work, config)
""")


@pytest.fixture
def herder(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)

    def call(*arguments, typed=""):
        env = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "herder.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, input=typed, capture_output=True, text=True, timeout=120)

    return call


def test_a_recipe_file_runs_and_its_artifacts_are_shown(herder):
    done = herder("run", "toy.py")
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "reused" in herder("run", "toy.py").stderr
    assert herder("run", "toy.py", "--set", "lr=3e-4").returncode == 0
    assert "lr: 0.001" in herder("show", herder_address(herder, 0.001)).stdout
    why = herder("why", herder_address(herder, 0.001)).stdout
    assert "config.lr: 0.001 here, 0.0003 there" in why


def herder_address(herder, lr):
    """Finds the artifact by what `why` and `show` take: a name that is not unique is refused with the choices."""
    refused = herder("show", "1_work")
    assert refused.returncode == 2
    choices = refused.stderr.rsplit("there are: ", 1)[1].strip().split(", ")
    return next(c for c in choices if f"lr: {lr}" in herder("show", c).stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "minature"], "did you mean 'miniature'"),
        (["run", "none.py"], "none.py does not exist"),
        (["run", "toy.py", "--set", "lrr=1"], "did you mean 'lr'"),
        (["run", "toy.py", "--set", "lr=fast"], "lr = 'fast' is not a number"),
        (["run", "toy.py", "--until", "7_x"], "names no step; the steps are 1_work"),
        (["run", "miniature", "--set", "pretrain.train.optim.lrm=1"], "did you mean 'pretrain.train.optim.lr"),
        (["run", "miniature", "--set", "data=/no/such/folder"], "/no/such/folder"),
        (["run", "toy.py", "--set", "fail=disk"], "the disk is full"),
        (["show", "nothing"], "names no finished step"),
        (["report", "nothing"], "is no run"),
        (["chat", "nothing"], "'nothing' is no model here"),
        (["curate", "/no/such/folder", "--out", "x"], "/no/such/folder"),
        (["run", "toy.py", "--runs", "toy.py"], "toy.py"),
        (["run", "miniature", "--set", "pretrain.stages.0.steps=0"], "steps is 0; it must be at least 1"),
        (["run", "miniature", "--set", "sft.epochs=-1"], "epochs is -1.0; it must be above 0"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(herder, arguments, says):
    done = herder(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_or_command_exits_with_2(herder):
    assert herder("run", "toy.py", "--bogus").returncode == 2
    assert herder("rnu").returncode == 2


def test_ctrl_c_says_how_to_go_on(herder):
    done = herder("run", "toy.py", "--set", "fail=interrupt")
    assert done.returncode == 130
    assert "continues where this one stopped" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback(herder):
    done = herder("run", "toy.py", "--set", "fail=bug")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


def test_recipes_lists_the_fields(herder):
    done = herder("recipes")
    assert "pretrain.train.optim.lr_muon" in done.stdout


def test_run_json_holds_the_settings(herder, tmp_path):
    herder("run", "toy.py", "--set", "lr=0.5")
    found = json.loads(next(tmp_path.glob("runs/toy-*/run.json")).read_text())
    assert found["overrides"] == ["lr=0.5"]
    assert found["config"]["lr"] == 0.5


def test_the_cost_of_a_shape_is_printed_and_an_unknown_one_named(herder):
    printed = herder("model", "count", "llama3-8b", "--context", "8192").stdout
    assert "8,030,261,248" in printed
    assert "4 times smaller" in printed
    refused = herder("model", "count", "llama9")
    assert refused.returncode == 2
    assert "'llama9' is neither a shape nor a model here; shapes are llama3-8b" in refused.stderr


@pytest.fixture
def tiny(tmp_path, tok):
    from herder.convert import save
    from herder.model import Llama, LlamaConfig

    save(Llama(LlamaConfig(tok.n_vocab, 32, 1, 2, 1, 48, max_seq_len=128)).init_weights(0), tok, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_model_is_listed_counted_and_converted_there_and_back(herder, tiny):
    listed = herder("models", "tiny").stdout
    assert "32 x 1" in listed
    assert "llama3.1" in listed
    assert herder("model", "count", "tiny", "--context", "64").returncode == 0
    for source, out, to in (("tiny", "meta", "meta"), ("meta", "m.gguf", "gguf"), ("m.gguf", "hf", "hf")):
        done = herder("convert", source, out, "--to", to)
        assert done.returncode == 0, done.stderr
    weights = [(tiny.parent / name / "model.safetensors").read_bytes() for name in ("tiny", "hf")]
    assert weights[0] == weights[1]
    refused = herder("convert", "tiny", "x", "--to", "onnx")
    assert refused.returncode == 2
    assert "format 'onnx' is not known; the formats are: hf" in refused.stderr


def test_a_model_is_evaluated_on_a_users_file(herder, tiny):
    rows = [{"goal": "Dry a cup", "sol1": "with a towel", "sol2": "with water", "label": n % 2} for n in range(4)]
    (tiny.parent / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = herder("evaluate", "tiny", "--task", "piqa=piqa.jsonl", "--limit", "2", "--out", "results")
    assert done.returncode == 0, done.stderr
    assert "piqa: 50.0%" in done.stdout
    assert (tiny.parent / "results" / "piqa.jsonl").exists()
    assert "evaluate: starts" in done.stderr
    assert "2/2 items" in done.stderr
    refused = herder("evaluate", "tiny", "--task", "piqa")
    assert refused.returncode == 2
    assert "--task 'piqa' has no '='" in refused.stderr
    refused = herder("evaluate", "tiny", "--task", "piqa=piqa.jsonl", "--limit", "-1")
    assert refused.returncode == 2
    assert "--limit" in refused.stderr


def test_weights_that_are_no_numbers_end_a_chat_with_a_sentence(herder, tiny):
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, tiny / "model.safetensors")
    (tiny / "checksums.json").unlink()
    done = herder("chat", "tiny", typed="hi\n")
    assert done.returncode == 2
    assert "logits are not finite" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scaling_law_is_fitted_to_a_users_points(herder, tmp_path):
    rows = []
    for flops in (1e18, 1e19, 1e20, 1e21):
        for away in (0.4, 0.7, 1.0, 1.5, 2.5):
            tokens = 0.299 * flops**0.53727 * away
            loss = 2 + (flops / 1e18) ** -0.05 + 0.1 * math.log(away) ** 2
            rows.append({"params": flops / 6 / tokens, "tokens": tokens, "flops": flops, "loss": loss})
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = herder("scaling", "fit", "points.jsonl", "--json", "--out", "fit")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["budgets"][0]["tokens"]["value"] == pytest.approx(16.55e12, rel=1e-3)
    assert (tmp_path / "fit" / "scaling.png").exists()
    assert "1.655e+13 tokens" in herder("scaling", "fit", "points.jsonl").stdout
    (tmp_path / "points.jsonl").write_text('{"params": 1}\n')
    refused = herder("scaling", "fit", "points.jsonl")
    assert refused.returncode == 2
    assert "points.jsonl" in refused.stderr


def test_tokenizers_are_compared_on_a_users_text(herder, tiny):
    (tiny.parent / "text").mkdir()
    (tiny.parent / "text" / "a.txt").write_text("A llama walks. " * 50)
    done = herder("tokenizer", "report", "tiny", "tiny/tokenizer.json", "--on", "text", "--out", "report")
    assert done.returncode == 0, done.stderr
    assert "0.0%" in done.stdout
    assert {p.name for p in (tiny.parent / "report").iterdir()} == {"report.txt", "report.json", "report.png"}
