"""register(): code that knows nothing of GRACE opens a saved model by its path."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from grace_retrieval import GraceEmbedder, InputError, MemoryCache, SQLiteCache, register
from grace_retrieval.rationale_transformer import RationaleTransformer

NAME = "grace_retrieval.rationale_transformer.RationaleTransformer"
CENTRING = "grace_retrieval.centring.Centring"
TEXTS = ["What causes ocean tides?", "Bread rises.", ""]


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """As before, for other tests."""
    before = SentenceTransformer._module_classes
    yield
    SentenceTransformer._module_classes = before


@pytest.fixture
def saved(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    make_embedder(prompts={"query": "Ask.", "document": "Tell."}).save_pretrained(str(folder))
    return folder


def test_a_path_opens_with_the_same_vectors_and_without_trust(saved: Path) -> None:
    register(cache=None)
    plain = SentenceTransformer(str(saved), device="cpu")
    assert type(plain) is SentenceTransformer and type(plain[0]) is RationaleTransformer
    ours = GraceEmbedder(saved, cache=None, device="cpu")
    for one, other in [
        (plain.encode(TEXTS), ours.encode(TEXTS)),
        (plain.encode_query(TEXTS), ours.encode_query(TEXTS)),
        (plain.encode_document(TEXTS), ours.encode_document(TEXTS)),
    ]:
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_it_is_needed_and_may_be_called_again(saved: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(saved), device="cpu")
    for _ in range(3):
        register(cache=None)
    assert list(SentenceTransformer._module_classes) == [NAME, CENTRING]
    SentenceTransformer(str(saved), device="cpu")


def test_the_cache_is_shared_with_embedders(saved: Path, grace_cache_dir: Path) -> None:
    register()
    plain = SentenceTransformer(str(saved), device="cpu")
    assert isinstance(plain[0].cache, SQLiteCache) and plain[0].cache.path.parent == grace_cache_dir
    vectors = plain.encode_document(TEXTS)
    ours = GraceEmbedder(saved, device="cpu")
    np.testing.assert_allclose(ours.encode_document(TEXTS), vectors, atol=1e-6)
    assert ours.writer.engine.statistics()["texts"] == 0
    mine = MemoryCache()
    register(cache=mine)
    assert SentenceTransformer(str(saved), device="cpu")[0].cache is mine
    with pytest.raises(InputError, match=r"cache=.*: give"):
        register(cache=5)  # type: ignore[arg-type]


def test_a_class_of_others_is_still_not_loaded(saved: Path, tmp_path: Path) -> None:
    register(cache=None)
    modules = json.loads((saved / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (saved / "modules.json").write_text(json.dumps(modules))
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(saved), device="cpu")
    assert not (tmp_path / "executed").exists()


def test_a_model_opened_by_path_saves_and_opens_again(saved: Path, tmp_path: Path) -> None:
    register(cache=None)
    plain = SentenceTransformer(str(saved), device="cpu")
    plain.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    again = GraceEmbedder(tmp_path / "again", cache=None, device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), plain.encode_query(TEXTS), atol=1e-5)


@pytest.mark.parametrize("framework", ["chroma", "mteb"])
def test_frameworks_that_load_a_path_load_a_grace_model(saved: Path, framework: str, monkeypatch: Any) -> None:
    register(cache=None)
    expected = GraceEmbedder(saved, cache=None, device="cpu").encode(TEXTS)
    if framework == "chroma":
        functions = pytest.importorskip("chromadb.utils.embedding_functions", reason="chromadb is not installed")
        function = functions.SentenceTransformerEmbeddingFunction(model_name=str(saved), device="cpu")
        np.testing.assert_allclose(np.array(function(TEXTS)), expected, atol=1e-5)
    else:
        monkeypatch.setenv("MTEB_CACHE", str(saved.parent))
        models = pytest.importorskip("mteb.models", reason="mteb is not installed")
        wrapper = models.SentenceTransformerEncoderWrapper(str(saved), device="cpu")
        np.testing.assert_allclose(wrapper.model.encode(TEXTS), expected, atol=1e-5)


def test_what_is_private_to_sentence_transformers_is_as_we_know_it() -> None:
    """register() sets `_module_classes`, which `_load_module_class_from_ref` asks before it imports anything."""
    assert SentenceTransformer._module_classes == {}
    source = inspect.getsource(SentenceTransformer._load_module_class_from_ref)
    assert source.index("self._module_classes.get(class_ref)") < source.index("import_module_class")
    parameters = inspect.signature(SentenceTransformer._load_module_class_from_ref).parameters
    assert list(parameters)[:2] == ["self", "class_ref"]
