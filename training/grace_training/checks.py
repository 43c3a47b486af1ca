"""What a recipe can be told in a second, before a model is loaded: every option, by name and value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from sentence_transformers.util import get_device_name

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean
from grace_training.ranges import check_ranges
from grace_training.recipe import Recipe
from grace_training.values import annotations_of, read_mapping

if TYPE_CHECKING:
    from datasets import Dataset

    from grace_training.config import GraceConfig

__all__ = [
    "check_enough",
    "check_given",
    "check_recipe",
    "check_trainer",
    "contrastive_options",
    "grace_config",
]

_GRACE = ("paper", "grace", "sft")
_GIVEN = {"output_dir": "--out", "seed": "--seed", "resume_from_checkpoint": "--resume"}
_PACKAGES = {"use_vllm": "vllm", "use_liger_kernel": "liger_kernel", "deepspeed": None, "fsdp": None}
"""Options that need a package; those of None are nothing for rollouts."""


def check_recipe(recipe: Recipe) -> Recipe:
    """Check every option of a recipe, and that they go together.

    Args:
        recipe: The recipe.

    Returns:
        The recipe with its values as they are used: 8 where YAML or an override gave "8".

    Raises:
        InputError: If an option is unknown, of another kind, out of range or contradicts another one; recipe, key and
            value are named, and names that are near.
    """
    name = f"Recipe {recipe.name}"
    values: dict[str, Any] = {"embedder": read_mapping(f"{name}: embedder", recipe.embedder, _embedder_options())}
    if recipe.lora is not None:
        if recipe.method not in _GRACE:
            raise InputError(f"{name}: lora is for the methods {', '.join(_GRACE)}, not {recipe.method}.")
        from peft import LoraConfig

        lora = read_mapping(f"{name}: lora", recipe.lora, annotations_of(LoraConfig), "peft.LoraConfig lists them.")
        _made(f"{name}: lora", LoraConfig, {"task_type": "CAUSAL_LM"}, lora)
        check_ranges(f"{name}: lora", lora)
        values["lora"] = lora
    if recipe.adapter:
        if recipe.method not in _GRACE:
            raise InputError(f"{name}: adapter is for the methods {', '.join(_GRACE)}, not {recipe.method}.")
        if recipe.lora is not None:
            raise InputError(f"{name}: adapter={recipe.adapter!r} has its own options: leave lora out.")
    if recipe.teacher and recipe.method not in ("grace", "sft"):
        raise InputError(
            f"{name}: teacher={recipe.teacher!r}: a teacher is for the methods grace and sft, not {recipe.method}."
        )
    if recipe.monitor is not None:
        values["monitor"] = _monitor(recipe)
    for key, allowed, words in (
        ("temperature", recipe.temperature > 0, "a positive number"),
        ("dropout", 0 <= recipe.dropout < 1, "a probability, 0 or more and below 1"),
        ("budget_seconds", recipe.budget_seconds is None or recipe.budget_seconds > 0, "a positive number, or null"),
        ("threads", recipe.threads is None or recipe.threads >= 1, "a positive whole number, or null"),
    ):
        if not allowed:
            raise InputError(f"{name}: {key}={getattr(recipe, key)!r}: give {words}.")
    if recipe.method in ("base", "reasoning"):
        return replace(recipe, **values)
    kind, pointer = _options_of(recipe)
    values["training"] = read_mapping(f"{name}: training", recipe.training, annotations_of(kind), pointer)
    check_ranges(f"{name}: training", values["training"])
    for key, option in _GIVEN.items():
        if key in values["training"]:
            raise InputError(f"{name}: training.{key}={values['training'][key]!r}: give {option} instead.")
    _check_surroundings(name, values["training"], rollouts=recipe.method in _GRACE)
    recipe = replace(recipe, **values)
    if recipe.method in _GRACE:
        config = grace_config(recipe, "unused", 0)
        if recipe.method == "sft" and config.rationale_every:
            raise InputError(
                f"{name}: training.rationale_every={config.rationale_every}: method sft writes nothing; leave it out, "
                "or take method grace, which learns from given rationales between the batches that it writes."
            )
        if recipe.teacher and config.rationale_every == 1:
            raise InputError(
                f"{name}: teacher={recipe.teacher!r} belongs to batches for which nothing is written, and "
                "rationale_every=1 leaves none: give another training.rationale_every."
            )
    else:
        _made(f"{name}: training", kind, {"output_dir": "unused", "report_to": [], **_device(recipe)}, recipe.training)
    _check_reports(name, recipe.training.get("report_to"))
    if str(recipe.training.get("eval_strategy") or "no") != "no":
        raise InputError(
            f"{name}: training.eval_strategy={recipe.training['eval_strategy']!r}: a recipe has no data to evaluate on "
            "while it trains. Watch held-out texts with monitor, or measure afterwards with --evaluate."
        )
    return recipe


def grace_config(recipe: Recipe, output: str | Path, seed: int) -> GraceConfig:
    """The options of a GraceTrainer for a recipe. Raises what `check_recipe` does."""
    from grace_training.config import GraceConfig

    fixed = {"output_dir": str(output), "report_to": [], "seed": seed, **_device(recipe)}
    if recipe.method == "sft":
        fixed |= {"rationale_every": 0, "lm_loss_weight": 1.0}
    else:
        fixed["preset"] = recipe.method
    made: GraceConfig = _made(f"Recipe {recipe.name}: training", GraceConfig, fixed, recipe.training)
    return made


def contrastive_options(recipe: Recipe, seed: int) -> dict[str, Any]:
    """The options of the baselines' trainer for a recipe, as `train_contrastive` takes them."""
    return {"report_to": [], **_device(recipe), **recipe.training, "seed": seed}


