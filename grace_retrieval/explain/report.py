"""A retrieval report: queries, what was found for each, and why, on one HTML page that needs no server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from grace_retrieval.explain.explanation import Explanation
from grace_retrieval.explain.html import environment, explanation_view

__all__ = ["report_html"]


def report_html(
    queries: Sequence[str], answers: Iterable[Sequence[Explanation]], *, title: str, facts: str
) -> Iterator[str]:
    """Write the page piece by piece, so that only one query's explanations are in memory.

    Args:
        queries: The queries, for the list of contents.
        answers: Explanations of each query's hits, best first; asked for one query at a time.
        title: Title of the page.
        facts: A line below it.

    Yields:
        The page's HTML in pieces.
    """

    def views() -> Iterator[dict[str, Any]]:
        for query, hits in zip(queries, answers, strict=True):
            yield {"query": query, "hits": [explanation_view(hit) for hit in hits]}

    template = environment().get_template("report.jinja")
    yield from template.generate(title=title, facts=facts, queries=queries, answers=views())
