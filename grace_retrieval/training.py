"""Training, as `grace_retrieval.training`: the public names of `grace_training`, imported when they are first used.

It needs the extra `train`: pip install 'grace-retrieval[train]'.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grace_retrieval.errors import MissingExtraError

if TYPE_CHECKING:
    from grace_training.baselines import last_token_model, train_contrastive
    from grace_training.batch import RolloutBatch
    from grace_training.budget import Budget
    from grace_training.config import GraceConfig
    from grace_training.data import load_examples, training_rows
    from grace_training.evaluation.plan import Evaluation, load_evaluation
    from grace_training.experiment import Experiment
    from grace_training.monitors import Limits, Monitor, MonitorWarning
    from grace_training.processes import leave_process_group
    from grace_training.recipe import Recipe, Source, list_recipes, load_recipe
    from grace_training.rewards import TERMS, Rewards, composite_reward
    from grace_training.run import run_recipe
    from grace_training.table import make_table, read_experiments
    from grace_training.trainer import ConstantRewardWarning, GraceTrainer

_MODULES = {
    "baselines": ("last_token_model", "train_contrastive"),
    "batch": ("RolloutBatch",),
    "budget": ("Budget",),
    "config": ("GraceConfig",),
    "data": ("load_examples", "training_rows"),
    "evaluation.plan": ("Evaluation", "load_evaluation"),
    "experiment": ("Experiment",),
    "monitors": ("Limits", "Monitor", "MonitorWarning"),
    "processes": ("leave_process_group",),
    "recipe": ("Recipe", "Source", "list_recipes", "load_recipe"),
    "rewards": ("TERMS", "Rewards", "composite_reward"),
    "run": ("run_recipe",),
    "table": ("make_table", "read_experiments"),
    "trainer": ("ConstantRewardWarning", "GraceTrainer"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# Packages of an extra, by the name they are imported by.
_EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "ir_measures", "peft", "scipy", "trl", "yaml"), "train"),
}

__all__ = [
    "TERMS",
    "Budget",
    "ConstantRewardWarning",
    "Evaluation",
    "Experiment",
    "GraceConfig",
    "GraceTrainer",
    "Limits",
    "Monitor",
    "MonitorWarning",
    "Recipe",
    "Rewards",
    "RolloutBatch",
    "Source",
    "composite_reward",
    "last_token_model",
    "leave_process_group",
    "list_recipes",
    "load_evaluation",
    "load_examples",
    "load_recipe",
    "make_table",
    "read_experiments",
    "run_recipe",
    "train_contrastive",
    "training_rows",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"grace_training.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        raise MissingExtraError(package, _EXTRAS[package], f"grace_retrieval.training.{name}") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
