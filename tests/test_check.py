"""`.ci/check.py` refuses what the house forbids, on planted trees, and allows what it allows."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("check", ROOT / ".ci" / "check.py")
check = importlib.util.module_from_spec(spec)
sys.modules["check"] = check
spec.loader.exec_module(check)


def plant(root: Path, **files: str) -> Path:
    """Writes src/herder with the given files ('model__llama' is model/llama.py) and an __init__.py in every package."""
    for name, text in files.items():
        path = root / "src" / "herder" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in (path.parent, root / "src" / "herder"):
            (folder / "__init__.py").touch()
    return root


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("model__llama", "from herder.train import train", "upward"),
        ("train__loop", "import herder.recipes.miniature", "upward"),
        ("records", "from herder import model", "upward"),
        ("tokenizer__bpe", "def f():\n    from ..evaluate import task", "upward"),
        ("engine__runner", "from herder.train.loop import step", "sideways"),
        ("tokenizer__bpe", "from herder.model import Llama", "sideways"),
        ("guard__classify", "from herder.curate.dedup import minhash", "the inside of another stage"),
        ("guard__classify", "from herder.curate import dedup", "the inside of another stage"),
        ("guard__classify", "from herder.unheard import of", "has no floor"),
        ("grab_bag", "import herder.records", "has no floor"),
    ],
)
def test_a_planted_import_is_refused(tmp_path, capsys, file, line, why):
    lower = ("model__llama", "train__loop", "recipes__miniature", "curate__dedup", "evaluate__task", "records")
    files = dict.fromkeys(lower, "")
    root = plant(tmp_path, **files | {file: f'"""Doc."""\n\n{line}\n'})
    assert check.main(root) == 1
    error = capsys.readouterr().err
    number = 4 if line.startswith("def") else 3
    assert f"src/herder/{file.replace('__', '/')}.py:{number}: " in error
    assert why in error


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("train__loop", "from herder.train import data\nfrom . import data\nfrom .data import rows"),
        ("cli", "from herder.recipes import miniature\nimport herder.records"),
        ("guard__classify", "from herder.evaluate import evaluate"),
        ("guard__classify", "from herder.curate import curate\nfrom herder.curate.extract import extract"),
        ("posttrain__dpo", "from herder.engine.runner import Runner\nimport torch, json"),
        ("steps", "from herder.records import Measure\nfrom herder import __version__"),
    ],
)
def test_what_points_down_or_to_a_public_name_is_allowed(tmp_path, capsys, file, line):
    root = plant(
        tmp_path,
        curate__curate="",
        curate__extract="",
        train__data="",
        recipes__miniature="",
        records="",
        engine__runner="",
    )
    (root / "src/herder/curate/__init__.py").write_text("from herder.curate.curate import curate\n")
    plant(root, **{file: line + "\n"})
    assert check.main(root) == 0, capsys.readouterr().err


def test_a_circle_of_stages_is_refused(tmp_path, capsys):
    root = plant(
        tmp_path,
        guard__a="from herder.skills import x",
        skills__b="from herder.evaluate import y",
        evaluate__c="from herder.guard import z",
    )
    assert check.main(root) == 1
    error = capsys.readouterr().err
    assert error.count("closes the circle") == 1
    assert "evaluate -> guard -> skills -> evaluate" in error


def test_long_files_and_functions_fail_and_fairly_long_ones_warn(tmp_path, capsys):
    body = "def f():\n" + "    x = 1\n" * 70 + "\n\ndef g():\n" + "    x = 1\n" * 120
    root = plant(tmp_path, model__llama=body, model__big="x = 1\n" * 601, model__wide="x = 1\n" * 450)
    assert check.main(root) == 1
    out, error = capsys.readouterr()
    assert "model/big.py has 601 lines" in error
    assert "g has 121 lines" in error
    assert "f has 71 lines" in out
    assert "model/wide.py has 450 lines" in out
    assert "warning" not in error


def test_lines_are_counted_by_folder(tmp_path, capsys):
    root = plant(tmp_path, model__llama="x = 1\n" * 7, records="y = 2\n" * 3)
    (root / "tests" / "model").mkdir(parents=True)
    (root / "tests" / "model" / "test_llama.py").write_text("z = 3\n" * 5)
    assert check.main(root) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model", "2", "files", "7", "lines"] in rows
    assert ["src", "4", "files", "10", "lines"] in rows
    assert ["tests", "1", "files", "5", "lines"] in rows
