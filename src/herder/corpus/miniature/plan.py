"""Which pages the miniature web has, and what is true of each: the plan that both the WARC files and the truth table follow."""

from __future__ import annotations

import random
import re
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from herder.config import runtime
from herder.corpus.miniature import mess, words
from herder.corpus.miniature.benchmark import benchmark_items
from herder.corpus.miniature.blocks import TEX_OPEN, Article, Block
from herder.corpus.miniature.material import WIKI_FILES, Shelf, gather
from herder.corpus.miniature.sites import Site, make_sites

CRAWLS = ("2023-06", "2023-12", "2024-07")
PAGES_PER_SITE = 60
SHORTEST_COPIED_WORDS = 50
"""Only pages of this many words are duplicated: shingles of shorter ones say too little to call a copy near."""
NEAR_EDITS = (0.05, 0.30)
FAULTS = ("cut_gzip", "cut_length", "cut_flag", "cut_chunks")
BROKEN = {"bad_gzip": "decode_error", "strange_encoding": "unknown_encoding", "no_body": "empty"}


@dataclass(frozen=True)
class WebConfig:
    """The size of the miniature web and the share of all records that each kind of mess takes.

    The first group of shares are records of their own; the second is planted into records that should be kept.
    """

    pages: int = 24_000
    seed: int = 0
    languages: tuple[str, ...] = ("en", "fr", "es")
    exact_duplicates: float = 0.03
    near_duplicates: float = 0.05
    url_duplicates: float = 0.04
    spam: float = 0.04
    adult: float = 0.02
    other_languages: float = 0.03
    boilerplate_only: float = 0.02
    contact_lists: float = 0.005
    not_html: float = 0.02
    truncated: float = 0.006
    http_errors: float = 0.01
    broken: float = 0.004

    images: float = 0.15
    tables: float = 0.05
    formulas: float = 0.03
    contacts: float = 0.02
    mojibake: float = 0.01
    wrong_charset: float = 0.02
    wrong_type: float = 0.01
    encoded: float = 0.10
    files: int = runtime(8)

    def __post_init__(self):
        if self.pages < 20:
            raise ValueError(f"pages={self.pages}: a miniature web needs at least 20 pages")
        if not self.languages:
            raise ValueError(f"languages is empty; choose among {', '.join(WIKI_FILES)}")
        for language in self.languages:
            if language not in WIKI_FILES:
                raise ValueError(
                    f"languages has {language!r}; the miniature web has real text in {', '.join(WIKI_FILES)}"
                )
        for part in fields(self):
            if part.type == "float" and not 0 <= getattr(self, part.name) <= 1:
                raise ValueError(f"{part.name}={getattr(self, part.name)}: a share lies between 0 and 1")
        if sum(getattr(self, name) for name in OWN_RECORDS) > 0.8:
            raise ValueError(f"the shares of {', '.join(OWN_RECORDS)} leave less than 20% of good pages; lower some")


OWN_RECORDS = (
    "exact_duplicates", "near_duplicates", "url_duplicates", "spam", "adult", "other_languages", "boilerplate_only",
    "contact_lists", "not_html", "truncated", "http_errors", "broken",
)  # fmt: skip


@dataclass(slots=True)
class Capture:
    """One record to write, and the truth about it. `expected` is "" for what should be kept, else why not."""

    id: str
    url: str
    site: Site
    crawled_at: str
    origin: str
    kind: str
    language: str
    title: str
    blocks: list[Block]
    expected: str = ""
    planted: list[str] = field(default_factory=list)
    group: str = ""
    duplicate_of: str = ""
    edit: float = 0.0
    pii: list[str] = field(default_factory=list)
    benchmark: list[str] = field(default_factory=list)
    raw: str = ""  # HTML that stands instead of the rendered blocks
    transport: str = ""  # how the body is encoded, mislabelled or broken on the way


