"""Judgements, which documents are relevant to which queries: tables of BEIR, of TREC and of MS MARCO."""

from __future__ import annotations

import re
from pathlib import Path

from grace_retrieval.corpus.streams import read_text
from grace_retrieval.errors import InputError

__all__ = ["read_judgements", "trec_fields"]

_BEIR = ("query-id", "corpus-id", "score")
_BLANKS = re.compile(r"[ \t\r\f\v]+")


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements.

    A first line that names query-id, corpus-id and score makes it a table of BEIR, with tabs between. Without names it
    is one of TREC (MS MARCO's qrels.tsv among them): query, iteration, document and relevance, with blanks between.

    Args:
        path: Such as qrels/test.tsv or qrels.txt; it may be packed (.gz, .zst).

    Returns:
        Relevance by query and document.

    Raises:
        InputError: If the table cannot be read, is malformed, or contradicts itself.
    """
    qrels: dict[str, dict[str, int]] = {}
    columns: list[int] | None = None
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if columns is None and (columns := _beir_columns(line)) is not None:
            continue
        if columns is None:
            columns = []
            if len(trec_fields(line)) != 4:
                raise InputError(
                    f"{where}: give a table with the columns {', '.join(_BEIR[:2])} and {_BEIR[2]}, named in its first "
                    "line and with tabs between; or one of TREC, with query, iteration, document and relevance in each "
                    f"line. This one begins with {line.split(chr(9))}."
                )
        query, document, score = _fields(line, columns, where)
        relevance = _relevance(score, where)
        if qrels.setdefault(query, {}).setdefault(document, relevance) != relevance:
            raise InputError(
                f"{where}: query {query!r} and document {document!r} have the scores {qrels[query][document]} and "
                f"{relevance}. Keep one of the lines."
            )
    return qrels


def trec_fields(line: str) -> list[str]:
    r"""Fields of a line of TREC's tables; other blanks than those of ASCII are part of a field, as in trec_eval.

    Example:
        >>> trec_fields("301 0\tFBIS3-10082  1")
        ['301', '0', 'FBIS3-10082', '1']
    """
    return [field for field in _BLANKS.split(line.strip("\n")) if field]


def _beir_columns(line: str) -> list[int] | None:
    names = [_unquoted(cell).strip() for cell in line.split("\t")]
    return [names.index(name) for name in _BEIR] if all(name in names for name in _BEIR) else None


def _fields(line: str, columns: list[int], where: str) -> list[str]:
    """Query, document and score of a line."""
    if not columns:
        cells = trec_fields(line)
        if len(cells) != 4:
            raise InputError(f"{where}: {len(cells)} fields. Give query, iteration, document and relevance.")
        return [cells[0], cells[2], cells[3]]
    cells = line.split("\t")
    if len(cells) <= max(columns):
        raise InputError(f"{where}: {len(cells)} fields. Give query-id, corpus-id and score, with tabs between.")
    return [_unquoted(cells[column]) for column in columns]


def _unquoted(cell: str) -> str:
    """A cell without the quotes that writers of CSV put around what holds a quote."""
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _relevance(score: str, where: str) -> int:
    try:
        number = float(score)
        relevance = int(number)
    except (ValueError, OverflowError):
        number, relevance = 0.5, 0
    if number != relevance:
        raise InputError(
            f"{where}: score {score!r}. Give a whole number such as 0, 1 or 2 (1.0 is read as 1); round or scale other "
            "scores."
        )
    return relevance
