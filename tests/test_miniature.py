"""The whole story in tiny: every stage of the miniature, from raw pages to answers, killed and continued, on one's own data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herder.convert import load
from herder.records import read_documents
from herder.steps import read_json

TINY = [
    "web.pages=600",
    "curate.heldout_share=0.15",
    "tokenizer.vocab_size=1024",
    "pretrain.model.vocab_size=1024",
    "pretrain.model.n_layers=2",
    "pretrain.model.dim=64",
    "pretrain.model.head_dim=16",
    "pretrain.model.ffn_dim=128",
    *(f"pretrain.stages.{number}.steps=10" for number in range(3)),
    "pretrain.train.checkpoint_seconds=0",
    "pretrain.heldout_tokens=4000",
    *(f"contexts.{n}.{key}" for n in (0, 1) for key in ("stage.steps=3", "beyond_tokens=6000", "extra_steps=3")),
    *(f"contexts.{n}.train.checkpoint_seconds=0" for n in (0, 1)),
    "anneal.train.snapshot_every=1",
    "anneal.stage.steps=4",
    "anneal.train.checkpoint_seconds=0",
    "sft.rows_per_step=4",
    "sft.train.checkpoint_seconds=0",
    "dialogues.max_train=300",
    "dialogues.heldout_items=12",
    "compression.max_documents=30",
    "answers.max_tokens=16",
    "workers=2",
]
POINT = "3_scaling/flops-"
"""Every run of the scaling sweep is a step of its own."""
STEPS = (
    "1_corpus/web",
    "1_corpus/documents",
    "1_corpus/audit",
    "2_tokenizer/bpe",
    "2_tokenizer/tokens",
    "3_scaling/forecast",
    "3_pretrain/base",
    "3_scaling/check",
    "3_pretrain/context_512",
    "3_pretrain/context_1024",
    "3_pretrain/best",
    "3_pretrain/annealed",
    "4_posttrain/dialogues",
    "4_posttrain/control",
    "4_posttrain/sft",
    "5_evaluate/compression",
    "5_evaluate/answers",
)


def command(runs: Path, *settings: str) -> list[str]:
    chosen = [a for s in (*TINY, *settings) for a in ("--set", s)]
    return [sys.executable, "-m", "herder.cli", "run", "miniature", "--runs", str(runs), *chosen]


def start(runs: Path, *settings: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(runs, *settings),
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """A shell makes what it runs in the background deaf to Ctrl-C, and children inherit that; these shall hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(runs: Path, *settings: str) -> tuple[Path, str]:
    process = start(runs, *settings)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return next(runs.glob("miniature-*/run.json")).parent, out + err


def step(run: Path, name: str) -> Path:
    return run.parent / next(row["address"] for row in read_json(run / "run.json")["steps"] if row["name"] == name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("runs"))


@pytest.mark.long
def test_the_whole_line_stands_end_to_end(whole):
    run, said = whole
    steps = read_json(run / "run.json")["steps"]
    names = [row["name"] for row in steps]
    assert sorted(name for name in names if not name.startswith(POINT)) == sorted(STEPS)
    assert sum(name.startswith(POINT) for name in names) == 16
    assert names.index("3_scaling/forecast") < names.index("3_pretrain/base")  # before it is trained
    assert "truth_inside" in read_json(step(run, "3_scaling/check") / "step.json")["numbers"]
    assert "report:" in said
    assert "chat:" in said
    page = (run / "report.html").read_text()
    for name in STEPS:
        assert name.split("/")[1] in page
    assert "Kneser-Ney" in page
    assert len(page) < 3_000_000


@pytest.mark.long
def test_no_held_out_document_is_trained_on_and_shares_are_kept(whole):
    run, _ = whole
    corpus = step(run, "1_corpus/documents")
    train, heldout = ({d.text for d in read_documents(corpus, split=s)} for s in ("train", "heldout"))
    assert heldout
    assert not train & heldout
    mixture = json.loads((step(run, "3_pretrain/base") / "mixture.json").read_text())
    for source in mixture.values():
        assert source["realised"] == pytest.approx(source["target"], abs=0.01)


@pytest.mark.long
def test_every_filter_has_a_measured_precision_or_recall(whole):
    run, _ = whole
    audit = json.loads((step(run, "1_corpus/audit") / "audit.json").read_text())
    for name in ("url_duplicate", "exact_duplicate", "near_duplicate", "language"):
        assert audit[name]["precision"]["n"] > 0
    assert audit["all"]["kept_and_wanted"]["value"] > 0.9


