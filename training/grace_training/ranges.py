"""Ranges that the trainers check late, deep in a step, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["check_ranges"]

_COUNTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "max_completion_length",
    "save_steps",
    "logging_steps",
    "save_total_limit",
    "r",
    "lora_alpha",
)
_NOT_NEGATIVE = (
    "learning_rate",
    "beta",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "dataloader_num_workers",
    "epsilon",
    "epsilon_high",
    "adam_epsilon",
    "top_k",
)
_POSITIVE = ("num_train_epochs", "temperature", "repetition_penalty")
_SHARES = ("adam_beta1", "adam_beta2", "lora_dropout")
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_COUNTS, (lambda value: value > 0, "1 or more")),
    **dict.fromkeys(_NOT_NEGATIVE, (lambda value: value >= 0, "0 or more")),
    **dict.fromkeys(_POSITIVE, (lambda value: value > 0, "a number above 0")),
    **dict.fromkeys(_SHARES, (lambda value: 0 <= value < 1, "0 or more and below 1")),
    "min_p": (lambda value: 0 <= value <= 1, "0 to 1"),
    "ref_model_mixup_alpha": (lambda value: 0 <= value <= 1, "0 to 1"),
    "delta": (lambda value: value > 0, "a number above 0, or leave it out"),
    "top_p": (lambda value: 0 < value <= 1, "more than 0, up to 1"),
    # -1 goes by epochs.
    "max_steps": (lambda value: value == -1 or value > 0, "1 or more, or -1 to go by num_train_epochs"),
}
_WORDS: Mapping[str, tuple[Any, ...]] = {
    "loss_type": ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("none", "group", "batch", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_mode": ("server", "colocate"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
}


def check_ranges(where: str, options: Mapping[str, Any]) -> None:
    """Refuse values out of range.

    Args:
        where: What they are options of, for messages.
        options: Values, of the kinds that their annotations have.

    Raises:
        InputError: If one is out of range; it is named.
    """
    for name, value in options.items():
        allowed, words = _RANGES.get(name, (None, ""))
        if allowed is not None and isinstance(value, int | float) and not allowed(value):
            raise InputError(f"{where}.{name}={value!r}: give {words}.")
        choices = _WORDS.get(name)
        if choices is not None and value not in choices:
            listed = ", ".join(str(choice) for choice in choices if isinstance(choice, str))
            near = did_you_mean(str(value), [choice for choice in choices if isinstance(choice, str)])
            raise InputError(f"{where}.{name}={value!r}: give one of {listed}.{near}")
