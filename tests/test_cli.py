"""The command line: sentences and exit codes."""

import json
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

    def call(*arguments):
        env = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "herder.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

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
        (["chat", "nothing"], "is no run"),
        (["curate", "/no/such/folder", "--out", "x"], "/no/such/folder"),
        (["run", "toy.py", "--runs", "toy.py"], "toy.py"),
        (["run", "miniature", "--set", "pretrain.steps=0"], "steps is 0; it must be at least 1"),
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
