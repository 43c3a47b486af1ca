"""The recipe: every hyper-parameter of grace-nano-base, read from one YAML file and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["EvaluationRecipe", "PhaseRecipe", "RationaleRecipe", "Recipe", "TrainingRecipe", "load_recipe"]


@dataclass(frozen=True, kw_only=True)
class RationaleRecipe:
    """Bounds on the rationales of the corpus, in tokens, and the least share of copied content words."""

    target_tokens: int
    max_tokens: int
    min_overlap: float
    short_text_characters: int
    short_target_tokens: int
    short_max_tokens: int

    def __post_init__(self) -> None:
        if not 0 < self.target_tokens <= self.max_tokens:
            raise ValueError(
                f"rationale.target_tokens is {self.target_tokens} and max_tokens {self.max_tokens}; "
                "need 0 < target_tokens <= max_tokens"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Optimisation, batching and time keeping."""

    budget_seconds: float
    threads: int
    row_lengths: tuple[int, ...]
    tokens_per_step: int
    text_weight: float
    unlikelihood: float
    muon_lr: float
    muon_momentum: float
    adam_lr: float
    adam_betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    warmup_fraction: float
    decay_start: float
    checkpoint_seconds: float
    eval_seconds: float
    dev_examples: int
    log_steps: int

    def __post_init__(self) -> None:
        for length in self.row_lengths:
            if self.tokens_per_step % length:
                raise ValueError(
                    f"training.tokens_per_step is {self.tokens_per_step}; make it a multiple of the row length {length}"
                )
        if not 0.0 <= self.warmup_fraction < self.decay_start < 1.0:
            raise ValueError(
                f"warmup_fraction is {self.warmup_fraction} and decay_start {self.decay_start}; "
                "need 0 <= warmup_fraction < decay_start < 1"
            )


@dataclass(frozen=True, kw_only=True)
class PhaseRecipe:
    """A stretch of training with one mixture; `until` is the elapsed fraction at which it ends."""

    name: str
    until: float
    mixture: dict[str, float]

    def __post_init__(self) -> None:
        if not self.mixture or min(self.mixture.values()) <= 0:
            raise ValueError(f"phase {self.name!r} needs positive mixture weights, got {self.mixture}")


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """Numbers of fixed rows for the format checks and the held-out perplexity."""

    abstracts: int
    titles: int
    queries: int
    max_new_tokens: int
    batch_size: int
    perplexity_rows: int
    sample_step: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole recipe; `tokenizer` and `model` stay mappings because they are passed on as they are."""

    name: str
    seed: int
    data: Path
    work: Path
    tokenizer: dict[str, int]
    model: dict[str, Any]
    prompts: dict[str, str]
    default_prompt_share: float
    arxiv_documents: int
    arxiv_queries: int
    rationale: RationaleRecipe
    training: TrainingRecipe
    phases: tuple[PhaseRecipe, ...]
    evaluation: EvaluationRecipe

    def __post_init__(self) -> None:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(ends) or not ends or ends[-1] != 1.0:
            raise ValueError(f"phases end at {ends}; need rising fractions, the last of them 1.0")

    def phase_at(self, fraction: float) -> PhaseRecipe:
        """Return the phase that runs at an elapsed fraction of the budget."""
        return next((phase for phase in self.phases if fraction < phase.until), self.phases[-1])


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: The YAML file.

    Returns:
        The recipe.

    Raises:
        ValueError: A value is out of range; the message names it.
        TypeError: A key is missing or unknown.
    """
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    paths = raw.pop("paths")
    training = raw.pop("training")
    training["row_lengths"] = tuple(training["row_lengths"])
    training["adam_betas"] = tuple(training["adam_betas"])
    return Recipe(
        data=Path(paths["data"]),
        work=Path(paths["work"]),
        rationale=RationaleRecipe(**raw.pop("rationale")),
        training=TrainingRecipe(**training),
        phases=tuple(PhaseRecipe(**phase) for phase in raw.pop("phases")),
        evaluation=EvaluationRecipe(**raw.pop("evaluation")),
        **raw,
    )
