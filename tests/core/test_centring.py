"""Centring: a role's mean is taken away, saved, part of the identity, and explanations stay exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from grace_retrieval import GraceEmbedder, GraceIndex, register
from grace_retrieval.centring import Centring
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.indexing import build_index
from grace_retrieval.settings import EmbedderSettings

MakeEmbedder = Callable[..., GraceEmbedder]
DOCUMENTS = [
    f"{subject} {verb}." for subject in ("Bread", "The tide", "Gas", "A moon") for verb in ("rises", "is", "x")
]
QUERIES = [f"why does {word} rise" for word in ("bread", "dough", "water", "gas", "a moon", "the sea", "it", "sugar")]


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder(max_new_tokens=4)


@pytest.mark.parametrize("directions", [0, 2])
def test_it_is_what_numpy_says(embedder: GraceEmbedder, directions: int) -> None:
    documents, queries = embedder.encode_document(DOCUMENTS), embedder.encode_query(QUERIES)
    embedder.fit_centring(DOCUMENTS, QUERIES, directions=directions)
    mean = documents.mean(0)
    axes = np.linalg.svd(documents - mean, full_matrices=False)[2][:directions]
    for found, raw, centre in (
        (embedder.encode_document(DOCUMENTS), documents, mean),
        (embedder.encode_query(QUERIES), queries, queries.mean(0)),
    ):
        moved = raw - centre
        moved -= moved @ axes.T @ axes
        np.testing.assert_allclose(found, moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=2e-5)
    with_rationales = embedder.encode_with_rationales(DOCUMENTS, "document").vectors
    np.testing.assert_allclose(with_rationales, embedder.encode_document(DOCUMENTS), atol=1e-6)


def test_fitting_again_starts_from_vectors_as_they_were(embedder: GraceEmbedder) -> None:
    first = embedder.fit_centring(DOCUMENTS, QUERIES).digest()
    modules = len(embedder)
    assert embedder.fit_centring(DOCUMENTS, QUERIES).digest() == first
    assert len(embedder) == modules


def test_cut_dimensions_and_blank_texts(embedder: GraceEmbedder) -> None:
    embedder.truncate_dim = 8
    embedder.fit_centring(DOCUMENTS, QUERIES)
    assert embedder.encode_document(DOCUMENTS).shape == (12, 8)
    embedder.truncate_dim = None
    whole, cut = embedder.encode_document(DOCUMENTS), embedder.encode_document(DOCUMENTS, truncate_dim=16)
    np.testing.assert_allclose(cut, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-5)
    assert not embedder.encode_document([" "]).any()


def test_vectors_of_before_and_after_are_told_apart(embedder: GraceEmbedder, make_embedder: MakeEmbedder) -> None:
    before = embedder.vector_identity()
    rows = embedder.pipeline.fingerprint("document").digest()
    fitted = embedder.fit_centring(DOCUMENTS, QUERIES)
    assert embedder.pipeline.fingerprint("document").digest() == rows, "rationales in the cache are as good as before"
    with pytest.raises(ModelMismatchError, match=rf"generation\.centring: '{fitted.digest()}' here, absent there"):
        embedder.vector_identity().require(before, "A store")
    same = make_embedder(max_new_tokens=4, centring=fitted.describe())
    embedder.vector_identity().require(same.vector_identity(), "A store")
    assert embedder.fingerprint("query") == same.fingerprint("query")


def test_saved_and_opened_in_every_way(
    embedder: GraceEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.fit_centring(DOCUMENTS, QUERIES, directions=1)
    expected = embedder.encode_query(QUERIES)
    embedder.save_pretrained(str(tmp_path / "saved"))
    opened = GraceEmbedder(tmp_path / "saved", cache=None)
    np.testing.assert_array_equal(opened.encode_query(QUERIES), expected)
    assert opened.centring is not None
    monkeypatch.setattr(SentenceTransformer, "_module_classes", SentenceTransformer._module_classes)  # for us alone
    register(cache=None)
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode_query(QUERIES), expected, atol=1e-5
    )
    settings = EmbedderSettings.of(embedder)
    copied = EmbedderSettings.model_validate_json(settings.model_dump_json())
    np.testing.assert_allclose(copied.embed_queries(QUERIES), expected, atol=1e-6)


def test_an_index_keeps_it(embedder: GraceEmbedder, tmp_path: Path) -> None:
    embedder.fit_centring(DOCUMENTS, QUERIES)
    documents = [Document(id=str(place), text=text) for place, text in enumerate(DOCUMENTS)]
    build_index(documents, tmp_path / "index", embedder=embedder)
    found = GraceIndex.open(tmp_path / "index").search(QUERIES[0], k=3)
    scores = embedder.encode_query(QUERIES[:1])[0] @ embedder.encode_document(DOCUMENTS).T
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:3], atol=1e-5)


def test_an_index_of_another_width_names_both_models(embedder: GraceEmbedder, tmp_path: Path) -> None:
    embedder.fit_centring(DOCUMENTS, QUERIES)
    build_index([Document(id="a", text=DOCUMENTS[0])], tmp_path / "index", embedder=embedder)
    with pytest.raises(ModelMismatchError, match="'grace-nano' is another one: centring of 32 dimensions"):
        GraceIndex.open(tmp_path / "index", embedder="grace-nano")


@pytest.mark.parametrize("dimension", [None, 16])
@pytest.mark.parametrize("directions", [0, 2])
def test_explanations_add_up(embedder: GraceEmbedder, dimension: int | None, directions: int) -> None:
    embedder.fit_centring(DOCUMENTS, QUERIES, directions=directions)
    explanations = embedder.explain(QUERIES[0], DOCUMENTS[:3], truncate_dim=dimension)
    query = embedder.encode_query(QUERIES[:1], truncate_dim=dimension)[0]
    scores = embedder.encode_document(DOCUMENTS[:3], truncate_dim=dimension) @ query
    alone = embedder.encode_document(DOCUMENTS[:3], truncate_dim=dimension, rationale=False) @ query
    for place, explanation in enumerate(explanations):
        assert explanation.score == pytest.approx(float(scores[place]), abs=2e-5)
        assert explanation.document.contributions.sum() == pytest.approx(explanation.score, abs=1e-6)
        assert explanation.query.contributions.sum() == pytest.approx(explanation.score, abs=1e-6)
        assert explanation.without_document_rationale.score == pytest.approx(float(alone[place]), abs=2e-5)


def test_first_words_stand_for_queries(embedder: GraceEmbedder) -> None:
    long = [f"{text} " + "and so on " * 20 for text in DOCUMENTS]
    words = [" ".join(text.split()[:12]) for text in long]
    expected = embedder.encode_query(words).mean(0)
    np.testing.assert_allclose(embedder.fit_centring(long).query, expected, atol=1e-5)


def test_what_cannot_be_fitted(embedder: GraceEmbedder) -> None:
    with pytest.raises(InputError, match="3 documents that are not blank: give 8 or more"):
        embedder.fit_centring([*DOCUMENTS[:3], " "])
    with pytest.raises(InputError, match=r"12 documents .*: give 41 or more"):
        embedder.fit_centring(DOCUMENTS, QUERIES, directions=40)
    assert embedder.centring is None
    kept = embedder.fit_centring(DOCUMENTS, QUERIES)
    with pytest.raises(InputError, match="3 documents"):
        embedder.fit_centring(DOCUMENTS[:3])
    assert embedder.centring is kept, "what cannot be fitted changes nothing"
    with pytest.raises(InputError, match="centring of 3 dimensions"):
        embedder._set_centring(Centring(np.zeros(3), np.zeros(3)))
    with pytest.raises(InputError, match="No description of a centring"):
        Centring.from_description({"document": "%%%"})
    with pytest.raises(InputError, match="NaN"):
        Centring(np.full(3, np.nan), np.zeros(3))
    with pytest.raises(InputError, match="Directions of 2 dimensions"):
        Centring(np.zeros(3), np.zeros(3), np.zeros((1, 2)))


def test_it_follows_the_dtype_of_vectors() -> None:
    centring = Centring(np.full(4, 0.5, np.float32), np.zeros(4, np.float32))
    vectors = torch.ones(1, 4, dtype=torch.bfloat16)
    found = centring({"sentence_embedding": vectors, "role": "document"})["sentence_embedding"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0.5] * 4]
