"""Corpus: documents of files, folders, globs and BEIR collections, streamed in an order that stays the same."""

from __future__ import annotations

import datetime
import glob
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.advice import advise
from grace_retrieval.corpus.beir import BEIR_CORPUS, beir_file, open_texts
from grace_retrieval.corpus.document import Document
from grace_retrieval.corpus.files import SourceRow, TextSource
from grace_retrieval.corpus.formats import FOLDER_SUFFIXES, FORMATS, InputFormat, format_of
from grace_retrieval.corpus.matrices.matrix import Matrix, RowCursor
from grace_retrieval.corpus.streams import unpacked_name
from grace_retrieval.corpus.vectors import is_matrix, open_matrix
from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["Columns", "Corpus", "content_id"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of an input are what.

    Args:
        text: Column of the texts.
        id: Column of the ids; None takes "id" or "_id" if there is one, and otherwise makes ids from the content.
        title: Column of the titles; None is none (in BEIR folders "title", where a row has one).
        metadata: Columns that are carried along; None carries all others.
        vectors: Column of vectors, or a file with one row a document (.npy, .fvecs, ...; see
            `grace_retrieval.corpus.vectors.open_matrix`); None if there are none.
    """

    text: str = "text"
    id: str | None = None
    title: str | None = None
    metadata: tuple[str, ...] | None = None
    vectors: str | None = None


class Corpus:
    """The documents of inputs, in the order of the inputs; files of a folder or glob in the order of their names.

    What is left out of a folder is said: names that begin with a dot, and files of formats that are no data everywhere.

    Args:
        inputs: Files, folders, globs, BEIR folders (with corpus.jsonl), or "-" for the standard input.
        format: Format of the files; None goes by their names.
        columns: Which columns are what.
        allow_empty: Whether documents may be blank.
        metadata_required: Whether each metadata column that is named must be in some row.

    Raises:
        InputError: If an input is missing or of an unknown format.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        format: InputFormat | None = None,
        columns: Columns | None = None,
        allow_empty: bool = False,
        metadata_required: bool = True,
    ) -> None:
        if isinstance(inputs, (str, os.PathLike)):
            inputs = [os.fspath(inputs)]
        if columns is not None and not isinstance(columns, Columns):
            raise InputError(f"columns is {type(columns).__name__}: give Columns(text=..., id=..., title=...).")
        if not inputs:
            raise InputError("No input: give files, folders or globs, or - for the standard input.")
        self.columns = columns or Columns()
        self._metadata_required = metadata_required
        self.sources = [
            source for name in inputs for source in _sources(name, format, self.columns, allow_empty=allow_empty)
        ]
        self._dimension = 0
        self._ids_from: set[str] = set()
        self._carried: set[str] = set()
        self._matrix = self._given_matrix()

    def documents(self, on_bad: Callable[[InputError], None] | None = None) -> Iterator[Document]:
        """Read the documents.

        Args:
            on_bad: Called with what is wrong with a row, which is then skipped. None raises it.

        Yields:
            One Document a row.

        Raises:
            InputError: If a row is bad; the message names file and line.
        """
        for source in self.sources:
            yield from self._documents(source, on_bad)
        if self._ids_from:
            self._check_metadata(self._carried)

    def check_first(self, *, skip_bad: bool = False, rows: int = 1000) -> None:
        """Read the first rows of every file, to find a misnamed column before anything else is done.

        Args:
            skip_bad: Whether bad rows are skipped.
            rows: Number of good rows of a file; of many files, ten times as many altogether.

        Raises:
            InputError: As in `documents`.
        """
        first = (
            islice(self._documents(source, (lambda _: None) if skip_bad else None), rows)
            for source in self.sources
            if source.is_file
        )
        for _ in islice(chain.from_iterable(first), 10 * rows):
            pass
        if all(source.is_file and source.header() for source in self.sources):
            self._check_metadata({name for source in self.sources for name in source.header()})

    def _check_metadata(self, there: Collection[str]) -> None:
        """Refuse metadata that no row has."""
        used = {self.columns.text, self.columns.id or "id", self.columns.title}  # carried anyway
        wanted = set(self.columns.metadata or ()) - used if self._metadata_required else ()
        if unknown := [name for name in sorted(wanted) if name not in there]:
            names = {*there, *(name for source in self.sources for name in source.header())}
            raise InputError(
                f"No row has {', '.join(map(repr, unknown))} to carry along."
                f"{did_you_mean(unknown[0], names)} "
                + advise(("leave it out of the metadata ({})", "--metadata", "Columns.metadata"))
            )

    def described(self) -> dict[str, Any]:
        """The columns as an index remembers them: their names, and in "ids" where ids of what was read came from."""
        columns = asdict(self.columns)
        del columns["vectors"]
        return {**columns, "ids": sorted(self._ids_from)}

    def _documents(self, source: TextSource, on_bad: Callable[[InputError], None] | None) -> Iterator[Document]:
        count, vectors = 0, None if self._matrix is None else RowCursor(self._matrix)
        for row in source.rows(on_bad, others=self._others()):
            count = row.place + 1
            found = self._document(row, source, vectors)
            if isinstance(found, Document):
                yield found
            elif on_bad is None:
                raise InputError(f"{source.name}, {row.where}: {found}")
            else:
                on_bad(InputError(f"{source.name}, {row.where}: {found}"))
        if self._matrix is not None and count != self._matrix.rows:
            raise InputError(
                f"{self.columns.vectors} has {self._matrix.rows:,} rows, and {source.name} has {count:,}: "
                "give one vector a document."
            )

    def _others(self) -> list[str] | None:
        if self.columns.metadata is None:
            return None
        vectors = [] if self.columns.vectors is None or self._matrix is not None else [self.columns.vectors]
        return [*self.columns.metadata, *vectors]

    def _document(self, row: SourceRow, source: TextSource, vectors: RowCursor | None) -> Document | str:
        """The document of a row, or what is wrong with it."""
        others = dict(row.others)
        nested = others.get("metadata")
        if unpacked_name(source.path) == BEIR_CORPUS and isinstance(nested, dict):
            del others["metadata"]
            others.update(nested)
        vector: npt.NDArray[np.float32] | str | None = None
        if self._matrix is not None and vectors is not None:
            if row.place >= self._matrix.rows:
                return f"{self.columns.vectors} has {self._matrix.rows:,} vectors only."
            vector = _vector(vectors[row.place])
        elif self.columns.vectors is not None:
            if self.columns.vectors not in others:
                return f"no column {self.columns.vectors!r} of vectors. Name it (--vectors)."
            vector = _vector(others.pop(self.columns.vectors))
        if isinstance(vector, str):
            return vector
        if vector is not None:
            self._dimension = self._dimension or len(vector)
            if len(vector) != self._dimension:
                return f"the vector has {len(vector)} dimensions, and those before it have {self._dimension}."
        try:
            metadata = {name: _json_value(value) for name, value in others.items()}
        except ValueError as error:
            return f"{error} Name the columns to carry (--metadata), without this one."
        self._carried.update(metadata)
        self._ids_from.add("content" if row.id is None else f"column {row.id_column}")
        return Document(
            id=content_id(row.title, row.text, metadata) if row.id is None else row.id,
            text=row.text,
            title=row.title,
            metadata=metadata,
            vector=vector,
            source=f"{source.name}, {row.where}",
        )

    def _given_matrix(self) -> Matrix | None:
        name = self.columns.vectors
        if name is None or not is_matrix(name):
            return None
        if len(self.sources) != 1:
            raise InputError(f"An array of vectors ({name}) goes with one input file; there are {len(self.sources)}.")
        return open_matrix(Path(name))


