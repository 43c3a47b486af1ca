"""Test collections: folders in BEIR layout, files of documents, queries and judgements, pairs, and tasks of mteb."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grace_retrieval.corpus.beir import Part, beir_file, beir_judgements, beir_rows, beir_split, open_texts
from grace_retrieval.corpus.document import join_title
from grace_retrieval.corpus.files import SourceRow, TextSource
from grace_retrieval.corpus.judgements import read_judgements
from grace_retrieval.corpus.streams import unpacked_name
from grace_retrieval.errors import InputError

__all__ = [
    "Collection",
    "Pairs",
    "check_beir",
    "check_files",
    "check_pairs",
    "load_beir",
    "load_files",
    "load_judgements",
    "load_pairs",
    "load_task",
]


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
        equal_texts: Documents whose text another one has as well, under another id. Judgements may name one of them.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    excluded: Mapping[str, str] = field(default_factory=dict)
    unjudged: int = 0
    unknown: int = 0
    equal_texts: int = 0

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
            "equal_texts": self.equal_texts,
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


def check_beir(folder: Path, split: str) -> None:
    """Find out whether a folder in BEIR layout can be loaded, from names and first rows.

    Args:
        folder: The folder.
        split: Split of the relevance judgements.

    Raises:
        InputError: If a file is not there, or its first rows are malformed.
    """
    beir_split(folder, split)
    parts: tuple[Part, ...] = ("queries", "corpus")
    for part in parts:
        if beir_file(folder, part) is None:
            raise InputError(f"Cannot read {folder / part}.jsonl: there is no such file. Give it, as BEIR has it.")
        open_texts(str(folder), part, allow_empty=True).check_first()


def check_files(files: Mapping[str, str]) -> None:
    """Find out whether files of documents, queries and judgements can be loaded, from names and first rows.

    Args:
        files: "documents" and "queries", if there are any, and "qrels".

    Raises:
        InputError: If a file is not there, or its first rows are malformed.
    """
    if not Path(files["qrels"]).is_file():
        raise InputError(f"Cannot read {files['qrels']}: No such file or directory. Give a file of judgements.")
    parts: tuple[tuple[str, Part], ...] = (("queries", "queries"), ("documents", "corpus"))
    for name, part in parts:
        if name in files:
            open_texts(files[name], part, allow_empty=True).check_first()


def check_pairs(pairs: Mapping[str, str]) -> None:
    """Find out whether a table of pairs can be loaded, from its name and first rows.

    Args:
        pairs: Arguments of `Pairs`.

    Raises:
        InputError: If the file cannot be read or lacks a column.
    """
    table = Pairs(**pairs)
    for column in (table.document, table.query):
        TextSource(path=_path_of(table), text_column=column, id_column=table.id, format=None).check_first()


def load_beir(folder: Path, split: str = "test") -> Collection:
    """Load a folder in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, which may be packed.

    Args:
        folder: The folder; its name becomes the collection's, with the split behind it if that is not "test".
        split: Split of the relevance judgements.

    Raises:
        InputError: If a file is missing or malformed, or the judgements are of other queries or documents.
    """
    bodies: dict[str, str] = {}
    documents: dict[str, str] = {}
    rows = ((str(row.id), row.title, row.text) for row in beir_rows(folder, "corpus"))
    for name, title, text in _unique(rows, str(folder / "corpus.jsonl")):
        bodies[name] = text
        documents[name] = join_title(title, text)
    asked = ((str(row.id), None, row.text) for row in beir_rows(folder, "queries"))
    queries = {name: text for name, _, text in _unique(asked, str(folder / "queries.jsonl"))}
    qrels = beir_judgements(folder, split)
    excluded = {q: q for q in qrels if q in bodies and q in queries and bodies[q].strip() == queries[q].strip()}
    name = folder.name if split == "test" else f"{folder.name} ({split})"
    return _checked(name, documents, queries, qrels, excluded)


def load_files(documents: str, queries: str, qrels: Path) -> Collection:
    """Load documents, queries and judgements of files of their own, such as those of MS MARCO or TREC.

    Args:
        documents: A file of documents with ids, of any format of `grace_retrieval.corpus.formats.FORMATS`; a column
            "title" stands in front of the text.
        queries: A file of queries with ids.
        qrels: A file of judgements; see `read_judgements`. Its name becomes the collection's.

    Raises:
        InputError: If a file is missing or malformed, has no ids, or the judgements are of other queries or documents.
    """
    corpus = open_texts(documents, "corpus", allow_empty=True)
    titled = (
        TextSource(path=corpus.path, format=corpus.format, title_column="title", title_required=False, allow_empty=True)
        if corpus.format != "text"
        else corpus
    )
    rows = ((_id(row, titled), row.title, row.text) for row in titled.rows())
    found = {name: join_title(title, text) for name, title, text in _unique(rows, titled.name)}
    source = open_texts(queries, "queries", allow_empty=True)
    asked = ((_id(row, source), None, row.text) for row in source.rows())
    texts = {name: text for name, _, text in _unique(asked, source.name)}
    return _checked(unpacked_name(qrels), found, texts, read_judgements(qrels), {})


def load_judgements(qrels: Path) -> Collection:
    """Load judgements alone: enough to score runs, which bring the documents that were found.

    Args:
        qrels: A file of judgements; its name becomes the collection's.

    Raises:
        InputError: If the file is missing or malformed, or nothing is relevant.
    """
    judged = read_judgements(qrels)
    documents = {document: "" for found in judged.values() for document in found}
    checked = _checked(unpacked_name(qrels), documents, dict.fromkeys(judged, ""), judged, {})
    return replace(checked, documents={}, equal_texts=0)


def load_pairs(pairs: Pairs) -> Collection:
    """Load a table of pairs.

    Raises:
        InputError: If the file cannot be read or lacks a column.
    """
    path = _path_of(pairs)

    def column(name: str, *, say: bool) -> dict[str, str]:
        source = TextSource(path=path, text_column=name, id_column=pairs.id, format=None)
        rows = ((row.id, None, row.text) for row in source.documents())
        return {found: text for found, _, text in _unique(rows, f"{source.name}, column {name!r}", say=say)}

    # What both columns repeat is said once, after neither was refused.
    documents, queries = column(pairs.document, say=False), column(pairs.query, say=True)
    name = pairs.path if pairs.path == "demo" else Path(path).parent.name
    return _checked(f"{name} ({pairs.query} to {pairs.document})", documents, queries, {q: {q: 1} for q in queries}, {})


def _path_of(pairs: Pairs) -> str:
    from importlib.resources import files

    return str(files("grace_retrieval") / "data" / "demo.jsonl") if pairs.path == "demo" else pairs.path


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
    documents = {found: join_title(title, text) for found, title, text in _unique(rows, f"{name}, documents")}
    rows = ((str(row["id"]), None, row["text"]) for row in data["queries"])
    queries = {found: text for found, _, text in _unique(rows, f"{name}, queries")}
    excluded = {q: q for q in data["relevant_docs"] if documents.get(q, "").endswith(queries.get(q, "\0"))}
    return _checked(name, documents, queries, data["relevant_docs"], excluded)


def _id(row: SourceRow, source: TextSource) -> str:
    if row.id is None:
        raise InputError(f"{source.name}, {row.where}: no id for judgements to name. Give a column 'id' or '_id'.")
    return row.id


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
        equal_texts=_equal_texts(documents),
    )


def _equal_texts(documents: Mapping[str, str]) -> int:
    """Documents whose text one before them has; blank ones are found by no search anyway."""
    texts = [text for text in documents.values() if text.strip()]
    return len(texts) - len(set(texts))


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


def _judged(item: tuple[str, Mapping[str, int]]) -> Any:
    return item[0], sorted(item[1].items())
