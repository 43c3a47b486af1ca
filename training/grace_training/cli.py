"""`grace train`: train a model by a recipe; several recipes with several seeds, and their table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grace_retrieval.cli.console import error_console, is_interactive, result_console
from grace_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from grace_benchmarks.record import Row
    from grace_training.recipe import Recipe

__all__ = ["train", "train_app"]


def train(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="A .yaml file, or the name of one that comes along."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", metavar="KEY=VALUE", help="Change the recipe, e.g. training.learning_rate=1e-5."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the run; of several: runs in OUT/RECIPE-seedN.", show_default="runs/RECIPE-seedN"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of data order and rollouts.", show_default="0")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N,...", help="Train with each of these; goes on by itself.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option("--evaluate", metavar="EVALUATION", help="Measure every model: a .yaml file, or `nano`."),
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option("--table", metavar="OUT", help="Only make the table of a folder's rows again; of several too."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="RECIPE", help="In the table, test all others against this one."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="With --table, draw nDCG@10 against perplexity: .png, .svg, .pdf."),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="List the recipes that come along.")] = False,
) -> None:
    """Train a model to write rationales that retrieve well, or a baseline, as a recipe says.

    Several recipes, --seeds or --evaluate make an experiment: every recipe is trained with every seed and evaluated,
    rows go to OUT/rows.jsonl and the table to OUT/table.md. The same command given again goes on where it was.
    """
    for package in ("yaml", "trl", "datasets"):
        _require(package, "train", "Training")
    from grace_training import recipe as recipes

    if list_recipes:
        console = result_console(width=140)
        for name, path in recipes.list_recipes().items():
            console.print(f"{name:<34} {recipes.load_recipe(path).description}", soft_wrap=True)
        return
    if table:
        if recipe:
            raise InputError("--table makes a table of rows that are there: leave the recipes out.")
        given = {"--override": override, "--seed": seed, "--seeds": seeds, "--evaluate": evaluate, "--resume": resume}
        if useless := [name for name, value in given.items() if value not in (None, False)]:
            raise InputError(f"--table trains nothing: leave out {' and '.join(useless)}.")
        _print_table(table, against or (), output or (table[0] if len(table) == 1 else None))
        if plot is not None:
            from grace_training.plot import plot_trade_off
            from grace_training.table import read_experiments

            plot_trade_off(read_experiments(table), plot)
        return
    if plot is not None:
        raise InputError("--plot draws rows that are there: give their folders with --table.")
    if not recipe:
        raise InputError(
            "Which recipe? Give a .yaml file or a name; `grace train --list-recipes` lists those there are."
        )
    from grace_training.checks import check_recipe

    loaded = [check_recipe(recipes.load_recipe(name, override or ())) for name in recipe]
    if not is_interactive():
        from datasets import disable_progress_bars

        disable_progress_bars()
    if seeds is not None and seed is not None:
        raise InputError(f"--seed {seed} and --seeds {seeds} contradict each other: give one of them.")
    seed = seed or 0
    if len(loaded) > 1 or seeds is not None or evaluate is not None:
        if resume:
            raise InputError("--resume goes with one recipe and one seed; an experiment goes on by itself.")
        _run_experiment(loaded, _numbers(seeds) if seeds is not None else [seed], output, evaluate, against or ())
    else:
        if against:
            raise InputError("--against belongs to a table: give several recipes, --seeds, --evaluate or --table.")
        _run_one(loaded[0], output or Path("runs") / f"{loaded[0].name}-seed{seed}", seed, resume)


def _run_one(recipe: Recipe, folder: Path, seed: int, resume: bool) -> None:
    from grace_training.processes import leave_process_group
    from grace_training.run import run_recipe

    model = run_recipe(recipe, folder, seed=seed, resume=resume)
    leave_process_group()
    if model.exists():
        opener = "SentenceTransformer" if recipe.method == "eos" else "GraceEmbedder"
        typer.echo(f"Trained: {model}. Open it with {opener}({str(model)!r}).")
    else:
        typer.echo(f"Stopped with a checkpoint in {folder}; the same command with --resume goes on.")


def _run_experiment(
    recipes: Sequence[Recipe], seeds: Sequence[int], output: Path | None, evaluate: str | None, against: Sequence[str]
) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("Several processes share one training: launch one recipe with one --seed at a time.")
    if unknown := sorted(set(against) - {recipe.name for recipe in recipes}):
        raise InputError(f"--against {', '.join(unknown)}: give names of recipes of this command.")
    for package in ("ir_measures", "scipy"):
        _require(package, "train,bench", "Evaluation")
    from grace_training.evaluation.plan import load_evaluation
    from grace_training.experiment import Experiment

    output = output or Path("runs")
    evaluation = load_evaluation(evaluate) if evaluate is not None else None
    if evaluation is not None:
        evaluation.require_files()
    experiment = Experiment(recipes, seeds, output, evaluation, say=_say)
    with redirect_stdout(sys.stderr):  # where trainers print their logs; the table alone is the result
        finished = experiment.run()
    if not finished:
        typer.echo(f"Stopped with a checkpoint in {output}; the same command goes on.")
        return
    _print_table([output], against, output)
    if experiment.failures:
        error_console().print(f"{experiment.failures} failed; the same command tries these again.")
        raise typer.Exit(1)


def _print_table(folders: Sequence[Path], against: Sequence[str], output: Path | None) -> None:
    from grace_retrieval.atomic import replacing
    from grace_training.table import TABLE_FILE, make_table, read_experiments

    text = make_table(read_experiments(folders), against=against)
    if output is not None:
        with replacing(output / TABLE_FILE) as path:
            path.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)


def _say(row: Row) -> None:
    """One line on stderr for a new row."""
    from grace_training.table import name_part

    value = f": {row['failed']}" if row["status"] == "failed" else f" {row['value']}" if "value" in row else ""
    error_console().print(f"{row['recipe']}, seed {row['seed']}: {name_part(row)}{value}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds {text!r}: give whole numbers with commas between them, e.g. 1,2,3.") from error


def _require(package: str, extra: str, purpose: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)


train_app = typer.Typer(add_completion=False)
train_app.command()(train)
