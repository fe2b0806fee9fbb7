"""The whole stage on the miniature web: measured against planted truth, killed and resumed, on a full disk, explained."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herder.corpus import open_source
from herder.corpus.miniature import WebConfig, write_web
from herder.curate import CurateConfig, audit, curate, why
from herder.records import KEPT, read_attribute, read_documents, shard_names


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    write_web(folder, WebConfig(pages=1500, files=4))
    return folder


@pytest.fixture(scope="module")
def curated(web, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated")
    config = CurateConfig(benchmarks=str(web / "benchmark.jsonl"))
    return out, curate([open_source(str(web / "warc"))], out, config, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_planted_kinds_are_found_with_precision_and_recall(web, curated):
    measured = audit(curated[0], web / "truth.parquet")
    for kind in (
        "exact_duplicate",
        "url_duplicate",
        "language",
        "spam",
        "adult",
        "boilerplate_only",
        "not_html",
        "benchmark_overlap",
    ):
        assert measured[kind]["recall"].value > 0.95, kind
    for reason in (
        "exact_duplicate",
        "url_duplicate",
        "near_duplicate",
        "language",
        "too_short",
        "dirty_words",
        "benchmark_overlap",
    ):
        assert measured[reason]["precision"].value > 0.9, reason
    assert measured["all"]["kept_and_wanted"].value > 0.97
    assert measured["all"]["wanted_and_kept"].value > 0.95


def test_near_duplicates_are_found_as_the_s_curve_promises(web, curated):
    bands = audit(curated[0], web / "truth.parquet")["near_duplicates_by_edit"]
    names = [name for name in bands if not name.endswith("expected")]
    found = sum(bands[name].value * bands[name].n for name in names)
    promised = sum(bands[f"{name} expected"].value * bands[name].n for name in names)
    copies = sum(bands[name].n for name in names)
    assert copies == 75
    assert found / copies == pytest.approx(promised / copies, abs=0.08)


def test_extraction_returns_the_true_text(web, curated):
    measured = audit(curated[0], web / "truth.parquet")["extraction"]
    assert measured["word_f1"].value > 0.98
    assert measured["code_lines"].value > 0.99
    assert measured["with_boilerplate"].value < 0.03


def test_every_record_has_one_fate_and_is_counted_once(web, curated):
    out, numbers = curated
    fates = [f for name in shard_names(out) for f in read_attribute(out, "fate", name).column("fate").to_pylist()]
    ledger = json.loads((out / "ledger.json").read_text())[0]
    assert numbers["pages"] == ledger["read"] == ledger["documents"] + sum(ledger["removed"].values()) == 1500
    assert fates.count(KEPT) == numbers["kept"] == len(list(read_documents(out)))
    for reason in set(fates) - {KEPT}:
        assert ledger["removed"][reason] >= fates.count(reason)


def test_samples_show_every_reason(curated):
    out, _ = curated
    samples = json.loads((out / "samples.json").read_text())
    assert KEPT in samples
    assert "near_duplicate" in samples
    assert all(0 < len(rows) <= 5 and {"id", "url", "text", "detail"} <= set(rows[0]) for rows in samples.values())


def test_held_out_documents_repeat_no_training_document(curated):
    out, numbers = curated
    train = {" ".join(w) for d in read_documents(out, split="train") for w in ngrams(d.text)}
    heldout = list(read_documents(out, split="heldout"))
    assert 0.01 * numbers["kept"] < len(heldout) == numbers["heldout"] < 0.08 * numbers["kept"]
    for document in heldout:
        grams = {" ".join(w) for w in ngrams(document.text)}
        assert len(grams & train) <= 0.2 * max(1, len(grams))


def ngrams(text: str):
    words = re.findall(r"\w+", text.lower())
    return [words[i : i + 8] for i in range(len(words) - 7)]


def test_workers_and_reruns_change_no_byte(web, curated, tmp_path):
    config = CurateConfig(benchmarks=str(web / "benchmark.jsonl"))
    source = open_source(str(web / "warc"))
    again = curate([source], tmp_path, config, workers=2)
    assert contents(tmp_path) == contents(curated[0])
    assert {k: v for k, v in again.items() if "second" not in k} == {
        k: v for k, v in curated[1].items() if "second" not in k
    }


def test_a_killed_run_continues_where_it_was(web, tmp_path):
    script = (
        "import sys; from pathlib import Path; from herder.corpus import open_source; from herder.curate import curate\n"
        "curate([open_source(sys.argv[1])], Path(sys.argv[2]), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(web / "warc"), str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed" / "state").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    marks = list((tmp_path / "killed" / "state").glob("*.json"))
    first = {p.name: p.stat().st_mtime_ns for p in marks}
    assert 0 < len(marks) < 5
    curate([open_source(str(web / "warc"))], tmp_path / "killed", workers=1)
    curate([open_source(str(web / "warc"))], tmp_path / "whole", workers=1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all((tmp_path / "killed" / "state" / name).stat().st_mtime_ns == when for name, when in first.items())


def test_a_threshold_changes_fates_without_reading_again(web, curated, tmp_path):
    import dataclasses
    import shutil

    shutil.copytree(curated[0], tmp_path / "c")
    config = CurateConfig(benchmarks=str(web / "benchmark.jsonl"))
    stricter = dataclasses.replace(config, thresholds=dataclasses.replace(config.thresholds, min_words=60))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c" / "documents").iterdir()}
    numbers = curate([open_source(str(web / "warc"))], tmp_path / "c", stricter, workers=1)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c" / "documents").iterdir()} == before
    assert numbers["removed"]["too_short"] > curated[1]["removed"]["too_short"]


def test_a_full_disk_leaves_a_state_to_continue_from(web, curated, tmp_path, monkeypatch):
    from herder.curate import reading

    real, calls = reading.write_table, []

    def full(table, path):
        calls.append(path)
        if len(calls) == 5:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(table, path)

    config = CurateConfig(benchmarks=str(web / "benchmark.jsonl"))
    monkeypatch.setattr(reading, "write_table", full)
    with pytest.raises(OSError, match="is full; free space and run the same command again"):
        curate([open_source(str(web / "warc"))], tmp_path, config, workers=1)
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.setattr(reading, "write_table", real)
    curate([open_source(str(web / "warc"))], tmp_path, config, workers=1)
    assert contents(tmp_path) == contents(curated[0])


def test_why_names_the_reason_the_threshold_and_the_original(curated):
    out, _ = curated
    rows = [r for name in shard_names(out) for r in read_attribute(out, "dedup", name).to_pylist()]
    copy = next(r for r in rows if r["duplicate_of"])
    assert f"duplicate of {copy['duplicate_of']}" in why(out, copy["id"])
    kept = next(iter(read_documents(out)))
    story = why(out, kept.url)
    assert f"{kept.id} is kept" in story
    assert "(min 15, max 200000)" in story
    with pytest.raises(ValueError, match="no document of"):
        why(out, "https://nowhere.example/")


def test_plain_records_and_bad_settings(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.py").write_text("import os\n\n\ndef where():\n    return os.getcwd()\n" * 5)
    (tmp_path / "in" / "b.md").write_text(
        "# Notes\n\n" + "The harbour town grew quickly after the railway arrived. " * 3
    )
    numbers = curate([open_source(str(tmp_path / "in"))], tmp_path / "out", workers=1)
    assert numbers["pages"] == 2
    assert {s.kind for d in read_documents(tmp_path / "out", fate=None) for s in d.spans} == {"code", "heading"}
    with pytest.raises(ValueError, match="there is nothing to curate"):
        curate([], tmp_path / "none")
    with pytest.raises(ValueError, match="heldout_share=2 must lie between 0 and 1"):
        CurateConfig(heldout_share=2)


def test_workers_load_no_deep_learning_library():
    script = "import sys, herder.curate; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]
