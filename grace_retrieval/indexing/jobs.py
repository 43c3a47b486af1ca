"""Jobs: documents become shards, and a job that was killed goes on where it was.

Documents are cut into shards and kept in a workspace (`plan`), a runner makes the shards (`runners`), and a line of the
journal says of each that it is finished. `build_index` makes an index of the shards, `embed_to_file` a file. A
workspace remembers what its shards are made from, so that the work of another run is refused and not thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from grace_retrieval.advice import advise
from grace_retrieval.atomic import replacing
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.encoders import EmbedderEncoder, Encoder
from grace_retrieval.indexing.manifest import ShardFile, checksum
from grace_retrieval.indexing.plan import ShardTask, plan_shards
from grace_retrieval.indexing.runners import Runner, run_local
from grace_retrieval.indexing.workspace import Workspace
from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["JobDescription", "JobProgress", "ShardJob"]

_VERSION = 1


class JobProgress(Protocol):
    """What is told how far a job is; `grace_retrieval.cli.progress.TextProgress` is one."""

    def expect(self, total: int) -> None:
        """Set the number of documents."""

    def resume(self, done: int) -> None:
        """Set how many were done by an earlier run."""

    def advance(self, count: int = 1) -> None:
        """Count documents as done."""

    def reach(self, done: int) -> None:
        """Set how many are done."""


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """What shards are made from, beside the documents.

    Attributes:
        options: Options that shape them, under their names on the command line; JSON values.
        identity: What the vectors are made with; None if that is not known.
    """

    options: Mapping[str, Any]
    identity: VectorIdentity | None

    def differences(self, then: JobDescription) -> list[str]:
        """Say how this job differs from another one.

        Args:
            then: The other job.

        Returns:
            One entry a difference, such as `"batch: 10 here, 20 there"`.
        """
        lines = [
            f"{name}: {self.options.get(name)!r} here, {then.options.get(name)!r} there"
            for name in sorted({*self.options, *then.options})
            if self.options.get(name) != then.options.get(name)
        ]
        if self.identity is not None and then.identity is not None:
            return lines + self.identity.differences(then.identity)
        known = [side.identity.model if side.identity else None for side in (self, then)]
        return lines if known[0] == known[1] else [*lines, f"model: {known[0]!r} here, {known[1]!r} there"]

    def write(self, path: Path) -> None:
        """Write a description.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        identity = None if self.identity is None else self.identity.describe()
        content = {"version": _VERSION, "options": dict(self.options), "identity": identity}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def find(cls, path: Path) -> JobDescription | None:
        """Read a description.

        Args:
            path: The file.

        Returns:
            The description, or None if there is none.

        Raises:
            InputError: If it cannot be read.
        """
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            there = content["identity"]
            return cls(
                options=dict(content["options"]),
                identity=None if there is None else VectorIdentity.from_description(there),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}). Remove its folder to start anew.") from error


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Shards to be made in a workspace, inside `with workspace.working()`.

    Args:
        workspace: Where they are made.
        encoder: Makes their rows.
        shard_rows: Documents of a shard.
        salt: Digest of what vectors are made with; part of the shards' names.
        options: Options that shape the shards, under their names on the command line; JSON values.
        source: Name of the documents, for messages.
        overwrite: Whether the finished shards of another job are discarded instead of refused.
        give_up: How that is asked for, as `advise` takes it.
        runner: Runs the encoder over the shards.
        progress: Told how far the job is.
    """

    workspace: Workspace
    encoder: Encoder
    shard_rows: int
    salt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the input"
    overwrite: bool = False
    give_up: str | tuple[str, str, str] = ("discard what differs ({})", "--overwrite", "overwrite=True")
    runner: Runner = run_local
    progress: JobProgress | None = None

    def plan(self, documents: Iterable[Document], *, first: int = 0) -> list[ShardTask]:
        """Read all documents and cut them into shards.

        Args:
            documents: The documents.
            first: Number of the first shard.

        Returns:
            The shards, in the order of their rows.

        Raises:
            InputError: If a document is bad, or the finished shards there are of another model or other options.
            OSError: If a file cannot be written.
        """
        path = self.workspace.build / "job.json"
        described = JobDescription(options=self.options, identity=self.encoder.identity)
        if not self.overwrite and self.workspace.others():
            then = JobDescription.find(path)
            if then is not None and (differences := described.differences(then)):
                raise InputError(
                    f"{self.workspace.build} holds unfinished work of another run ({'; '.join(differences)}). "
                    + advise("repeat that run's command", self.give_up)
                )
        described.write(path)
        stream = plan_shards(documents, self.workspace.input, shard_rows=self.shard_rows, first=first, salt=self.salt)
        return list(stream)

    def claim(self, tasks: Sequence[ShardTask], names: Collection[str] = ()) -> None:
        """Make sure that the finished shards there are of these documents.

        Args:
            tasks: The shards of this job.
            names: Names of other shards that come with them.

        Raises:
            InputError: If there are others, and they are not to be discarded.
            OSError: If they cannot be discarded.
        """
        others = self.workspace.others({*names, *(task.name for task in tasks)})
        if not others:
            return
        if not self.overwrite:
            number = min(shard.name[:6] for shard in others)
            same = sum(task.rows for task in tasks if task.name[:6] < number)
            raise InputError(
                f"{self.workspace.build} holds unfinished work of another input: {self.source} differs from it behind "
                f"text {same}. " + advise("give that input again", self.give_up)
            )
        self.workspace.drop(others)

    def make(
        self, tasks: Sequence[ShardTask], *, known: Iterable[ShardFile] = (), check: bool = False
    ) -> tuple[list[ShardFile], int]:
        """Make the shards that are not finished.

        Args:
            tasks: The shards, from `plan`.
            known: Finished shards that the journal does not list.
            check: Whether finished shards are read and compared with their checksums.

        Returns:
            All shards in the order of the tasks, and the number of rows that an earlier run had finished.

        Raises:
            OSError: If a shard cannot be written.
        """
        there = {shard.name: shard for shard in known} | self.workspace.journal.read()
        finished = {
            task.name: shard for task in tasks if (shard := there.get(task.name)) and self._usable(shard, check)
        }
        resumed = done = sum(shard.rows for shard in finished.values())
        if self.progress is not None:
            self.progress.expect(sum(task.rows for task in tasks))
            self.progress.resume(resumed)
            if isinstance(self.encoder, EmbedderEncoder):
                self.encoder.on_row = self.progress.advance
        todo = [task for task in tasks if task.name not in finished]
        for shard in self.runner(todo, self.workspace, self.encoder):
            self.workspace.journal.append(shard)
            finished[shard.name] = shard
            done += shard.rows
            if self.progress is not None:
                self.progress.reach(done)
        return [finished[task.name] for task in tasks], resumed

    def _usable(self, shard: ShardFile, check: bool) -> bool:
        return self.workspace.has(shard) and (not check or checksum(self.workspace.find(shard.name)) == shard.sha256)
