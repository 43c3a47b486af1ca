"""Monitors: measure every so many steps what a rising reward hides, log it, and warn in words."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from grace_retrieval import GraceEmbedder, InputError
from grace_training.health import (
    compression_ratio,
    distinct_2,
    effective_rank,
    format_share,
    mean_cosine,
    perplexity,
    uniformity,
)

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from grace_training.trainer import GraceTrainer

__all__ = ["Limits", "Monitor", "MonitorWarning", "check_watched"]


class MonitorWarning(UserWarning):
    """Training goes wrong in a way that the reward does not show."""


def check_watched(texts: Sequence[str]) -> None:
    """Refuse texts that a monitor can measure nothing on.

    Raises:
        InputError: If they are fewer than 16, or not all different.
    """
    if len(texts) < 16 or len(set(texts)) < len(texts):
        raise InputError(f"{len(texts)} texts to watch: give 16 or more different ones.")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a measure becomes a warning. "Start" is the policy before training.

    Attributes:
        mean_cosine: Most mean cosine of unrelated texts above the start's.
        effective_rank: Least effective rank, as a share of the start's.
        distinct_2: Least distinct-2, as a share of the start's.
        compression_ratio: Most compression ratio, as a multiple of the start's.
        truncated: Most share of rationales without an end above the start's.
        perplexity: Most perplexity of held-out text, as a multiple of the start's.
        format_share: Least share of rationales in the asked format, as a share of the start's.
    """

    mean_cosine: float = 0.1
    effective_rank: float = 0.5
    distinct_2: float = 0.7
    compression_ratio: float = 1.5
    truncated: float = 0.1
    perplexity: float = 1.1
    format_share: float = 0.8


@dataclass
class Monitor(TrainerCallback):
    """Measures collapse, reward hacking and forgetting on held-out texts.

    Figures are logged as `monitor/...` to whatever TRL logs to; sample rationales are added to
    `output_dir/sample_rationales.jsonl`.

    Args:
        trainer: The trainer that it watches; `trainer.add_callback(Monitor(trainer, texts=...))`.
        texts: Unrelated held-out texts, 16 or more.
        every: Steps between two measurements.
        limits: When to warn.
        stop: Whether a warning ends the training, with a checkpoint.
        samples: Sample rationales to keep of each measurement.
    """

    trainer: GraceTrainer
    texts: Sequence[str]
    every: int = 50
    limits: Limits = field(default_factory=Limits)
    stop: bool = False
    samples: int = 4
    start: dict[str, float] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check that there is enough to measure on."""
        check_watched(self.texts)
        if self.every < 1:
            raise InputError(f"every={self.every}: give 1 or more steps.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where training starts."""
        self.start = self._measure(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, log, and warn of what has gone too far."""
        if state.global_step % self.every:
            return
        found = self._measure(state.global_step)
        if messages := self.warnings(found):
            warnings.warn(f"Step {state.global_step}: {' '.join(messages)}", MonitorWarning, stacklevel=2)
            if self.stop:
                control.should_save = control.should_training_stop = True

    def warnings(self, found: dict[str, float]) -> list[str]:
        """Say in words which limits are passed.

        Args:
            found: From a measurement.
        """
        start, limits = self.start or found, self.limits
        rules: list[tuple[str, Callable[[float, float], bool], str]] = [
            (
                "mean_cosine",
                lambda now, then: now > then + limits.mean_cosine,
                "Collapse: embeddings of unrelated texts grow alike",
            ),
            (
                "effective_rank",
                lambda now, then: now < then * limits.effective_rank,
                "Collapse: embeddings use fewer directions",
            ),
            (
                "distinct_2",
                lambda now, then: now < then * limits.distinct_2,
                "Reward hacking: rationales repeat themselves",
            ),
            (
                "compression_ratio",
                lambda now, then: now > then * limits.compression_ratio,
                "Reward hacking: rationales of different texts say the same",
            ),
            (
                "truncated",
                lambda now, then: now > then + limits.truncated,
                "Reward hacking: more rationales do not end",
            ),
            (
                "perplexity",
                lambda now, then: now > then * limits.perplexity,
                "Forgetting: the policy writes worse than before",
            ),
            (
                "format_share",
                lambda now, then: now < then * limits.format_share,
                "Forgetting: fewer rationales have the asked format",
            ),
        ]
        return [
            f"{message} ({name} {start[name]:.3g} at the start, {found[name]:.3g} now)."
            for name, passed, message in rules
            if passed(found[name], start[name])
        ]

    def _measure(self, step: int) -> dict[str, float]:
        embedder: GraceEmbedder = self.trainer.embedder
        texts, writer = list(self.texts), self.trainer.writer
        rollouts = writer.write(writer.render(texts, "document"), temperature=0.0, seed=0)
        vectors = np.stack([rollout.vector for rollout in rollouts])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rationales = [rollout.as_rationale(embedder.pipeline.decode) for rollout in rollouts]
        found = {
            "mean_cosine": mean_cosine(vectors),
            "uniformity": uniformity(vectors),
            "effective_rank": effective_rank(vectors),
            "distinct_2": distinct_2([rollout.rationale_ids for rollout in rollouts]),
            "compression_ratio": compression_ratio([rationale.text for rationale in rationales]),
            "truncated": float(np.mean([rollout.truncated for rollout in rollouts])),
            "tokens": float(np.mean([len(rollout.rationale_ids) for rollout in rollouts])),
            "format_share": format_share(rationales),
            "perplexity": perplexity(embedder.pipeline.module, embedder.tokenizer, texts)["perplexity"],
        }
        self.trainer.record({f"monitor/{name}": value for name, value in found.items()})
        if self.trainer.accelerator.is_main_process and self.samples:
            path = self.trainer.folder / "sample_rationales.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                for text, rationale in list(zip(texts, rationales, strict=True))[: self.samples]:
                    line = {"step": step, "text": text, "rationale": rationale.text}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return found
