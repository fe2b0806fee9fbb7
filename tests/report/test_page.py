"""The report's page: complete, self-contained, safe with hostile documents, and written whatever is damaged."""

import json
import random
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from report_fixture import GRAPH

from herder.records import Ledger, Measure
from herder.report import summary, write_report
from herder.report.page import PAGE_LIMIT
from herder.steps import Step, execute

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page as a browser would take it: text, tags with attributes, and whether every tag was closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.words, self.crossed = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def step_folder(run, name: str):
    row = next(r for r in json.loads((run / "run.json").read_text())["steps"] if r["name"] == name)
    return run.parent / row["address"]


def test_shows_every_step_and_everything_measured(run):
    page = page_of(run)
    shown = {" ".join(w.split()) for w in page.words}
    assert all(name in page.text for name in GRAPH)
    for number in (
        "3.41M",
        "1.512",
        "1.494 to 1.530, n = 812",
        "68.7%",
        "12 min 41 s",
        "4 min 28 s",
        "28 steps, 4 reused",
    ):
        assert number in shown | {page.text} or number in page.text, number
    assert shown >= {
        "near duplicate",
        "1,410",
        "5,865",
        "10,200",
        "Kneser-Ney 5-gram",
        "other languages",
        "What is 59 + 38?",
    }
    assert sum(w == "↻ reused" for w in page.words) == 2 * 4  # once in the wide and once in the narrow graph


@dataclass(frozen=True)
class Plan:
    documents: int = 3


def count_documents(config, inputs, out):
    (out / "ledger.json").write_text(
        json.dumps([Ledger("web", 7, 70, config.documents, removed={"short": 4}).to_json()])
    )
    return {"documents": config.documents, "precision": Measure.share(9, 10)}


def test_reads_what_the_runner_of_steps_writes(tmp_path):
    web = Step("1_corpus/web", count_documents, Plan())
    again = Step("1_corpus/again", count_documents, Plan(2), {"web": web})
    execute("tiny", Plan(), [web], tmp_path)
    page = page_of(execute("tiny", Plan(), [again], tmp_path, overrides=["documents=2"]))
    assert "2 steps, 1 reused" in page.text
    assert page.words.count("↻ reused") == 2
    assert sum("marker-end" in attributes for _, attributes in page.tags) == 2  # one arrow in each of the two graphs
    for text in ("web from", web.address, "59.6 to 98.2, n = 10", "short", "documents=2", "could not be read"):
        assert (text in page.text) == (text != "could not be read"), text


def test_training_tokens_are_those_of_the_stage_that_trained_longest(run):
    # base 400 steps, long context and annealing 120 each, of 32,768 tokens; not the scaling sweep's six runs
    assert "Training tokens 21M in 4_pretrain" in page_of(run).text


def test_run_json_may_name_its_own_headline(run):
    record = json.loads((run / "run.json").read_text())
    record["headline"] = {
        "Pages read": 10_200,
        "Safe answers": {"value": 0.9, "n": 50, "low": 0.8, "high": 0.96, "unit": "%"},
    }
    (run / "run.json").write_text(json.dumps(record))
    assert "Pages read 10,200 Safe answers 90.0% 80.0 to 96.0, n = 50 Time 12 min 41 s" in page_of(run).text


def test_page_is_well_formed_and_loads_nothing(run):
    page = page_of(run)
    assert page.crossed == []
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "data", "action"}
            assert not name.startswith("on")
            assert name not in {"href", "xlink:href"} or value.startswith("#")
    html = (run / "report.html").read_text()
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    links = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert links <= {a.get("id") for _, a in page.tags}


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e\ud800\x85\"'&amp;{{7*7}}</style></pre><!--"
)


