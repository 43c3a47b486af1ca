"""What an opened index can do besides searching: be built, grow, shrink, and give out documents by their ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, overload

from typing_extensions import Self

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.hits import Hit
from grace_retrieval.near import did_you_mean

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.indexing.build import BuildOptions, BuildProgress, BuildSummary
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.rows import RowReader

__all__ = ["EditableIndex"]

_NAN = float("nan")


class _Opened(Protocol):
    folder: Path
    manifest: IndexManifest
    rows: RowReader

    @property
    def embedder(self) -> GraceEmbedder: ...

    def refresh(self) -> None: ...


class EditableIndex:
    """Building and changing, for `GraceIndex`."""

    @classmethod
    def build(
        cls,
        documents: Any,
        folder: str | os.PathLike[str],
        *,
        embedder: GraceEmbedder | str | os.PathLike[str] | None = DEFAULT_MODEL,
        options: BuildOptions | None = None,
        overwrite: bool = False,
        progress: BuildProgress | None = None,
    ) -> Self:
        """Build an index and open it. Killed and called again with the same documents, it goes on where it was.

        Args:
            documents: A Corpus of files, or an iterable of texts, mappings with `text` (and `id`, `title`, metadata),
                Documents or LangChain documents. Without ids, ids are made from the content.
            folder: Folder of the index; made if it is not there.
            embedder: Embeds the documents: an embedder, or the name or folder of a model. None takes the vectors that
                Documents bring.
            options: What shapes the index.
            overwrite: Whether an index that is there is replaced.
            progress: Told how far the build is.

        Returns:
            The index, opened.

        Raises:
            InputError: If there is no document, one is bad, the folder cannot be written or holds another index.
            ModelLoadError: If there is no such model.

        Example:
            >>> index = GraceIndex.build(["Tides follow the moon."], "tides")  # doctest: +SKIP
            >>> index.search("moon", k=1).documents  # doctest: +SKIP
            ['Tides follow the moon.']
        """
        from grace_retrieval.indexing.build import build_index
        from grace_retrieval.indexing.commit import FaissOptions, check_faiss

        check_faiss(options.faiss if options else FaissOptions())  # before a model is loaded
        if isinstance(embedder, (str, os.PathLike)):
            from grace_retrieval.embedder import GraceEmbedder

            embedder = GraceEmbedder(embedder)
        mode: Any = "overwrite" if overwrite else "new"
        build_index(documents, folder, embedder=embedder, options=options, mode=mode, progress=progress)
        return cast(Self, cls.open(folder, embedder=embedder))  # type: ignore[attr-defined]

    def add(
        self: _Opened,
        documents: Any,
        *,
        update: bool = False,
        options: BuildOptions | None = None,
        progress: BuildProgress | None = None,
    ) -> BuildSummary:
        """Add documents, embedded by the index's own model. Those that are there as they are stay.

        Args:
            documents: As in `build`; Documents with vectors where the index was built from such.
            update: Whether a document with an id that is there replaces it; otherwise another content is an error.
            options: What shapes the new part.
            progress: Told how far it is.

        Returns:
            What was done; this index searches the new documents from now on.

        Raises:
            InputError: If a document is bad, or says something else than the one of its id.
        """
        from grace_retrieval.indexing.build import BuildOptions, build_with
        from grace_retrieval.indexing.encoders import EmbedderEncoder, Encoder, GivenVectors

        encoder: Encoder = GivenVectors(rationale=self.manifest.rationale)
        if self.manifest.identity is not None:
            encoder = EmbedderEncoder(self.embedder, rationale=self.manifest.rationale)
        summary = build_with(
            encoder,
            documents,
            self.folder,
            options=options or BuildOptions(),
            mode="update" if update else "add",
            progress=progress,
        )
        self.refresh()
        return summary

    def delete(self: _Opened, ids: str | Iterable[str], *, missing: str = "error") -> int:
        """Delete documents.

        Args:
            ids: An id, or several.
            missing: "error" if an id is not there, or "skip" it.

        Returns:
            How many were deleted; this index does not find them from now on.

        Raises:
            InputError: If an id is not there.
        """
        from grace_retrieval.indexing.removal import delete_documents

        _, count = delete_documents(self.folder, [ids] if isinstance(ids, str) else ids, missing=missing)
        self.refresh()
        return count

    # A str is a Sequence[str] too; the first signature takes it.
    @overload
    def get(self: _Opened, ids: str) -> Hit: ...  # type: ignore[overload-overlap]

    @overload
    def get(self: _Opened, ids: Sequence[str]) -> list[Hit]: ...

    def get(self: _Opened, ids: str | Sequence[str]) -> Hit | list[Hit]:
        """Documents by their ids.

        Args:
            ids: An id, or several.

        Returns:
            The document, with rationale; a list of them for several ids. Their score is NaN: nothing was searched.

        Raises:
            InputError: If an id is not there.
        """
        from grace_retrieval.inputs import read_texts  # which loads torch

        wanted = [ids] if isinstance(ids, str) else read_texts(ids)
        places: dict[str, int] = {}
        start, asked = 0, set(wanted)
        for names in self.rows.column("id"):
            places.update((name, start + place) for place, name in enumerate(names) if name in asked)
            start += len(names)
        if lost := [name for name in wanted if name not in places]:
            known = (name for names in self.rows.column("id") for name in names)
            near = did_you_mean(str(lost[0]), known) if start <= 10_000 else ""
            shown = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
            raise InputError(f"{self.folder} has no document {shown}.{near}")
        found = self.rows.hits([places[name] for name in wanted], [_NAN] * len(wanted))
        return found[0] if isinstance(ids, str) else found
