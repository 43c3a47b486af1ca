"""Links of the project's pages, read as the code host reads them: does each lead somewhere?

    python docs/site/links.py       # prints dead links, and ends with 1 if there are any

Files, and headings by their anchors, are looked for in the checkout. Addresses elsewhere are looked at, not asked for.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["ROOT", "Link", "anchors", "dead_links", "links", "pages", "target"]

ROOT = Path(__file__).resolve().parents[2]

PAGES = ("*.md", "docs/**/*.md", "examples/*.md", "grace_retrieval/**/*.md", "training/results/**/*.md")

_HTML_LINK = re.compile(r"""(?:href|src)\s*=\s*["']([^"']*)["']""")
_HTML_ID = re.compile(r"""(?:id|name)\s*=\s*["']([^"']*)["']""")
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link or a picture of a page.

    Attributes:
        page: The page.
        line: Line of the paragraph that it stands in.
        address: As it is written.
    """

    page: Path
    line: int
    address: str


def pages(root: Path = ROOT) -> list[Path]:
    """The project's pages.

    Args:
        root: Folder of the checkout.
    """
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def links(page: Path) -> list[Link]:
    """All links and pictures of a page, in their order.

    Args:
        page: A page in Markdown.
    """
    found, line = [], 1
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else line
        for part in (token, *(token.children or ())):
            address = part.attrGet("href") if part.type == "link_open" else None
            address = part.attrGet("src") if part.type == "image" else address
            written = [str(address)] if address is not None else []
            if part.type in ("html_block", "html_inline"):
                written = _HTML_LINK.findall(part.content)
            found += [Link(page=page, line=line, address=unquote(address)) for address in written]
    return found


def target(link: Link) -> Path | None:
    """The file that a link means, whether it is there or not; None if it leads out of the checkout.

    Args:
        link: A link.
    """
    parts = urlsplit(link.address)
    if parts.scheme or parts.netloc:
        return None
    return (link.page.parent / parts.path).resolve() if parts.path else link.page.resolve()


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the code host makes them, and those that it sets itself.

    Args:
        page: A page in Markdown.
    """
    found, seen = set[str](), Counter[str]()
    tokens = _tokens(page)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            name = _anchor(tokens[place + 1])
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
        for part in (token, *(token.children or ())):
            if part.type in ("html_block", "html_inline"):
                found |= set(_HTML_ID.findall(part.content))
    return found


def dead_links(root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the links of all pages.

    Args:
        root: Folder of the checkout.

    Yields:
        A line a link: page, line and what is wrong.
    """
    for page in pages(root):
        for link in links(page):
            if problem := _problem(link, root.resolve()):
                yield f"{page.relative_to(root)}:{link.line}: {link.address!r} {problem}"


def _problem(link: Link, root: Path) -> str | None:
    parts = urlsplit(link.address)
    path = target(link)
    if path is None:
        good = parts.scheme in ("http", "https") and "." in parts.netloc and not re.search(r"\s", link.address)
        return None if good or parts.scheme == "mailto" else "is no address: give https://..., or a file"
    if parts.path.startswith("/"):
        return "begins with a slash: give the way from this page"
    if not path.is_relative_to(root):
        return "leads out of the repository"
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is a folder, which a site has no page for: give a file in it"
    if not parts.fragment:
        return None
    if path.suffix != ".md":
        return "has an anchor, and is no page"
    return None if parts.fragment in anchors(path) else "has an anchor that is no heading of the page"


def _anchor(heading: Token) -> str:
    text = "".join(part.content for part in heading.children or () if part.type in ("text", "code_inline"))
    return _NOT_IN_ANCHORS.sub("", text.strip().lower()).replace(" ", "-")


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    dead = list(dead_links())
    sys.stdout.writelines(f"{line}\n" for line in dead)
    sys.exit(bool(dead))
