"""What can be known of a run in a second, asked before anything is made up, read, loaded or measured."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.plan import IndexSpec
from grace_benchmarks.ann.sources import StoredVectors
from grace_benchmarks.retrieval.collection import check_beir, check_files, check_pairs
from grace_benchmarks.retrieval.names import LEXICAL
from grace_benchmarks.suites import AnnPart, EncodePart, RetrievalPart, VectorSource
from grace_retrieval.corpus.beir import beir_file
from grace_retrieval.errors import InputError, MissingExtraError
from grace_retrieval.indexing.faiss_store import check_factory
from grace_retrieval.indexing.recommend import fill_template

if TYPE_CHECKING:
    from grace_benchmarks.encode.run import EncodeOptions
    from grace_benchmarks.retrieval.run import RetrievalOptions

__all__ = [
    "check_ann",
    "check_encode",
    "check_report",
    "check_retrieval",
    "encode_options",
    "found_collection",
    "retrieval_options",
]

WITHOUT_RATIONALES = ("bm25", "text", "hybrid")
"""Columns for which a model need not write."""


def _check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that could not be written in the end; it need not be there."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(20, f"{there} is a file")
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder}: {error.strerror or error}. Give another folder with {option}."
        ) from error


def check_ann(part: AnnPart, out: Path, work: Path) -> None:
    """Check a measurement of indexes.

    Args:
        part: What is to be measured.
        out: Folder of the rows.
        work: Folder of vectors and ground truth.

    Raises:
        MissingExtraError: If FAISS is not installed.
        InputError: If a folder cannot be written, queries or neighbours are of other vectors, k is too large, or FAISS
            takes a factory string, or a search parameter, for none of the matrices.
    """
    from grace_benchmarks.ann.devices import devices

    here = devices()
    _check_folder(out, "--out")
    _check_folder(work, "--work")
    sizes = [_checked_vectors(item, part.options.k) for item in part.vectors]
    for spec in part.indexes:
        wanted = [(n, dim) for n, dim in sizes if spec.min_n <= n <= spec.max_n and spec.device in here]
        refused: list[InputError] = []
        for n, dim in wanted:
            try:
                _check_index(spec, n, dim)
            except InputError as error:
                refused.append(error)
        if refused and len(refused) == len(wanted):
            raise refused[0]


def _checked_vectors(item: VectorSource, k: int) -> tuple[int, int]:
    """Number and dimensions of the vectors of a source."""
    from grace_benchmarks.ann.vectors import check_neighbours

    source = item.source
    n, dim = source.rows, source.dim
    if k > n:
        raise InputError(f"k={k}: give a number from 1 to {n}, the number of vectors searched.")
    if isinstance(item.queries, Path) and not isinstance(source, GeneratedVectors):
        asked = StoredVectors(path=item.queries, column="test" if _is_hdf5(item.queries) else "vector")
        if asked.dim != dim:
            raise InputError(
                f"{item.queries} has queries of {asked.dim} dimensions, and {source.path} vectors of {dim}: give those "
                "of one model."
            )
        if item.truth is not None:
            check_neighbours(item.truth, rows=n, queries=asked.rows)
    return n, dim


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in (".hdf5", ".h5")


def _check_index(spec: IndexSpec, n: int, dim: int) -> None:
    from grace_benchmarks.ann.devices import import_faiss, parameter_space

    factory = fill_template(spec.factory, n, dim)
    check_factory(factory, dimension=dim)
    if spec.device != "cpu":
        return
    index, space = import_faiss().index_factory(dim, factory), parameter_space(spec.device)
    for parameters in filter(None, spec.search):
        try:
            space.set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise InputError(
                f"FAISS takes no search parameters {parameters!r} for {factory!r}: give some that the index has, such "
                "as nprobe=16 (IVF), efSearch=64 (HNSW) or k_factor_rf=4 (Refine)."
            ) from error


def check_retrieval(
    part: RetrievalPart,
    out: Path,
    *,
    data: Path | None = None,
    runs: Path | None = None,
    scored: Sequence[Path] = (),
    **options: Any,
) -> None:
    """Check a measurement of retrieval.

    Args:
        part: What is to be measured.
        out: Folder of the rows.
        data: Folder in which relative collections are looked for.
        runs: Folder for run files.
        scored: Run files of other systems.
        **options: As of `retrieval_options`.

    Raises:
        MissingExtraError: If what measures, or BM25, is not installed.
        InputError: If a folder cannot be written, a file, a split, a column or a task is not there, a device cannot be
            used, or a model cannot give a column.
        ModelLoadError: If there is no such model.
    """
    chosen = retrieval_options(part, **options)
    if part.tasks:
        from grace_benchmarks.retrieval.tasks import tasks_by_name

        tasks_by_name(part.tasks)
    if {"bm25", "hybrid", *LEXICAL} & set(part.columns):
        _require("bm25s", "BM25")
    _check_folder(out, "--out")
    if runs is not None:
        _check_folder(runs, "--runs")
    for path in scored:
        if not path.is_file():
            raise InputError(f"Cannot read {path}: No such file or directory. Give a run file of TREC.")
    for folder in part.data:
        check_beir(found_collection(folder, data), part.split)
    for files in part.files:
        check_files(files)
    for pairs in part.pairs:
        check_pairs(pairs)
    columns = [column for column in part.columns if column != "bm25"]
    if columns:
        _check_running(part.models, columns, chosen.cache, chosen.device, chosen.engine_identity)


def retrieval_options(
    part: RetrievalPart,
    *,
    cache: str | None = "default",
    device: str | None = None,
    run: int = 1,
    engine: str = "transformers",
    engine_options: Mapping[str, Any] | None = None,
) -> RetrievalOptions:
    """How the retrieval of a part is measured.

    Args:
        part: What is to be measured.
        cache: Where rationales are kept.
        device: Such as "cuda".
        run: Number of the run.
        engine: What runs the models that write, by name.
        engine_options: Its options; JSON values.

    Raises:
        MissingExtraError: If what measures is not installed.
        InputError: If a value is unknown or out of range.
    """
    _require("ir_measures", "Measuring retrieval")
    from grace_benchmarks.retrieval.run import RetrievalOptions

    return RetrievalOptions(
        models=part.models,
        columns=part.columns or ("bm25",),  # none where runs alone are scored
        centre=part.centre,
        max_new_tokens=part.max_new_tokens,
        cache=cache,
        device=device,
        threads=part.threads,
        seed=part.seed,
        run=run,
        engine=engine,
        engine_options=engine_options or {},
    )


def check_encode(part: EncodePart, out: Path, *, data: Path | None = None, device: str | None = None) -> None:
    """Check a measurement of throughput.

    Args:
        part: What is to be measured.
        out: Folder of the rows.
        data: Folder in which a relative collection is looked for.
        device: Such as "cuda".

    Raises:
        InputError: If the folder cannot be written, a collection is not there, or the model writes nothing.
        ModelLoadError: If there is no such model.
    """
    encode_options(part, device=device)
    _check_folder(out, "--out")
    if part.data is not None:
        found_collection(part.data, data)
    models = () if part.model == "random" else (part.model,)
    _check_running(models, ["rationale"], None, device, {})


def encode_options(part: EncodePart, *, device: str | None = None, run: int = 1) -> EncodeOptions:
    """How the throughput of a part is measured.

    Args:
        part: What is to be measured.
        device: Such as "cuda".
        run: Number of the run.

    Raises:
        InputError: If a value is out of range.
    """
    from grace_benchmarks.encode.run import EncodeOptions

    chosen = {field.name: getattr(part, field.name) for field in fields(part) if field.name != "data"}
    return EncodeOptions(**chosen, device=device, run=run)


def check_report(out: Path, option: str) -> None:
    """Check that a page can be made and written.

    Args:
        out: Folder of the page.
        option: What names it.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        InputError: If the folder cannot be written.
    """
    _require("matplotlib", "A report")
    _check_folder(out, option)


def found_collection(folder: str, data: Path | None) -> Path:
    """Where a collection is: as it is named, or below the folder of collections.

    Raises:
        InputError: If it is at none of these places.
    """
    places = [Path(folder), *([data / folder, data / "retrieval" / folder] if data else [])]
    for place in places:
        if beir_file(place, "corpus") is not None:
            return place
    raise InputError(
        f"There is no collection in {', '.join(map(str, places))}: give a folder in BEIR layout, or the folder of "
        "collections with --data-folder."
    )


def _check_running(
    models: Iterable[str], columns: Sequence[str], cache: str | None, device: str | None, engine: Mapping[str, Any]
) -> None:
    from grace_retrieval.arguments import check_device
    from grace_retrieval.cache import open_cache

    for name in models:
        _check_model(name, columns, engine)
    check_device(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is said of a cache that cannot be kept is said when the model is loaded
        if (opened := open_cache(cache)) is not None:
            opened.close()


def _check_model(name: str, columns: Sequence[str], engine: Mapping[str, Any]) -> None:
    """Refuse a model that is not there, or that writes nothing where it is to write; a hub is not asked."""
    from grace_retrieval.errors import ModelLoadError
    from grace_retrieval.fetching import FETCHED_MODELS
    from grace_retrieval.loading import resolve_model

    bare = name.removeprefix("st:")
    modules = Path(bare) / "modules.json"
    plain = name.startswith("st:") or (modules.is_file() and "grace_retrieval" not in modules.read_text("utf-8"))
    if (fetched := FETCHED_MODELS.get(bare)) is not None:
        plain = plain or not fetched.writes
    elif not plain:
        resolve_model(bare)
    elif not os.path.isdir(bare) and (bare.startswith((".", "~", "/")) or bare.count("/") > 1):
        raise ModelLoadError(f"{bare!r} does not exist: give a folder, or a name on the hub.")
    if not plain:
        return
    if engine:
        raise InputError(f"engine={engine.get('engine')!r} runs policies that write, and {name!r} is none.")
    if written := [column for column in columns if column not in WITHOUT_RATIONALES]:
        raise InputError(
            f"{name} writes no rationales: leave {', '.join(written)} out of the columns, or measure it by itself with "
            "--columns bm25,text,hybrid."
        )


def _require(module: str, purpose: str) -> None:
    if find_spec(module) is None:
        raise MissingExtraError(module, "bench", purpose)
