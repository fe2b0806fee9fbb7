"""URL deduplication: one page, one address, the newest capture kept (paper section 3.1.1).

The normal form is for comparison only; documents keep the address they were crawled under.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

TRACKING = re.compile(
    r"utm_\w+|mc_[ce]id|fbclid|gclid|dclid|gbraid|wbraid|msclkid|yclid|igshid|twclid|ttclid|_ga|_gl|_hs\w+|ref_src|ref_url|"
    r"spm|cmpid|ncid|smid|ocid|s_cid|phpsessid|jsessionid|sessionid",
    re.IGNORECASE,
)
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
SESSION_IN_PATH = re.compile(r";(?:jsessionid|phpsessid)=[^/?#]*", re.IGNORECASE)
INDEX_PAGE = re.compile(r"/(?:index|default)\.(?:html?|php|aspx?|jsp)$", re.IGNORECASE)
ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalize_url(url: str) -> str:
    """The form under which two addresses of one page are equal: scheme, `www.`, case of the host, default port, index page,
    trailing slash, fragment, session and tracking parameters and the order of parameters make no difference."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").rstrip(".")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url.strip()
    if not host:
        return url.strip()
    if port == DEFAULT_PORTS.get(parts.scheme.lower()):
        port = ""
    path = ESCAPE.sub(_escape, SESSION_IN_PATH.sub("", parts.path))
    path = INDEX_PAGE.sub("/", re.sub(r"//+", "/", path)).rstrip("/")
    query = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.fullmatch(k)]
    fragment = f"#{parts.fragment}" if parts.fragment.startswith("!") else ""
    return f"{host.removeprefix('www.')}{port}{path}{'?' + urlencode(sorted(query)) if query else ''}{fragment}"


def _escape(found: re.Match) -> str:
    byte = int(found[1], 16)
    return chr(byte) if byte in UNRESERVED else found[0].upper()
