"""Which blocks of a page are its content (paper section 3.1: precision in boilerplate removal, recall of content).

Three kinds of evidence, in this order: what an element is called (tag, role, class and id words) makes it suspect; where
the mass of unlinked prose and code lies picks the element that holds the content; the share of link text drops lists of
links inside it. A suspect that holds most of the page's prose is cleared: class names lie, the text does not.
"""

from __future__ import annotations

import re


def names(text: str) -> frozenset[str]:
    """A set of names, written as one string."""
    return frozenset(text.split())


BOILERPLATE_ROLES = frozenset(
    [
        "navigation",
        "banner",
        "contentinfo",
        "complementary",
        "search",
        "dialog",
        "alertdialog",
        "menu",
        "menubar",
        "toolbar",
        "tablist",
        "tooltip",
        "status",
    ]
)
CONTENT_TAGS = frozenset(("article", "main"))
SUSPECT_TAGS = frozenset(("aside", "footer", "header", "menu", "dialog", "figcaption"))
CERTAIN_WORDS = (
    r"nav|navbar|navigation|menu|submenu|topbar|toolbar|breadcrumbs?|pagination|pager|skip-?links?|sitemap|"
    r"footer|colophon|copyright|masthead|site-?header|sphinxsidebar|right-?rail|left-?rail|rail|navbox|"
    r"cookies?|consent|gdpr|lightbox|advert\w*|sponsor\w*|outbrain|taboola|"
    r"share|sharing|sharebar|social|socials|addthis|subscribe\w*|subscription|newsletter\w*|signup|sign-up|login|"
    r"related\w*|recommend\w*|more-(?:from|stories|news|articles)|also-(?:read|like)|most-(?:read|popular)|"
    r"comments?|commentlist|comments-area|respond|reply|disqus\w*"
)
LIKELY_WORDS = (
    r"side-?bar|widgets?|modal|popup|overlay|ads?|paywall|foot|page-?header|crumbs?|aside|toc|table-of-contents|banner|notice-bar|alert-bar|promo\w*|dfp|follow|follow-us|read-?(?:more|next)|"
    r"popular|trending|latest|teasers?|carousel|slider|gallery|up-?next|disclaimer|tags?|tag-?list|tagcloud|by-?lines?|"
    r"author-?(?:bio|box|info)|about-?author|bio|meta|post-?meta|entry-?meta|dateline|timestamp|time-?stamp|rating|print|tools|"
    r"credits?|photo-?credit|caption|hidden|feedback|survey|hero-?text|ribbon"
)
SUSPECT_WORDS = re.compile(
    rf"(?:^|\s|(?<!with)(?<!no)(?<!has)[_-])(?:({CERTAIN_WORDS})|{LIKELY_WORDS})(?:$|[\s_-])", re.IGNORECASE
)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
CONTENT_WORDS = re.compile(
    r"(?:^|[\s_-])(?:(?:article|post|story)[_-]*(?:body|content|text)|entry-?content|"
    r"main-?content|body-?(?:text|copy)|page-?content|content-?body|mw-parser-output|markdown-body|documentwrapper)(?:$|[\s_-])",
    re.IGNORECASE,
)
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
NEVER_SUSPECT = names("html body main article pre h1 h2 h3 table tbody tr td dd dt")

DENSE = 0.5
"""A block whose text is linked beyond this share adds nothing to its containers."""
LONG = 60
"""Characters from which a block counts as prose."""
CLEARED, CLEARED_CERTAIN = 0.55, 0.95
"""A suspect element that holds more than this share of the page's prose is content after all; a certain one must hold it all."""
DESCEND, DESCEND_NAMED = 0.75, 0.4
"""The content element is the smallest that still holds this share of its parent's weight (less if it is called content)."""
CONCENTRATION = 1.5
"""Paragraphs that stand together weigh more than as many teasers in boxes of their own: their joint mass counts to this power."""