def _device(recipe: Recipe) -> dict[str, Any]:
    return {"use_cpu": True} if str(recipe.embedder.get("device") or "").startswith("cpu") else {}


def check_given(recipe: Recipe, rows: Dataset) -> None:
    """Refuse training data without rationales where nothing else is to be learned to write.

    Args:
        recipe: The recipe.
        rows: From `training_rows`.

    Raises:
        InputError: If the method is sft and no row has a rationale.
    """
    if recipe.method != "sft" or any(found is not None for found in [*rows["rationale"], *rows["other_rationale"]]):
        return
    raise InputError(
        f"Recipe {recipe.name}: method sft learns from rationales that the data gives, and there are none: name their "
        "columns query_rationale and positive_rationale, or say with `columns` what they are called."
    )


def check_enough(rows: Dataset, config: GraceConfig) -> None:
    """Refuse training data of which no batch can be made: TRL would leave all of it out, and train nothing.

    Args:
        rows: From `training_rows`.
        config: Says how many texts a generation batch has.

    Raises:
        InputError: If there are fewer texts than that.
    """
    generations, batch = int(config.num_generations or 1), int(config.generation_batch_size or 1)
    if len(rows) < batch // generations:
        raise InputError(
            f"{len(rows)} texts to write about, and a generation batch takes {batch // generations}: no step would be "
            f"done. The number is per_device_train_batch_size={config.per_device_train_batch_size} times "
            f"steps_per_generation={config.steps_per_generation} (gradient_accumulation_steps, if not given) times "
            f"{config.world_size} processes, divided by num_generations={generations}. Lower the first two, or give "
            "more data."
        )


def _options_of(recipe: Recipe) -> tuple[type, str]:
    if recipe.method in _GRACE:
        from grace_training.config import GraceConfig

        return GraceConfig, "docs/training.md and trl.GRPOConfig list them."
    from sentence_transformers import SentenceTransformerTrainingArguments

    return (
        SentenceTransformerTrainingArguments,
        "sentence_transformers.SentenceTransformerTrainingArguments lists them.",
    )


@cache
def _embedder_options() -> Mapping[str, Any]:
    """What GraceEmbedder takes besides the model: name → annotation."""
    from sentence_transformers import SentenceTransformer

    from grace_retrieval import GraceEmbedder

    found: dict[str, Any] = {}
    for kind in (SentenceTransformer, GraceEmbedder):
        hints = get_type_hints(kind.__init__)
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found[name] = hints.get(name, Any)
    return {k: v for k, v in found.items() if k not in ("self", "model", "model_name_or_path", "modules")}


