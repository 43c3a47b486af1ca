"""The FAISS side of an index: streamed training and adding, a memory-mapped file, search with a selection of rows."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.atomic import replacing
from grace_retrieval.errors import IndexCorruptedError, InputError, MissingExtraError
from grace_retrieval.indexing.choose import IndexChoice
from grace_retrieval.indexing.manifest import FaissFile, checksum
from grace_retrieval.threads import fit_faiss

__all__ = [
    "build_faiss",
    "can_select",
    "check_factory",
    "import_faiss",
    "open_faiss",
    "search_faiss",
    "vectors_of",
]

Vectors = npt.NDArray[np.float32]
Batches = Callable[[], Iterator[Vectors]]
"""Streams all vectors of an index in the order of the rows, each time it is called."""

_TRAIN_SEED = 0
_TRAIN_LIMIT = 1 << 18
_ANY_DIMENSION = 26_880
"""A multiple of most numbers of parts that codes have."""
_FEW_TO_TRAIN = 1 << 12
"""So few vectors may be too few to train with, and training with them takes no time."""


def import_faiss() -> Any:
    """The module `faiss`.

    Raises:
        MissingExtraError: If none of its three distributions is installed.
    """
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise MissingExtraError(
            "faiss", "cpu", "Searching an index (with NVIDIA GPUs: the extra gpu or gpu-cuvs instead of cpu)"
        ) from error
    fit_faiss(faiss)
    return faiss


def build_faiss(
    path: Path, batches: Batches, *, rows: int, dimension: int, choice: IndexChoice, base: Path | None = None
) -> FaissFile:
    """Build and write the FAISS file of an index.

    Args:
        path: The file.
        batches: Streams the vectors; called once for training and once for adding.
        rows: Number of vectors.
        dimension: Their dimensions.
        choice: What to build.
        base: File of an index of that kind which has the first vectors already; `batches` then streams the rest, and
            nothing is trained again.

    Returns:
        Description of the file.

    Raises:
        InputError: If FAISS does not know the factory string, or cannot train it with so few vectors.
        OSError: If the file cannot be written.
    """
    faiss = import_faiss()
    metric = faiss.METRIC_INNER_PRODUCT if choice.metric == "inner_product" else faiss.METRIC_L2
    try:
        index = faiss.read_index(str(base)) if base else faiss.index_factory(dimension, choice.factory, metric)
        if not index.is_trained:
            _train(index, _sample(batches, rows, dimension))
    except RuntimeError as error:
        raise InputError(_refused(choice.factory, rows, dimension, error)) from error
    with replacing(path) as temporary:
        if not (choice.factory == "Flat" and _write_flat(temporary, batches, index, rows)):
            for vectors in batches():
                index.add(vectors)
            faiss.write_index(index, str(temporary))
    about = asdict(choice)
    return FaissFile(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=checksum(path),
        **{name: about[name] for name in ("factory", "metric", "search", "explanation")},
    )


def check_factory(factory: str, *, rows: int | None = None, dimension: int | None = None) -> None:
    """Refuse a factory string that FAISS cannot make an index of.

    Args:
        factory: The factory string.
        rows: Number of vectors; None if it is not known yet.
        dimension: Their dimensions; None if they are not known yet.

    Raises:
        MissingExtraError: If FAISS is not installed.
        InputError: If FAISS refuses it, or it has more lists than there are vectors.
    """
    faiss = import_faiss()
    if not isinstance(factory, str):
        raise InputError(f"factory={factory!r}: give a FAISS factory string, such as 'HNSW32,SQ8'.")
    width = _ANY_DIMENSION if dimension is None else dimension
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        if dimension is None and "parse" not in str(error):
            return
        raise InputError(_refused(factory, rows, dimension, error)) from error
    inverted = faiss.try_extract_index_ivf(index)
    if rows is not None and inverted is not None and inverted.nlist > rows:
        raise InputError(
            f"{factory!r} has {inverted.nlist:,} lists for {rows:,} vectors: give a factory string with fewer, such as "
            "'Flat'."
        )
    if dimension is not None and rows is not None and rows < _FEW_TO_TRAIN and not index.is_trained:
        # Few vectors may be too few for the codes, which FAISS says only when it trains; any numbers show it.
        try:
            _train(index, np.random.default_rng(0).standard_normal((rows, dimension), dtype=np.float32))
        except RuntimeError as error:
            raise InputError(_refused(factory, rows, dimension, error)) from error


def _refused(factory: str, rows: int | None, dimension: int | None, error: RuntimeError) -> str:
    vectors = "" if rows is None else f" of {rows:,} vectors"
    width = "" if dimension is None else f" of {dimension} dimensions"
    reason = faiss_reason(error)
    return (
        f"FAISS cannot make an index {factory!r}{vectors}{width} ({reason}). Give another factory string, such as "
        "'Flat'."
    )


def faiss_reason(error: Exception) -> str:
    """What FAISS says is wrong, without its C++ signature, file and line: "Number of training points (3) should be …".

    Args:
        error: As FAISS raised it.
    """
    text = " ".join(str(error).split())
    found = re.search(r"\.(?:cpp|cc|cu|cuh|h):\d+: (.+)", text)
    said = found[1] if found else text
    # "Error: 'nx >= k' failed: what it means", of which the meaning is enough where there is one.
    return re.sub(r"^Error: '.*?' failed:? (?=.)", "", said)[-300:] or type(error).__name__


def open_faiss(folder: Path, about: FaissFile, *, rows: int, memory_map: bool = True) -> Any:
    """Open a FAISS file.

    Args:
        folder: Folder of the index.
        about: What the manifest says of the file.
        rows: Number of vectors it must have.
        memory_map: Whether the system reads it as it is needed, rather than into memory at once.

    Raises:
        IndexCorruptedError: If the file is missing, cannot be read, or has another number of vectors.
    """
    faiss = import_faiss()
    path = folder / about.name
    mend = f"Make it again from the shards: grace index verify {folder} --mend"
    if not path.exists():
        raise IndexCorruptedError(f"{path} is missing. {mend}")
    # FAISS maps a file that was cut short, and dies.
    if (size := path.stat().st_size) != about.bytes:
        raise IndexCorruptedError(f"{path} is damaged (it has {size:,} bytes, and should have {about.bytes:,}). {mend}")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as error:
        raise IndexCorruptedError(f"{path} is damaged ({faiss_reason(error)}). {mend}") from error
    if index.ntotal != rows:
        raise IndexCorruptedError(f"{path} has {index.ntotal:,} vectors where the index has {rows:,} rows. {mend}")
    return index


def search_faiss(
    index: Any, queries: Vectors, k: int, *, search: dict[str, int], allowed: npt.NDArray[np.bool_] | None = None
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Search a FAISS index.

    Args:
        index: From `open_faiss`.
        queries: Shape: (queries, dim), float32.
        k: Rows wanted for each query.
        search: Search parameters: nprobe, efSearch, k_factor.
        allowed: Which rows may be found; None allows all. Shape: (rows,), bool.

    Returns:
        Distances and row numbers, -1 where nothing more was found. Shape: (queries, k), float32 and int64.
    """
    faiss = import_faiss()
    selector = None
    if allowed is not None:
        # Kept alive until the search is done: FAISS holds a pointer only.
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    parameters = _parameters(faiss, index, search, selector)
    distances, rows = index.search(queries, k, params=parameters)
    return distances, rows


