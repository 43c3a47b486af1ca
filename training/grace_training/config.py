"""GraceConfig: the options of a training run that TRL's own do not have, and the defaults that differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from sentence_transformers.util import get_device_name
from trl import GRPOConfig

from grace_retrieval.errors import InputError
from grace_training.rewards import Mode, Preset

__all__ = ["GraceConfig"]

_ROLES = ("document", "query")


@dataclass
class GraceConfig(GRPOConfig):
    r"""Options of a GraceTrainer. Everything that is not here is an option of `trl.GRPOConfig`.

    Args:
        preset: "paper" for the reward as published, "grace" (the default) for ours; see `grace_training.rewards`.
        mode: "supervised" by pairs, or "unsupervised" by texts alone.
        reward_temperature: τ, by which similarities are divided.
        contrastive_weight: Weight of the first term of the reward; 0 leaves the others alone.
        consistency_weight: λ₁.
        hard_negative_weight: λ₂. None: 0.2 for "paper", 1 for "grace".
        truncation_margin: How far the reward of a rationale without an end lies below the lowest of its group
            ("grace"; "paper" gives -1).
        pathwise_weight: Weight of InfoNCE on the hidden states themselves, the half of the objective's gradient that
            the paper drops. None: 0 for "paper", 1 for "grace".
        rollout_roles: Which texts have several rationales written and compared: ("document",) or
            ("document", "query"), where every pair is trained in both directions.
        other_temperature: Temperature of the one rationale that queries and negatives get.
        rationale_every: Every so many-th generation batch has rationales; those between are learned from as texts
            alone, by InfoNCE, which costs a fraction and keeps the model good without rationales. 1: every batch has
            rationales; 0: none has.
        lm_loss_weight: Weight of the policy's own loss in batches for which nothing is written: predicting the
            rationales that the data gives, or else the next token of the texts, which keeps it a language model.
        teacher_weight: Weight of a teacher's similarities as soft targets in such batches, beside InfoNCE; see
            `grace_training.teacher`.
        batch_by_source: Whether a generation batch has rows of one source only, whose texts are harder to tell apart.
        share_prompts: Whether the rollouts of a text share the forward and backward pass over its prompt, which gives
            the same gradient for less. Models with attention of another kind run every rollout with its own prompt.

    What differs from GRPOConfig: no division of advantages by the deviation (`scale_rewards="none"`), the mean over
    tokens as loss (`loss_type="dapo"`), no dropout, eight rollouts, learning rate 1e-6, no KL term. Prompts are cut by
    the embedder's `max_seq_length`, rationales by `max_completion_length` (None: the embedder's `max_new_tokens`).
    Device and dtype are chosen as GraceEmbedder chooses them.

    Raises:
        InputError: If an option is out of range.
    """

    preset: Preset = field(default="grace", metadata={"help": "Reward: paper or grace."})
    mode: Mode = field(default="supervised", metadata={"help": "supervised or unsupervised."})
    reward_temperature: float = field(default=0.1, metadata={"help": "Temperature of the similarities."})
    contrastive_weight: float = field(default=1.0, metadata={"help": "Weight of nearness to the query."})
    consistency_weight: float = field(default=0.2, metadata={"help": "Weight of consistency within a group."})
    hard_negative_weight: float | None = field(default=None, metadata={"help": "Weight of the negatives."})
    truncation_margin: float = field(default=1.0, metadata={"help": "Penalty of rationales without an end."})
    pathwise_weight: float | None = field(default=None, metadata={"help": "Weight of InfoNCE on the hidden states."})
    rollout_roles: list[str] = field(
        default_factory=lambda: ["document"], metadata={"help": "Texts that get rollouts: document, query."}
    )
    other_temperature: float = field(
        default=0.5, metadata={"help": "Temperature of queries' and negatives' rationales."}
    )
    rationale_every: int = field(default=1, metadata={"help": "Every so many-th batch has rationales; 0: none."})
    lm_loss_weight: float = field(default=0.0, metadata={"help": "Weight of next-token prediction on texts alone."})
    teacher_weight: float = field(default=1.0, metadata={"help": "Weight of the teacher's similarities."})
    batch_by_source: bool = field(default=False, metadata={"help": "Batches of one source each."})
    share_prompts: bool = field(default=True, metadata={"help": "Run the prompt of a group's rollouts once."})

    max_completion_length: int | None = field(default=None, metadata={"help": "Most tokens of a rationale."})
    scale_rewards: str = field(default="none", metadata={"help": "As in GRPOConfig."})
    loss_type: str = field(default="dapo", metadata={"help": "As in GRPOConfig."})
    disable_dropout: bool = field(default=True, metadata={"help": "As in GRPOConfig."})

    def __post_init__(self) -> None:
        """Check what is ours, and leave the rest to TRL."""
        for name, value, allowed in (
            ("preset", self.preset, get_args(Preset)),
            ("mode", self.mode, get_args(Mode)),
        ):
            if value not in allowed:
                raise InputError(f"{name}={value!r}: give {' or '.join(map(repr, allowed))}.")
        roles = list(self.rollout_roles)
        if not roles or len(set(roles)) < len(roles) or set(roles) - set(_ROLES):
            raise InputError(f"rollout_roles={roles!r}: give 'document', 'query' or both.")
        if self.mode == "unsupervised" and roles != ["document"]:
            raise InputError("rollout_roles: an unsupervised text has one role only, 'document'.")
        if self.mode == "unsupervised" and self.rationale_every != 1:
            raise InputError(
                f"rationale_every={self.rationale_every!r}: an unsupervised text has its rationales alone to be found "
                "by, so every batch needs them; leave it at 1."
            )
        if not self.reward_temperature > 0:
            raise InputError(f"reward_temperature={self.reward_temperature!r}: give a positive number.")
        if self.pathwise_weight is None:
            self.pathwise_weight = 0.0 if self.preset == "paper" else 1.0
        if self.rationale_every < 0 or self.rationale_every != int(self.rationale_every):
            raise InputError(f"rationale_every={self.rationale_every!r}: give a whole number, 0 or more.")
        if self.lm_loss_weight and self.rationale_every == 1:
            raise InputError(
                f"lm_loss_weight={self.lm_loss_weight!r} belongs to batches without rationales, and rationale_every=1 "
                "leaves none: give another rationale_every, or beta to keep the policy near to the untrained one."
            )
        for name in ("other_temperature", "truncation_margin", "pathwise_weight", "lm_loss_weight", "teacher_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)!r}: give 0 or more.")
        if not self.use_cpu and get_device_name() == "cpu":
            self.use_cpu = True
        if self.bf16 is None and not self.fp16:
            # TRL takes bfloat16 for granted, and refuses machines without it.
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        # Its own columns reach the reward, and the trainer needs them.
        self.remove_unused_columns = False
        super().__post_init__()  # type: ignore[no-untyped-call]

    def term_weights(self) -> dict[str, Any]:
        """Weights of the reward's terms, as `weighted_terms` takes them."""
        return {
            "contrastive_weight": self.contrastive_weight,
            "consistency_weight": self.consistency_weight,
            "hard_negative_weight": self.hard_negative_weight,
        }
