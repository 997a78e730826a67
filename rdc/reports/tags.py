"""Pieces of HTML: escaped words, tags, pictures inside the page."""

from __future__ import annotations

import base64
import html

from rdc.reports.style import CSS
from rdc.terminal.plain_text import printable

__all__ = ["escaped", "image", "page", "section", "tag"]


def escaped(text: object) -> str:
    """A text as it may stand in a page."""
    return html.escape(printable(text))


def tag(name: str, content: object, kind: str = "") -> str:
    """``<name class="kind">content</name>``; the content is HTML already."""
    return f'<{name} class="{kind}">{content}</{name}>' if kind else f"<{name}>{content}</{name}>"


def section(title: str, about: str, content: str) -> str:
    """A part of the page under a heading, after some words."""
    return f"<section><h2>{title}</h2>{tag('p', about, 'muted') if about else ''}\n{content}</section>"


def image(png: bytes, alt: str) -> str:
    """A picture whose bytes stand in the page."""
    code = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{escaped(alt)}">'


def page(title: str, body: str, footer: str) -> str:
    """A whole page; body and footer are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)} – rdc</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>{footer}</footer>\n"
        "</main>\n</body>\n</html>\n"
    )