def vectors_of(index: Any, rows: npt.NDArray[np.int64]) -> Vectors:
    """Vectors as a flat index holds them. Shape: (rows, dim), float32.

    Args:
        index: From `open_faiss`.
        rows: Row numbers. Shape: (rows,), int64.
    """
    found: Vectors = index.reconstruct_batch(rows)
    return found


def can_select(index: Any) -> bool:
    """Whether an index can search among some of its rows only.

    Args:
        index: From `open_faiss`.
    """
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return can_select(index.base_index)
    if isinstance(index, faiss.IndexPreTransform):
        return can_select(index.index)
    return not isinstance(index, faiss.IndexFastScan)


def _parameters(faiss: Any, index: Any, search: dict[str, int], selector: Any) -> Any:
    """Search parameters that reach the innermost index."""
    index = faiss.downcast_index(index)
    chosen: dict[str, Any] = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(faiss, index.base_index, search, selector)
        return faiss.IndexRefineSearchParameters(
            k_factor=float(search.get("k_factor", 10)), **({} if base is None else {"base_index_params": base})
        )
    if isinstance(index, faiss.IndexPreTransform):
        base = _parameters(faiss, index.index, search, selector)
        return None if base is None else faiss.SearchParametersPreTransform(index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=search.get("nprobe", 32), **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=search.get("efSearch", 256), **chosen)
    return faiss.SearchParameters(**chosen) if chosen else None


def _train(index: Any, sample: Vectors) -> None:
    """Train an index; the clustering of inverted lists, which takes longest, on GPUs if FAISS has any."""
    faiss = import_faiss()
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        lists.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(lists.d))
    index.train(sample)
    if lists is not None:
        lists.clustering_index = None


def _sample(batches: Batches, rows: int, dimension: int) -> Vectors:
    """Vectors to train with: all, or evenly drawn ones; the same every time."""
    if rows <= _TRAIN_LIMIT:
        found = list(batches())
        return np.concatenate(found) if found else np.zeros((0, dimension), np.float32)
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng(_TRAIN_SEED).choice(rows, _TRAIN_LIMIT, replace=False)] = True
    start, kept = 0, []
    for vectors in batches():
        kept.append(vectors[chosen[start : start + len(vectors)]])
        start += len(vectors)
    return np.concatenate(kept)


def _write_flat(path: Path, batches: Batches, empty: Any, rows: int) -> bool:
    """Write an IndexFlat without ever holding it: FAISS's own header with the counts set, then the vectors.

    Returns:
        False, with nothing written, if this FAISS lays such files out differently.
    """
    faiss = import_faiss()

    def header(count: int) -> bytes:
        template = bytearray(bytes(faiss.serialize_index(empty)))
        template[8:16] = count.to_bytes(8, "little")  # ntotal, behind a name of 4 bytes and the dimension in 4
        template[-8:] = (count * empty.d).to_bytes(8, "little")  # number of floats that follow
        return bytes(template)

    probe = np.arange(2 * empty.d, dtype=np.float32).reshape(2, -1)
    known = faiss.index_factory(empty.d, "Flat", empty.metric_type)
    known.add(probe)
    if bytes(faiss.serialize_index(known)) != header(2) + probe.tobytes():
        return False
    with open(path, "wb") as stream:
        stream.write(header(rows))
        for vectors in batches():
            stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)
    return True
