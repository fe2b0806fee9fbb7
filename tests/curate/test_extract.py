"""Extraction: what readers read stays, code and formulas intact; furniture goes; no page crashes it."""

import collections
import gzip
import json
import re
from pathlib import Path

import pytest

from herder.curate import extract

PROSE = (
    "The lighthouse on the northern cliff has warned ships of the rocks since the winter of 1872, when it was built."
)
REAL_PAGES = Path(__file__).parents[3] / "shared" / "data" / "extraction"


def page(content: str, around: str = "") -> bytes:
    return (
        f"<html><head><title>T</title></head><body>{around}<main><p>{PROSE}</p>{content}</main></body></html>".encode()
    )


def kinds(found):
    return {(s.kind, s.language, found.text[s.start : s.end]) for s in found.spans}


def test_code_keeps_indentation_blank_lines_and_language():
    code = "def f(x):\n    if x:\n\n        return  1\n    return '<a>'"
    html = code.replace("<", "&lt;").replace("return", "<span class='k'>return</span>")
    found = extract(page(f'<pre><code class="language-python">{html}\n</code></pre>'))
    assert ("code", "python", code) in kinds(found)


def test_line_numbers_are_no_code():
    found = extract(page('<pre><span class="linenos">1</span>x = 1\n<span class="linenos">2</span>y = 2</pre>'))
    assert ("code", "", "x = 1\ny = 2") in kinds(found)


@pytest.mark.parametrize(
    "html",
    [
        r'<math><semantics><mi>x</mi><annotation encoding="application/x-tex">x^2</annotation></semantics></math>',
        '<script type="math/tex">x^2</script>',
        r"\(x^2\)",
        '<span style="display: none"><math alttext="{\\displaystyle x^2}"><mi>x</mi></math></span>',
    ],
)
def test_every_form_of_a_formula_gives_its_tex_once(html):
    found = extract(page(f"<p>The area is {html} here.</p>"))
    assert r"The area is \(x^2\) here." in found.text
    assert ("formula", "", r"\(x^2\)") in kinds(found)


def test_exponents_stay_exponents():
    assert "10^6 atoms" in extract(page("<p>There are 10<sup>6</sup> atoms, as told<sup>[3]</sup>.</p>")).text


def test_alt_text_is_kept_and_marked():
    found = extract(page('<p><img src="a.jpg" alt="A heron at dawn" width="300"><img alt="icon.png"></p>'))
    assert {"A heron at dawn"} == {t for k, _, t in kinds(found) if k == "alt"}
    assert "icon.png" not in found.text


def test_tables_lists_and_headings_are_lines():
    html = "<h2>Sizes</h2><table><tr><th>Name</th><th>Metres</th></tr><tr><td>Oak</td><td>30</td></tr></table>"
    found = extract(page(html + "<ul><li>one <b>thing</b></li><li>another</li></ul>"))
    assert "\n\nSizes\n\nName | Metres\nOak | 30\n\none thing\nanother" in found.text
    assert {"heading", "table", "list"} <= {s.kind for s in found.spans}


def test_text_holds_no_markup_and_spans_lie_inside():
    found = extract(page("<p>a &lt;b&gt; <i>c</i><br>d &amp; e</p><blockquote><p>quoted words</p></blockquote>"))
    assert "a <b> c\nd & e" in found.text
    assert all(0 <= s.start < s.end <= len(found.text) for s in found.spans)
    assert ("quote", "", "quoted words") in kinds(found)


def test_furniture_goes_and_content_stays():
    around = (
        '<nav><a href="/">Home</a></nav><div class="cookie-banner">We use cookies to improve things.</div>'
        '<div class="sidebar"><ul><li><a href="/1">Other story</a></li></ul></div><footer>Contact the owners</footer>'
    )
    text = extract(page("", around)).text
    assert text == PROSE


def test_a_wrapper_with_an_unlucky_name_is_cleared():
    text = extract(f'<body><div class="popup widget"><p>{PROSE}</p><p>{PROSE}</p></div></body>').text
    assert text.count(PROSE) == 2


def test_layout_tables_give_paragraphs_of_their_main_cell():
    html = (
        f'<table><tr><td colspan="2">Site name</td></tr><tr><td><ul><li><a href="/">Home</a></li></ul></td>'
        f"<td><h1>Title</h1><p>{PROSE}</p><p>{PROSE[::-1]}</p></td></tr></table>"
    )
    assert extract(f"<body>{html}</body>").text == f"Title\n\n{PROSE}\n\n{PROSE[::-1]}"


def test_headline_outside_the_content_element_is_kept():
    html = f"<title>Old lights - Site</title><body><h1>Old lights</h1><div class='entry-content'><p>{PROSE}</p></div></body>"
    assert extract(html).text == f"Old lights\n\n{PROSE}"


@pytest.mark.parametrize(
    ("body", "declared"),
    [
        (f"<p>{PROSE} Café déjà vu</p>".encode("utf-16"), None),
        (f"<p>{PROSE} Café déjà vu</p>".encode("cp1252"), "windows-1252"),
        (f'<meta charset="utf-8"><p>{PROSE} Café déjà vu</p>'.encode("cp1252"), None),
        (f"<p>{PROSE} Café déjà vu</p>".encode(), "iso-8859-1"),
        (f"<p>{PROSE} Café déjà vu</p>".encode().decode("cp1252").encode(), "utf-8"),
    ],
)
def test_wrong_and_missing_charsets_are_seen_through(body, declared):
    assert "Café déjà vu" in extract(body, charset=declared).text


def test_a_page_about_mojibake_is_left_alone():
    assert "Ã©" in extract(f"<p>{PROSE} Naïve façade, größer, señor: é turns into Ã© there.</p>".encode()).text


@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"<", b"<html></html>", b"\xff\xfe", b"<p>a\0b</p>", b"<script>" * 9])
def test_scraps_give_a_page(body):
    assert isinstance(extract(body).text, str)


def test_a_hundred_thousand_deep_page_is_read():
    assert PROSE in extract(b"<div>" * 100_000 + PROSE.encode()).text
    assert PROSE in extract(b"<div>" * 50_000 + PROSE.encode() + b"</div>" * 50_000).text


@pytest.mark.long
def test_a_fifty_megabyte_page_is_read():
    found = extract(b"<body>" + b"<p>row of a long table of numbers</p>\n" * 1_350_000)
    assert len(found.text) > 40_000_000


def shingle_counts(text: str) -> collections.Counter:
    words = re.findall(r"\w+", text)
    return collections.Counter(tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)))


@pytest.mark.skipif(not REAL_PAGES.exists(), reason="shared/data/extraction is not beside this checkout")
def test_bodies_of_real_articles_reach_f1_of_95():
    """The benchmark's own measure: precision and recall of 4-gram shingles, a page weighing as much as any other."""
    truth = json.loads((REAL_PAGES / "ground-truth.json").read_text())
    hits = extra = missed = 0.0
    for name, marked in truth.items():
        found = shingle_counts(extract(gzip.decompress((REAL_PAGES / "html" / f"{name}.html.gz").read_bytes())).text)
        wanted = shingle_counts(marked["articleBody"])
        both = sum((found & wanted).values())
        union = max(1, sum((found | wanted).values()))
        hits, extra, missed = (
            hits + both / union,
            extra + (found.total() - both) / union,
            missed + (wanted.total() - both) / union,
        )
    precision, recall = hits / (hits + extra), hits / (hits + missed)
    assert 2 * precision * recall / (precision + recall) > 0.95
