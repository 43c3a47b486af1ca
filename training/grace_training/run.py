"""Running a recipe: from its file to a folder that `GraceEmbedder`, or for "eos" `SentenceTransformer`, opens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval import GraceEmbedder, InputError
from grace_retrieval.loading import end_tokens
from grace_retrieval.threads import hold_torch
from grace_training.adapters import find_trained
from grace_training.checks import (
    check_enough,
    check_given,
    check_recipe,
    check_trainer,
    contrastive_options,
    grace_config,
)
from grace_training.data import load_examples, training_rows
from grace_training.interpolation import interpolated
from grace_training.monitors import check_watched
from grace_training.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from grace_training.budget import Budget
    from grace_training.teacher import Teacher

__all__ = ["MODEL_FOLDER", "RUN_FILE", "run_recipe", "torch_threads"]

MODEL_FOLDER = "model"
"""Where a run's result is, below its folder."""

RUN_FILE = "run.json"
"""What a run was, what it logged and what it cost, in its folder."""


def run_recipe(recipe: Recipe, output: str | Path, *, seed: int = 0, resume: bool = False) -> Path:
    """Train as a recipe says.

    Args:
        recipe: The recipe.
        output: Folder of the run: checkpoints, samples, `run.json`, and the result in `model`.
        seed: Seed of the data's order and of the rollouts.
        resume: Whether to go on from the last checkpoint in `output`.

    Returns:
        The folder of the result. After SIGTERM there is a checkpoint to resume from, and no result yet.

    Raises:
        InputError: If the recipe does not fit together, or `output` holds a finished run.
    """
    output = Path(output)
    target = output / MODEL_FOLDER
    if target.exists():
        raise InputError(f"{target} exists: this run is finished. Give another output folder.")
    recipe = check_recipe(recipe)
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(f"Cannot write {output}: {error.strerror or error}. Give another output folder.") from error
    with torch_threads(recipe.threads):
        trainer, budget = _TRAINERS[recipe.method](recipe, output, target, seed, resume)
    # Written last, and only beside a result: where it is, the run is finished.
    if target.exists() and (trainer is None or trainer.is_world_process_zero()):
        record = {
            "recipe": asdict(recipe),
            "seed": seed,
            "steps": trainer.state.global_step if trainer is not None else 0,
            "seconds": round(budget.seconds, 3),
            "cpu_seconds": round(budget.cpu_seconds, 3),
            "log": trainer.state.log_history if trainer is not None else [],
        }
        text = json.dumps(record, indent=1, default=str) + "\n"
        (output / RUN_FILE).write_text(text, encoding="utf-8")
    return target


