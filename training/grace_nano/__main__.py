"""Command line: `python -m grace_nano prepare|train|export|evaluate|card --recipe <file.yaml>`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from grace_nano.recipe import load_recipe


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(prog="grace_nano", description="Make the language model grace-nano-base.")
    parser.add_argument("stage", choices=("prepare", "train", "export", "evaluate", "card"))
    parser.add_argument("--recipe", type=Path, required=True, help="the YAML recipe")
    parser.add_argument("--only", nargs="*", default=[], help="prepare: names of the sources to make")
    parser.add_argument("--run", default="run", help="train: name of the run's folder")
    parser.add_argument("--budget-seconds", type=float, help="train: replaces the recipe's budget")
    parser.add_argument("--preview", type=Path, help="train: folder that gets the model at every checkpoint")
    parser.add_argument("--model", type=Path, help="export, evaluate, card: folder of the model")
    parser.add_argument("--output", type=Path, help="evaluate, card: JSON file of the evaluation")
    parser.add_argument("--reference", type=Path, help="export, evaluate: folder of the model in float32")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.stage in ("export", "evaluate", "card") and arguments.model is None:
        parser.error(f"{arguments.stage} needs --model")
    if arguments.stage in ("evaluate", "card") and arguments.output is None:
        parser.error(f"{arguments.stage} needs --output")
    recipe = load_recipe(arguments.recipe)
    if arguments.stage == "prepare":
        from grace_nano.prepare import prepare

        prepare(recipe, arguments.only)
    elif arguments.stage == "train":
        from grace_nano.train import Trainer

        Trainer(recipe, arguments.run, arguments.budget_seconds, arguments.preview).run()
    elif arguments.stage == "export":
        import torch

        from grace_nano.train import Trainer

        trainer = Trainer(recipe, arguments.run, compiled=False)
        trainer.export(arguments.model)
        if arguments.reference is not None:
            trainer.export(arguments.reference, torch.float32)
    elif arguments.stage == "card":
        from grace_nano.card import write_card

        write_card(recipe, recipe.work / arguments.run, arguments.output, arguments.model)
    else:
        from grace_nano.evaluate import evaluate

        evaluate(recipe, arguments.model, arguments.output, arguments.reference)


if __name__ == "__main__":
    main()
