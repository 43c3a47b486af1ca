"""The folder that ships: the adapter of a run in bfloat16, with prompts and limits, and the base by name and content.

python -m grace_small.release runs/grace-small-seed0 --out grace_retrieval/models/grace-small
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from grace_retrieval.errors import InputError
from grace_retrieval.fetching import FETCHED_MODELS, fetch
from grace_retrieval.gguf.header import hash_file
from grace_training.run import MODEL_FOLDER

__all__ = ["LIMITS", "release"]

BASE = "SmolLM2-135M-Instruct"

LIMITS: dict[str, Any] = {"max_seq_length": 512, "max_new_tokens": 48, "stop_repeats": True}
"""What the embedder is given, however short texts were cut in training."""

_SETTINGS = ("modules.json", "config_sentence_transformers.json", "1_Pooling", "2_Normalize")
_UNUSED = {"peft_version", "inference_mode", "base_model_name_or_path", "revision"}
_UNUSED |= {"megatron_core", "qalora_group_size"}
"""Parts of PEFT's configuration that say where and with what it was saved, or nothing about this kind of adapter."""


def release(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, with its last checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it may not exist yet.")],
    rationale: Annotated[bool, typer.Option(help="Whether it writes unless told otherwise.")] = True,
) -> None:
    """Put a run's adapter into a folder that `GraceEmbedder` opens.

    Args:
        run: Folder of the run.
        out: Folder to write.
        rationale: Whether the embedder writes rationales unless it is told otherwise.

    Raises:
        InputError: If the run is not finished, or the folder is in the way.
    """
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    if not checkpoints or not (run / MODEL_FOLDER).is_dir():
        raise InputError(f"{run} holds no finished run with a checkpoint: give the folder of `grace train --out`.")
    if out.exists():
        raise InputError(f"{out} exists: give a new folder.")
    if BASE not in FETCHED_MODELS:
        raise InputError(f"{BASE} cannot be fetched any more: the adapter has no base.")
    out.mkdir(parents=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(_file(checkpoints[-1])).items()}
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_model.safetensors").chmod(0o644)
    config = json.loads((checkpoints[-1] / "adapter_config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in sorted(config.items()) if key not in _UNUSED and value not in (None, {}, [])}
    kept["target_modules"] = sorted(kept["target_modules"])
    _write(out / "adapter_config.json", {"base_model_name_or_path": BASE, **kept})
    _write(out / "grace_base.json", {"identity": f"gguf-{hash_file(fetch(BASE))}"})
    for name in _SETTINGS:
        source = run / MODEL_FOLDER / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, out / name)
    settings = json.loads((run / MODEL_FOLDER / "grace_config.json").read_text(encoding="utf-8"))
    _write(out / "grace_config.json", {**settings, **LIMITS, "rationale": rationale})


def _file(checkpoint: Path) -> Path:
    return checkpoint / "adapter_model.safetensors"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(release)