def content_id(title: str | None, text: str, metadata: dict[str, Any]) -> str:
    """An id made from a document's content: 32 hexadecimal digits.

    Args:
        title: Its title.
        text: Its text.
        metadata: Its metadata.
    """
    content = json.dumps([title, text, metadata], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16, person=b"grace.document.1").hexdigest()


def _sources(name: str, format: InputFormat | None, columns: Columns, *, allow_empty: bool) -> Iterator[TextSource]:
    def source(path: str) -> TextSource:
        return open_texts(
            path,
            "corpus",
            format=format,
            text_column=columns.text,
            id_column=columns.id,
            title_column=columns.title,
            allow_empty=allow_empty,
        )

    path = Path(name)
    if name == "-" or path.is_file() or beir_file(path, "corpus") or format_of(path) == "datasets":
        yield source(name)
    elif path.is_dir():
        yield from (source(str(file)) for file in _files_of(path, format))
    elif glob.has_magic(name):
        names = sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))
        if not names:
            raise InputError(f"No file matches {name!r}.")
        yield from (source(file) for file in names)
    else:
        yield source(name)  # which says what is wrong with it


def _files_of(folder: Path, format: InputFormat | None) -> list[Path]:
    """Files of a folder that are data, in the order of their names. What is left out is said.

    A format that is given takes the files named like it; without one, formats that are data wherever they lie count.
    A folder of .json alone is one of documents, as Anserini has them.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    shown = [file for file in files if not _is_hidden(file.relative_to(folder))]
    suffixes = FOLDER_SUFFIXES if format is None else FORMATS[format].suffixes
    choices = (suffixes, (".json",)) if format is None else (suffixes, FOLDER_SUFFIXES)
    found = next((some for ends in choices if (some := [file for file in shown if _suffix(file) in ends])), [])
    if not found:
        raise InputError(
            f"{folder} has no files named {', '.join(suffixes)}, and no {BEIR_CORPUS}. Files and folders whose names "
            "begin with a dot do not count: give such a file itself."
        )
    taken = set(found)
    if left_out := [str(file.relative_to(folder)) for file in files if file not in taken]:
        names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        warnings.warn(
            f"{folder}: read {len(found):,} files, and left out {len(left_out):,} ({names}). Give those that hold "
            "documents themselves.",
            stacklevel=2,
        )
    return found


def _suffix(file: Path) -> str:
    return Path(unpacked_name(file)).suffix.lower()


def _is_hidden(path: Path) -> bool:
    """Whether editors and systems left it (.ipynb_checkpoints/, ._name of macOS); globs leave such names out, too."""
    return any(part.startswith(".") for part in path.parts)


def _vector(value: object) -> npt.NDArray[np.float32] | str:
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return "the vector is no list of numbers."
    if vector.ndim != 1 or not len(vector):
        return f"the vector has shape {vector.shape}, not (dim,)."
    return vector if np.isfinite(vector).all() else "the vector holds NaN or infinity."


def _json_value(value: object) -> object:
    """A value as JSON has it: dates in ISO 8601, NaN and infinity as null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    raise ValueError(f"a value of type {type(value).__name__} cannot be carried as JSON.")