class Planner:
    """Builds the list of captures; one seeded generator draws everything, in a fixed order."""

    def __init__(self, config: WebConfig):
        self.config = config
        self.rng = random.Random(f"web/{config.seed}")
        self.urls: set[str] = set()
        self.captures: list[Capture] = []
        count = max(2, config.pages // PAGES_PER_SITE)
        per_language = {language: max(2, count // 4) for language in config.languages}
        self.sites = {language: make_sites(language, n, self.rng) for language, n in per_language.items()}
        self.sites["python"] = make_sites("en", max(2, count // 3), self.rng, technical=True)
        self.sites["spam"] = make_sites("en", max(2, count // 20), self.rng)
        self.sites["adult"] = [
            replace(site, domain=f"www.{self.rng.choice(words.ADULT_WORDS[:8])}-{site.domain[4:]}")
            for site in make_sites("en", max(2, count // 20), self.rng)
        ]
        for language in words.OTHER_LANGUAGES:
            self.sites[language] = make_sites(language, 2, self.rng)

    def plan(self) -> list[Capture]:
        """All captures in the order they are written."""
        counts = {name: round(getattr(self.config, name) * self.config.pages) for name in OWN_RECORDS}
        good = self.config.pages - sum(counts.values())
        self._good_pages(good)
        self._decorate()
        self._leak()
        self._duplicates(counts)
        self._mislabel()
        self._bad_pages(counts)
        self._bad_records(counts)
        self.rng.shuffle(self.captures)
        return self.captures

    def add(self, home: str, origin: str, kind: str, language: str, title: str, blocks: list[Block], **more) -> Capture:
        """A new capture on a site of `home`, with its own id, URL and date."""
        sites = self.sites[home]
        site = more.pop("site", None) or sites[int(len(sites) * self.rng.random() ** 1.5)]
        url = more.pop("url", "") or self._url(site, title)
        date = more.pop("crawled_at", "") or self._date(self.rng.choice(CRAWLS))
        capture = Capture(self._id(), url, site, date, origin, kind, language, title, blocks, **more)
        self.captures.append(capture)
        return capture

    def _id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _date(self, crawl: str) -> str:
        r = self.rng.randrange
        return f"{crawl}-{r(1, 29):02d}T{r(24):02d}:{r(60):02d}:{r(60):02d}Z"

    def _url(self, site: Site, title: str, suffix: str = "") -> str:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "page"
        url = f"https://{site.domain}/{slug}{suffix}"
        while url in self.urls:
            url = f"https://{site.domain}/{slug}-{self.rng.randrange(10_000)}{suffix}"
        self.urls.add(url)
        return url

    def _good_pages(self, good: int) -> None:
        """Pages that should be kept. Without the package of Wikipedia leads, Python's text takes their share too."""
        shares = {"en": 0.385, "fr": 0.15, "es": 0.15}
        prose = {language: round(good * shares[language]) for language in self.config.languages}
        technical = good - sum(prose.values())
        seed, wanted = self.config.seed, (round(technical * share) for share in (0.75, 0.16, 0.06))
        shelf = gather(self.config.languages, *wanted, seed)
        if not any(shelf.wiki.values()):
            technical, prose = good, {}
            shelf = gather((), round(good * 0.7), round(good * 0.15), round(good * 0.4), seed)
        for language, count in prose.items():
            for article in wiki_pages(shelf.wiki[language], count, self.rng):
                self._article(language, article)
        for article in technical_pages(shelf, technical):
            self._article("python", article)

    def _article(self, home: str, article: Article) -> None:
        planted = ["code"] if any(block.kind == "code" for block in article.blocks) else []
        if any(block.kind == "formula" or TEX_OPEN in block.text for block in article.blocks):
            planted.append("formula")
        origin, kind, language, blocks = article.origin, article.kind, article.language, list(article.blocks)
        rng, config = self.rng, self.config
        if kind == "wiki" and rng.random() < config.tables / 0.6:
            blocks.insert(0, mess.fact_table(article, rng))
            planted.append("table")
        if rng.random() < config.images:
            alt = rng.choice(words.IMAGE_ALTS[language] if kind == "wiki" else words.IMAGE_ALTS_TECHNICAL)
            at = rng.randrange(len(blocks) + 1) if kind == "wiki" else len(blocks)  # signatures stay under the name
            name = f"{rng.choice(words.GIVEN)} {rng.choice(words.FAMILY)}"
            blocks.insert(at, Block("image", alt.format(title=article.title, name=name)))
            planted.append("image")
        self.add(home, origin, kind, language, article.title, blocks, planted=planted)

    def _decorate(self) -> None:
        """Formulas and contacts, planted into pages that stay good."""
        for capture in self.captures:
            if capture.kind != "source" and self.rng.random() < self.config.formulas:
                capture.blocks += mess.formula_blocks(capture.language, self.rng)
                capture.planted = [*capture.planted, "formula"] if "formula" not in capture.planted else capture.planted
            if capture.kind == "wiki" and self.rng.random() < self.config.contacts / 0.6:
                block, found = mess.contact_sentence(capture.language, self.rng)
                capture.blocks.append(block)
                capture.pii += found
                capture.planted.append("pii")

    def _leak(self) -> None:
        """Each leaked benchmark item stands on two pages."""
        hosts = [c for c in self.captures if c.language == "en" and not c.pii]
        leaked = [item for item in benchmark_items(self.config.seed) if item.leaked] * 2
        self.rng.shuffle(leaked)
        chosen = self.rng.sample(hosts, min(len(hosts) // 4, len(leaked)))
        for capture, item in zip(chosen, leaked, strict=False):
            capture.blocks.append(Block("paragraph", item.text()))
            capture.planted.append("benchmark")
            capture.benchmark.append(item.id)

    def _duplicates(self, counts: dict[str, int]) -> None:
        """Copies of good pages; every page has copies of one kind only, so the truth stays plain."""
        plain = [c for c in self.captures if not c.pii and not c.benchmark and _words(c) >= SHORTEST_COPIED_WORDS]
        self.rng.shuffle(plain)
        prose = [c for c in plain if _words(c, mess.PROSE) >= 0.7 * _words(c)]
        pool = " ".join(b.text for c in prose[:300] for b in c.blocks if b.kind == "paragraph").split()
        used: set[str] = set()
        makers: dict[str, tuple[list[Capture], Callable[[Capture], None]]] = {
            "near_duplicates": (prose, lambda base: self._near(base, pool)),
            "exact_duplicates": (plain, self._exact),
            "url_duplicates": (plain, lambda base: self._recrawl(base, pool)),
        }
        for name, (bases, make) in makers.items():
            free = [c for c in bases if c.id not in used]
            left = counts[name]
            for base in free:
                copies = min(left, 1 if self.rng.random() < 0.8 else 2)
                if copies <= 0:
                    break
                used.add(base.id)
                base.group = base.id
                for _ in range(copies):
                    make(base)
                left -= copies

    def _home(self, base: Capture) -> str:
        return base.language if base.kind == "wiki" else "python"

    def _copy(self, base: Capture, blocks: list[Block], expected: str, planted: str, **more) -> None:
        self.add(
            self._home(base), base.origin, base.kind, base.language, base.title, blocks, expected=expected,
            planted=[*base.planted, planted], group=base.id, duplicate_of=base.id, **more,
        )  # fmt: skip

    def _exact(self, base: Capture) -> None:
        self._copy(base, base.blocks, "exact_duplicate", "exact_duplicate")

    def _near(self, base: Capture, pool: list[str]) -> None:
        low, high = NEAR_EDITS
        edit = 0.0
        while not low <= edit <= high:
            blocks, edit = mess.near_copy(base.blocks, self.rng.uniform(low, high), pool, self.rng)
        self._copy(base, blocks, "near_duplicate", "near_duplicate", edit=edit)

    def _recrawl(self, base: Capture, pool: list[str]) -> None:
        """An older capture of the page's URL, sometimes of an older version, sometimes under a decorated URL."""
        base.crawled_at = self._date(CRAWLS[-1])
        blocks, edit, url = base.blocks, 0.0, base.url
        if self.rng.random() < 0.5:
            blocks, edit = mess.near_copy(base.blocks, self.rng.uniform(0.01, 0.3), pool, self.rng)
        if self.rng.random() < 0.3:
            url += self.rng.choice(
                ("?utm_source=letter&utm_medium=mail", "#content", "?fbclid=a81f", "?utm_campaign=may")
            )
        date = self._date(self.rng.choice(CRAWLS[:-1]))
        planted = "url_variant" if url != base.url else "recrawl"
        self._copy(base, blocks, "url_duplicate", planted, edit=edit, url=url, site=base.site, crawled_at=date)

    def _mislabel(self) -> None:
        """Encodings, right and wrong, of pages that stay good."""
        rng, config = self.rng, self.config
        scripts = [c for c in self.captures if c.language != "en" and not c.group]
        rng.shuffle(scripts)
        total = config.pages
        broken, wrong = round(config.mojibake * total), round(config.wrong_charset * total)
        for capture in scripts[:broken]:
            capture.transport = "mojibake"
            capture.planted.append("mojibake")
        for capture in scripts[broken : broken + wrong]:
            capture.transport = rng.choice(("header_latin1", "bare_cp1252", "meta_utf8_cp1252", "cp1252", "utf16"))
            capture.planted.append("charset" if capture.transport in ("cp1252", "utf16") else "wrong_charset")
        for capture in self.captures:
            if not capture.transport and rng.random() < config.encoded:
                capture.transport = rng.choice(
                    ("gzip", "gzip", "chunked", "chunked_gzip", "deflate", "br", "zstd", "bare_gzip")
                )
                capture.planted.append("encoded")
            elif not capture.transport and rng.random() < config.wrong_type:
                capture.transport = rng.choice(("as_plain", "as_octets", "as_nothing"))
                capture.planted.append("wrong_type")

    def _bad_pages(self, counts: dict[str, int]) -> None:
        """Pages of HTML that a filter should remove."""
        rng = self.rng
        titles = [c.title for c in self.captures[:2000]]
        lines = [b.text for c in self.captures[:2000] if c.language == "en" for b in c.blocks if b.kind == "paragraph"]
        for number in range(counts["spam"]):
            home = "spam" if rng.random() < 0.7 else "en" if "en" in self.sites else "python"
            kind = ("spam_keywords", "spam_repeated", "spam_links", "spam_mixed")[number % 4]
            raw = ""
            if kind == "spam_links":
                title, raw = mess.link_farm(titles, rng)
                blocks = []
            elif kind == "spam_mixed":
                title, blocks = mess.mixed_spam(lines, rng)
            else:
                title, blocks = mess.keyword_spam(rng) if kind == "spam_keywords" else mess.repeated_spam(rng)
            self.add(home, f"spam/{number}", "spam", "en", title, blocks, expected="spam", planted=[kind], raw=raw)
        for number in range(counts["adult"]):
            title, blocks = mess.adult_page(lines, rng)
            home = "adult" if rng.random() < 0.6 else "spam"
            self.add(home, f"adult/{number}", "adult", "en", title, blocks, expected="adult", planted=["adult"])
        for number in range(counts["other_languages"]):
            language = rng.choice(list(words.OTHER_LANGUAGES))
            title, blocks = mess.foreign_page(language, rng)
            self.add(
                language,
                f"foreign/{number}",
                "foreign",
                language,
                title,
                blocks,
                expected="language",
                planted=["language"],
            )
        for number in range(counts["boilerplate_only"]):
            language = rng.choice(self.config.languages)
            line = rng.choice(words.PLACEHOLDER[language])
            self.add(
                language, f"empty/{number}", "boilerplate", language, "", [], expected="too_short",
                planted=["boilerplate_only"], raw=f"<p>{line}</p>",
            )  # fmt: skip
        for number in range(counts["contact_lists"]):
            title, blocks, found = mess.directory_page(rng)
            self.add(
                "spam", f"contacts/{number}", "contacts", "en", title, blocks, expected="pii", planted=["contact_list"],
                pii=found,
            )  # fmt: skip

    def _bad_records(self, counts: dict[str, int]) -> None:
        """Records that never become pages."""
        rng = self.rng
        home = self.config.languages[0]
        body = [Block("paragraph", "The body of this record does not arrive whole. " * 12)]
        for number in range(counts["not_html"]):
            ending, declared, _ = mess.other_file(random.Random(number + self.config.seed))
            site = rng.choice(self.sites[home])
            url = self._url(site, f"file {number}", f".{ending}")
            planted = ["not_html", "wrong_type"] if declared == "text/html" else ["not_html"]
            self.add(
                home, f"file/{number}", "file", "", "", [], expected="not_html", planted=planted, url=url, site=site,
                transport=f"file:{number}",
            )  # fmt: skip
        for number in range(counts["truncated"]):
            self.add(
                home, f"cut/{number}", "cut", "en", "Cut short", body, expected="truncated", planted=["truncated"],
                transport=FAULTS[number % len(FAULTS)],
            )  # fmt: skip
        for number in range(counts["http_errors"]):
            status = rng.choice(("404", "404", "403", "500", "301"))
            self.add(
                home, f"error/{number}", "error", "en", "Not found", body, expected="http_error", planted=["http_error"],
                transport=f"status:{status}",
            )  # fmt: skip
        kinds = list(BROKEN)
        for number in range(counts["broken"]):
            kind = kinds[number % len(kinds)]
            self.add(
                home, f"broken/{number}", "broken", "en", "Broken", body, expected=BROKEN[kind], planted=[BROKEN[kind]],
                transport=kind,
            )  # fmt: skip


def wiki_pages(leads: list[Article], count: int, rng: random.Random) -> list[Article]:
    """`count` pages (fewer where leads run out): three in four hold one lead, the others two to four of one topic."""
    pages: list[Article] = []
    waiting: dict[str, list[Article]] = {}
    for lead in leads:
        if len(pages) == count:
            break
        if rng.random() < 0.55:
            pages.append(lead)
            continue
        bucket = waiting.setdefault(lead.topic, [])
        bucket.append(lead)
        if len(bucket) >= rng.randrange(2, 5):
            pages.append(_joined(bucket))
            waiting[lead.topic] = []
    return pages


def _joined(leads: list[Article]) -> Article:
    first = leads[0]
    blocks = [b for lead in leads for b in (Block("heading", lead.title, "2"), *lead.blocks)]
    title = ", ".join(lead.title for lead in leads)
    origin = f"{first.origin}+{len(leads) - 1}"
    return Article(origin, "wiki", first.language, title, tuple(blocks), first.topic)


def technical_pages(shelf: Shelf, count: int) -> list[Article]:
    """`count` pages of Python's text (fewer where it runs out): all topics, then every kind in turn by its share."""
    piles = [(shelf.functions, 0.72), (shelf.classes, 0.15), (shelf.modules, 0.06), (shelf.sources, 0.07)]
    pages = shelf.topics[: max(1, count // 10)]
    left = count - len(pages)
    first = [article for pile, share in piles for article in pile[: round(left * share)]]
    rest = [article for pile, share in piles for article in pile[round(left * share) :]]
    return [*pages, *first, *rest][:count]


def _words(capture: Capture, kinds: tuple[str, ...] = ()) -> int:
    return sum(len(block.text.split()) for block in capture.blocks if not kinds or block.kind in kinds)
