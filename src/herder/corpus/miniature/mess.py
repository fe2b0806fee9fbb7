"""What makes the miniature web messy: edits, spam, adult pages, contacts, broken encodings. Each returns what it planted."""

from __future__ import annotations

import gzip
import json
import random
import zlib

import pyarrow as pa

from herder.corpus.miniature import words
from herder.corpus.miniature.blocks import TEX_CLOSE, TEX_OPEN, Article, Block

PROSE = ("paragraph", "list", "quote")


def near_copy(
    blocks: tuple[Block, ...], share: float, pool: list[str], rng: random.Random
) -> tuple[list[Block], float]:
    """Blocks with about `share` of their prose words changed (replaced, dropped, added), and the true share of words changed."""
    made, changed, total = [], 0, 0
    for block in blocks:
        if block.kind not in PROSE:
            made.append(block)
            total += len(block.text.split())
            continue
        lines = []
        for line in block.text.split("\n"):
            tokens = line.split(" ")
            total += len(tokens)
            out = []
            for token in tokens:
                if rng.random() >= share:
                    out.append(token)
                    continue
                changed += 1
                kind = rng.random()
                if kind < 0.6:
                    out.append(rng.choice(pool))
                elif kind < 0.8:
                    out += [token, rng.choice(pool)]
            lines.append(" ".join(out) or tokens[0])
        made.append(Block(block.kind, "\n".join(lines), block.note))
    return made, changed / max(1, total)


def keyword_spam(rng: random.Random) -> tuple[str, list[Block]]:
    """A page stuffed with keywords."""
    themes = rng.sample(words.KEYWORDS, 8)
    lines = [" ".join(rng.choice(themes) for _ in range(rng.randrange(25, 60))) for _ in range(rng.randrange(4, 9))]
    return " ".join(rng.sample(themes, 4)).title(), [Block("paragraph", line) for line in lines]


def repeated_spam(rng: random.Random) -> tuple[str, list[Block]]:
    """A page that says the same one to three lines again and again."""
    lines = rng.sample(words.SPAM_LINES, rng.randrange(1, 4))
    return lines[0].split(",")[0], [Block("paragraph", rng.choice(lines)) for _ in range(rng.randrange(15, 45))]


def mixed_spam(lines: list[str], rng: random.Random) -> tuple[str, list[Block]]:
    """Real sentences with advertising lines between them: as little as one line in four is spam."""
    made = []
    for line in rng.sample(lines, min(len(lines), rng.randrange(3, 7))):
        made.append(Block("paragraph", line))
        if rng.random() < 0.8:
            themes = rng.sample(words.KEYWORDS, 5)
            stuffed = " ".join(rng.choice(themes) for _ in range(rng.randrange(8, 40)))
            made.append(Block("paragraph", rng.choice((stuffed, rng.choice(words.SPAM_LINES)))))
    made.append(Block("paragraph", rng.choice(words.SPAM_LINES)))
    return " ".join(rng.sample(words.KEYWORDS, 4)).title(), made


def link_farm(titles: list[str], rng: random.Random) -> tuple[str, str]:
    """A page of links only, which is no text at all: its title and its HTML."""
    names = [f"{rng.choice(words.KEYWORDS)} {rng.choice(titles)}" for _ in range(rng.randrange(60, 160))]
    links = "\n".join(
        f'<a href="https://{rng.choice(words.KEYWORDS)}{i}.example/">{n}</a>' for i, n in enumerate(names)
    )
    return "Links", f"<div>{links}</div>"


def adult_page(lines: list[str], rng: random.Random) -> tuple[str, list[Block]]:
    """A page with words of the adult industry: dense in them, or (one in three) with real sentences between."""
    paragraphs = [Block("paragraph", line) for line in rng.sample(lines, 3)] if rng.random() < 1 / 3 else []
    for _ in range(rng.randrange(3, 8)):
        sentences = rng.choices(words.ADULT_SENTENCES, k=rng.randrange(2, 6))
        filled = [s.format(**dict(zip("abc", rng.sample(words.ADULT_WORDS, 3), strict=True))) for s in sentences]
        paragraphs.append(Block("paragraph", " ".join(filled)))
    return f"Free {rng.choice(words.ADULT_WORDS)} {rng.choice(words.ADULT_WORDS)} videos", paragraphs


def foreign_page(language: str, rng: random.Random) -> tuple[str, list[Block]]:
    """A page in a language outside the wanted ones, from sentences written for this purpose."""
    sentences = words.OTHER_LANGUAGES[language]
    joint = "" if language == "ja" else " "
    chosen = [s.format(n=rng.randrange(120, 1990)) for s in rng.sample(sentences, rng.randrange(6, len(sentences) + 1))]
    title = chosen[0].rstrip(".。")
    cut = rng.randrange(2, len(chosen) - 1)
    return title, [Block("paragraph", joint.join(chosen[:cut])), Block("paragraph", joint.join(chosen[cut:]))]


def phone(rng: random.Random) -> str:
    """A phone number from ranges set aside for fiction (555-01xx, 020 7946 0xxx) or with an unused country prefix."""
    last = rng.randrange(100)
    forms = (
        f"+1 (415) 555-01{last:02d}", f"(212) 555-01{last:02d}", f"646-555-01{last:02d}", f"020 7946 0{rng.randrange(1000):03d}",
        f"+33 1 99 00 {rng.randrange(100):02d} {last:02d}", f"+34 91 000 {rng.randrange(100):02d} {last:02d}",
    )  # fmt: skip
    return rng.choice(forms)


