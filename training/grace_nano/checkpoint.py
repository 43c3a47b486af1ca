"""Checkpoints that are never half written: every file appears under its name complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

__all__ = ["export_model", "load_checkpoint", "save_checkpoint"]


def _unique_weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}


def export_model(model: LlamaForCausalLM, tokenizer_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that the stock `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
        model: The model; it is left as it is.
        tokenizer_folder: Folder of the saved tokenizer, whose files are copied.
        folder: Target; existing files are replaced one by one, each atomically.
        dtype: Type of the written weights.
    """
    staging = folder.with_name(f".{folder.name}-staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_folder / name, staging / name)
    config = json.loads(model.config.to_json_string(use_diff=True))
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["architectures"] = ["LlamaForCausalLM"]
    config["use_cache"] = True
    (staging / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    text = json.dumps({**generation, "transformers_version": config["transformers_version"]}, indent=2)
    (staging / "generation_config.json").write_text(text + "\n", encoding="utf-8")
    weights = {name: tensor.to(dtype) for name, tensor in _unique_weights(model).items()}
    save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
    (staging / "model.safetensors").chmod(0o644)
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        os.replace(path, folder / path.name)
    staging.rmdir()


def save_checkpoint(
    folder: Path,
    model: LlamaForCausalLM,
    optimizers: dict[str, torch.optim.Optimizer],
    progress: dict[str, Any],
) -> None:
    """Write weights, optimiser states and progress, then make them the latest checkpoint.

    Args:
        folder: Folder of checkpoints; older ones in it are removed afterwards.
        model: The model.
        optimizers: Optimisers by name.
        progress: JSON data from which training goes on; must hold `step`.
    """
    name = f"step-{progress['step']:06d}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_file(_unique_weights(model), target / "model.safetensors")
    torch.save({key: value.state_dict() for key, value in optimizers.items()}, target / "optimizers.pt")
    (target / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    pointer = folder / ".latest.tmp"
    pointer.write_text(name, encoding="utf-8")
    os.replace(pointer, folder / "latest")
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Restore the latest checkpoint in place.

    Returns:
        The progress that was saved with it, or None when there is no checkpoint.
    """
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    source = folder / pointer.read_text(encoding="utf-8").strip()
    weights = load_file(source / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    states = torch.load(source / "optimizers.pt", weights_only=True)
    for key, optimizer in optimizers.items():
        optimizer.load_state_dict(states[key])
    progress: dict[str, Any] = json.loads((source / "progress.json").read_text(encoding="utf-8"))
    return progress
