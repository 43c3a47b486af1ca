"""The folder that ships: a mean of trained weights and those before, in bfloat16, and all else as before training.

See `grace_training.interpolation` for the mean.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

from grace_retrieval.errors import InputError
from grace_retrieval.loading import resolve_model
from grace_training.interpolation import interpolated

__all__ = ["release"]

_WEIGHTS = "model.safetensors"


def release(
    trained: Annotated[list[Path], typer.Argument(help="Folders of trained models, such as RUN/model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it may not exist yet.")],
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the trained weights.")] = 1.0,
    base: Annotated[str, typer.Option(help="What they were trained from; gives tokenizer, prompts and limits.")] = (
        "grace-nano-base"
    ),
) -> None:
    """Put the mean of trained weights and those before into a folder like that of the model before training.

    So it writes its rationales to the end and reads long texts, however short both were cut in training.

    Args:
        trained: Folders of trained models.
        out: Folder to write.
        share: Share of the trained weights, in equal parts, from 0 to 1.
        base: What they were trained from.

    Raises:
        InputError: If a folder is missing or in the way, or the trained weights are of another shape.
    """
    if out.exists():
        raise InputError(f"{out} exists: give a new folder.")
    for folder in trained:
        if not (folder / _WEIGHTS).is_file():
            raise InputError(f"{folder} has no {_WEIGHTS}: give a trained model, such as runs/grace-nano-seed1/model.")
    source = Path(resolve_model(base))
    weights = interpolated(load_file(source / _WEIGHTS), [load_file(folder / _WEIGHTS) for folder in trained], share)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights}
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(_WEIGHTS, "README.md"))
    save_file(rounded, out / _WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    typer.run(release)
