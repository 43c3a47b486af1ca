"""Recipes: read, changed, refused; and run from a file to a folder that opens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from grace_retrieval import GraceEmbedder, InputError
from grace_training.recipe import list_recipes, load_recipe

ROOT = Path(__file__).parents[2]
PAPER = [name for name in list_recipes() if name.startswith("paper-")]


def test_another_end_token_is_saved_with_the_model(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    from grace_retrieval.loading import end_tokens
    from grace_training.run import run_recipe

    folder = run_recipe(load_recipe(recipe_file("reasoning"), ["end_token=append"]), tmp_path / "run")
    writer = GraceEmbedder(folder, cache=None, device="cpu").writer
    assert writer.tokenizer.get_vocab()["append"] in end_tokens(writer.model, writer.tokenizer)
    with pytest.raises(InputError, match="end_token='no such token'"):
        run_recipe(load_recipe(recipe_file("reasoning"), ["end_token=no such token"]), tmp_path / "other")


@pytest.mark.parametrize("method", ["contrastive", "grace"])
def test_saved_weights_lie_between_those_before_and_after_training(
    recipe_file: Callable[..., Path], method: str, tmp_path: Path
) -> None:
    from grace_training.run import run_recipe

    def weights(model: str | Path) -> dict[str, torch.Tensor]:
        policy = GraceEmbedder(model, cache=None, device="cpu").writer.model
        return {name: weight.detach().float() for name, weight in policy.named_parameters()}

    recipe = load_recipe(recipe_file(method))
    before = weights(recipe.model)
    after = weights(run_recipe(recipe, tmp_path / "whole", seed=3))
    share = replace(recipe, interpolation=0.25)
    between = weights(run_recipe(share, tmp_path / "share", seed=3))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-4
    for name in before:
        expected = 0.25 * after[name] + 0.75 * before[name]
        torch.testing.assert_close(between[name], expected, rtol=0, atol=moved * 1e-3)


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("contrastive", ["interpolation=1.5"], r"interpolation=1.5: give the share of the trained weights"),
        ("contrastive", ["interpolation=half"], r"interpolation='half': give the share"),
        ("eos", ["interpolation=0.5"], "interpolation is for whole weights: not with lora, nor with method eos"),
        ("grace", ["interpolation=0.5", "lora={r: 4}"], "interpolation is for whole weights"),
    ],
)
def test_interpolation_is_refused_where_it_means_nothing(
    recipe_file: Callable[..., Path], method: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(recipe_file(method), overrides)


def test_the_recipes_that_come_along_can_be_read_and_are_described() -> None:
    found = list_recipes()
    assert len(PAPER) == 4 and {f"nano-{m}" for m in ("base", "reasoning", "contrastive", "paper", "grace")} <= set(
        found
    )
    for name in found:
        recipe = load_recipe(name)
        assert recipe.description and recipe.name == name


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_starts_on_a_miniature_of_its_architecture(
    name: str, tmp_path: Path, pairs: Any, make_model: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> None:
    pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")
    from grace_training.run import run_recipe

    architecture = "llama" if "llama" in name else "qwen3" if "qwen3" in name else "qwen2"
    model = make_model(architecture, max_position_embeddings=4096)
    model.generation_config.eos_token_id = [*range(300, 400)]
    model.save_pretrained(tmp_path / "miniature")
    make_tokenizer().save_pretrained(tmp_path / "miniature")
    pairs.to_json(str(tmp_path / "e5-public.jsonl"))
    small = ["max_steps=1", "use_cpu=true", "bf16=false", "disable_tqdm=true", "save_strategy=no"]
    # One process instead of four; everything else as published.
    small += ["per_device_train_batch_size=8", "gradient_accumulation_steps=4", "steps_per_generation=4"]
    recipe = load_recipe(
        name,
        [
            f"model={tmp_path / 'miniature'}",
            f"data_folder={tmp_path}",
            "embedder.max_new_tokens=8",
            *(f"training.{option}" for option in small),
        ],
    )
    assert recipe.training["learning_rate"] == 1e-6 and recipe.training["num_generations"] == 8
    GraceEmbedder(run_recipe(recipe, tmp_path / "run"), cache=None, device="cpu")


def given_rationales(recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe of the method sft, with rationales beside its pairs."""
    path = recipe_file("sft")
    rows = [
        {
            "query": f"what of {word}",
            "positive": f"a text on {word}",
            "query_rationale": f"all about {word}",
            "positive_rationale": f"it tells of {word}",
        }
        for word in ("tides", "bread", "moon", "honey", "iron", "glass", "rain", "snow")
    ]
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["data"] = [{"path": str(given)}]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_given_rationales_are_learned(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    from grace_training.run import run_recipe

    path = given_rationales(recipe_file, tmp_path)
    recipe = load_recipe(path, ["training.max_steps=30", "training.learning_rate=3e-3", "training.logging_steps=1"])
    folder = run_recipe(recipe, tmp_path / "run", seed=3)
    assert GraceEmbedder(folder, cache=None, device="cpu").writer.rationale is True
    logged = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["texts/lm_loss"] for entry in logged if "texts/lm_loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("sft", [], "name their columns query_rationale and positive_rationale"),
        ("sft", ["training.rationale_every=2"], "rationale_every=2: method sft writes nothing"),
        ("grace", ["teacher=all-MiniLM-L6-v2"], "rationale_every=1 leaves none"),
        ("contrastive", ["teacher=all-MiniLM-L6-v2"], "for the methods grace and sft, not contrastive"),
    ],
)
def test_rationales_and_teachers_that_have_no_use_are_refused(
    recipe_file: Callable[..., Path], tmp_path: Path, method: str, overrides: list[str], message: str
) -> None:
    from grace_training.run import run_recipe

    with pytest.raises(InputError, match=message):
        run_recipe(load_recipe(recipe_file(method), overrides), tmp_path / "run")


