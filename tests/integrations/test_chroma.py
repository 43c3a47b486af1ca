"""Chroma: an embedding function that a collection remembers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("chromadb", reason="the extra 'chroma' is not installed")

import chromadb
from chromadb.config import Settings

from chroma_grace import GraceEmbeddingFunction
from grace_retrieval import GraceEmbedder, InputError, ModelMismatchError

TINY = str(Path(__file__).parents[1] / "fixtures" / "tiny-policy")
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "device": "cpu"}
TEXTS = ["The moon pulls on\nthe sea.", "Bread rises by yeast."]
QUERY = "Why are there tides?"


@pytest.fixture
def client(tmp_path: Path) -> Any:
    return chromadb.PersistentClient(str(tmp_path / "chroma"), Settings(anonymized_telemetry=False))


def fill(client: Any, function: GraceEmbeddingFunction) -> Any:
    collection = client.create_collection("passages", embedding_function=function)
    collection.add(ids=["a", "b"], documents=TEXTS)
    return collection


def test_roles_are_kept_apart_and_distances_are_those_of_the_vectors(client: Any) -> None:
    function = GraceEmbeddingFunction(TINY, OPTIONS)
    collection = fill(client, function)
    found = collection.query(query_texts=[QUERY], n_results=2)
    embedder = function.settings.embedder
    distances = 1 - embedder.encode_document(TEXTS) @ embedder.encode_query(QUERY)
    assert found["distances"][0] == pytest.approx(sorted(distances), abs=1e-5)
    assert found["ids"][0][0] == "ab"[int(np.argmin(distances))]
    stored = collection.get(ids=["a", "b"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, embedder.encode_document(TEXTS), atol=1e-6)


def test_a_collection_opens_by_itself_in_another_process(client: Any, tmp_path: Path) -> None:
    fill(client, GraceEmbeddingFunction(TINY, {**OPTIONS, "system_prompt": "Say what it is."}))
    expected = client.get_collection("passages").query(query_texts=[QUERY], n_results=2)["distances"]
    code = f"""
import chroma_grace, chromadb
from chromadb.config import Settings
client = chromadb.PersistentClient({str(tmp_path / "chroma")!r}, Settings(anonymized_telemetry=False))
print(client.get_collection("passages").query(query_texts=[{QUERY!r}], n_results=2)["distances"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert eval(result.stdout) == expected, result.stderr


def test_a_model_that_changed_under_a_collection_is_refused(
    client: Any, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    import torch

    trained = make_embedder()
    trained.save_pretrained(str(tmp_path / "model"))
    fill(client, GraceEmbeddingFunction(str(tmp_path / "model"), OPTIONS))
    with torch.no_grad():
        trained.writer.model.get_input_embeddings().weight.add_(0.05)
    trained.save_pretrained(str(tmp_path / "model"))
    collection = client.get_collection("passages")
    with pytest.raises(ModelMismatchError, match="weights"):
        collection.query(query_texts=[QUERY], n_results=1)
    with pytest.raises(ModelMismatchError, match="weights"):
        collection.add(ids=["c"], documents=["More."])


def test_another_function_is_refused_with_both_names(client: Any) -> None:
    fill(client, GraceEmbeddingFunction(TINY, OPTIONS))
    right, wrong = GraceEmbeddingFunction(TINY, OPTIONS), GraceEmbeddingFunction(TINY, {**OPTIONS, "truncate_dim": 16})
    right.require(client.get_collection("passages", embedding_function=right))
    with pytest.raises(ModelMismatchError, match=r"collection 'passages' holds .*tiny-policy.*dimension: 16 here"):
        wrong.require(client.get_collection("passages", embedding_function=wrong))
    client.create_collection("bare", embedding_function=None)
    with pytest.raises(InputError, match="No description of a vector identity"):
        right.require(client.get_collection("bare", embedding_function=None))
    with pytest.raises(ModelMismatchError, match="dimension: 16 here, 32 there"):
        wrong.validate_config_update(right.get_config(), wrong.get_config())
    right.validate_config_update(right.get_config(), right.get_config())


def test_the_configuration_comes_back_and_loads_nothing_before_the_first_text() -> None:
    function = GraceEmbeddingFunction(TINY, {**OPTIONS, "seed": 3})
    config = function.get_config()
    assert config["model"] == TINY and config["options"]["seed"] == 3
    again = GraceEmbeddingFunction.build_from_config(config)
    assert again.settings._slot.embedder is None
    assert again.get_config() == config
