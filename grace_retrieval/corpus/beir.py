"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, under one set of rules for all who read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from grace_retrieval.corpus.files import SourceRow, TextSource
from grace_retrieval.corpus.formats import InputFormat, format_of
from grace_retrieval.corpus.judgements import read_judgements
from grace_retrieval.corpus.streams import PACKED
from grace_retrieval.errors import InputError

__all__ = [
    "BEIR_CORPUS",
    "Part",
    "beir_file",
    "beir_judgements",
    "beir_rows",
    "beir_split",
    "open_texts",
    "read_judgements",
]

Part = Literal["corpus", "queries"]

BEIR_CORPUS = "corpus.jsonl"
"""The file that makes a folder one of BEIR."""


def beir_file(folder: str | Path, part: Part) -> Path | None:
    """The file of a part of a BEIR folder, which may be packed; None if there is none.

    Args:
        folder: The folder.
        part: "corpus" or "queries".
    """
    names = (f"{part}.jsonl{packed}" for packed in ("", *PACKED))
    return next((path for name in names if (path := Path(folder) / name).is_file()), None)


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
        InputError: If the file is missing, another folder, or of an unknown format.
    """
    beir = name != "-" and beir_file(name, "corpus") is not None
    if name != "-" and os.path.isdir(name) and not beir and format_of(name) is None:
        raise InputError(
            f"{name} is a folder: give one file, a BEIR folder (with {BEIR_CORPUS}), or a folder that datasets saved."
        )
    return TextSource(
        path=str(beir_file(name, part) or Path(name) / f"{part}.jsonl") if beir else name,
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
    if beir_file(folder, part) is None:
        path = folder / f"{part}.jsonl"
        raise InputError(f"Cannot read {path}: there is no such file. A folder in BEIR layout is needed.")
    try:
        yield from open_texts(str(folder), part, allow_empty=True).rows()
    except InputError as error:
        raise InputError(f'{error} In BEIR layout each line is {{"_id": "...", "text": "..."}}, in UTF-8.') from error


def beir_judgements(folder: Path, split: str = "test") -> dict[str, dict[str, int]]:
    """The judgements of a split of a BEIR folder; see `read_judgements`.

    Args:
        folder: The folder.
        split: Such as "test", "dev" or "train".

    Raises:
        InputError: If there is no such split, or it cannot be read.
    """
    return read_judgements(beir_split(folder, split))


def beir_split(folder: Path, split: str = "test") -> Path:
    """The file of a split of a BEIR folder's judgements, which may be packed.

    Args:
        folder: The folder.
        split: Such as "test", "dev" or "train".

    Raises:
        InputError: If there is no such split.
    """
    names = [f"{split}.tsv{packed}" for packed in ("", *PACKED)]
    path = next((path for name in names if (path := folder / "qrels" / name).is_file()), None)
    if path is None:
        there = sorted(file.name.partition(".tsv")[0] for file in (folder / "qrels").glob("*.tsv*"))
        what = f"Its splits are {', '.join(there)}." if there else "A folder in BEIR layout is needed."
        raise InputError(f"Cannot read {folder / 'qrels' / names[0]}: there is no such file. {what}")
    return path
