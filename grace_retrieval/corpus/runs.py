"""Runs: what a system found for queries, as files of TREC, ordered as trec_eval orders them."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from grace_retrieval.corpus.judgements import trec_fields
from grace_retrieval.corpus.streams import Lines, not_utf8, opened
from grace_retrieval.errors import InputError

__all__ = ["Run", "check_id", "check_tag", "read_run", "run_lines", "trec_order", "write_run"]

_LARGEST = 3.4028234e38
"""Largest number of single precision, rounded towards zero."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
        scores: Scores by query and document.
        tag: Name of the system, the last field of a line.
        queries: Number of queries in the file, also of those that were not asked for.
    """

    scores: Mapping[str, Mapping[str, float]]
    tag: str
    queries: int


def trec_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents of a query as trec_eval orders them, whatever order or rank they had.

    By score, which trec_eval keeps in single precision; of equal ones the greater id first, character by character.

    Args:
        scores: Score by document.

    Returns:
        Documents and their scores in single precision, best first.

    Example:
        >>> [name for name, _ in trec_order({"a": 1.0, "b": 1.0, "c": 2.0})]
        ['c', 'b', 'a']
    """
    singles = [(_single(score), name) for name, score in scores.items()]
    return [(name, score) for score, name in sorted(singles, reverse=True)]


def run_lines(query: str, scores: Mapping[str, float], tag: str) -> list[str]:
    """Lines of a query in a file of TREC: query, Q0, document, rank from 1, score and tag.

    Scores are written such that they are read back as they were in single precision, so trec_eval orders the documents
    as they are here.

    Args:
        query: Id of the query.
        scores: Score by document.
        tag: Name of the system.

    Raises:
        InputError: If an id is empty or holds a blank, which ends a field.
    """
    check_id(query, "query")
    lines = []
    for rank, (name, score) in enumerate(trec_order(scores), 1):
        check_id(name, "document")
        lines.append(f"{query} Q0 {name} {rank} {score:.9g} {tag}\n")
    return lines


def write_run(stream: TextIO, scores: Iterable[tuple[str, Mapping[str, float]]], tag: str) -> int:
    """Write a run.

    Args:
        stream: Where to.
        scores: For each query its id, and score by document.
        tag: Name of the system.

    Returns:
        Number of lines.

    Raises:
        InputError: If an id or the tag is empty or holds a blank.
    """
    check_tag(tag)
    count = 0
    for query, found in scores:
        lines = run_lines(query, found, tag)
        stream.writelines(lines)
        count += len(lines)
    return count


def check_tag(tag: str) -> None:
    """Refuse a name of a system that would not be one field.

    Raises:
        InputError: If it is empty or holds a blank.
    """
    if trec_fields(tag) != [tag]:
        raise InputError(f"tag={tag!r}: give a name without blanks, such as grace-nano.")


def read_run(path: Path, queries: Collection[str] | None = None) -> Run:
    """Read a run of any system. Its order and ranks say nothing; scores do, as for trec_eval.

    Args:
        path: A file of TREC; it may be packed (.gz, .zst).
        queries: Queries to keep, so that a long run fits into memory; None keeps all.

    Raises:
        InputError: If the file cannot be read or is empty, a line is malformed, or a document comes twice for a query
            (which trec_eval refuses, too). File and line are named.
    """
    scores: dict[str, dict[str, float]] = {}
    tag, seen = "", set[str]()
    with opened(path) as stream:
        for place, line in Lines(stream).decoded():
            where = f"{path}, {place}"
            if isinstance(line, UnicodeDecodeError):
                raise InputError(f"{where}: {not_utf8(line)}") from line
            fields = trec_fields(line)
            if not fields:
                continue
            if len(fields) != 6:
                raise InputError(
                    f"{where}: {len(fields)} fields. Give a run of TREC, with query, Q0, document, rank, score and tag "
                    "in each line."
                )
            query, _, document, _, score, of = fields
            tag = tag or of
            seen.add(query)
            if queries is not None and query not in queries:
                continue
            found = scores.setdefault(query, {})
            if document in found:
                raise InputError(
                    f"{where}: the document {document!r} comes twice for the query {query!r}. Keep one of the lines."
                )
            found[document] = _score(score, where)
    if not seen:
        raise InputError(f"{path} holds no lines: a run has one for each document that was found.")
    return Run(scores=scores, tag=tag, queries=len(seen))


def _single(score: float) -> float:
    single: float = struct.unpack("f", struct.pack("f", score))[0]
    return single


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not abs(score) <= _LARGEST:
        raise InputError(f"{where}: score {text!r}. Give a finite number, of single precision.")
    return score


def check_id(name: str, what: str) -> None:
    """Refuse an id that would not be one field.

    Args:
        name: The id.
        what: "query" or "document".

    Raises:
        InputError: If it is empty or holds a blank.
    """
    if trec_fields(name) != [name]:
        raise InputError(
            f"The {what} id {name!r} is empty or holds a blank, which ends a field in a file of TREC: give ids without."
        )
