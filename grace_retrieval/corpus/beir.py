"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, under one set of rules for all who read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from grace_retrieval.corpus.files import SourceRow, TextSource
from grace_retrieval.corpus.formats import InputFormat
from grace_retrieval.errors import InputError

__all__ = ["BEIR_CORPUS", "Part", "beir_rows", "open_texts", "read_judgements"]

Part = Literal["corpus", "queries"]

BEIR_CORPUS = "corpus.jsonl"
"""The file that makes a folder one of BEIR."""


def open_texts(
    name: str,
    part: Part,
    *,
    format: InputFormat | None = None,
    text_column: str = "text",
    id_column: str | None = None,
    title_column: str | None = None,
    allow_empty: bool = False,
) -> TextSource:
    """One file of texts: the file that is named, or that of a BEIR folder.

    Args:
        name: A file, "-" for the standard input, or a BEIR folder.
        part: Which file of a BEIR folder: "corpus" or "queries".
        format: As of a TextSource.
        text_column: As of a TextSource.
        id_column: As of a TextSource; in a BEIR folder, None is "_id".
        title_column: As of a TextSource; in a BEIR folder, None is "title", where a row has one.
        allow_empty: Whether blank texts are texts.

    Raises:
        InputError: If the file is missing, or of an unknown format.
    """
    beir = name != "-" and (Path(name) / BEIR_CORPUS).is_file()
    return TextSource(
        path=str(Path(name) / f"{part}.jsonl") if beir else name,
        format=format,
        text_column=text_column,
        id_column=id_column or ("_id" if beir else None),
        title_column=title_column or ("title" if beir else None),
        # BEIR's own reader takes rows without a title; a column that was asked for by name must be there.
        title_required=title_column is not None or not beir,
        allow_empty=allow_empty,
    )


def beir_rows(folder: Path, part: Part) -> Iterator[SourceRow]:
    """The rows of a BEIR folder's texts, blank ones too: published collections hold some, and nothing finds them.

    Args:
        folder: The folder.
        part: "corpus" or "queries".

    Yields:
        One SourceRow a text.

    Raises:
        InputError: If the file is missing, or a row is bad.
    """
    path = folder / f"{part}.jsonl"
    if not path.is_file():
        raise InputError(f"Cannot read {path}: there is no such file. A folder in BEIR layout is needed.")
    try:
        yield from open_texts(str(folder), part, allow_empty=True).rows()
    except InputError as error:
        raise InputError(f'{error} In BEIR layout each line is {{"_id": "...", "text": "..."}}, in UTF-8.') from error


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements: a table with tabs between its columns query-id, corpus-id and score.

    Args:
        path: Such as qrels/test.tsv.

    Returns:
        Relevance by query and document.

    Raises:
        InputError: If the table cannot be read, is malformed, or contradicts itself.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. A folder in BEIR layout is needed.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise InputError(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}). Convert the file to UTF-8.") from error
    qrels: dict[str, dict[str, int]] = {}
    columns: list[int] | None = None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {reader.line_num}"
            if columns is None:
                columns = _judgement_columns(cells, where)
                continue
            if len(cells) <= max(columns):
                raise InputError(
                    f"{where}: {len(cells)} fields. Give query-id, corpus-id and score, with tabs between."
                )
            query, document, score = (cells[column] for column in columns)
            relevance = _relevance(score, where)
            if qrels.setdefault(query, {}).setdefault(document, relevance) != relevance:
                raise InputError(
                    f"{where}: query {query!r} and document {document!r} have the scores {qrels[query][document]} and "
                    f"{relevance}. Keep one of the lines."
                )
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: malformed table ({error}).") from error
    return qrels


def _judgement_columns(header: list[str], where: str) -> list[int]:
    names = [cell.strip() for cell in header]
    wanted = ("query-id", "corpus-id", "score")
    if not all(name in names for name in wanted):
        raise InputError(
            f"{where}: give a table with the columns query-id, corpus-id and score, named in its first line and with "
            f"tabs between; this one begins with {names}."
        )
    return [names.index(name) for name in wanted]


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