def suspicion(frame, tag: str, attributes: dict) -> None:
    """Marks a frame as skipped (never content), suspect (boilerplate unless it holds most of the prose) or named as content."""
    if tag == "nav":
        frame.skip = True
        return
    suspect, certain = tag in SUSPECT_TAGS, tag == "footer"
    frame.named = tag in CONTENT_TAGS
    if attributes:
        marks = attributes.get("class") or ""
        if identity := attributes.get("id"):
            marks = f"{marks} {identity}" if marks else identity
        if marks and not marks.islower():
            marks = CAMEL.sub("-", marks)
        frame.words = marks
        if "hidden" in attributes or attributes.get("aria-hidden") == "true":
            frame.skip = True
            return
        role = attributes.get("role")
        if role == "main" or attributes.get("itemprop") == "articleBody" or (marks and CONTENT_WORDS.search(marks)):
            frame.named = True
        elif tag not in NEVER_SUSPECT:
            if marks and (found := SUSPECT_WORDS.search(marks)):
                suspect, certain = True, certain or found[1] is not None
            elif role in BOILERPLATE_ROLES:
                suspect = certain = True
        if (style := attributes.get("style")) and HIDDEN.search(style):
            suspect = True
    if tag == "article" and inside_article(frame):
        suspect = True
    if suspect:
        frame.above, frame.suspect, frame.certain = frame.suspect, frame, certain


def inside_article(frame) -> bool:
    """An article inside an article is a comment or a teaser (HTML Standard, 4.3.2)."""
    around = frame.parent
    while around is not None:
        if around.tag == "article":
            return True
        around = around.parent
    return False


def choose(blocks: list, title: str = "") -> list:
    """The blocks that are content, in order; `title` is the page's, to know its headline by."""
    masses = [mass(block) for block in blocks]
    clear_suspects(blocks, masses)
    rows = [(block, m) for block, m in zip(blocks, masses, strict=True) if block.frame.suspect is None]
    if not rows:
        return []
    root = content_root(rows)
    inside = within([block for block, _ in rows], root)
    edge = len(inside) - EDGE_BLOCKS
    wanted = [is_content(b) and not is_notice(b, i < EDGE_BLOCKS or i >= edge) for i, b in enumerate(inside)]
    kept = drop_empty_sections(inside, wanted)
    headline = None if any(block.frame.tag == "h1" for block in kept) else find_headline(blocks, title)
    return [headline, *kept] if headline and kept else kept


def find_headline(blocks: list, title: str):
    """The page's own heading where it stands outside the content element: a h1 that the title repeats."""
    for block in blocks:
        if block.frame.tag == "h1" and block.text and block.text in title:
            return block
    return None


def mass(block) -> float:
    """How much prose or code a block adds to the elements that hold it, in characters."""
    if block.kind == "heading":
        return 0.0
    if block.kind == "code":
        return float(min(block.length, 2000))
    if block.link_length > DENSE * block.length or is_teaser(block):
        return 0.0
    unlinked = block.length - block.link_length
    return float(unlinked) if block.length >= LONG else unlinked * 0.25


def clear_suspects(blocks: list, masses: list[float]) -> None:
    """Lifts the suspicion from elements that hold most of the page's prose."""
    held: dict = {}
    for block, m in zip(blocks, masses, strict=True):
        frame = block.frame.suspect
        while frame is not None:
            held[frame] = held.get(frame, 0.0) + m
            frame = frame.above
    total = sum(masses)
    cleared = {f for f, m in held.items() if m > (CLEARED_CERTAIN if f.certain else CLEARED) * total}
    if cleared:
        for block in blocks:
            frame = block.frame.suspect
            while frame in cleared:
                frame = frame.above
            block.frame.suspect = frame


def content_root(rows: list[tuple]):
    """The element that holds the content: from the page's root down, as long as one child holds most of the weight."""
    together: dict = {}
    for block, m in rows:
        container = block.frame if block.frame.tag == "td" else block.frame.parent or block.frame
        together[container] = together.get(container, 0.0) + m
    children: dict = {}
    root = None
    for container, m in together.items():
        weight, frame, child = m**CONCENTRATION, container, None
        while frame is not None:
            known = frame in children
            below = children.setdefault(frame, [])
            if child is not None:
                below.append(child)
            child = None if known else frame
            frame.weight += weight
            root, frame = frame, frame.parent
    chosen = root
    while True:
        best = max(children.get(root, ()), key=lambda f: f.weight, default=None)
        if best is None or best.weight == 0.0 or best.tag in NEVER_ROOT or (root.named and not best.named):
            return chosen
        if best.weight < root.weight * (DESCEND_NAMED if best.named else DESCEND):
            return chosen
        root = best
        if root.tag not in TABLE_PARTS:
            chosen = root


