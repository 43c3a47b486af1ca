"""Workspace: the folder of an index while it is being written, kept by one process at a time.

DIR/manifest.json  shards/  index.faiss     the index; readers see nothing else
DIR/build/         journal.jsonl, input/ and finished shards of a change that is not in the index yet
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grace_retrieval.atomic import locked, sync_folder
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.journal import Journal
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile

__all__ = ["Workspace"]


class Workspace:
    """Paths of an index that is being written.

    Args:
        folder: Folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.build = folder / "build"
        self.input = self.build / "input"
        self.journal = Journal(self.build / "journal.jsonl")

    @contextmanager
    def opened(self) -> Iterator[IndexManifest | None]:
        """Make the folders and keep other processes out while a block runs.

        Yields:
            The manifest of the index that is there, or None.

        Raises:
            InputError: If the folder cannot be written, or another process is writing it.
            IndexCorruptedError: If the manifest that is there is damaged.
        """
        with self.writing():
            self.input.mkdir(parents=True, exist_ok=True)
            self.shards.mkdir(exist_ok=True)
            with locked(self.build / "lock", f"the index {self.folder}"):
                yield IndexManifest.find(self.folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say what cannot be written, and what is kept.

        Raises:
            InputError: Instead of an OSError.
        """
        try:
            yield
        except OSError as error:
            if isinstance(error, InputError) or error.errno is None:
                raise
            where = f" ({error.filename})" if error.filename else ""
            message = f"Cannot write the index {self.folder}: {error.strerror}{where}."
            if any(self.build.glob("*.parquet")):
                message += " Finished shards are kept: the same command goes on from there."
            raise InputError(message) from error

    def find(self, name: str) -> Path:
        """Where a finished shard is: in `build` until its change is made, then in `shards`."""
        return path if (path := self.build / name).exists() else self.shards / name

    def move_in(self, shards: Sequence[ShardFile]) -> None:
        """Move finished shards to where the index looks for them."""
        for shard in shards:
            if (path := self.build / shard.name).exists():
                path.replace(self.shards / shard.name)
        sync_folder(self.shards)

    def tidy(self, manifest: IndexManifest) -> None:
        """Remove what the index does not consist of: work that is done or was given up, and older generations."""
        for path in self.shards.glob("*.parquet*"):
            if path.name not in {shard.name for shard in manifest.shards}:
                path.unlink()
        for path in self.folder.glob("index*.faiss*"):
            if path.name != manifest.faiss.name:
                path.unlink()
        self.discard()

    def discard(self) -> None:
        """Remove unfinished work."""
        shutil.rmtree(self.build, ignore_errors=True)
