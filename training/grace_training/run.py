"""Running a recipe: from its file to a folder that `GraceEmbedder`, or for "eos" `SentenceTransformer`, opens."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval import GraceEmbedder, InputError
from grace_training.data import load_examples, training_rows
from grace_training.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["MODEL_FOLDER", "run_recipe"]

MODEL_FOLDER = "model"
"""Where a run's result is, below its folder."""


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
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    logs = _TRAINERS[recipe.method](recipe, output, target, seed, resume)
    record = {
        "recipe": asdict(recipe),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "log": logs,
    }
    (output / "run.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return target


def _embedder(recipe: Recipe) -> GraceEmbedder:
    return GraceEmbedder(recipe.model, **{"cache": None, "on_truncation": "ignore", **recipe.embedder})


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


def _untrained(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> list[Any]:
    """Save the policy as it is, with or without rationales."""
    embedder = _embedder(recipe)
    embedder.writer.rationale = recipe.method == "reasoning"
    embedder.save_pretrained(str(target))
    return []


def _contrastive(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> list[Any]:
    """Train on text alone."""
    from datasets import concatenate_datasets

    from grace_training.baselines import last_token_model, train_contrastive

    model: Any
    if recipe.method == "eos":
        model = last_token_model(recipe.model, max_seq_length=int(recipe.embedder.get("max_seq_length", 512)))
    else:
        model = _embedder(recipe)
    examples = concatenate_datasets(_examples(recipe, seed))
    model = train_contrastive(
        model,
        examples,
        output_dir=str(output),
        temperature=recipe.temperature,
        unsupervised=recipe.method == "simcse",
        dropout=recipe.dropout,
        resume=resume,
        options={"report_to": [], **recipe.training, "seed": seed},
    )
    model.save_pretrained(str(target))
    return []


def _grace(recipe: Recipe, output: Path, target: Path, seed: int, resume: bool) -> list[Any]:
    """Train to write rationales."""
    from grace_training.config import GraceConfig
    from grace_training.trainer import GraceTrainer

    config = GraceConfig(
        output_dir=str(output), **{"report_to": [], "preset": recipe.method, **recipe.training, "seed": seed}
    )
    peft_config = None
    if recipe.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.lora})
    trainer = GraceTrainer(
        _embedder(recipe), config, training_rows(_examples(recipe, seed), config), peft_config=peft_config
    )
    if recipe.monitor is not None:
        trainer.add_callback(_monitor(recipe, trainer, seed))
    trainer.train(resume_from_checkpoint=resume)
    if not trainer.stop_on_signal.stopped:
        trainer.save_embedder(target)
    return list(trainer.state.log_history)


def _monitor(recipe: Recipe, trainer: Any, seed: int) -> Any:
    from grace_training.monitors import Limits, Monitor

    options = dict(recipe.monitor or {})
    source = options.pop("source", None)
    if source is None:
        raise InputError(f"Recipe {recipe.name}: monitor needs a source of held-out texts.")
    held_out = load_examples(recipe.path_of(source), columns=source.columns, limit=source.limit, seed=seed)
    texts = list(dict.fromkeys(held_out["text" if "text" in held_out.column_names else "positive"]))
    return Monitor(trainer, texts, limits=Limits(**options.pop("limits", {})), **options)


_TRAINERS = {
    "base": _untrained,
    "reasoning": _untrained,
    "contrastive": _contrastive,
    "simcse": _contrastive,
    "eos": _contrastive,
    "paper": _grace,
    "grace": _grace,
}
