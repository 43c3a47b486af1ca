"""The folder that ships: the mean of what was trained and what it was trained from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grace_nano.release import release
from grace_retrieval import GraceEmbedder, InputError
from grace_retrieval.loading import resolve_model

BASE = Path(resolve_model("grace-nano-base"))


def trained(folder: Path, step: float, keep: int | None = None) -> Path:
    """A model whose weights are `step` above those of grace-nano-base."""
    folder.mkdir()
    weights = {name: weight.float() + step for name, weight in load_file(BASE / "model.safetensors").items()}
    save_file(dict(list(weights.items())[:keep]), folder / "model.safetensors")
    return folder


def test_it_is_the_mean_of_the_runs_and_their_start(tmp_path: Path) -> None:
    runs = [trained(tmp_path / "one", 1.0), trained(tmp_path / "two", 3.0)]
    release(runs, tmp_path / "mean", share=0.5)
    before, after = load_file(BASE / "model.safetensors"), load_file(tmp_path / "mean" / "model.safetensors")
    assert after.keys() == before.keys() and all(weight.dtype == torch.bfloat16 for weight in after.values())
    for name, weight in after.items():
        torch.testing.assert_close(weight.float(), before[name].float() + 1.0, rtol=2**-8, atol=0)
    assert not (tmp_path / "mean" / "README.md").exists()  # that of the base would not be true of it
    embedder = GraceEmbedder(tmp_path / "mean", cache=None, device="cpu")
    assert embedder.writer.max_new_tokens == 192 and embedder.encode(["Tides follow the moon."]).shape == (1, 256)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", 1.0)
    with pytest.raises(InputError, match=r"missing has no model.safetensors: give a trained model"):
        release([tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(InputError, match="these weights have other names or shapes"):
        release([trained(tmp_path / "other", 0.0, keep=3)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="run exists: give a new folder"):
        release([run], run)
