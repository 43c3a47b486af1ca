"""Test collections: folders in BEIR layout, tables of pairs, and retrieval tasks of mteb."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace_retrieval.corpus.files import SourceRow, TextSource
from grace_retrieval.errors import InputError

__all__ = ["Collection", "Pairs", "load_beir", "load_pairs", "load_task"]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A test collection.

    Args:
        name: What it is called in rows.
        documents: Texts by id; a title stands in front of the text.
        queries: Texts by id, only those with relevant documents.
        qrels: Relevance by query and document, as judged.
        excluded: By query, the document that is the query itself; it is not to be found (arguana).
        unjudged: Queries that have no relevant document, which are left out.
        unknown: Relevant documents that are not in the collection. They count as not found, as in BEIR's own figures.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    excluded: Mapping[str, str] = field(default_factory=dict)
    unjudged: int = 0
    unknown: int = 0

    @property
    def digest(self) -> str:
        """Hash of texts and relevance."""
        content = [list(self.documents.items()), list(self.queries.items()), sorted(map(_judged, self.qrels.items()))]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The columns of a row that say what was searched."""
        return {
            "name": self.name,
            "documents": len(self.documents),
            "queries": len(self.queries),
            "queries_without_relevant": self.unjudged,
            "unknown_relevant": self.unknown,
            "digest": self.digest,
        }


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A table in which every row is a query and its only relevant document (.jsonl or .parquet).

    Args:
        path: The file; "demo" is the bundled corpus, titles as queries.
        query: Column of the queries.
        document: Column of the documents.
        id: Column of the ids.
    """

    path: str
    query: str = "title"
    document: str = "text"
    id: str = "id"


def load_beir(folder: Path, split: str = "test") -> Collection:
    """Load a folder in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`.

    Args:
        folder: The folder; its name becomes the collection's.
        split: Split of the relevance judgements.

    Raises:
        InputError: If a file is missing or malformed, or the judgements are of other queries or documents.
    """
    bodies: dict[str, str] = {}
    documents: dict[str, str] = {}
    path = folder / "corpus.jsonl"
    for name, title, text in _unique(((str(row.id), row.title, row.text) for row in _rows(path)), str(path)):
        bodies[name] = text
        documents[name] = _joined(title, text)
    path = folder / "queries.jsonl"
    queries = {q: text for q, _, text in _unique(((str(row.id), None, row.text) for row in _rows(path)), str(path))}
    qrels = _judgements(folder / "qrels" / f"{split}.tsv")
    excluded = {q: q for q in qrels if q in bodies and q in queries and bodies[q].strip() == queries[q].strip()}
    return _checked(folder.name, documents, queries, qrels, excluded)


def load_pairs(pairs: Pairs) -> Collection:
    """Load a table of pairs.

    Raises:
        InputError: If the file cannot be read or lacks a column.
    """
    from importlib.resources import files

    path = str(files("grace_retrieval") / "data" / "demo.jsonl") if pairs.path == "demo" else pairs.path

    def column(name: str, *, say: bool) -> dict[str, str]:
        source = TextSource(path=path, text_column=name, id_column=pairs.id, format=None)
        rows = ((row.id, None, row.text) for row in source.documents())
        return {found: text for found, _, text in _unique(rows, f"{source.name}, column {name!r}", say=say)}

    # What both columns repeat is said once, after neither was refused.
    documents, queries = column(pairs.document, say=False), column(pairs.query, say=True)
    name = pairs.path if pairs.path == "demo" else Path(path).parent.name
    return _checked(f"{name} ({pairs.query} to {pairs.document})", documents, queries, {q: {q: 1} for q in queries}, {})


def load_task(task: Any) -> Collection:
    """Take the first test split of an mteb retrieval task.

    Args:
        task: The task, from `mteb.get_task`.

    Raises:
        InputError: If the data cannot be loaded, for example without a network.
    """
    name = task.metadata.name
    try:
        task.load_data()
    except Exception as error:  # whatever the hub's client raises: the message says what to do either way
        raise InputError(f"Cannot load the task {name} ({type(error).__name__}: {error}). It needs the hub.") from error
    split = task.metadata.eval_splits[0]
    subsets = [subset for subset in task.dataset if task.dataset[subset].get(split)]
    data = task.dataset[subsets[0]][split]
    rows = ((str(row["id"]), row.get("title"), row["text"]) for row in data["corpus"])
    documents = {found: _joined(title, text) for found, title, text in _unique(rows, f"{name}, documents")}
    rows = ((str(row["id"]), None, row["text"]) for row in data["queries"])
    queries = {found: text for found, _, text in _unique(rows, f"{name}, queries")}
    excluded = {q: q for q in data["relevant_docs"] if documents.get(q, "").endswith(queries.get(q, "\0"))}
    return _checked(name, documents, queries, data["relevant_docs"], excluded)


def _checked(
    name: str,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    excluded: Mapping[str, str],
) -> Collection:
    """Compare judgements with texts; what cannot be right is refused, what may be is counted and said."""
    if not documents or not qrels:
        raise InputError(f"{name} has {len(documents)} documents and {len(qrels)} judged queries: both are needed.")
    strangers = [query for query in qrels if query not in queries]
    if strangers:
        raise InputError(f"{name}: {len(strangers)} judged queries have no text, e.g. {strangers[0]!r}.")
    relevant = {q: [d for d, score in judged.items() if score > 0] for q, judged in qrels.items()}
    wanted = {doc for docs in relevant.values() for doc in docs}
    unknown = sorted(wanted - documents.keys())
    unjudged = [query for query, docs in relevant.items() if not docs]
    if len(unjudged) == len(qrels) or (unknown and len(unknown) == len(wanted)):
        what = "queries have" if len(unjudged) == len(qrels) else "relevant documents are in the corpus:"
        raise InputError(
            f"{name}: none of the {what} {'relevant documents' if what == 'queries have' else 'other ids'}."
        )
    if unknown:
        warnings.warn(
            f"{name}: {len(unknown)} relevant documents are not in the corpus (e.g. {unknown[0]!r}) and count as "
            "missed.",
            stacklevel=3,
        )
    if unjudged:
        warnings.warn(
            f"{name}: {len(unjudged)} queries without a relevant document (e.g. {unjudged[0]!r}) are left out.",
            stacklevel=3,
        )
    judged = {query: dict(qrels[query]) for query, docs in relevant.items() if docs}
    return Collection(
        name=name,
        documents=documents,
        queries={query: queries[query] for query in judged},
        qrels=judged,
        excluded={query: doc for query, doc in excluded.items() if query in judged},
        unjudged=len(unjudged),
        unknown=len(unknown),
    )


_Text = tuple[str, str | None, str]
"""Id, title and text."""


def _unique(rows: Iterable[_Text], where: str, *, say: bool = True) -> Iterator[_Text]:
    """The rows whose id is new. An id that comes again is said, or refused if it names something else."""
    seen: dict[str, tuple[str, str]] = {}
    repeated = []
    for name, title, text in rows:
        content = title or "", text
        if name not in seen:
            seen[name] = content
            yield name, title, text
        elif seen[name] == content:
            repeated.append(name)
        else:
            raise InputError(
                f"{where}: the id {name!r} comes twice, with different contents. Judgements name ids, so each may "
                "stand for one text only: give the texts ids of their own, or remove one."
            )
    if repeated and say:
        warnings.warn(
            f"{where}: {len(repeated)} rows repeat an id and its content (e.g. {repeated[0]!r}) and are read once.",
            stacklevel=3,
        )


def _joined(title: str | None, text: str) -> str:
    return f"{title or ''}\n\n{text}".strip()


def _rows(path: Path) -> Iterator[SourceRow]:
    """The rows of a file of texts, by the reader that builds indexes, so that both see the same collection."""
    if not path.is_file():
        raise InputError(f"Cannot read {path}: there is no such file. A folder in BEIR layout is needed.")
    # Published collections hold blank documents; they are searched like any other and found by nothing.
    source = TextSource(
        path=str(path), id_column="_id", title_column="title", title_required=False, allow_empty=True, format="jsonl"
    )
    try:
        yield from source.rows()
    except InputError as error:
        raise InputError(f'{error} In BEIR layout each line is {{"_id": "...", "text": "..."}}, in UTF-8.') from error


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    """Relevance by query and document, from a table with tabs between its columns."""
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


def _judged(item: tuple[str, Mapping[str, int]]) -> Any:
    return item[0], sorted(item[1].items())
