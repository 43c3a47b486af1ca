"""Checkpoints: folders that `GraceEmbedder` opens, that remember how they were trained, and are whole or not there."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from grace_retrieval.adapters import cast_weights
from grace_retrieval.errors import EngineError, InputError
from grace_training.batch import RewardTerm
from grace_training.config import GraceConfig
from grace_training.learned import must_learn
from grace_training.rewards import TERMS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from grace_retrieval import GraceEmbedder

__all__ = ["SETTINGS_FILE", "CheckpointedTrainer", "StopOnSignal", "check_settings", "save_embedder", "write_settings"]

SETTINGS_FILE = "grace_training.json"

_TRAINING = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "temperature",
    "top_p",
    "top_k",
    "beta",
    "loss_type",
    "scale_rewards",
    "max_completion_length",
    "seed",
)


def _settings(config: GraceConfig, rows: int, terms: Mapping[str, float]) -> dict[str, Any]:
    """What a run may not change when it goes on."""
    own = {field.name for field in fields(GraceConfig)} - {field.name for field in fields(GRPOConfig)}
    return {name: getattr(config, name) for name in sorted({*own, *_TRAINING})} | {
        "rows": rows,
        "reward_terms": dict(terms),
    }


def write_settings(folder: str | os.PathLike[str], config: GraceConfig, rows: int, terms: Mapping[str, float]) -> None:
    """Write how a checkpoint was trained beside it.

    Args:
        folder: Folder of the checkpoint.
        config: Options of the run.
        rows: Number of rows of the training data.
        terms: Weights of the user's reward terms.
    """
    text = json.dumps(_settings(config, rows, terms), indent=2, sort_keys=True)
    (Path(folder) / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def check_settings(folder: str | os.PathLike[str], config: GraceConfig, rows: int, terms: Mapping[str, float]) -> None:
    """Refuse to go on from a checkpoint with other options.

    Args:
        folder: Folder of the checkpoint.
        config: Options of this run.
        rows: Number of rows of the training data.
        terms: Weights of the user's reward terms.

    Raises:
        InputError: If the folder is no checkpoint of a GraceTrainer, or its options differ; each is named.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {SETTINGS_FILE}: it is no checkpoint of a GraceTrainer.")
    then: Mapping[str, Any] = {"reward_terms": {}} | json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_settings(config, rows, terms)))
    differences = [f"{name}: {then.get(name)!r} then, {now[name]!r} now" for name in now if then.get(name) != now[name]]
    if differences:
        raise InputError(
            f"{folder} was trained with other options ({'; '.join(differences)}). Go on with the same ones, or start "
            "from the checkpoint as a model in a new output_dir."
        )


def save_embedder(embedder: GraceEmbedder, folder: str | os.PathLike[str], adapted: Any = None) -> None:
    """Save what `GraceEmbedder(folder)` opens; adapters are merged into a copy of the weights.

    The sum is formed in float32 and cast afterwards: in bfloat16 most of a small adapter is lost to rounding.

    Args:
        embedder: The embedder that was trained.
        folder: Target.
        adapted: The PeftModel around its policy, if adapters were trained.
    """
    if adapted is None:
        embedder.save_pretrained(str(folder))
        return
    policy = embedder.writer.model
    try:
        merged = copy.deepcopy(adapted)
        cast_weights(merged, torch.float32)
        merged = merged.merge_and_unload()
        cast_weights(merged, cast("PreTrainedModel", policy).dtype)
        embedder.writer.model = merged
        embedder.save_pretrained(str(folder))
    finally:
        embedder.writer.model = policy


class StopOnSignal(TrainerCallback):
    """On SIGTERM, finish the step, save a checkpoint and end the training."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen, where signals can be listened to: in the main thread."""
        try:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        except ValueError:
            self._before = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if told to."""
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen no more."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


class CheckpointedTrainer(GRPOTrainer):
    """A GRPOTrainer whose checkpoints `GraceEmbedder` opens, and that goes on only with the options it began with."""

    args: GraceConfig
    embedder: GraceEmbedder
    folder: Path
    terms: Mapping[str, tuple[RewardTerm, float]]

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train. Arguments and result are those of `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: Folder of a checkpoint, or True for the last one in `output_dir`.
            **kwargs: As in Trainer.

        Raises:
            InputError: If the checkpoint was trained with other options, no step was done or no weight changed.
        """
        folder = resume_from_checkpoint or None
        if folder is True:
            folder = get_last_checkpoint(str(self.folder))
            if folder is None:
                raise InputError(f"{self.folder} holds no checkpoint to go on from: leave resume out.")
        if folder is not None:
            check_settings(folder, self.args, self._row_count(), self._own_terms())
        with must_learn(self, resumed=folder is not None):
            return super().train(resume_from_checkpoint=folder, **kwargs)

    def _row_count(self) -> int:
        return len(cast("Dataset", self.train_dataset))

    def _own_terms(self) -> dict[str, float]:
        """Weights of the user's reward terms; ours are options of the run."""
        return {name: weight for name, (_, weight) in self.terms.items() if name not in TERMS}

    def save_embedder(self, folder: str | os.PathLike[str]) -> None:
        """Save what `GraceEmbedder(folder)` opens; adapters are merged into a copy of the weights."""
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            save_embedder(self.embedder, folder, model if hasattr(model, "merge_and_unload") else None)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a model folder without pickled arguments; adapters stay adapters, so that training can go on."""
        folder = output_dir or str(self.folder)
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(folder)
        else:
            save_embedder(self.embedder, folder)
        write_settings(folder, self.args, self._row_count(), self._own_terms())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint whole; a half of one, when the disk is full, is removed and the one before stays."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise EngineError(
                f"The checkpoint {folder} could not be written ({error}) and was removed; earlier ones are whole. Make "
                "room on the disk and resume."
            ) from error
