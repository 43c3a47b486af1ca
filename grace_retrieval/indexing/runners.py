"""Runners: what makes the shards of a job, shard after shard in this process, or by actors of Ray Data.

The shard's file is the unit of work. A Ray actor reads the shard's documents from the workspace, which every machine
must see, and writes the shard there whole; what comes back through Ray is its line for the journal. An actor that dies
costs the shard it was making, which Ray gives to another.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.errors import InputError, MissingExtraError
from grace_retrieval.indexing.encoders import Encoder
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.plan import ShardTask, read_documents
from grace_retrieval.indexing.shards import shard_table, write_shard
from grace_retrieval.indexing.workspace import Workspace
from grace_retrieval.vector_identity import VectorIdentity

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["RayRunner", "Runner", "encode_shard", "run_local"]

Runner = Callable[[Sequence[ShardTask], Workspace, Encoder], Iterator[ShardFile]]
"""Makes shards, in any order; each is whole and on the disk when it is given back."""


def run_local(tasks: Sequence[ShardTask], workspace: Workspace, encoder: Encoder) -> Iterator[ShardFile]:
    """Make shards one after the other.

    Args:
        tasks: Which ones.
        workspace: Where they go.
        encoder: Makes their rows.

    Yields:
        Each shard when it is finished.
    """
    for task in tasks:
        yield encode_shard(task, workspace.build, encoder)


def encode_shard(task: ShardTask, folder: Path, encoder: Encoder) -> ShardFile:
    """Make a shard.

    Args:
        task: Which one.
        folder: Where it goes.
        encoder: Makes its rows.

    Returns:
        Description of its file, which is whole and on the disk.

    Raises:
        OSError: If it cannot be written.
    """
    documents = read_documents(task.input)
    written, vectors = encoder.encode(documents)
    return write_shard(folder / task.name, shard_table(documents, written, vectors))


@dataclass(frozen=True, kw_only=True)
class RayRunner:
    """Runs a build on Ray Data; give it to `build_with` as the runner.

    A cluster that `ray.init` was called for is used; otherwise one is started, or joined at `address`.

    Args:
        workers: Number of actors; each holds a model.
        cpus: Cores of an actor.
        gpus: GPUs of an actor, such as 1 or 0.5.
        cache: Cache of an actor: "default" (a file of its machine), a path, or None.
        load: Makes the embedder in an actor, for instance one with a vLLM engine; None loads the encoder's.
        address: Address of a cluster, such as "auto"; None starts one on this machine.

    Raises:
        InputError: If a number is out of range.
    """

    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    cache: str | None = "default"
    load: Callable[[], GraceEmbedder] | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.workers < 1 or self.cpus < 0 or self.gpus < 0:
            raise InputError(
                f"workers={self.workers}, cpus={self.cpus}, gpus={self.gpus}: give at least one worker, and nothing "
                "negative."
            )

    def __call__(self, tasks: Sequence[ShardTask], workspace: Workspace, encoder: Encoder) -> Iterator[ShardFile]:
        """Make shards.

        Args:
            tasks: Which ones.
            workspace: Where they go; all machines see it under the same path.
            encoder: Says what the vectors are made with; each actor makes its own.

        Yields:
            Each shard when it is finished.

        Raises:
            MissingExtraError: If Ray is not installed.
        """
        if not tasks:
            return
        ray = _import_ray()
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(
            [{**asdict(task), "input": str(task.input.resolve())} for task in tasks],
            override_num_blocks=len(tasks),
        ).map_batches(
            ShardWorker,
            fn_constructor_kwargs={
                "folder": str(workspace.build.resolve()),
                "encoder": _describe(encoder),
                "cache": self.cache,
                "load": self.load,
            },
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        for row in dataset.iter_rows():
            entry = json.loads(row["shard"])
            yield ShardFile(**{**entry, "blank": tuple(entry["blank"])})


class ShardWorker:
    """An actor: holds an encoder, and makes one shard a call.

    Args:
        folder: Where shards go.
        encoder: How to make the encoder.
        cache: Cache of the embedder.
        load: Makes the embedder; None loads the described one.
    """

    def __init__(
        self,
        folder: str,
        encoder: dict[str, Any],
        cache: str | None,
        load: Callable[[], GraceEmbedder] | None,
    ) -> None:
        self.folder = Path(folder)
        self.encoder = _make_encoder(encoder, cache, load)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the shards of a batch.

        Args:
            batch: Columns of ShardTask.

        Returns:
            The journal's lines.
        """
        lines = []
        for name, rows, path in zip(batch["name"], batch["rows"], batch["input"], strict=True):
            task = ShardTask(name=str(name), rows=int(rows), input=Path(str(path)))
            lines.append(json.dumps(asdict(encode_shard(task, self.folder, self.encoder))))
        return {"shard": lines}


def _make_encoder(described: dict[str, Any], cache: str | None, load: Callable[[], GraceEmbedder] | None) -> Encoder:
    from grace_retrieval.cache import open_cache
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors
    from grace_retrieval.indexing.loading import load_embedder

    if not described["embeds"]:
        return GivenVectors()
    embedder = load() if load is not None else load_embedder(described["settings"], on_truncation="ignore")
    if load is None:
        embedder.pipeline.cache = open_cache(cache)
    embedder.pipeline.options.on_truncation = "ignore"
    encoder = EmbedderEncoder(embedder, rationale=described["rationale"], role=described["role"])
    if encoder.identity is not None:
        encoder.identity.require(VectorIdentity.from_description(described["identity"]), "the index")
    return encoder


def _describe(encoder: Encoder) -> dict[str, Any]:
    return {
        "embeds": encoder.embeds,
        "rationale": encoder.rationale,
        "role": getattr(encoder, "role", "document"),
        "settings": encoder.settings,
        "identity": encoder.identity.describe() if encoder.identity else None,
    }


def _import_ray() -> Any:
    # Ray reports usage to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("ray", "ray", "--runner ray") from error
