"""Suites: what is run together, as YAML. `benchmarks/suites` holds those that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.plan import AnnOptions, IndexSpec
from grace_benchmarks.ann.sources import StoredVectors
from grace_benchmarks.retrieval.names import DEFAULT_COLUMNS, Column
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.corpus.matrices.matrix import Metric
from grace_retrieval.errors import InputError, MissingExtraError

__all__ = ["AnnPart", "EncodePart", "RetrievalPart", "Suite", "VectorSource", "load_suite", "suite_names"]

_HERE = Path(__file__).resolve().parent
# In a checkout beside the package, in an installation within it.
_FOLDERS = (_HERE.parent / "suites", _HERE / "suites")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VectorSource:
    """A matrix to search.

    Args:
        source: Where it comes from.
        queries: File of queries, or rows to hold out of a stored matrix.
        skip_bad: Leave out rows without a direction.
        metric: "cosine", "l2" or "ip"; None is what the file says, or else the cosine.
        truth: File of the queries' neighbours; None searches exactly.
    """

    source: GeneratedVectors | StoredVectors
    queries: Path | int = 1000
    skip_bad: bool = False
    metric: Metric | None = None
    truth: Path | None = None

    def __post_init__(self) -> None:
        """Check the metric."""
        if self.metric is not None and self.metric not in get_args(Metric):
            raise InputError(f"metric={self.metric!r}: give one of {', '.join(get_args(Metric))}.")


@dataclass(frozen=True, kw_only=True)
class AnnPart:
    """Indexes to measure."""

    vectors: tuple[VectorSource, ...]
    indexes: tuple[IndexSpec, ...]
    options: AnnOptions


@dataclass(frozen=True, kw_only=True)
class RetrievalPart:
    """Collections and models to measure.

    Args:
        data: Folders in BEIR layout; relative ones are looked for under --data too.
        split: Split of their judgements.
        files: Collections of files of their own: documents, queries and qrels; see `load_files`. Runs alone can be
            scored with qrels only.
        pairs: Tables of pairs; see `Pairs`.
        tasks: Names of mteb tasks.
        models: Models.
        columns: Ways of embedding.
        centre: Whether what all vectors have in common is taken away.
        max_new_tokens: Rationale budgets; None is the model's.
        threads: Threads of torch.
        seed: Seed of samples and tests.
    """

    data: tuple[str, ...] = ()
    split: str = "test"
    files: tuple[Mapping[str, str], ...] = ()
    pairs: tuple[Mapping[str, str], ...] = ()
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    columns: tuple[Column, ...] = DEFAULT_COLUMNS
    centre: bool = False
    max_new_tokens: tuple[int | None, ...] = (None,)
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EncodePart:
    """Throughput to measure; see `EncodeOptions`."""

    model: str = DEFAULT_MODEL
    texts: int = 64
    budgets: tuple[int, ...] = (0, 16, 64, 256)
    batch_tokens: tuple[int | None, ...] = (None,)
    repeats: int = 3
    singles: int = 8
    threads: int = 1
    seed: int = 0
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a suite runs."""

    name: str
    about: str
    ann: AnnPart | None = None
    retrieval: RetrievalPart | None = None
    encode: tuple[EncodePart, ...] = ()


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.yaml")})


def load_suite(name: str, *, scale: float = 1.0) -> Suite:
    """Read a suite.

    Args:
        name: Name of a suite of the package, or a YAML file.
        scale: Factor on the number of generated vectors.

    Raises:
        InputError: If there is no such suite, or it holds something unknown.
        MissingExtraError: If PyYAML is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("yaml", "bench", "Reading a suite") from error
    path = next((folder / f"{name}.yaml" for folder in _FOLDERS if (folder / f"{name}.yaml").is_file()), Path(name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(suite_names())
        raise InputError(f"There is no suite {name!r}: give one of {known}, or a YAML file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    where = f"suite {path.stem}"
    parts = _mapping(content, ("about", "ann", "retrieval", "encode"), where)
    if not any(parts.get(part) for part in ("ann", "retrieval", "encode")):
        raise InputError(f"{where} runs nothing: give at least one of ann, retrieval and encode.")
    return Suite(
        name=path.stem,
        about=str(parts.get("about", "")),
        ann=_ann(parts["ann"], f"{where}, ann", scale) if "ann" in parts else None,
        retrieval=_made(RetrievalPart, parts["retrieval"], f"{where}, retrieval") if "retrieval" in parts else None,
        encode=tuple(_made(EncodePart, item, f"{where}, encode") for item in _list(parts.get("encode", []), where)),
    )


def _ann(content: Any, where: str, scale: float) -> AnnPart:
    parts = _mapping(content, ("options", "vectors", "indexes"), where)
    sources = tuple(_source(item, f"{where}, vectors", scale) for item in _list(parts.get("vectors", []), where))
    indexes = tuple(_made(IndexSpec, item, f"{where}, indexes") for item in _list(parts.get("indexes", []), where))
    if not sources or not indexes:
        raise InputError(f"{where}: give vectors and indexes.")
    return AnnPart(
        vectors=sources, indexes=indexes, options=_made(AnnOptions, parts.get("options", {}), f"{where}, options")
    )


def _source(content: Any, where: str, scale: float) -> VectorSource:
    if isinstance(content, Mapping) and "path" in content:
        parts = _mapping(content, ("path", "column", "queries", "skip_bad", "metric", "truth"), where)
        queries = parts.get("queries", 1000)
        return VectorSource(
            metric=parts.get("metric"),
            truth=Path(parts["truth"]) if "truth" in parts else None,
            source=StoredVectors(path=Path(parts["path"]), column=parts.get("column", "vector")),
            queries=queries if isinstance(queries, int) else Path(queries),
            skip_bad=bool(parts.get("skip_bad", False)),
        )
    made = _made(GeneratedVectors, content, where)
    return VectorSource(source=replace(made, n=max(2, round(made.n * scale))))


def _made(kind: type[T], content: Any, where: str) -> T:
    """An object of a dataclass from a mapping of its fields; lists become tuples."""
    parts = _mapping(content, tuple(field.name for field in fields(kind)), where)  # type: ignore[arg-type]
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()})
    except TypeError as error:
        raise InputError(f"{where}: {error}.") from error


def _mapping(content: Any, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is {type(content).__name__}: give a mapping of {', '.join(allowed)}.")
    unknown = [str(key) for key in content if key not in allowed]
    if unknown:
        raise InputError(f"{where}: unknown {', '.join(unknown)}. Known are {', '.join(allowed)}.")
    return dict(content)


def _list(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise InputError(f"{where}: {content!r} where a list belongs.")
    return content
