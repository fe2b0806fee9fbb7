"""Sites of the miniature web: each has a domain, a language, a layout and furniture that repeats on all its pages.

The layouts are the ones extraction meets: HTML5 semantics, div soup with meaningless classes, tables for layout, a blog's
theme, a documentation generator, a wiki, a forum, and bare markup with unclosed tags.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from herder.corpus.miniature import words
from herder.corpus.miniature.markup import heading


@dataclass(frozen=True, slots=True)
class Site:
    """A site with its repeated parts as ready HTML. `boilerplate` lists their texts, which no extraction should return.

    `language` is that of the furniture, `tag` the one the pages claim (they differ where there is no furniture for it).
    """

    domain: str
    name: str
    language: str
    tag: str
    layout: str
    dialect: str
    navigation: str
    cookies: str
    footer: str
    boilerplate: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What one page shows: its own content as HTML and the parts around it that differ from page to page."""

    title: str
    content: str
    byline: str
    related: tuple[str, ...]
    teasers: tuple[tuple[str, str], ...] = ()


def make_sites(language: str, count: int, rng: random.Random, technical: bool = False) -> list[Site]:
    """`count` sites of one language, layouts in turn; technical ones use those of documentation and forums."""
    layouts = list(_TECHNICAL if technical else _GENERAL)
    rng.shuffle(layouts)
    return [_make_site(language, rng, layouts[number % len(layouts)], number) for number in range(count)]


def _make_site(language: str, rng: random.Random, layout: str, number: int) -> Site:
    furniture = language if language in words.NAVIGATION else "en"
    name = f"{rng.choice(words.SITE_FIRST)} {rng.choice(words.SITE_LAST)}"
    ending = rng.choice(words.ENDINGS.get(language, (language, "org")))
    domain = f"www.{name.replace(' ', '-')}{number}.{ending}"
    labels = rng.sample(words.NAVIGATION[furniture].split(","), rng.randrange(6, 11))
    cookie_texts = rng.choice(words.COOKIES[furniture]).split("|")
    footer_texts = rng.choice(words.FOOTERS[furniture]).split("|")
    classes = tuple(f"{rng.choice('abcdefgh')}{rng.randrange(100, 1000)}" for _ in range(8))
    links = "".join(f'<li><a href="/{escape(label.lower())}">{escape(label)}</a></li>' for label in labels)
    buttons = "".join(f"<button>{escape(text)}</button>" for text in cookie_texts[1:])
    small = " | ".join(f'<a href="/about">{escape(text)}</a>' for text in footer_texts[1:])
    copyright_line = f"© {rng.randrange(2015, 2025)} {name.title()}. {footer_texts[0]}"
    return Site(
        domain,
        name.title(),
        furniture,
        language,
        layout,
        _DIALECT[layout],
        f"<ul>{links}</ul>",
        f"<p>{escape(cookie_texts[0])}</p>{buttons}",
        f"<p>{escape(copyright_line)}</p><p>{small}</p>",
        (cookie_texts[0], copyright_line, words.NEWSLETTER[furniture]),
        classes,
    )


def page_html(site: Site, view: View, charset: str = "utf-8") -> str:
    """One page of a site as HTML text; `charset` is what its meta element claims ("" leaves it out)."""
    meta = f'<meta charset="{charset}">' if charset else ""
    head = (
        f'<!DOCTYPE html>\n<html lang="{site.tag}">\n<head>{meta}\n<title>{escape(view.title)} - {site.name}</title>\n'
        f'<link rel="stylesheet" href="/static/main.css"><style>.{site.classes[0]}{{margin:0 auto;max-width:70em}}</style>\n'
        f'<script>window.dataLayer=window.dataLayer||[];dataLayer.push({{"page":"{site.classes[1]}"}});</script>\n</head>\n'
    )
    return head + _LAYOUTS[site.layout](site, view) + "\n</html>\n"


