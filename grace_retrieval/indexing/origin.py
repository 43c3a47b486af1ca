"""Where given vectors come from: what their files say, or the user's word; nothing else gets into a model's index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from grace_retrieval.advice import advise
from grace_retrieval.atomic import replacing
from grace_retrieval.corpus.formats import format_of
from grace_retrieval.corpus.vectors import is_matrix
from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.fingerprint import Fingerprint
from grace_retrieval.indexing.manifest import checksum

if TYPE_CHECKING:
    from grace_retrieval.corpus.corpus import Corpus
    from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["check_length", "check_origin", "origin_file", "write_origin"]

_TOLERANCE = 1e-2
"""How far a length may be from 1: float16 is within."""


def origin_file(array: Path) -> Path:
    """The file beside an .npy file that says what its vectors were made with, as parquet files say of themselves.

    Args:
        array: The .npy file.
    """
    return array.with_name(f"{array.name}.json")


def write_origin(array: Path, fingerprint: Fingerprint) -> None:
    """Write down what an array's vectors were made with.

    Args:
        array: The finished .npy file.
        fingerprint: Of the vectors.
    """
    content = {"fingerprint": fingerprint.describe(), "sha256": checksum(array)}
    with replacing(origin_file(array)) as path:
        path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def check_origin(corpus: Corpus, identity: VectorIdentity, *, named: bool, index: str) -> None:
    """Refuse given vectors that are not of the model they go with.

    Args:
        corpus: Documents with vectors.
        identity: What the vectors have to be made with.
        named: Whether the user said that the model made them.
        index: Where they go, for messages.

    Raises:
        ModelMismatchError: If their files name another model or other options.
        InputError: If their files say nothing, and the user did not either; or an array is not what its file is about.
    """
    for name, described in _said(corpus):
        if described is None:
            if named:
                continue
            raise InputError(
                f"{name} does not say what its vectors were made with (files of grace embed do), and {index} holds "
                f"vectors of the model {identity.model!r}. "
                + advise(
                    "embed the documents",
                    ("if that model made them with these options, say so ({})", "--model", "GivenVectors(identity=…)"),
                )
            )
        there = Fingerprint.from_description(described)
        if differences := identity.document.differences(there):
            raise ModelMismatchError(
                f"{name} holds vectors of the model {there.model!r}, not of {identity.model!r} as they are wanted here "
                f"({'; '.join(differences)}). Name the model and options they were made with."
            )


def check_length(vector: np.ndarray[Any, Any], identity: VectorIdentity, where: str, *, blank: bool) -> None:
    """Refuse a given vector that a model cannot have made.

    Args:
        vector: The vector. Shape: (dim,).
        identity: What it is said to be made with.
        where: Where it was found, for messages.
        blank: Whether its text is blank: such a vector is zeros.

    Raises:
        ModelMismatchError: If it has another dimension.
        InputError: If it is not of length 1.
    """
    if len(vector) != identity.dimension:
        raise ModelMismatchError(
            f"{where}: the vector has {len(vector)} dimensions, and {identity.model!r} makes vectors of "
            f"{identity.dimension}. Name the model that made it."
        )
    length = float(np.linalg.norm(np.asarray(vector, dtype=np.float64)))
    if abs(length - 1) > _TOLERANCE and not (blank and length == 0):
        raise InputError(
            f"{where}: the vector has length {length:.4g}, and {identity.model!r} makes vectors of length 1, so it did "
            "not make this one. Name the model that did; an index of no known model takes vectors of any length."
        )


def _said(corpus: Corpus) -> list[tuple[str, Any]]:
    """For each file of vectors its name, and the fingerprint that it names, or None."""
    vectors = corpus.columns.vectors
    if vectors is not None and is_matrix(vectors):
        is_table = format_of(vectors) == "parquet"
        return [(vectors, _within(vectors) if is_table else _beside(Path(vectors)))]
    return [(source.name, _within(source.path) if source.format == "parquet" else None) for source in corpus.sources]


def _within(table: str) -> Any:
    about = pq.read_schema(table).metadata or {}
    return json.loads(about.get(b"grace", b"{}")).get("fingerprint")


def _beside(array: Path) -> Any:
    path = origin_file(array)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        described, expected = content["fingerprint"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say what {array.name} was made with: {error}. Remove it or mend it."
        ) from error
    if checksum(array) != expected:
        raise InputError(
            f"{array} is not the file that {path.name} is about: it was changed since. Remove {path.name} if you know "
            "what made the vectors, or write both again with grace embed."
        )
    return described
