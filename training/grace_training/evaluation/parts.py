"""What is measured of a model, part by part: what decides a figure, and how to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from grace_retrieval import GraceEmbedder
from grace_training.evaluation.measure import (
    HeldOutTexts,
    measure_health,
    measure_perplexity,
    measure_set,
    open_for_evaluation,
)
from grace_training.evaluation.plan import Column, Evaluation, EvaluationSet, RetrievalSet
from grace_training.evaluation.sets import LoadedSet, load_set
from grace_training.recipe import Recipe

__all__ = ["UNTRAINED", "Evaluator"]

UNTRAINED: Mapping[str, Sequence[Column]] = {"base": ("text", "echo"), "reasoning": ("rationale",)}
"""Methods that train nothing, so that a seed changes nothing: the same weights, and columns of their own."""

Part = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What decides a row, and the function that measures the rest of it."""


class Evaluator:
    """Measures models on the same texts; each set is read once.

    Args:
        evaluation: What is measured.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._sets: dict[str, LoadedSet] = {}
        self._untrained: dict[str, float] = {}

    def parts(self, recipe: Recipe, folder: Path) -> Iterator[Part]:
        """Parts of the evaluation of a model. Nothing is read or opened before one is measured.

        Args:
            recipe: What it was trained by.
            folder: The model.
        """
        evaluation = self.evaluation
        model = _Model(folder, evaluation, recipe.embedder.get("device"))
        held_out = None if evaluation.held_out is None else asdict(evaluation.held_out)
        for column in self._columns(recipe):
            shared: dict[str, Any] = {
                "column": column,
                "max_new_tokens": evaluation.max_new_tokens if column == "rationale" else None,
                "threads": evaluation.threads,
                "sample_seed": evaluation.seed,
            }
            for entry in evaluation.sets:
                identity = {"kind": "set", "set": {"kind": type(entry).__name__, **asdict(entry)}, **shared}
                if evaluation.centre and isinstance(entry, RetrievalSet):
                    identity["centre"] = evaluation.centre
                yield identity, partial(self._measure_set, model, entry, column)
            if held_out is not None:
                yield {"kind": "health", "held_out": held_out, **shared}, partial(self._measure_health, model, column)
        # Without its head, a model has no perplexity.
        if held_out is not None and recipe.method != "eos":
            identity = {"kind": "perplexity", "held_out": held_out, "sample_seed": evaluation.seed}
            yield identity, partial(self._measure_perplexity, model, recipe)

    def _columns(self, recipe: Recipe) -> list[Column]:
        if recipe.method == "eos":
            return [column for column in self.evaluation.columns if column == "text"]
        return [column for column in self.evaluation.columns if column in UNTRAINED.get(recipe.method, (column,))]

    def _measure_set(self, model: _Model, entry: EvaluationSet, column: Column) -> dict[str, Any]:
        if entry.name not in self._sets:
            self._sets[entry.name] = load_set(entry, self.evaluation)
        loaded = self._sets[entry.name]
        return {"data": loaded.describe(), **measure_set(model.opened, loaded, column, self.evaluation.centre)}

    @cached_property
    def _held_out(self) -> HeldOutTexts:
        return HeldOutTexts(self.evaluation)

    def _measure_health(self, model: _Model, column: Column) -> dict[str, Any]:
        return measure_health(model.opened, self._held_out, column)

    def _measure_perplexity(self, model: _Model, recipe: Recipe) -> dict[str, Any]:
        """Perplexity, and its ratio to that of the policy before training."""
        found = measure_perplexity(model.opened, self._held_out.texts)
        if recipe.model not in self._untrained:
            policy = GraceEmbedder(recipe.model, cache=None, device=recipe.embedder.get("device"))
            self._untrained[recipe.model] = measure_perplexity(policy, self._held_out.texts)["perplexity"]
        before = self._untrained[recipe.model]
        ratio = round(found["perplexity"] / before, 4)
        return {**found, "untrained": {"model": recipe.model, "perplexity": before}, "perplexity_ratio": ratio}


class _Model:
    """A trained model that is opened when the first part is measured."""

    def __init__(self, folder: Path, evaluation: Evaluation, device: str | None) -> None:
        self._arguments = (folder, evaluation, device)

    @cached_property
    def opened(self) -> Any:
        folder, evaluation, device = self._arguments
        return open_for_evaluation(folder, evaluation, device=device)
