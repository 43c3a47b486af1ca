"""Duplicates: which documents of an input are new, told by digests in a file, so that memory stays flat."""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grace_retrieval.advice import advise
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError

_THIS_INPUT = -1
_CACHE_KIB = 64 << 10
"""Most memory for digests that were seen: those of some 600,000 documents, and of more a part."""
_SKIP = ("--on-duplicate-id skip", "on_duplicate_id='skip'")

__all__ = ["DuplicateCounts", "OnDuplicateId", "OnDuplicateText", "SeenDocuments"]

OnDuplicateId = Literal["error", "skip"]
OnDuplicateText = Literal["keep", "skip"]


@dataclass(kw_only=True)
class DuplicateCounts:
    """What was found twice.

    Attributes:
        repeated: Rows that say again what a row before said, with the same id: left out.
        clashing_ids: Rows with another content under an id that was there: left out.
        equal_texts: Rows whose text another id has as well; kept, or left out, as asked for.
        unchanged: Rows that are in the index already, as they are: left out.
        replaced: Row numbers of the index whose id has another content now.
    """

    repeated: int = 0
    clashing_ids: int = 0
    equal_texts: int = 0
    unchanged: int = 0
    replaced: list[int] = field(default_factory=list)


class SeenDocuments:
    """Ids and contents that were seen, as digests in a SQLite file.

    Args:
        on_duplicate_id: What to do about an id that comes again with another content: "error", or "skip" the later.
        on_duplicate_text: "keep" documents of other ids with the same text, or "skip" the later.
        update: Whether a document replaces the one of its id that is in the index already.
        vectors: Whether vectors are part of what a document says, because they are given.
    """

    def __init__(
        self,
        *,
        on_duplicate_id: OnDuplicateId = "error",
        on_duplicate_text: OnDuplicateText = "keep",
        update: bool = False,
        vectors: bool = False,
    ) -> None:
        self.on_duplicate_id = on_duplicate_id
        self.on_duplicate_text = on_duplicate_text
        self.update = update
        self.vectors = vectors
        self.counts = DuplicateCounts()
        self._database: sqlite3.Connection | None = None

    @contextmanager
    def opened(self, path: Path) -> Iterator[None]:
        """Keep the digests in a file, which is removed with the block.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        path.unlink(missing_ok=True)
        database = sqlite3.connect(path, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            # Digests come in no order: with SQLite's own 2 MB each of many is looked for in the file.
            database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            database.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, content BLOB, row INTEGER) WITHOUT ROWID")
            database.execute("CREATE TABLE texts (text BLOB PRIMARY KEY) WITHOUT ROWID")
            database.execute("BEGIN")
            self._database = database
            yield
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        finally:
            self._database = None
            database.close()
            path.unlink(missing_ok=True)

    def know(self, documents: Iterable[Document]) -> None:
        """Remember the documents of an index, in the order of its rows."""
        for row, document in enumerate(documents):
            self._insert(document, row)

    def new(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Let pass what is new, and count the rest.

        Args:
            documents: Documents.

        Yields:
            Documents to be indexed.

        Raises:
            InputError: If an id comes again with another content, and that is an error.
        """
        for document in documents:
            content, row = self._find(document)
            in_index = row is not None and row != _THIS_INPUT
            if content == self._content(document):
                self.counts.unchanged += in_index
                self.counts.repeated += not in_index
                continue
            replaces = in_index and self.update
            if content is not None and not replaces:
                if self.on_duplicate_id == "error":
                    raise _clash(document, in_index=in_index)
                self.counts.clashing_ids += 1
                continue
            if self._repeats_text(document):
                self.counts.equal_texts += 1
                if self.on_duplicate_text == "skip" and not replaces:
                    continue
            if replaces and row is not None:
                self.counts.replaced.append(row)
            self._insert(document, _THIS_INPUT)
            yield document

    def _find(self, document: Document) -> tuple[bytes | None, int | None]:
        """Content and row under a document's id."""
        found = self._opened().execute("SELECT content, row FROM ids WHERE id = ?", (_digest(document.id),)).fetchone()
        return found or (None, None)

    def _insert(self, document: Document, row: int) -> None:
        database = self._opened()
        values = (_digest(document.id), self._content(document), row)
        database.execute("INSERT OR REPLACE INTO ids VALUES (?, ?, ?)", values)
        database.execute("INSERT OR IGNORE INTO texts VALUES (?)", (_digest(document.embedded_text),))

    def _repeats_text(self, document: Document) -> bool:
        found = self._opened().execute("SELECT 1 FROM texts WHERE text = ?", (_digest(document.embedded_text),))
        return found.fetchone() is not None

    def _content(self, document: Document) -> bytes:
        """Digest of what a document says, apart from its id."""
        said = json.dumps([document.text, document.title, document.metadata], sort_keys=True)
        if self.vectors and document.vector is not None:
            said += document.vector.tobytes().hex()
        return _digest(said)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("SeenDocuments is used inside `with seen.opened(path)`.")
        return self._database


def _clash(document: Document, *, in_index: bool) -> InputError:
    where = f"{document.source}: " if document.source else ""
    if in_index:
        return InputError(
            f"{where}the index has another document with the id {document.id!r}. "
            + advise(
                ("replace it ({})", "--update", "mode='update'"),
                ("keep what is there ({})", *_SKIP),
            )
        )
    return InputError(
        f"{where}the id {document.id!r} was there before, with another content. "
        + advise("give every document an id of its own", ("keep the first ({})", *_SKIP))
    )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
