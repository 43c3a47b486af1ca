"""The echo: each text is its own rationale. The baseline that says whether writing is worth its price."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from grace_retrieval import GraceEmbedder, GraceIndex
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError
from grace_retrieval.indexing import BuildOptions, build_index

TEXTS = ["Bread rises because yeast turns sugar into gas.", "Tides follow the moon."]
MakeEmbedder = Callable[..., GraceEmbedder]


def test_the_text_is_its_own_rationale(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(rationale="echo")
    found = embedder.encode_with_rationales(TEXTS, "document")
    assert [row.text for row in found.rationales] == TEXTS
    given = embedder.encode_document(TEXTS, rationales=TEXTS)
    np.testing.assert_allclose(found.vectors, given, atol=1e-6)
    np.testing.assert_allclose(embedder.encode_document(TEXTS), given, atol=1e-6)
    assert embedder.pipeline.engine.statistics()["new_tokens"] == 0


def test_vectors_are_means_over_prompt_and_text_twice(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(rationale="echo")
    pipeline = embedder.pipeline
    (shown,) = pipeline.render(TEXTS[:1], prompt=embedder.prompts["document"])
    start = shown.prefix_length
    ids = torch.tensor([shown.input_ids + shown.input_ids[start : start + shown.text_length]])
    with torch.inference_mode():
        states = pipeline.module.base_model(ids).last_hidden_state[0, start:].mean(0)
    expected = states / states.norm()
    np.testing.assert_allclose(embedder.encode_document(TEXTS[:1])[0], expected.numpy(), atol=1e-5)


def test_it_is_kept_apart_from_texts_and_written_ones(make_embedder: MakeEmbedder, tmp_path: Path) -> None:
    embedder = make_embedder(cache=tmp_path / "c.sqlite", max_new_tokens=4)
    vectors = {str(mode): embedder.encode_document(TEXTS, rationale=mode) for mode in (True, False, "echo")}
    assert not np.allclose(vectors["echo"], vectors["True"])
    assert not np.allclose(vectors["echo"], vectors["False"])
    again = make_embedder(cache=tmp_path / "c.sqlite", max_new_tokens=4)
    for mode in (True, False, "echo"):
        np.testing.assert_array_equal(again.encode_document(TEXTS, rationale=mode), vectors[str(mode)])
    assert again.pipeline.counts["generated"] == 0
    identities = {again.vector_identity(mode).document.digest() for mode in (True, False, "echo")}
    assert len(identities) == 3


def test_an_index_of_echoes(make_embedder: MakeEmbedder, tmp_path: Path) -> None:
    embedder = make_embedder()
    documents = [Document(id=str(place), text=text) for place, text in enumerate(TEXTS)]
    build_index(documents, tmp_path / "index", embedder=embedder, options=BuildOptions(rationale="echo"))
    index = GraceIndex.open(tmp_path / "index", embedder=embedder)
    assert index.manifest.rationale == "echo"
    query = embedder.encode_query(TEXTS[:1], rationale="echo")
    scores = query @ embedder.encode_document(TEXTS, rationale="echo").T
    found = index.search(TEXTS[0], k=2)
    np.testing.assert_allclose(sorted(found.scores, reverse=True), np.sort(scores[0])[::-1], atol=1e-5)


def test_explanations_of_echoes_add_up(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder()
    explanation = embedder.explain(TEXTS[0], TEXTS[1], rationale="echo")
    assert explanation.document.rationale.text == TEXTS[1]
    query, document = (encode(TEXTS, rationale="echo") for encode in (embedder.encode_query, embedder.encode_document))
    assert explanation.score == pytest.approx(float(query[0] @ document[1]), abs=1e-5)
    assert explanation.document.contributions.sum() == pytest.approx(explanation.score, abs=1e-9)


def test_a_long_text_is_echoed_as_far_as_positions_go(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(max_new_tokens=16, on_truncation="ignore")
    context = embedder.pipeline.options.context_length
    embedder.pipeline.options.max_seq_length = context - 16
    (row,) = embedder.pipeline.rows(["word " * 2000], rationale="echo")
    assert len(row.token_ids) <= context
    assert np.isfinite(row.vector).all()


def test_blank_texts_and_words_that_are_no_mode(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(rationale="echo")
    assert not embedder.encode_document(["  "]).any()
    with pytest.raises(InputError, match=r"rationale='twice': give True .* or 'echo'"):
        embedder.encode(TEXTS, rationale="twice")
    with pytest.raises(InputError, match="rationale='yes'"):
        make_embedder(rationale="yes")


def test_saved_and_described(make_embedder: MakeEmbedder, tmp_path: Path) -> None:
    from grace_retrieval.settings import EmbedderSettings

    embedder = make_embedder(rationale="echo")
    embedder.save_pretrained(str(tmp_path / "saved"))
    saved = GraceEmbedder(tmp_path / "saved", cache=None)
    assert saved.pipeline.options.rationale == "echo"
    settings = EmbedderSettings.of(saved)
    assert settings.rationale == "echo"
    assert settings.vector_identity().document.digest() == saved.vector_identity().document.digest()
