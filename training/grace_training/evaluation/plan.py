"""An evaluation: one YAML file that says which sets a trained model is measured on, and how large they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from grace_retrieval.centring import LEAST_TEXTS
from grace_retrieval.errors import InputError

__all__ = [
    "ClassificationSet",
    "Column",
    "Evaluation",
    "EvaluationSet",
    "HeldOut",
    "RetrievalSet",
    "SimilaritySet",
    "list_evaluations",
    "load_evaluation",
]

Column = Literal["text", "echo", "rationale"]
"""The model without rationales, with every text twice, and with rationales."""

_HERE = Path(__file__).parents[1]
_FOLDERS = (_HERE / "evaluations", _HERE.parent / "evaluations")
"""Where evaluations are in an installed package, and in a checkout."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """A collection, measured by nDCG@10.

    Attributes:
        name: What it is called in rows.
        path: A folder in BEIR layout, or a table in which every row is a query and its only relevant document.
        query: Column of a table's queries.
        document: Column of its documents.
        split: Split of a folder's relevance judgements.
        queries: Queries to draw; None takes all.
        documents: Documents to keep: all relevant ones of the drawn queries, however many they are, and others drawn
            until there are so many. None keeps all.
        most_relevant: Draw only from queries with at most so many relevant documents; None draws from all.
    """

    name: str
    path: str
    query: str = "title"
    document: str = "text"
    split: str = "test"
    queries: int | None = None
    documents: int | None = None
    most_relevant: int | None = None


@dataclass(frozen=True, kw_only=True)
class SimilaritySet:
    """Pairs of texts with a score, measured by the rank correlation of cosine and score (Spearman).

    Attributes:
        name: What it is called in rows.
        path: A .jsonl, .csv or .parquet file.
        first: Column of the first texts.
        second: Column of the second texts.
        score: Column of the scores.
        pairs: Pairs to draw; None takes all.
    """

    name: str
    path: str
    first: str = "s1"
    second: str = "s2"
    score: str = "score"
    pairs: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassificationSet:
    """Labelled texts, measured by the accuracy of the nearest neighbours by cosine.

    Attributes:
        name: What it is called in rows.
        train: File of the texts that vote.
        test: File of the texts to label.
        text: Column of the texts.
        label: Column of the labels.
        train_per_label: Texts of every label to draw; None takes all.
        test_per_label: The same of `test`.
        neighbours: How many vote.
    """

    name: str
    train: str
    test: str
    text: str = "text"
    label: str = "label"
    train_per_label: int | None = None
    test_per_label: int | None = None
    neighbours: int = 10


EvaluationSet = RetrievalSet | SimilaritySet | ClassificationSet

_KINDS: Mapping[str, type[EvaluationSet]] = {
    "retrieval": RetrievalSet,
    "similarity": SimilaritySet,
    "classification": ClassificationSet,
}


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Unrelated texts, on which perplexity, rationales and the spread of the embeddings are measured.

    Attributes:
        path: A .jsonl, .csv or .parquet file.
        query: Column of the queries.
        document: Column of the documents; a query with its document is a text for the perplexity.
        texts: Rows to draw.
    """

    path: str
    query: str = "title"
    document: str = "abstract"
    texts: int = 100


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What models are measured on.

    Attributes:
        name: Name of the evaluation.
        sets: The sets.
        held_out: Texts for the measures of health; None leaves those out.
        description: One line.
        data_folder: Where relative paths start; the folder one works in if empty.
        columns: Of "text", "echo" and "rationale".
        centre: Documents of a collection whose mean is taken away, and whose first words stand for queries, in
            figures of centred vectors beside the others; 0 for no such figures. Collections with fewer than eight
            documents have none.
        max_new_tokens: Most tokens of a rationale.
        threads: Threads of torch.
        seed: Seed of the draws; every model is measured on the same texts.

    Raises:
        InputError: If a value is unknown or out of range.
    """

    name: str
    sets: Sequence[EvaluationSet]
    held_out: HeldOut | None = None
    description: str = ""
    data_folder: str = ""
    columns: Sequence[Column] = ("text", "rationale")
    centre: int = 0
    max_new_tokens: int = 96
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.columns or set(self.columns) - set(get_args(Column)):
            raise InputError(f"{self.name}: columns {list(self.columns)}: give some of text, echo and rationale.")
        if len({entry.name for entry in self.sets}) < len(self.sets):
            raise InputError(f"{self.name}: two sets have the same name, and rows are found by it.")
        if isinstance(self.centre, bool) or not (self.centre == 0 or self.centre >= LEAST_TEXTS):
            raise InputError(f"{self.name}: centre={self.centre!r}: give 0 (none) or {LEAST_TEXTS} documents or more.")
        if self.max_new_tokens < 1 or self.threads < 1:
            raise InputError(
                f"{self.name}: max_new_tokens={self.max_new_tokens}, threads={self.threads}: give positive numbers."
            )

    def path_of(self, path: str) -> Path:
        """Where a file of a set is."""
        return Path(self.data_folder) / path

    def require_files(self) -> None:
        """Find out before anything is trained whether what is to be measured on is there.

        Raises:
            InputError: If a file or folder is missing.
        """
        wanted = [self.held_out.path] if self.held_out is not None else []
        for entry in self.sets:
            wanted += [entry.train, entry.test] if isinstance(entry, ClassificationSet) else [entry.path]
        if lost := [str(self.path_of(path)) for path in wanted if not self.path_of(path).exists()]:
            raise InputError(
                f"Evaluation {self.name}: {', '.join(lost)} is not there. Relative paths start at data_folder="
                f"{self.data_folder!r}, seen from the folder one works in."
            )


def list_evaluations() -> dict[str, Path]:
    """Evaluations that come with the package: name → file."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load_evaluation(name: str | os.PathLike[str]) -> Evaluation:
    """Read an evaluation.

    Args:
        name: A file, or the name of an evaluation that comes with the package.

    Raises:
        InputError: If there is none, or it holds something unknown.
    """
    path = Path(name)
    if not path.is_file():
        known = list_evaluations()
        if str(name) not in known:
            raise InputError(f"There is no evaluation {str(name)!r}: give a .yaml file, or one of {', '.join(known)}.")
        path = known[str(name)]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("sets"), list):
        raise InputError(f"{path} is no evaluation: it must be a mapping with a list of sets.")
    content.setdefault("name", path.stem)
    content["sets"] = tuple(_set(path, entry) for entry in content["sets"])
    if content.get("held_out") is not None:
        content["held_out"] = _made(HeldOut, content["held_out"], f"{path}, held_out")
    made: Evaluation = _made(Evaluation, content, str(path))
    return made


def _set(path: Path, entry: Any) -> EvaluationSet:
    kind = str(entry.get("kind")) if isinstance(entry, dict) else ""
    if kind not in _KINDS:
        raise InputError(f"{path}: a set is a mapping with a kind, {', '.join(_KINDS)}, and this is {entry!r}.")
    made: EvaluationSet = _made(_KINDS[kind], {k: v for k, v in entry.items() if k != "kind"}, f"{path}, {kind} set")
    return made


def _made(kind: Any, content: Any, where: str) -> Any:
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(content) - set(known)) if isinstance(content, dict) else [repr(content)]
    if unknown:
        raise InputError(f"{where}: unknown {', '.join(unknown)}; it has {', '.join(known)}.")
    for name, value in content.items():
        kind_of = str(kind.__dataclass_fields__[name].type)
        least = 0 if name in ("seed", "centre") else 1
        if "int" in kind_of and value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{where}: {name}={value!r}: give a whole number, {least} or more.")
    try:
        return kind(**content)
    except TypeError as error:
        raise InputError(f"{where}: {error}.") from error