def poison(value):
    """Puts the hostile text into every string of a JSON value, keys included, that is not an address or a name."""
    if isinstance(value, dict):
        return {k: poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(v) for v in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text_wherever_it_stands(run):
    clean = page_of(run)
    record = json.loads((run / "run.json").read_text())
    steps = [{**row, "name": row["name"] + HOSTILE} for row in record.pop("steps")]
    (run / "run.json").write_text(json.dumps({**poison(record), "steps": steps}))
    for path in run.parent.rglob("*.json*"):
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text(
                "\n".join(json.dumps({k + HOSTILE * (k == "mfu"): v for k, v in row.items()}) for row in lines)
            )
        elif path.name == "audit.json":
            path.write_text(json.dumps({k + HOSTILE: v for k, v in json.loads(path.read_text()).items()}))
        elif path.name not in ("run.json", "step.json"):
            path.write_text(json.dumps(poison(json.loads(path.read_text()))))
        elif path.name == "step.json":
            step = json.loads(path.read_text())
            named = {k: poison(step[k]) for k in ("identity", "git", "host", "started")}
            path.write_text(
                json.dumps({**step, **named, "numbers": {k + HOSTILE: v for k, v in step["numbers"].items()}})
            )
    page = page_of(run)
    assert {t for t, _ in page.tags} <= {t for t, _ in clean.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.crossed == []
    assert "alert(1)" in page.text
    assert "{{7*7}}" in page.text
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", (run / "report.html").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("file", ["ledger", "samples", "audit", "answers", "mixture", "comparison", "metrics", "step"])
def test_a_missing_file_leaves_the_rest(run, file):
    for path in run.parent.rglob(f"{file}.json*"):
        path.unlink()
    text = page_of(run).text
    assert "12 min 41 s" in text
    assert ("step.json is missing" in text) == (file == "step")


@pytest.mark.parametrize("file", ["ledger", "samples", "audit", "answers", "mixture", "comparison", "step"])
def test_a_half_written_file_is_named_in_place(run, file):
    for path in run.parent.rglob(f"{file}.json"):
        path.write_text(path.read_text()[:40])
    text = page_of(run).text
    assert f"{file}.json cannot be read" in text
    assert "could not be read; the page shows the rest" in text


def test_half_a_line_of_metrics_costs_that_line_alone(run):
    path = step_folder(run, "4_pretrain/base") / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    text = page_of(run).text
    assert "4_pretrain/base: 1 lines of metrics.jsonl cannot be read" in text
    assert "Training tokens 20.9M" in text


def test_no_damage_stops_the_report(run):
    rng = random.Random(7)
    junk = [
        "",
        "null",
        "[]",
        "{}",
        "3",
        '"x"',
        "[null]",
        '[{"x": [1]}]',
        '{"steps": [3, null, {"name": 4}]}',
        "[" * 9000,
        "\x00\xff",
    ]
    junk += ['{"numbers": [1], "inputs": 3}', '{"a": NaN, "loss": 1e999, "tokens": -1}', '{"kept": 3, "removed": [[]]}']
    files = sorted(p for p in run.parent.rglob("*.json*") if p.parent != run)
    for _ in range(12):
        for path in rng.sample(files, 12):
            path.write_text(rng.choice(junk), encoding="latin-1")
        assert page_of(run).crossed == []
    for text in junk:
        (run / "run.json").write_text(text, encoding="latin-1")
        assert page_of(run).crossed == []
        assert summary(run)


def mutated(value, rng):
    """The value with one part, at any depth, replaced by something that does not belong there."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = mutated(value[key], rng)
        return copy
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            1e308,
            -5e-324,
            float("nan"),
            float("-inf"),
            10**400,
            "",
            "x" * 999,
            [],
            [None],
            {},
            {"a": []},
        ]
    )


def test_no_wrong_value_stops_the_report(run):
    rng = random.Random(3)
    files = sorted(run.parent.rglob("*.json"))
    before = {path: path.read_text() for path in files}
    for _ in range(15):
        for path in [*rng.sample(files, 10), run / "run.json"]:
            path.write_text(json.dumps(mutated(json.loads(before[path]), rng)))
        path = rng.choice(sorted(run.parent.rglob("metrics.jsonl")))
        rows = [mutated(json.loads(line), rng) for line in path.read_text().splitlines()[:30]]
        path.write_text("\n".join(map(json.dumps, rows)))
        assert page_of(run).crossed == []
        assert summary(run)
        for path in files:
            path.write_text(before[path])


def test_a_step_outside_the_folder_of_runs_is_not_read(run, tmp_path):
    (tmp_path / "step.json").write_text('{"numbers": {"secret": "a secret of the machine"}}')
    record = json.loads((run / "run.json").read_text())
    for address in ("..", "../", str(tmp_path), ""):
        record["steps"][0]["address"] = address
        (run / "run.json").write_text(json.dumps(record))
        text = page_of(run).text
        assert "does not lie in the folder of runs" in text
        assert "secret" not in text


def test_a_page_of_endless_texts_stays_small_and_says_what_was_cut(run):
    text = "long " * 200_000
    folder = step_folder(run, "1_corpus/curated")
    rows = [
        {"id": str(i), "url": "u" * 5000, "fate": f"filter{i % 40}", "detail": text[:9000], "text": text[:90_000]}
        for i in range(300)
    ]
    (folder / "samples.json").write_text(json.dumps({"kept": rows, "removed": rows}))
    answers = [
        {"task": f"t{i}", "prompt": text, "messages": [], "answer": text, "gold": text, "correct": False}
        for i in range(20)
    ]
    (step_folder(run, "6_evaluate/tasks") / "answers.json").write_text(json.dumps(answers))
    page = write_report(run)
    assert page.stat().st_size < PAGE_LIMIT
    assert re.search(r"99\d,\d{3} more characters", page.read_text())


def test_many_steps_and_numbers_shrink_until_the_page_fits(run):
    numbers = {
        f"number {i} {'x' * 60}": {"value": 0.5, "n": 9, "low": 0.2, "high": 0.8, "unit": "%"} for i in range(900)
    }
    for path in run.parent.rglob("step.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "numbers": numbers}))
    assert write_report(run).stat().st_size < PAGE_LIMIT


def test_nothing_is_written_for_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_out_chooses_the_file_and_the_same_files_give_the_same_page(run, tmp_path):
    one, two = write_report(run, tmp_path / "shown" / "page.html"), write_report(run)
    assert one == tmp_path / "shown" / "page.html"
    assert one.read_bytes() == two.read_bytes()
    assert not list(one.parent.glob("*.part"))


def test_summary_tells_the_headlines_the_slow_steps_and_the_page(run):
    assert "No report yet" in summary(run)
    page = write_report(run)
    text = summary(run)
    assert text.startswith("miniature: 28 steps, 4 reused")
    assert "68.7%" in text
    assert "4_pretrain/base 4 min 28 s" in text
    assert text.endswith(f"Report: {page}")
    (step_folder(run, "7_guard/guard") / "step.json").unlink()
    assert "Problem: 7_guard/guard: step.json is missing" in summary(run)