def _title(site: Site, view: View) -> str:
    return heading(view.title, 1, site.dialect)


def _related(site: Site, view: View) -> str:
    links = "".join(f'<li><a href="/more/{i}">{escape(title)}</a></li>' for i, title in enumerate(view.related))
    return f"<ul>{links}</ul>"


def _teasers(site: Site, view: View) -> str:
    """Openings of other pages: prose, but not this page's."""
    if not view.teasers:
        return ""
    box = '<div class="{}"><h3><a href="/more/{}">{}</a></h3><p>{}… <a href="/more/{}">{}</a></p></div>'
    more, name = words.MORE[site.language], site.classes[3]
    boxes = [box.format(name, i, escape(t), escape(text), i, more) for i, (t, text) in enumerate(view.teasers)]
    return f'<div class="{site.classes[4]}"><h2>{words.RELATED[site.language]}</h2>{"".join(boxes)}</div>'


def _share(site: Site) -> str:
    return " ".join(f'<a class="share" href="#">{label}</a>' for label in words.SHARING[site.language])


def _advert(site: Site) -> str:
    label, text = words.ADVERT[site.language]
    return (
        f'<div class="ad-slot"><small>{label}</small> <a href="https://ads.example/{site.classes[2]}">{text}</a></div>'
    )


def _semantic(site: Site, view: View) -> str:
    language = site.language
    return f"""<body class="{site.classes[0]}">
<header><a href="/">{site.name}</a><nav>{site.navigation}</nav>
<form role="search"><input type="search" placeholder="{words.SEARCH[language]}"></form></header>
<div class="cookie-banner" role="dialog">{site.cookies}</div>
<main><article>{_title(site, view)}
<p class="byline">{escape(view.byline)}</p>
<div class="social">{_share(site)}</div>
{view.content}
</article>{_teasers(site, view)}</main>
<aside><h2>{words.RELATED[language]}</h2>{_related(site, view)}{_advert(site)}</aside>
<footer>{site.footer}<p>{words.NEWSLETTER[language]}</p></footer>
<script src="/static/app.js"></script></body>"""


def _divs(site: Site, view: View) -> str:
    a, b, c, d, e, f, g, h = site.classes
    return f"""<body><div class="{a}"><div class="{b}"><div>{site.name}</div><div class="{c}">{site.navigation}</div></div>
<div class="{d}"><div class="{e}">{_title(site, view)}<div class="{f}">{escape(view.byline)}</div>
<div class="{g}">{view.content}</div>{_teasers(site, view)}</div>
<div class="{h}"><div class="hd">{words.RELATED[site.language]}</div>{_related(site, view)}
<div>{words.NEWSLETTER[site.language]}</div></div></div>
<div class="{c} {f}">{site.footer}</div></div>
<div id="cc-{a}" style="position:fixed;bottom:0">{site.cookies}</div>
<noscript><img src="https://stats.example/p.gif" alt=""></noscript></body>"""


def _tables(site: Site, view: View) -> str:
    return f"""<body bgcolor="#ffffff" text="#000000"><table width="100%" border="0" cellpadding="4">
<tr><td colspan="3" bgcolor="#336699"><font color="white" size="+2">{site.name}</font></td></tr>
<tr valign="top"><td width="150" bgcolor="#eeeeee">{site.navigation}</td>
<td>{_title(site, view)}{view.content}</td>
<td width="160"><b>{words.RELATED[site.language]}</b>{_related(site, view)}{_advert(site)}</td></tr>
<tr><td colspan="3" align="center"><font size="-1">{site.footer}</font></td></tr></table></body>"""


