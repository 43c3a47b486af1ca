"""Importing an embedder leaves out what it does not need, and leaves nothing behind that others would notice."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grace_retrieval.importing import light_imports

ROOT = Path(__file__).parents[2]
pytest.importorskip("sklearn")


def run_child(code: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", ["grace_retrieval", "grace_retrieval.embedder"])
def test_an_embedder_is_a_sentence_transformer_without_scikit_learn_until_that_is_used(way: str) -> None:
    code = f"""
import gc, sys
from {way} import GraceEmbedder
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import manhattan_sim
import torch
print(issubclass(GraceEmbedder, SentenceTransformer), gc.isenabled())
print([name for name in sys.modules if "sklearn" in name])
vectors = torch.eye(3).to_sparse()
print(manhattan_sim(vectors, vectors).tolist() == (-torch.cdist(torch.eye(3), torch.eye(3), p=1)).tolist())
import sklearn.metrics
print(sklearn.metrics.f1_score([1, 0], [1, 0]))
"""
    assert run_child(code) == ["True True", "[]", "True", "1.0"]


@pytest.mark.parametrize(
    "line",
    ["from sklearn.metrics import f1_score", "from sklearn.metrics.pairwise import cosine_distances as f1_score"],
)
def test_what_else_is_imported_meanwhile_is_the_real_thing(line: str) -> None:
    code = f"""
from grace_retrieval.importing import light_imports
with light_imports():
    {line}
import sklearn.metrics
print(sklearn.metrics.__file__.endswith("__init__.py"), sklearn.metrics.pairwise.cosine_distances([[1.0]], [[1.0]])[0])
print(f1_score is sklearn.metrics.f1_score or f1_score is sklearn.metrics.pairwise.cosine_distances)
"""
    assert run_child(code) == ["True [0.]", "True"]


def test_a_collector_that_was_switched_off_stays_off() -> None:
    gc.disable()
    try:
        with light_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ModuleNotFoundError), light_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