@contextmanager
def torch_threads(threads: object) -> Iterator[None]:
    """Let torch use so many threads for a while.

    Args:
        threads: How many; None changes nothing.

    Raises:
        InputError: If it is no positive number.
    """
    if threads is None:
        yield
        return
    if not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads={threads!r}: give a positive whole number.")
    import torch

    before = torch.get_num_threads()
    hold_torch(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        hold_torch(None)


def _embedder(recipe: Recipe) -> GraceEmbedder:
    embedder = GraceEmbedder(recipe.model, **{"cache": None, "on_truncation": "ignore", **recipe.embedder})
    if recipe.end_token:
        _end_rationales_at(embedder, recipe.end_token)
    return embedder


def _end_rationales_at(embedder: GraceEmbedder, token: str) -> None:
    """Let a token end rationales, here and in the saved model, whose generation config says so.

    Raises:
        InputError: If the policy has no such token.
    """
    pipeline = embedder.pipeline
    number = pipeline.tokenizer.get_vocab().get(token)
    if number is None:
        raise InputError(f"end_token={token!r} is no single token of this policy: give one of its vocabulary.")
    pipeline.module.generation_config.eos_token_id = [*end_tokens(pipeline.module, pipeline.tokenizer), number]


def _examples(recipe: Recipe, seed: int) -> list[Dataset]:
    return [
        load_examples(
            recipe.path_of(source),
            columns=source.columns,
            instruction=source.instruction,
            limit=source.limit,
            seed=seed,
        )
        for source in recipe.data
    ]


def _untrained(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> tuple[None, Budget]:
    """Save the policy as it is, with or without rationales."""
    from grace_training.budget import Budget

    embedder = _embedder(recipe)
    embedder.pipeline.options.rationale = recipe.method == "reasoning"
    embedder.save_pretrained(str(target))
    return None, Budget()


def _contrastive(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> tuple[Trainer, Budget]:
    """Train on text alone."""
    from datasets import concatenate_datasets

    from grace_training.baselines import last_token_model, train_contrastive
    from grace_training.budget import Budget
    from grace_training.saving import StopOnSignal

    examples = concatenate_datasets(_examples(recipe, seed))
    model: Any
    if recipe.method == "eos":
        model = last_token_model(recipe.model, max_seq_length=int(recipe.embedder.get("max_seq_length", 512)))
    else:
        model = _embedder(recipe)
    stop_on_signal, budget = StopOnSignal(), Budget(recipe.budget_seconds)
    trainer = train_contrastive(
        model,
        examples,
        output_dir=str(output),
        temperature=recipe.temperature,
        unsupervised=recipe.method == "simcse",
        dropout=recipe.dropout,
        resume=resume,
        callbacks=[stop_on_signal, budget],
        options=contrastive_options(recipe, seed),
    )
    if not stop_on_signal.stopped and trainer.is_world_process_zero():
        _interpolate(recipe, model)
        model.save_pretrained(str(target))
    return trainer, budget


def _grace(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> tuple[Trainer, Budget]:
    """Train to write rationales."""
    from grace_training.budget import Budget
    from grace_training.rewards import find_term
    from grace_training.trainer import GraceTrainer

    if recipe.adapter:
        find_trained(recipe.adapter)
    config = grace_config(recipe, output, seed)
    terms = {name: (find_term(function), weight) for name, (function, weight) in recipe.reward_terms.items()}
    rows = training_rows(_examples(recipe, seed), config)
    check_given(recipe, rows)
    check_enough(rows, config)
    watched = _watched(recipe, seed)
    peft_config = None
    if recipe.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.lora})
    embedder = _embedder(recipe)
    if not config.rationale_every and recipe.method != "sft":
        embedder.pipeline.options.rationale = False  # it learns from texts alone, and is saved as one that embeds them
    trainer = check_trainer(
        recipe,
        lambda: GraceTrainer(
            embedder,
            config,
            rows,
            peft_config=peft_config,
            adapter=recipe.adapter or None,
            reward_terms=terms,
            teacher=_teacher(recipe),
        ),
    )
    if recipe.monitor is not None:
        trainer.add_callback(_monitor(recipe, trainer, watched))
    budget = Budget(recipe.budget_seconds)
    trainer.add_callback(budget)
    trainer.train(resume_from_checkpoint=resume)
    if not trainer.stop_on_signal.stopped and trainer.is_world_process_zero():
        _interpolate(recipe, embedder)
        trainer.save_embedder(target)
    return trainer, budget


def _teacher(recipe: Recipe) -> Teacher | None:
    from grace_training.teacher import load_teacher

    return load_teacher(recipe.teacher, recipe.embedder.get("device")) if recipe.teacher else None


def _interpolate(recipe: Recipe, embedder: GraceEmbedder) -> None:
    """Give a trained embedder the weights that are to be saved."""
    if recipe.interpolation != 1:
        start = GraceEmbedder(recipe.model, **{"cache": None, **recipe.embedder, "device": "cpu"})
        after = dict(embedder.pipeline.module.named_parameters())
        for name, weight in interpolated(dict(start.pipeline.module.named_parameters()), [after], recipe.interpolation):
            after[name].detach().copy_(weight)


def _watched(recipe: Recipe, seed: int) -> list[str]:
    """The held-out texts of a monitor."""
    if recipe.monitor is None:
        return []
    source = recipe.monitor["source"]
    held_out = load_examples(recipe.path_of(source), columns=source.columns, limit=source.limit, seed=seed)
    texts = list(dict.fromkeys(held_out["text" if "text" in held_out.column_names else "positive"]))
    check_watched(texts)
    return texts


def _monitor(recipe: Recipe, trainer: Any, texts: list[str]) -> Any:
    from grace_training.monitors import Limits, Monitor

    options = {name: value for name, value in (recipe.monitor or {}).items() if name != "source"}
    return Monitor(trainer, texts, limits=Limits(**options.pop("limits", {})), **options)


_TRAINERS: Mapping[str, Callable[..., tuple[Trainer | None, Budget]]] = {
    "base": _untrained,
    "reasoning": _untrained,
    "contrastive": _contrastive,
    "simcse": _contrastive,
    "eos": _contrastive,
    "paper": _grace,
    "grace": _grace,
    "sft": _grace,
}
