"""Arguments of GraceEmbedder and `encode`: what is unknown, of another kind or not there is said in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from grace_retrieval import GraceEmbedder, InputError
from grace_retrieval.near import near_names


@pytest.fixture(scope="module")
def embedder() -> GraceEmbedder:
    return GraceEmbedder("grace-nano", cache=None, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "model is int: give a bundled model"),
        ({"model": None}, "model is None: give"),
        ({"model": ""}, "model is '': give"),
        ({"device": "abacus"}, r"device='abacus' cannot be used .*device='cpu'"),
        ({"device": 3}, "device='3' cannot be used"),
        ({"truncate_dim": 0}, "truncate_dim=0: give a whole number from 1 to 256"),
        ({"truncate_dim": 257}, "truncate_dim=257: give"),
        ({"backend": "onnx"}, "backend='onnx'"),
        ({"prompts": ["a"]}, r"prompts=\['a'\]: give a mapping"),
        ({"similarity_fn_name": "near"}, "only supports similarity_fn_name"),
        ({"default_prompt_name": "quer"}, "Default prompt name 'quer' not found"),
    ],
)
def test_what_no_embedder_is_loaded_with(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraceEmbedder(**{"model": "grace-nano", "cache": None, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(embedder: GraceEmbedder, device: str) -> None:
    with pytest.raises(InputError, match=rf"device='{device}' cannot be used"):
        GraceEmbedder("grace-nano", cache=None, device=device)
    with pytest.raises(InputError, match=rf"device='{device}' cannot be used"):
        embedder.encode(["a"], device=device)


def test_an_unknown_argument_is_said_with_names_that_are_near() -> None:
    with pytest.raises(TypeError, match=r"GraceEmbedder takes no argument 'max_tokens'\. Did you mean max_new_tokens"):
        GraceEmbedder("grace-nano", cache=None, max_tokens=5)
    assert near_names("colour", ["title", "year"]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e: e.encode("a", normalise_embeddings=True),
            r"takes no normalise_.* Did you mean normalize_embeddings",
        ),
        (lambda e: e.encode_query("a", rational=True), "Did you mean rationale"),
        (lambda e: e.encode("a", precision="int9"), r"precision='int9': give one of .*Did you mean int8"),
        (lambda e: e.encode("a", output_value="token"), "output_value='token': .*token_embeddings"),
        (lambda e: e.encode("a", prompt_name="querry"), r"prompt_name='querry' not found: .*Did you mean query\?"),
        (lambda e: e.encode("a", batch_size="4"), "batch_size='4': give a positive number"),
        (lambda e: e.encode("a", truncate_dim=0), "truncate_dim=0: give"),
        (lambda e: e.encode({"a": 1}), "The texts are dict: give a list"),
        (lambda e: e.encode({"a", "b"}), "The texts are set: give a list"),
        (lambda e: e.similarity("a", ["b"]), "these are texts: embed them first"),
        (lambda e: e.similarity_pairwise(["a"], ["b"]), "these are texts: embed them first"),
    ],
)
def test_what_cannot_be_encoded(embedder: GraceEmbedder, call: Callable[[GraceEmbedder], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(embedder)


def test_similarity_is_that_of_sentence_transformers(embedder: GraceEmbedder) -> None:
    a, b = np.eye(3, dtype=np.float32), np.array([[0.6, 0.8, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(embedder.similarity(a, b)[:, 0], [0.6, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(embedder.similarity_pairwise(a[:1], b), [0.6], atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("truncate_dim", [None, 20])
def test_no_texts_give_no_vectors_of_the_precision(
    embedder: GraceEmbedder, precision: str, truncate_dim: int | None
) -> None:
    options: dict[str, Any] = {"precision": precision, "truncate_dim": truncate_dim, "rationale": False}
    some, none = embedder.encode(["a", "b"], **options), embedder.encode([], **options)
    assert none.shape == (0, some.shape[1]) and none.dtype == some.dtype
    tensor = embedder.encode([], convert_to_tensor=True, **options)
    assert tensor.shape == none.shape and torch.as_tensor(some).dtype == tensor.dtype
