"""A training that taught nothing is an error: no step was done, or no weight is another one than before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["must_learn"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def must_learn(trainer: Trainer, *, resumed: bool = False) -> Iterator[None]:
    """Refuse the end of a training that changed nothing; one that a signal ended early may go on.

    Args:
        trainer: Trains inside the block.
        resumed: Whether it goes on from a checkpoint, whose weights may be those that it has already.

    Raises:
        InputError: If it did no step, or all weights that it trains are what they were.
    """
    before = _checksums(trainer.model)
    yield
    if any(getattr(callback, "stopped", False) for callback in trainer.callback_handler.callbacks):
        return
    arguments, steps = trainer.args, trainer.state.global_step
    if not steps:
        raise InputError(
            "The training ended without a step, so nothing was learned and nothing is saved. Give more data, a smaller "
            f"per_device_train_batch_size (now {arguments.per_device_train_batch_size}) or gradient_accumulation_steps "
            f"(now {arguments.gradient_accumulation_steps}), more epochs or max_steps, or more budget_seconds."
        )
    if not resumed and _checksums(trainer.model) == before:
        dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in _trained(trainer.model).values()})
        raise InputError(
            f"The training did {steps} steps and no weight changed, so nothing is saved. Either learning_rate="
            f"{arguments.learning_rate!r} is too small for weights of {' and '.join(dtypes)}, or there is nothing to "
            "learn from: one pair a batch, or rewards that are the same for all rollouts."
        )


def _trained(model: nn.Module | None) -> dict[str, Tensor]:
    return {} if model is None else {name: w for name, w in model.named_parameters() if w.requires_grad}


@torch.no_grad()
def _checksums(model: nn.Module | None) -> dict[str, int]:
    """A sum over the bits of each weight, made where it lies."""
    return {
        name: int(weight.detach().contiguous().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64))
        for name, weight in _trained(model).items()
    }
