"""manifest.json: what an index consists of. It is replaced last, so that readers see the old index or the new one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grace_retrieval.atomic import replacing
from grace_retrieval.errors import IndexCorruptedError, InputError
from grace_retrieval.rationale import RationaleMode
from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["FORMAT_VERSION", "FaissFile", "IndexManifest", "ShardFile", "checksum"]

FORMAT_VERSION = 1
_FORMAT = "grace-index"
_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One parquet file of rows.

    Attributes:
        name: File name in `shards/`.
        rows: Number of rows.
        bytes: Size of the file.
        sha256: Checksum of the file.
        blank: Places of rows whose text is blank: their vectors are zeros, and no search finds them.
        truncated: Rows whose rationale was cut off before its end.
        text_truncated: Rows whose text was longer than the model takes.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    blank: tuple[int, ...] = ()
    truncated: int = 0
    text_truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class FaissFile:
    """The FAISS index over the rows: the number of a vector is its row, counted over the shards in their order.

    Attributes:
        name: File name.
        bytes: Size of the file.
        sha256: Checksum of the file.
        factory: FAISS factory string.
        metric: "inner_product" or "l2"; the vectors have length 1.
        search: Search parameters: nprobe, efSearch, k_factor.
        explanation: Why this type of index.
        asked_factory: The factory string that was asked for; None if the type was chosen.
        memory_bytes: The memory budget that was asked for.
    """

    name: str
    bytes: int
    sha256: str
    factory: str
    metric: str
    search: Mapping[str, int]
    explanation: str
    asked_factory: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index consists of.

    Attributes:
        generation: 1 for a new index; every change counts it up.
        created: When this generation was made, as ISO 8601 in UTC.
        package: Version of grace-retrieval that wrote it.
        rows: Number of documents.
        dimension: Dimensions of a vector.
        rationale: Whether documents and queries are embedded with rationales.
        embedder: Arguments of `GraceEmbedder` that load the model; None if vectors were given.
        identity: What the vectors were made with; None if vectors were given by an unknown model.
        shards: Files of rows, in the order of the rows.
        faiss: The FAISS index.
        columns: Which columns of the inputs the documents came from, and where their ids did; None if it is not known.
        model_path: Where the model lies, seen from the folder, if it lies beside it: both can be moved together.
    """

    generation: int
    created: str
    package: str
    rows: int
    dimension: int
    rationale: RationaleMode
    embedder: Mapping[str, Any] | None
    identity: VectorIdentity | None
    shards: tuple[ShardFile, ...]
    faiss: FaissFile
    columns: Mapping[str, Any] | None = None
    model_path: str | None = None

    def write(self, folder: Path) -> None:
        """Replace the manifest of an index.

        Args:
            folder: Folder of the index.

        Raises:
            OSError: If it cannot be written; the old one is still there.
        """
        content = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "metric": "cosine",
            **asdict(self),
            "model_path": _beside(folder, self.embedder) or self.model_path,
            "identity": self.identity.describe() if self.identity else None,
        }
        with replacing(folder / _NAME) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def find(cls, folder: Path) -> IndexManifest | None:
        """The manifest of a folder, or None if there is no index.

        Args:
            folder: Folder of an index.

        Raises:
            IndexCorruptedError: If the manifest cannot be read.
            InputError: If a newer version of grace-retrieval wrote it.
        """
        path = folder / _NAME
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            version = int(content["format_version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version} (written by grace-retrieval {content.get('package')}), and this "
                f"version reads up to {FORMAT_VERSION}. Upgrade: pip install --upgrade grace-retrieval"
            )
        try:
            return cls._read(content, folder)
        except (InputError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """The manifest of an index.

        Args:
            folder: Folder of an index.

        Raises:
            InputError: If there is no index in the folder, or a newer version wrote it.
            IndexCorruptedError: If the manifest cannot be read.
        """
        found = cls.find(folder)
        if found is None:
            if (folder / "build").is_dir():
                raise InputError(
                    f"The index {folder} is not finished (no {_NAME}): repeat the command that was stopped, which goes "
                    "on where it was."
                )
            raise InputError(f"{folder} has no index (no {_NAME}). Build one: grace index build INPUT --out {folder}")
        return found

    @classmethod
    def _read(cls, content: Mapping[str, Any], folder: Path) -> IndexManifest:
        shards = tuple(ShardFile(**{**shard, "blank": tuple(shard["blank"])}) for shard in content["shards"])
        identity = content["identity"]
        if sum(shard.rows for shard in shards) != content["rows"]:
            raise ValueError(f"rows is {content['rows']}, and its shards have {sum(shard.rows for shard in shards)}")
        return cls(
            generation=content["generation"],
            created=content["created"],
            package=content["package"],
            rows=content["rows"],
            dimension=content["dimension"],
            rationale=content["rationale"],
            embedder=_found_beside(folder, content["embedder"], content.get("model_path")),
            identity=None if identity is None else VectorIdentity.from_description(identity),
            shards=shards,
            faiss=FaissFile(**content["faiss"]),
            columns=content.get("columns"),
            model_path=content.get("model_path"),
        )


def _beside(folder: Path, embedder: Mapping[str, Any] | None) -> str | None:
    """The way from an index to its model, if that lies in the index's folder or in the one that holds both."""
    model = Path(str((embedder or {}).get("model", "")))
    if not model.is_absolute() or not model.is_dir():
        return None
    folder, model = folder.resolve(), model.resolve()
    holder = folder.parent
    beside = holder in model.parents and holder != Path(holder.anchor)
    return Path(os.path.relpath(model, folder)).as_posix() if beside else None


def _found_beside(folder: Path, embedder: Mapping[str, Any] | None, way: str | None) -> Mapping[str, Any] | None:
    """How the embedder is loaded, from where the model lies now."""
    if embedder is None or way is None or not (folder / way).is_dir():
        return embedder
    return {**embedder, "model": str((folder / way).resolve())}


def checksum(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it; read in pieces."""
    state = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def _damaged(path: Path, error: Exception) -> IndexCorruptedError:
    return IndexCorruptedError(
        f"{path} is damaged ({' '.join(str(error).split()) or type(error).__name__}). Copy it again from a backup, or "
        "build the index again: the rationales are still in the cache."
    )