def _monitor(recipe: Recipe) -> dict[str, Any]:
    """Options of the monitor, and its source."""
    from grace_training.monitors import Limits, Monitor

    where = f"Recipe {recipe.name}: monitor"
    own = {k: v for k, v in annotations_of(Monitor).items() if k not in ("trainer", "texts")}
    content = dict(recipe.monitor or {})
    source = content.pop("source", None)
    if source is None:
        raise InputError(f"{where} needs a source of held-out texts: source: {{path: held-out.jsonl}}.")
    limits = content.pop("limits", None)
    found = {"source": source, **read_mapping(where, content, {**own, "source": Any})}
    if limits is not None:
        found["limits"] = read_mapping(f"{where}.limits", limits, annotations_of(Limits))
    if found.get("every", 1) < 1:
        raise InputError(f"{where}.every={found['every']!r}: give 1 or more steps.")
    return found


def _check_surroundings(name: str, training: Mapping[str, Any], *, rollouts: bool) -> None:
    """Refuse what this machine, or a recipe, cannot do; the trainers say it when the model is loaded, or never."""
    for key, package in _PACKAGES.items():
        if not training.get(key):
            continue
        if package is None and not rollouts:
            continue
        if package is None:
            raise InputError(
                f"{name}: training.{key}={training[key]!r}: rollouts need whole weights, so only DDP is supported "
                "(docs/training.md, several GPUs)."
            )
        if find_spec(package) is None:
            raise InputError(
                f"{name}: training.{key}={training[key]!r}: {package} is not installed. Install it, or leave {key} out."
            )
    if training.get("fp16") and get_device_name() == "cpu":
        raise InputError(
            f"{name}: training.fp16=True: this machine has no GPU. Leave it out: dtypes are chosen for it."
        )
    if training.get("push_to_hub"):
        raise InputError(
            f"{name}: training.push_to_hub=True: a run uploads nothing. Upload its model folder afterwards."
        )
    if str(training.get("save_strategy")) == "best":
        raise InputError(
            f"{name}: training.save_strategy='best': nothing is evaluated meanwhile: give 'steps' or 'epoch'."
        )


def _check_reports(name: str, value: object) -> None:
    """Refuse loggers that there are not, which transformers says only when a trainer is made."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for logger in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
        if logger in ("all", "none", *get_available_reporting_integrations()):
            continue
        where = f"{name}: training.report_to={value!r}"
        if logger not in INTEGRATION_TO_CALLBACK:
            near = did_you_mean(str(logger), INTEGRATION_TO_CALLBACK)
            raise InputError(f"{where}: no such logger.{near} There are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        raise InputError(
            f"{where}: {logger} is not installed. Install it, or give "
            f"{', '.join(sorted(get_available_reporting_integrations())) or 'none'}; run.json holds the log anyhow."
        )


def _made(where: str, kind: Callable[..., Any], fixed: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Make an object of options, or say which of them it refuses.

    An option is to blame if the others are accepted without it.
    """
    try:
        return kind(**{**fixed, **options})
    except Exception as error:  # whatever the libraries raise about options
        message = " ".join(str(error).split()) or type(error).__name__
        reason = error
    blamed = [key for key in options if _accepts(kind, {**fixed, **{k: v for k, v in options.items() if k != key}})]
    named = ", ".join(f"{key}={options[key]!r}" for key in blamed or options)
    said = message if message.startswith(named) else f"{named}: {message}"
    raise InputError(f"{where}: {said.rstrip('.')}.") from reason


def _accepts(kind: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    try:
        kind(**options)
    except Exception:  # as above
        return False
    return True


def check_trainer(recipe: Recipe, make: Callable[[], Any]) -> Any:
    """Make a trainer; what it refuses about options is said with the recipe's name.

    Raises:
        InputError: If an option fits nothing: target_modules that the policy lacks, an engine that is not installed.
    """
    try:
        return make()
    except InputError:
        raise
    except (ValueError, ImportError) as error:
        raise InputError(f"Recipe {recipe.name}: {' '.join(str(error).split())}") from error