@pytest.mark.parametrize("method", ["base", "reasoning", "contrastive", "simcse", "eos", "paper", "grace"])
def test_every_method_gives_a_folder_that_opens(recipe_file: Callable[..., Path], method: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from grace_training.run import run_recipe

    folder = run_recipe(load_recipe(recipe_file(method)), tmp_path / "run", seed=3)
    text = ["a text on tides"]
    if method == "eos":
        vectors = SentenceTransformer(str(folder), device="cpu").encode(text)
    else:
        embedder = GraceEmbedder(folder, cache=None, device="cpu")
        assert embedder.writer.rationale == (method in ("reasoning", "paper", "grace"))
        vectors = embedder.encode_document(text)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["seed"] == 3 and record["recipe"]["method"] == method
    with pytest.raises(InputError, match="this run is finished"):
        run_recipe(load_recipe(recipe_file(method)), tmp_path / "run")


def test_overrides(recipe_file: Callable[..., Path]) -> None:
    path = recipe_file("grace")
    recipe = load_recipe(path, ["training.learning_rate=1e-5", "lora.r=8", "embedder.max_new_tokens=16"])
    assert recipe.training["learning_rate"] == 1e-5 and recipe.lora == {"r": 8}
    assert recipe.embedder["max_new_tokens"] == 16
    for override, message in (
        ("learning_rate", "give key=value"),
        ("method.x=1", "is no mapping"),
        ("a=1", "unknown a"),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [", "is not YAML"),
        ("just words", "is no recipe"),
        ("method: magic", "method='magic': give one of base"),
        ("method: grace", "method grace needs data"),
        ("method: grace\ndata: [a.jsonl]", "a source is a mapping"),
        ("method: grace\ndata: [{path: a.jsonl, column: b}]", "a source is a mapping"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_recipe(path)
    with pytest.raises(InputError, match="There is no recipe 'nothing'"):
        load_recipe("nothing")


def test_a_contrastive_run_that_goes_on_ends_with_the_weights_of_one_that_never_stopped(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    from grace_training.run import run_recipe

    training = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "logging_steps": 1}
    four = recipe_file("contrastive", **training, max_steps=4)
    weights = {}
    for name, recipe in (("whole", load_recipe(four)), ("start", load_recipe(four, ["training.max_steps=2"]))):
        run_recipe(recipe, tmp_path / name)
    shutil.copytree(tmp_path / "start", tmp_path / "more", ignore=shutil.ignore_patterns("model", "run.json"))
    run_recipe(load_recipe(four), tmp_path / "more", resume=True)
    for name in ("whole", "start", "more"):
        model = GraceEmbedder(tmp_path / name / "model", cache=None, device="cpu").writer.model
        weights[name] = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    np.testing.assert_allclose(weights["more"], weights["whole"], atol=1e-6)
    assert np.abs(weights["start"] - weights["whole"]).max() > 1e-4


@pytest.mark.parametrize("method", ["grace", "contrastive"])
def test_sigterm_saves_a_checkpoint_and_the_run_goes_on_from_it(
    recipe_file: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    path = recipe_file(method, max_steps=2000, save_steps=10_000, logging_steps=1)
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "training"))
    command = [sys.executable, "-m", "grace_training", str(path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = ""
    for line in process.stdout or ():
        seen += line
        if "'loss'" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, seen + rest
    assert "the same command with --resume goes on" in rest
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    steps = int(checkpoint.name.split("-")[1])
    assert 1 <= steps < 2000
    command += ["--resume", "--override", f"training.max_steps={steps + 1}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and "Trained: " in done.stdout, done.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["steps"] == steps + 1 and record["log"][-1]["step"] == steps + 1
