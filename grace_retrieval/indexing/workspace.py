"""Workspaces: folders in which shards are made, kept by one process at a time, and the folder of an index.

DIR/manifest.json  shards/  index.faiss     an index; readers see nothing else
DIR/build/                                  the workspace of a change that is not in the index yet
OUT.parts/                                  the workspace of `grace embed`
  journal.jsonl  job.json  input/  lock     what is finished, what it is made from, what is to be made
  *.parquet                                 finished shards
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from grace_retrieval.atomic import locked, replacing, sync_folder
from grace_retrieval.errors import IndexCorruptedError, InputError
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile
from grace_retrieval.indexing.shards import describe_shard

__all__ = ["IndexFolder", "Journal", "Workspace"]

_SHARDS = "[0-9]*-*.parquet"
_OURS = (_SHARDS, "*.tmp", "journal.jsonl", "job.json", "seen.sqlite*", "lock")


class Journal:
    """One line a finished shard, appended and brought to the disk before the next shard is begun.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, ShardFile]:
        """Finished shards by name. A last line that was cut short by a kill counts as not written."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                shard = ShardFile(**{**entry, "blank": tuple(entry["blank"])})
            except (ValueError, TypeError, KeyError):
                continue
            found[shard.name] = shard
        return found

    def append(self, shard: ShardFile) -> None:
        """Note that a shard is finished.

        Args:
            shard: The shard; its file is on the disk.

        Raises:
            OSError: If the line cannot be written.
        """
        # The leading line end closes a line that a kill cut short.
        line = b"\n" + json.dumps(asdict(shard)).encode() + b"\n"
        with open(self.path, "ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def replace(self, shards: Iterable[ShardFile]) -> None:
        """Write the journal anew.

        Args:
            shards: The shards that are finished.

        Raises:
            OSError: If it cannot be written.
        """
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(asdict(shard))}\n" for shard in shards), encoding="utf-8")


class Workspace:
    """A folder in which shards are made.

    Args:
        build: The folder.
        target: What comes of the shards, for messages.
    """

    def __init__(self, build: Path, *, target: str) -> None:
        self.build = build
        self.target = target
        self.input = build / "input"
        self.journal = Journal(build / "journal.jsonl")

    def check(self) -> None:
        """Find out whether the folder can be written, before any work is done.

        Raises:
            InputError: If it cannot.
        """
        if self.build.exists() and not self.build.is_dir():
            raise InputError(f"{self.build} is a file, and the folder of unfinished work goes there: move it away.")
        with self._writing():
            there = next(path for path in (self.build, *self.build.parents) if path.exists())
            tempfile.TemporaryFile(dir=there).close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Make the folder and keep other processes out while a block runs. Where nothing was finished, nothing stays.

        Raises:
            InputError: If something cannot be written, or another process is at work in the folder.
        """
        self.check()
        with self._writing():
            self.input.mkdir(parents=True, exist_ok=True)
            with locked(self.build / "lock", self.target):
                self._adopt()
                try:
                    yield
                finally:
                    if not self.finished() and not any(self.build.glob(_SHARDS)):
                        self.discard()

    def _adopt(self) -> None:
        """Give a line of the journal to shards that a kill kept from theirs: what has a shard's name is whole."""
        listed = self.journal.read()
        for path in sorted(self.build.glob(_SHARDS)):
            if path.name not in listed:
                try:
                    self.journal.append(describe_shard(path))
                except IndexCorruptedError:  # a disk lost it
                    path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what cannot be written, and what is kept."""
        try:
            yield
        except OSError as error:
            if isinstance(error, InputError) or error.errno is None:
                raise
            where = f" ({error.filename})" if error.filename else ""
            message = f"Cannot write {self.target}: {error.strerror}{where}."
            if self.finished():
                message += f" Finished shards are kept in {self.build}: the same command goes on from there."
            raise InputError(message) from error

    def find(self, name: str) -> Path:
        """Where a finished shard is."""
        return self.build / name

    def finished(self) -> dict[str, ShardFile]:
        """Shards of the journal whose files are there, by name."""
        return {name: shard for name, shard in self.journal.read().items() if self.has(shard)}

    def has(self, shard: ShardFile) -> bool:
        """Whether a shard's file is there and has its size; a crash of the machine may cut it short."""
        path = self.find(shard.name)
        return path.exists() and path.stat().st_size == shard.bytes

    def others(self, names: Collection[str] = ()) -> list[ShardFile]:
        """Finished shards that are not among those of a job: the work of another one.

        Args:
            names: Names of the job's shards.
        """
        return [shard for name, shard in self.finished().items() if name not in names]

    def drop(self, shards: Sequence[ShardFile]) -> None:
        """Discard finished shards."""
        names = {shard.name for shard in shards}
        self.journal.replace(shard for name, shard in self.journal.read().items() if name not in names)
        for name in names:
            (self.build / name).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove all unfinished work; files of others stay."""
        shutil.rmtree(self.input, ignore_errors=True)
        for pattern in _OURS:
            for path in self.build.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps a file of theirs in it
            self.build.rmdir()


class IndexFolder(Workspace):
    """The folder of an index, with a workspace in it while it is being changed.

    Args:
        folder: Folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "build", target=f"the index {folder}")
        self.folder = folder
        self.shards = folder / "shards"

    @contextmanager
    def opened(self) -> Iterator[IndexManifest | None]:
        """Make the folders and keep other processes out while a block runs.

        Yields:
            The manifest of the index that is there, or None.

        Raises:
            InputError: If the folder cannot be written, or another process is writing it.
            IndexCorruptedError: If the manifest that is there is damaged.
        """
        new = not self.folder.exists()
        try:
            with self.working():
                self.shards.mkdir(exist_ok=True)
                yield IndexManifest.find(self.folder)
        finally:
            if new:
                for folder in (self.shards, self.folder):
                    with suppress(OSError):  # something came of it
                        folder.rmdir()

    def refuse_others(self, names: Collection[str] = ()) -> None:
        """Keep a change from discarding the finished shards of a build that was stopped.

        Args:
            names: Names of shards that the change makes itself.

        Raises:
            InputError: If there are others.
        """
        if self.others(names):
            raise InputError(
                f"{self.build} holds the finished shards of a build that was stopped. Repeat its command first, or "
                "remove that folder to give them up."
            )

    def find(self, name: str) -> Path:
        """Where a finished shard is: in `build` until its change is made, then in `shards`."""
        return path if (path := self.build / name).exists() else self.shards / name

    def others(self, names: Collection[str] = ()) -> list[ShardFile]:
        """Finished shards that are neither in the index nor among those of a job.

        Args:
            names: Names of the job's shards.
        """
        manifest = IndexManifest.find(self.folder)
        known = [] if manifest is None else [shard.name for shard in manifest.shards]
        return super().others({*names, *known})

    def move_in(self, shards: Sequence[ShardFile]) -> None:
        """Move finished shards to where the index looks for them."""
        for shard in shards:
            if (path := self.build / shard.name).exists():
                path.replace(self.shards / shard.name)
        sync_folder(self.shards)

    def tidy(self, manifest: IndexManifest) -> None:
        """Remove what the index does not consist of: work that is done or was given up, and older generations."""
        kept = {shard.name for shard in manifest.shards}
        for path in self.shards.glob("*.parquet*"):
            if path.name not in kept:
                path.unlink()
        for path in self.folder.glob("index*.faiss*"):
            if path.name != manifest.faiss.name:
                path.unlink()
        self.discard()