NEVER_ROOT = frozenset(("p", "pre", "li", "ul", "ol", "dl", "dd", "dt", "blockquote", "section"))
TABLE_PARTS = frozenset(("table", "tbody", "tr"))
"""Passed through on the way to the cell of a layout table; a table that holds data has no cell with most of the weight."""


def within(blocks: list, root) -> list:
    """The blocks that lie inside an element; an answer is kept for every element on the way up."""
    known = {root: True, None: False}
    result = []
    for block in blocks:
        frame, path = block.frame, []
        while frame not in known:
            path.append(frame)
            frame = frame.parent
        inside = known[frame]
        known.update(dict.fromkeys(path, inside))
        if inside:
            result.append(block)
    return result


LINKED = 0.66
SENTENCE, ALL_LINK = 160, 0.9


def is_content(block) -> bool:
    """Inside the content element only lists of links, and short lines that are all link, are left out."""
    if block.kind in ("code", "heading"):
        return True
    return (
        not is_teaser(block) and block.link_length <= (LINKED if block.length < SENTENCE else ALL_LINK) * block.length
    )


TEASER = re.compile(r"(?:…|\.\.\.|\[…\])\s*(\S[^.…]{2,30})$")


def is_teaser(block) -> bool:
    """The opening of another page: text that breaks off before a link ("... Read more")."""
    if not block.link_length or not (found := TEASER.search(block.text, max(0, block.length - 40))):
        return False
    return abs(block.link_length - len(found[1])) <= 2


LABEL_LENGTH = 40


def is_label(block) -> bool:
    """A heading in all but its tag: a few words without an end, which name what follows."""
    return block.kind == "text" and block.length < LABEL_LENGTH and block.text[-1].isalpha() and block.frame.row is None


EDGE_BLOCKS, NOTICE_LENGTH = 5, 240
COPYRIGHT = re.compile(r"(?:©|\(c\)|copyright|all rights reserved)", re.IGNORECASE)
COOKIES = re.compile(
    r"(?=.*\bcookies?\b)(?=.*\b(?:accept\w*|agree|consent\w*|polic\w+|continu\w+|improve|experience|acept\w*|usamos|utilizamos|"
    r"utilis\w+|acceptez|zustimm\w+|verwend\w+))|"
    r"\b(?:sign up|subscribe|register) (?:for|to) (?:our|the|this) (?:\w+ )?newsletter|"
    r"\b(?:inscrivez-vous|abonnez-vous) .{0,20}(?:newsletter|lettre)|\b(?:suscr[ií]b\w+|reg[ií]str\w+) .{0,20}bolet[ií]n",
    re.IGNORECASE | re.DOTALL,
)


def is_notice(block, at_edge: bool) -> bool:
    """A short copyright line; at the page's beginning or end also a cookie notice or the offer of a newsletter."""
    if block.length > NOTICE_LENGTH or block.kind != "text":
        return False
    return bool(COPYRIGHT.match(block.text)) or (at_edge and bool(COOKIES.search(block.text)))


def drop_empty_sections(blocks: list, kept: list[bool]) -> list:
    """Leaves out what is_content refused, and the headings under which nothing is left ("Related articles")."""
    result, followed, lost = [], False, False
    for block, keep in zip(reversed(blocks), reversed(kept), strict=True):
        if block.kind == "heading":
            if followed or (not lost and result):
                result.append(block)
                followed, lost = True, False
            else:
                lost = True
        elif keep and not (lost and is_label(block)):
            result.append(block)
            followed, lost = True, False
        else:
            lost, followed = True, False
    return result[::-1]