@pytest.mark.long
def test_the_models_lie_as_transformers_reads_them(whole):
    transformers = pytest.importorskip("transformers")
    import torch

    run, _ = whole
    folder = step(run, "4_posttrain/sft") / "model"
    model, tokenizer = load(folder)
    ids = torch.tensor([tokenizer.encode("def f(x):", bos=True)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4


@pytest.mark.long
def test_a_second_run_reuses_everything_and_takes_seconds(whole):
    run, _ = whole
    started = read_json(run / "run.json")["started"]
    again, said = finish(run.parent)
    assert again == run
    assert said.count("reused") >= len(STEPS)
    assert all(row["reused"] for row in read_json(run / "run.json")["steps"])
    assert read_json(run / "run.json")["started"] >= started


@pytest.mark.long
def test_the_final_model_chats(whole):
    run, _ = whole
    talk = [sys.executable, "-m", "herder.cli", "chat", str(run), "--max-tokens", "8"]
    done = subprocess.run(talk, input="What is Paris?\n/quit\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 0
    prompt = "word " * 1200 + "\n/quit\n"
    done = subprocess.run(talk, input=prompt, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "context" in done.stdout


@pytest.mark.long
def test_ctrl_c_in_every_stage_continues_to_the_same_weights(whole, tmp_path):
    run, _ = whole
    begins = re.compile(r"\] (\S+): (?:starts|continues)")
    aimed, interrupted = set(), set()
    for attempt in range(2 * len(STEPS)):
        process, current = start(tmp_path), ""
        for line in process.stderr:
            current = found[1] if (found := begins.search(line)) else current
            if found and current not in aimed:
                aimed.add(current)
                time.sleep((0.1, 0.4, 0.8, 1.5)[attempt % 4])
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.communicate(timeout=300)[1]
        if process.returncode == 0:  # every stage was aimed at, or over before the signal came
            break
        assert process.returncode == 130, rest
        assert "continues where this one stopped" in rest
        assert "Traceback" not in rest, rest
        interrupted.add(begins.findall(rest)[-1] if begins.search(rest) else current)
    assert {"1_corpus/documents", "3_pretrain/base", "4_posttrain/sft"} <= interrupted
    again, _ = finish(tmp_path)
    for name in ("3_pretrain/base", "4_posttrain/sft"):
        a, b = ((step(r, name) / "model" / "checksums.json").read_text() for r in (run, again))
        assert a == b
    a, b = ((step(r, "3_scaling/forecast") / "points.jsonl").read_text() for r in (run, again))
    assert a == b


@pytest.mark.long
def test_ones_own_folder_takes_the_same_line(tmp_path):
    folder = tmp_path / "mine"
    (folder / "notes").mkdir(parents=True)
    source = Path(subprocess.__file__).parent
    for path in [*sorted(source.glob("*.py"))[:60], *sorted((source / "json").glob("*.py"))]:
        (folder / path.name).write_text(path.read_text(encoding="utf-8", errors="replace"))
    for i in range(150):
        text = f"Town {i} is a place in the north of the country and has {i * 37 % 1000} people. It was founded in {1200 + i}. "
        (folder / "notes" / f"town{i}.txt").write_text(
            text + f"The river {chr(65 + i % 26)}{i} runs by the town to the sea. " * 2
        )
    run, _ = finish(tmp_path / "runs", f"data={folder}")
    names = [row["name"] for row in read_json(run / "run.json")["steps"]]
    assert "1_corpus/web" not in names
    assert "5_evaluate/answers" in names
    texts = [d.text for d in read_documents(step(run, "1_corpus/documents"))]
    assert any("class JSONDecoder" in t for t in texts)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.mkdir(), "holds no"),
        (lambda p: (p.mkdir(), (p / "x.bin").write_bytes(os.urandom(5000))), "holds no"),
        (lambda p: (p.mkdir(), (p / "x.html").write_text("<html><body></body></html>")), ""),
    ],
)
def test_data_without_text_gets_a_sentence(tmp_path, make, says):
    make(tmp_path / "data")
    process = start(tmp_path / "runs", f"data={tmp_path / 'data'}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert says in err


@pytest.mark.long
def test_a_broken_jsonl_line_is_counted_and_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        json.dumps({"text": f"Lake {i} is a lake in the north of the country, and it is {i} metres deep. " * 4})
        for i in range(300)
    ]
    rows[41] = '{"text": '
    path.write_text("\n".join(rows))
    process = start(tmp_path / "runs", f"data={path}", "tokenizer.vocab_size=300", "tokenizer.n_special=16")
    _, err = process.communicate(timeout=300)
    ledger = json.loads(next((tmp_path / "runs").glob("1_corpus/documents-*/ledger.json")).read_text())
    assert ledger[0]["removed"]["broken_line"] == 1
    assert "line 42" in ledger[0]["notes"][0], err
