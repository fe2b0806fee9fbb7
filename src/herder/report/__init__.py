"""`herder report RUN`: one self-contained HTML page that shows a run to others, from its files alone.

`read` trusts no file, `page` chooses what to show, `graph` and `charts` draw, `page.html` prints. The page needs no script and
no network, and follows the reader's light or dark colours.
"""

from herder.report.page import summary, write_report

__all__ = ["summary", "write_report"]
