"""Arguments of HuggingFaceEmbeddings and HuggingFaceEmbedding: taken, or refused with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from grace_retrieval.settings import EmbedderSettings

OPTIONS: dict[str, Any] = {"cache": None, "device": "cpu", "rationale": False}


@pytest.fixture(params=["langchain", "llama_index"])
def face(request: pytest.FixtureRequest) -> Any:
    if request.param == "langchain":
        pytest.importorskip("langchain_core")
        from langchain_grace import GraceEmbeddings

        return GraceEmbeddings
    pytest.importorskip("llama_index.core")
    from llama_index.embeddings.grace import GraceEmbedding

    return GraceEmbedding


def test_either_name_of_the_model_is_taken(face: Any, tiny_policy: Path) -> None:
    made = [face(**{name: str(tiny_policy)}, **OPTIONS) for name in ("model", "model_name")]
    assert made[0].embed_query("tides") == made[1].embed_query("tides")
    assert len(made[0].embed_query("tides")) == 32
    with pytest.raises(ValueError, match="contradict each other"):
        face(model="grace-nano", model_name="grace-nano-base")


def test_arguments_of_langchain_mean_the_same(tiny_policy: Path) -> None:
    given = EmbedderSettings(
        model_name=str(tiny_policy),
        model_kwargs={"device": "cpu", "model_kwargs": {"dtype": "float32"}},
        encode_kwargs={"normalize_embeddings": True, "batch_size": 8, "prompt": "Both."},
        query_encode_kwargs={"prompt": "Query."},
        multi_process=False,
        show_progress=False,
        cache_folder="models",
        cache=None,
    )
    assert given.model == str(tiny_policy) and given.device == "cpu" and given.model_kwargs == {"dtype": "float32"}
    assert given.prompts == {"query": "Query.", "document": "Both."}
    assert given.show_progress is False and given.cache_folder == "models"
    plain = EmbedderSettings(model=str(tiny_policy), prompts=given.prompts, device="cpu", cache=None)
    assert given.embed_documents(["tides"]) == plain.embed_documents(["tides"])
    assert given.embed_query("tides") == plain.embed_query("tides")


def test_arguments_of_llama_index_mean_the_same() -> None:
    given = EmbedderSettings(
        model_name="grace-nano", max_length=128, query_instruction="Q.", text_instruction="T.", normalize=True,
        trust_remote_code=False, show_progress_bar=True,
    )  # fmt: skip
    assert (given.max_seq_length, given.show_progress) == (128, True)
    assert given.prompts == {"query": "Q.", "document": "T."}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multi_process": True}, "multi_process=True: .*runner ray"),
        ({"trust_remote_code": True}, "trust_remote_code=True: code of a model's repository is never run"),
        ({"model_kwargs": {"trust_remote_code": True}}, "is never run"),
        ({"encode_kwargs": {"normalize_embeddings": False}}, "vectors always have length 1"),
        ({"encode_kwargs": {"precision": "int8"}}, "precision='int8': vector stores are given float32"),
        ({"encode_kwargs": {"prompt_name": "query"}}, "have their own prompts"),
        ({"encode_kwargs": {"normalise": True}}, "normalise=True means nothing here"),
        ({"encode_kwargs": 5}, "encode_kwargs=5: give a mapping"),
        ({"pooling": "cls"}, "pooling='cls': vectors are means"),
        ({"model_kwargs": {"device": "cpu"}, "device": "cuda"}, "contradict each other"),
        ({"trunkate_dim": 5}, r"trunkate_dim=5: no such option\. Did you mean truncate_dim"),
    ],
)
def test_what_has_no_meaning_is_refused_with_what_to_write(face: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        face(model="grace-nano", **arguments)


def test_progress_shows_where_it_is_asked_for(face: Any, tiny_policy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    face(model=str(tiny_policy), **OPTIONS).embed_documents(["a", "b"])
    assert "2/2" not in capfd.readouterr().err
    face(model=str(tiny_policy), show_progress=True, **OPTIONS).embed_documents(["a", "b"])
    assert "2/2" in capfd.readouterr().err


def test_every_face_takes_the_default_model(face: Any) -> None:
    from grace_retrieval.bundled import DEFAULT_MODEL

    name = {"GraceEmbeddings": "model", "GraceEmbedding": "model_name"}[face.__name__]
    assert getattr(face(cache=None), name) == DEFAULT_MODEL == EmbedderSettings(cache=None).model
