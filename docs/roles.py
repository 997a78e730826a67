"""A hook of MkDocs: docstrings name things as :func:`x`; a page shows x alone."""

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **context: Any) -> str:
    """The page without the names of roles."""
    return _ROLE.sub("", html)
