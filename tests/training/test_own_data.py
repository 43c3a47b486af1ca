"""Training on data of one's own: the page as it is written, mistakes in a recipe, and what teaches nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, InputError

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_training.checks import check_recipe
from grace_training.recipe import list_recipes, load_recipe
from grace_training.run import run_recipe

ROOT = Path(__file__).parents[2]
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.fixture
def page(tmp_path: Path, ending_policy: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The blocks of "Your own data" by language, with a model that is there, in a folder with data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    pairs = [{"question": f"valve {i}?", "section": f"Valve {i} opens at {i * 7} bar."} for i in range(16)]
    held_out = [{"text": f"Pump {i} needs oil every {i * 3} days."} for i in range(16)]
    for name, rows in (("questions", pairs), ("held-out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("## Your own data")[1].split("\n## ")[0]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
    assert all(MODEL in blocks[language] for language in ("yaml", "python"))
    return {language: block.replace(MODEL, str(ending_policy)) for language, block in blocks.items()}


@pytest.mark.parametrize("language", ["yaml", "python"])
def test_the_page_on_ones_own_data_works_as_written(
    page: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # A machine without a GPU, whatever this one has.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for word in ("use_cpu", "bf16", "device:", "device=", "dtype"):
        assert word not in page[language]
    if language == "python":
        exec(compile(page["python"], "training.md", "exec"), {})
        folder = Path("models/manuals")
    else:
        Path("manuals.yaml").write_text(page["yaml"], encoding="utf-8")
        folder = run_recipe(load_recipe("manuals.yaml"), "run")
        assert json.loads(Path("run/run.json").read_text(encoding="utf-8"))["steps"] == 2
    vectors = GraceEmbedder(folder, cache=None).encode_document(["Valve 3 opens at 21 bar."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_recipes_say_nothing_of_device_and_dtype() -> None:
    for name in list_recipes():
        recipe = load_recipe(name)
        assert not {"use_cpu", "bf16", "fp16"} & recipe.training.keys(), name
        assert not {"device", "model_kwargs"} & recipe.embedder.keys(), name
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("grace", "training.learning_rat=1e-5", r"training\.learning_rat=1e-05: .* Did you mean learning_rate\?"),
        ("grace", "training.learning_rate=fast", r"training\.learning_rate='fast': give a number"),
        ("contrastive", "training.batch_size=4", r"training\.batch_size=4: .*per_device_train_batch_size"),
        ("contrastive", "training.max_steps=many", r"training\.max_steps='many': give a whole number"),
        ("grace", "training.num_generations=1", r"num_generations=1: .*at least 2"),
        ("grace", "training.num_generations=3", r"num_generations=3: .*divisible"),
        ("grace", "training.report_to=wandbb", r"report_to='wandbb': no such logger\. Did you mean wandb"),
        ("grace", "training.report_to=neptune", r"report_to='neptune': neptune is not installed"),
        ("grace", "training.per_device_train_batch_size=0", r"per_device_train_batch_size=0: give 1 or more"),
        ("grace", "training.beta=-1", r"training\.beta=-1.0: give 0 or more"),
        ("grace", "training.temperature=0", r"training\.temperature=0.0: give a number above 0"),
        ("grace", "training.loss_type=gspo", r"training\.loss_type='gspo': give one of .*Did you mean .*grpo"),
        ("grace", "training.optim=adam", r"optim='adam': .*adamw_torch"),
        ("simcse", "training.lr_scheduler_type=cosin", r"lr_scheduler_type='cosin': .*cosine"),
        ("grace", "training.eval_strategy=steps", r"eval_strategy='steps': a recipe has no data to evaluate on"),
        ("contrastive", "training.seed=3", r"training\.seed=3: give --seed"),
        ("grace", "training.rationale_every=-1", r"rationale_every=-1: give a whole number"),
        ("grace", "training.fsdp=full_shard", r"training\.fsdp='full_shard': .*only DDP is supported"),
        ("grace", "training.resume_from_checkpoint=x", "give --resume instead"),
        ("contrastive", "training.push_to_hub=true", "a run uploads nothing"),
        ("contrastive", "training.save_strategy=best", "give 'steps' or 'epoch'"),
        ("grace", "training.log_level=loud", r"training\.log_level='loud': give one of debug"),
        ("grace", "training.min_p=2", r"training\.min_p=2.0: give 0 to 1"),
        ("grace", "training.reward_temperature=0", r"training: reward_temperature=0\.0: give a positive number"),
        ("grace", "lora.rank=8", r"lora\.rank=8: no such option"),
        ("grace", "lora.r=0", r"lora\.r=0: give 1 or more"),
        ("contrastive", "lora.r=8", "lora is for the methods paper, grace, sft, not contrastive"),
        ("contrastive", "adapter=grace-small", "adapter is for the methods paper, grace, sft, not contrastive"),
        ("grace", "embedder.max_new_token=8", r"embedder\.max_new_token=8: .*Did you mean max_new_tokens"),
        ("grace", "embedder.max_new_tokens=few", r"embedder\.max_new_tokens='few': give a whole number or null"),
        ("grace", "monitor={source: {path: a.jsonl}, evry: 5}", r"monitor\.evry=5: .*Did you mean every"),
        ("grace", "monitor={every: 5}", "monitor needs a source"),
        ("grace", "monitor={source: {path: a.jsonl}, limits: {rank: 1}}", r"limits\.rank=1: .*effective_rank"),
        ("contrastive", "temperature=0", "temperature=0.0: give a positive number"),
        ("simcse", "dropout=1", "dropout=1.0: give a probability"),
        ("grace", "threads=two", "threads='two': give a whole number or null"),
        ("grace", "metod=grace", r"unknown metod='grace'; .*Did you mean method"),
        ("grace", "method=contrastiv", r"method='contrastiv': .*Did you mean contrastive\?"),
        ("grace", "data=[{path: a.jsonl, limits: 3}]", r"a source is a mapping .*Did you mean limit\?"),
        ("grace", "data=[{path: a.jsonl, limit: few}]", r"data\.limit='few': give a whole number"),
        ("grace", "embedder=5", "embedder=5.*: give a mapping"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(
    recipe_file: Callable[..., Path], method: str, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_recipe(load_recipe(recipe_file(method), [override]))
    text = str(caught.value)
    assert method in text and "\n" not in text


def test_numbers_that_yaml_takes_for_strings_are_numbers(recipe_file: Callable[..., Path]) -> None:
    recipe = check_recipe(load_recipe(recipe_file("grace"), ["training.num_generations='4'", "embedder.seed='3'"]))
    assert recipe.training["num_generations"] == 4 and type(recipe.training["num_generations"]) is int
    assert recipe.embedder["seed"] == 3


def test_an_adapter_that_is_none_is_said_before_data_are_read(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file("grace"), ["adapter=grace-nano", "data_folder=nowhere"])
    with pytest.raises(InputError, match="adapter='grace-nano' is no adapter: give a folder"):
        run_recipe(recipe, tmp_path / "run")
    both = load_recipe(recipe_file("grace"), ["adapter=grace-small", "lora={r: 4}"])
    with pytest.raises(InputError, match="adapter='grace-small' has its own options: leave lora out"):
        check_recipe(both)


def test_target_modules_that_the_policy_lacks_are_said_with_the_recipe(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_file("grace"), ["lora.target_modules=[q_pro]"])
    with pytest.raises(InputError, match=r"Recipe grace: .*q_pro"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_data_for_less_than_one_batch_are_refused_before_the_model_is_loaded(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(
        recipe_file("grace"),
        ["training.gradient_accumulation_steps=8", "model=/nowhere", "data_folder=" + str(tmp_path)],
    )
    with pytest.raises(InputError, match=r"8 texts .* takes 16: no step would be done.*num_generations=4"):
        run_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize("method", ["grace", "contrastive", "eos"])
def test_a_training_that_changes_no_weight_is_an_error_and_saves_nothing(
    recipe_file: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    recipe = load_recipe(recipe_file(method, learning_rate=0.0, max_steps=1))
    with pytest.raises(InputError, match=r"did 1 steps and no weight changed.*learning_rate=0\.0"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_training_without_a_step_is_an_error(make_trainer: Callable[..., Any], pairs: Any) -> None:
    from grace_training.config import GraceConfig
    from grace_training.data import training_rows

    rows = training_rows(pairs.select(range(2)), GraceConfig(output_dir="unused"))
    trainer = make_trainer(rows=rows)
    with pytest.raises(InputError, match="ended without a step"):
        trainer.train()


@pytest.mark.parametrize("score", ["very near", None, float("nan")])
def test_labels_that_are_no_numbers_are_named(tmp_path: Path, score: object) -> None:
    from grace_training.evaluation.plan import Evaluation, SimilaritySet
    from grace_training.evaluation.sets import load_set

    rows = [{"a": "one", "b": "two", "s": 0.5 if isinstance(score, float) else "0.5"}, {"a": "x", "b": "y", "s": score}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    entry = SimilaritySet(name="near", path=str(tmp_path / "pairs.jsonl"), first="a", second="b", score="s")
    with pytest.raises(InputError, match=r"set near: .*pairs\.jsonl has .* in column 's': give a number a pair"):
        load_set(entry, Evaluation(name="e", sets=(entry,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1", "--seeds", "1,2"], "--seed 1 and --seeds 1,2 contradict each other"),
        (["--seeds", "1,2", "--resume"], "--resume goes with one recipe and one seed"),
        (["--against", "nano-base"], "--against belongs to a table"),
        (["--override", "training.max_step=1"], r"Did you mean max_steps"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    recipe_file: Callable[..., Path], options: list[str], message: str
) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    result = CliRunner().invoke(app, ["train", str(recipe_file("grace")), *options])
    assert result.exit_code == 1 and re.search(message, result.output), result.output
    assert result.output.count("\n") == 1


def test_a_table_takes_no_options_of_training(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    result = CliRunner().invoke(app, ["train", "--table", str(tmp_path), "--seeds", "1", "--override", "a=1"])
    assert result.exit_code == 1 and "leave out --override and --seeds" in result.output


def test_what_is_to_be_measured_on_is_looked_for_before_anything_is_trained(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    evaluation = tmp_path / "own.yaml"
    evaluation.write_text(
        "data_folder: nowhere\nsets: [{kind: similarity, name: a, path: b.jsonl}]\n", encoding="utf-8"
    )
    command = ["train", str(recipe_file("grace")), "--evaluate", str(evaluation), "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "nowhere/b.jsonl is not there" in result.output
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_be_written_is_said_before_a_model_is_loaded(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    recipe = load_recipe(recipe_file("grace"), ["model=/nowhere"])
    with pytest.raises(InputError, match=r"Cannot write .*file/run"):
        run_recipe(recipe, tmp_path / "file" / "run")