def email(rng: random.Random) -> str:
    given, family = rng.choice(words.GIVEN).lower(), rng.choice(words.FAMILY).lower()
    local = rng.choice(
        (f"{given}.{family}", f"{given[0]}{family}", f"{given}_{family}{rng.randrange(99)}", "info", "office")
    )
    return (
        f"{local}@{rng.choice(words.SITE_FIRST)}-{rng.choice(words.SITE_LAST)}.{rng.choice(('com', 'org', 'fr', 'es'))}"
    )


def contact_sentence(language: str, rng: random.Random) -> tuple[Block, list[str]]:
    """A paragraph with an e-mail address, a phone number or both, and these strings exactly."""
    template = rng.choice(words.CONTACT[language])
    values = {"email": email(rng), "phone": phone(rng), "name": f"{rng.choice(words.GIVEN)} {rng.choice(words.FAMILY)}"}
    used = [values[key] for key in ("email", "phone") if "{" + key + "}" in template]
    return Block("paragraph", template.format(**values)), used


def directory_page(rng: random.Random) -> tuple[str, list[Block], list[str]]:
    """A list of people with their addresses and numbers: a page that is mostly personal data."""
    rows, found = [], []
    for _ in range(rng.randrange(12, 40)):
        address, number = email(rng), phone(rng)
        rows.append(f"{rng.choice(words.GIVEN)} {rng.choice(words.FAMILY)}, {address}, {number}")
        found += [address, number]
    return f"Members of the {rng.choice(words.SITE_FIRST)} association", [Block("list", "\n".join(rows))], found


def formula_blocks(language: str, rng: random.Random) -> list[Block]:
    """A sentence with an inline formula, or a displayed one."""
    what, tex = rng.choice(words.FORMULAS)
    if rng.random() < 0.4:
        return [Block("formula", tex)]
    template = rng.choice(words.FORMULA_SENTENCES[language])
    return [Block("paragraph", template.format(what=what, tex=f"{TEX_OPEN}{tex}{TEX_CLOSE}"))]


def fact_table(article: Article, rng: random.Random) -> Block:
    """A small table about the article itself."""
    names, _ = words.TABLE_WORDS[article.language]
    size = sum(len(block.text.split()) for block in article.blocks)
    editor = f"{rng.choice(words.GIVEN)} {rng.choice(words.FAMILY)}"
    values = (
        article.title,
        article.topic,
        str(size),
        f"{rng.randrange(2005, 2024)}-{rng.randrange(1, 13):02d}",
        editor,
    )
    if rng.random() < 0.5:
        return Block("table", "\t".join(names) + "\n" + "\t".join(values))
    return Block("table", "\n".join(f"{name}\t{value}" for name, value in zip(names, values, strict=True)))


def mojibake(text: str) -> str:
    """UTF-8 read as Windows-1252, as a careless import leaves it in the page."""
    pieces = []
    for byte in text.encode():
        one = bytes((byte,))
        pieces.append(
            one.decode("cp1252", "replace") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else one.decode("latin-1")
        )
    return "".join(pieces)


def chunked(body: bytes, rng: random.Random) -> bytes:
    """A body in HTTP chunks."""
    pieces, at = [], 0
    while at < len(body):
        size = rng.randrange(500, 4000)
        piece = body[at : at + size]
        pieces.append(b"%x\r\n%s\r\n" % (len(piece), piece))
        at += size
    return b"".join(pieces) + b"0\r\n\r\n"


def compressed(body: bytes, name: str) -> bytes:
    """A body in a content encoding: gzip, deflate, br or zstd."""
    if name == "gzip":
        return gzip.compress(body, 1, mtime=0)
    if name == "deflate":
        return zlib.compress(body, 1)
    return pa.compress(body, codec="brotli" if name == "br" else "zstd", asbytes=True)


def other_file(rng: random.Random) -> tuple[str, str, bytes]:
    """A file that is no page: suffix, declared type (sometimes a lie), bytes."""
    noise = rng.randbytes(600)
    rows = json.dumps([{"id": i, "name": rng.choice(words.GIVEN)} for i in range(20)]).encode()
    feed = b"<?xml version='1.0'?><rss version='2.0'><channel><title>News</title></channel></rss>"
    kinds = (
        ("png", "image/png", b"\x89PNG\r\n\x1a\n" + noise), ("png", "text/html", b"\x89PNG\r\n\x1a\n" + noise),
        ("jpg", "image/jpeg", b"\xff\xd8\xff\xe0" + noise), ("pdf", "application/pdf", b"%PDF-1.4\n" + noise),
        ("pdf", "text/html", b"%PDF-1.4\n" + noise), ("json", "application/json", rows), ("json", "text/html", rows),
        ("rss", "application/rss+xml", feed), ("xml", "text/html", feed),
        ("txt", "text/plain", b"User-agent: *\nDisallow: /private/\n"), ("css", "text/css", b"body { margin: 0; color: #333 }\n"),
    )  # fmt: skip
    return rng.choice(kinds)
