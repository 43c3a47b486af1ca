"""What a training costs, counted over interruptions, and a limit to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["Budget"]


class Budget(TrainerCallback, ExportableState):
    """Counts the seconds of the training steps, and ends the training after the step that exceeds a limit.

    CPU seconds are those of this process, all threads together: on a quiet machine with one thread they are the time on
    the clock, and on a busy one they stay what they were. What monitors, logs, evaluations and checkpoints take is left
    out. The seconds so far are kept in the checkpoint's `trainer_state.json`, so that a resumed training goes on
    counting.

    Add it behind all other callbacks: what these do at the end of a step is then left out.

    Args:
        cpu_seconds: The limit; None is none.

    Raises:
        InputError: If the limit is not positive.
    """

    def __init__(self, cpu_seconds: float | None = None) -> None:
        if cpu_seconds is not None and not cpu_seconds > 0:
            raise InputError(f"budget_seconds={cpu_seconds!r}: give a positive number, or leave it out.")
        self.limit = cpu_seconds
        self.cpu_seconds = 0.0
        self.seconds = 0.0
        self._mark = (0.0, 0.0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers."""
        return {
            "args": {"cpu_seconds": self.limit},
            "attributes": {"cpu_seconds": self.cpu_seconds, "seconds": self.seconds},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over what the checkpoint remembers, and start counting."""
        # One of a training without a budget has no place for it, and the Trainer would look for one when it saves.
        states = cast("dict[str, Any]", state.stateful_callbacks)
        stored = states.setdefault(type(self).__name__, self.state())
        self.cpu_seconds = float(stored["attributes"]["cpu_seconds"])
        self.seconds = float(stored["attributes"]["seconds"])
        self._start()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step; whatever follows is no training."""
        cpu, wall = self._mark
        self.cpu_seconds += time.process_time() - cpu
        self.seconds += time.perf_counter() - wall
        self._start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training if the limit is passed."""
        if self.limit is not None and _of_any_process(self.cpu_seconds >= self.limit, args.device):
            control.should_training_stop = True
        self._start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out what logging took."""
        self._start()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out what evaluation took."""
        self._start()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out what the checkpoint took."""
        self._start()

    def _start(self) -> None:
        self._mark = (time.process_time(), time.perf_counter())


def _of_any_process(value: bool, device: torch.device) -> bool:
    """Whether it is true in any process: all must end with the same step."""
    if not torch.distributed.is_initialized():
        return value
    found = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return bool(found)
