"""`grace train`: train a model by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grace_retrieval.cli.console import is_interactive, result_console
from grace_retrieval.errors import InputError, MissingExtraError

__all__ = ["train", "train_app"]


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A .yaml file, or the name of one that comes along.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", metavar="KEY=VALUE", help="Change the recipe, e.g. training.learning_rate=1e-5."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run.", show_default="runs/RECIPE-seedN")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data order and rollouts.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="List the recipes that come along.")] = False,
) -> None:
    """Train a model to write rationales that retrieve well, or a baseline, as a recipe says."""
    for package in ("yaml", "trl", "datasets"):
        _require(package)
    from grace_training import recipe as recipes

    if list_recipes:
        console = result_console(width=140)
        for name, path in recipes.list_recipes().items():
            console.print(f"{name:<34} {recipes.load_recipe(path).description}", soft_wrap=True)
        return
    if recipe is None:
        raise InputError(
            "Which recipe? Give a .yaml file or a name; `grace train --list-recipes` lists those there are."
        )
    loaded = recipes.load_recipe(recipe, override or ())
    folder = output or Path("runs") / f"{loaded.name}-seed{seed}"
    from grace_training.run import run_recipe

    if not is_interactive():
        from datasets import disable_progress_bars

        disable_progress_bars()
    model = run_recipe(loaded, folder, seed=seed, resume=resume)
    if model.exists():
        opener = "SentenceTransformer" if loaded.method == "eos" else "GraceEmbedder"
        typer.echo(f"Trained: {model}. Open it with {opener}({str(model)!r}).")
    else:
        typer.echo(f"Stopped with a checkpoint in {folder}; the same command with --resume goes on.")


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "train", "Training")


train_app = typer.Typer(add_completion=False)
train_app.command()(train)