def _blog(site: Site, view: View) -> str:
    language = site.language
    return f"""<body class="single post-template"><div id="page" class="hfeed site">
<div id="masthead"><p class="site-title"><a href="/" rel="home">{site.name}</a></p>
<div class="menu-main-container">{site.navigation}</div></div>
<div id="content"><div id="primary"><div class="post hentry"><div class="entry-header">{_title(site, view)}
<div class="entry-meta">{escape(view.byline)}</div></div><div class="entry-content">
{view.content}
<div class="sharedaddy">{_share(site)}</div></div></div>{_teasers(site, view)}</div>
<div id="secondary" class="widget-area"><div class="widget"><h3 class="widget-title">{words.RELATED[language]}</h3>
{_related(site, view)}</div><div class="widget newsletter">{words.NEWSLETTER[language]}</div></div></div>
<div id="colophon" class="site-footer">{site.footer}</div></div>
<div class="gdpr-overlay">{site.cookies}</div></body>"""


def _sphinx(site: Site, view: View) -> str:
    return f"""<body><div class="related" role="navigation"><h3>Navigation</h3>{site.navigation}</div>
<div class="document"><div class="documentwrapper"><div class="bodywrapper"><div class="body" role="main"><section>
{_title(site, view)}
{view.content}
</section></div></div></div>
<div class="sphinxsidebar" role="navigation"><div class="sphinxsidebarwrapper"><h3>Table of Contents</h3>
{_related(site, view)}<h3>Quick search</h3>
<form><input type="text" name="q"><input type="submit" value="Go"></form></div></div></div>
<div class="footer">{site.footer}</div></body>"""


def _wiki(site: Site, view: View) -> str:
    return f"""<body class="skin-plain"><div id="mw-page-base"></div><div id="content" class="mw-body">
{_title(site, view).replace("<h1", '<h1 id="firstHeading"', 1)}<div id="siteSub">{site.name}</div>
<div id="jump-to-nav"><a href="#mw-head">{words.MORE[site.language]}</a></div>
<div id="bodyContent"><div class="mw-parser-output">
{view.content}
</div><div class="printfooter">https://{site.domain}/</div></div></div>
<div id="mw-navigation"><div id="p-navigation">{site.navigation}</div><div id="p-tb">{_related(site, view)}</div></div>
<div id="footer">{site.footer}</div><div class="notice">{site.cookies}</div></body>"""


def _forum(site: Site, view: View) -> str:
    return f"""<body><div class="topbar">{site.name} {site.navigation}</div>
<div class="container"><div class="question-page">{_title(site, view)}
<div class="post-layout"><div class="votecell"><button>▲</button><span>{len(view.title)}</span><button>▼</button></div>
<div class="postcell"><div class="post-text">{view.content}</div>
<div class="post-menu">{_share(site)}</div><div class="user-info">{escape(view.byline)}</div></div></div></div>
<div class="sidebar"><h4>{words.RELATED[site.language]}</h4>{_related(site, view)}{_advert(site)}</div></div>
<div class="cookie-consent">{site.cookies}</div><div class="site-footer">{site.footer}</div></body>"""


def _bare(site: Site, view: View) -> str:
    return f"""<BODY>
<P><A HREF="/">{site.name}</A> {site.navigation}
<HR>
{_title(site, view)}
{view.content.replace("</p>", "").replace("</li>", "")}
<HR>
{site.footer}
</BODY>"""


_LAYOUTS: dict[str, Callable[[Site, View], str]] = {
    "semantic": _semantic, "divs": _divs, "tables": _tables, "blog": _blog, "sphinx": _sphinx, "wiki": _wiki,
    "forum": _forum, "bare": _bare,
}  # fmt: skip
_DIALECT = {
    "semantic": "semantic", "divs": "divs", "tables": "breaks", "blog": "semantic", "sphinx": "sphinx", "wiki": "semantic",
    "forum": "semantic", "bare": "semantic",
}  # fmt: skip
_GENERAL = ("semantic", "divs", "tables", "blog", "wiki", "semantic", "blog", "bare")
_TECHNICAL = ("sphinx", "semantic", "forum", "sphinx", "divs", "bare")
