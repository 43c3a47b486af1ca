"""TREC topics: blocks of <num>, <title>, <desc> and <narr>, in SGML without ends of tags or in XML with them."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator, Mapping

from grace_retrieval.corpus.row import Row, RowSource
from grace_retrieval.corpus.streams import Lines, not_utf8, opened

__all__ = ["topic_rows"]

_BLOCK_LINES = 10_000
"""Most lines of a topic: one that is never closed must not draw the rest into memory."""
_FIELDS = {
    "num": "id",
    "title": "title",
    "query": "title",
    "desc": "description",
    "description": "description",
    "question": "description",
    "narr": "narrative",
    "narrative": "narrative",
}
_OPENS = re.compile(r"<top>|<topic\b[^>]*>", re.IGNORECASE)
_CLOSES = re.compile(r"</top(?:ic)?>", re.IGNORECASE)
_NUMBER = re.compile(r"<topic\b[^>]*\bnumber\s*=\s*[\"']([^\"']*)", re.IGNORECASE)
_FIELD = re.compile(rf"<({'|'.join(_FIELDS)})>(.*?)(?=</?\w+>|\Z)", re.IGNORECASE | re.DOTALL)
# What TREC repeats behind a tag: "<num> Number: 301", "<desc> Description:".
_LABEL = re.compile(r"\s*(?:Number|Topic|Description|Narrative):", re.IGNORECASE)


def topic_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """A row a topic: id, title, description and narrative, and the title as the text; see `Reader`.

    Raises:
        InputError: If the file cannot be read.
    """
    with opened(source.path) as stream:
        block: list[str] = []
        start = ""
        for where, line in Lines(stream).decoded():
            if isinstance(line, UnicodeDecodeError):
                yield where, not_utf8(line)
                continue
            if not block:
                if not _OPENS.search(line):
                    continue
                start = where
            elif _OPENS.search(line) or len(block) > _BLOCK_LINES:
                yield start, "a topic without an end (</top>)."
                block, start = [], where
            block.append(line)
            if _CLOSES.search(line):
                yield start, _topic("".join(block))
                block = []
        if block:
            yield start, "a topic without an end (</top>)."


def _topic(block: str) -> Mapping[str, object] | str:
    body = _CLOSES.sub("", _OPENS.sub("", block))
    is_xml = "<top>" not in block.lower()
    found: dict[str, object] = {}
    for tag, content in _FIELD.findall(body):
        value = " ".join(_LABEL.sub("", content, count=1).split())
        found.setdefault(_FIELDS[tag.lower()], html.unescape(value) if is_xml else value)
    if number := _NUMBER.search(block):
        found.setdefault("id", number.group(1).strip())
    if not found.get("id"):
        return "a topic without a number (<num>)."
    if "title" in found:
        found["text"] = found["title"]
    return found
