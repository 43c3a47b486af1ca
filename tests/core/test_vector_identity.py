"""VectorIdentity: vectors of one model are never compared with those of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grace_retrieval import GraceEmbedder, InputError, ModelMismatchError, VectorIdentity


@pytest.fixture
def identity(make_embedder: Callable[..., GraceEmbedder]) -> Callable[..., VectorIdentity]:
    def of(rationale: bool | None = None, **arguments: object) -> VectorIdentity:
        return make_embedder(**arguments).vector_identity(rationale)

    return of


def test_two_embedders_of_one_model_have_one_identity(identity: Callable[..., VectorIdentity]) -> None:
    here, there = identity(), identity(cache="memory", max_batch_tokens=4096)
    assert here == there and here.digest() == there.digest()
    here.require(there, "the index")


def test_it_survives_json(identity: Callable[..., VectorIdentity]) -> None:
    here = identity()
    there = VectorIdentity.from_description(json.loads(json.dumps(here.describe())))
    assert there == here and there.describe() == here.describe()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"system_prompt": "Say what it is."}, "prompt"),
        ({"prompts": {"query": "Say what is asked."}}, "query prompt"),
        ({"max_new_tokens": 5}, "generation.max_new_tokens: 8 here, 5 there"),
        ({"truncate_dim": 16}, "dimension: 32 here, 16 there"),
        ({"rationale": False}, "generation.max_new_tokens: 8 here, absent there"),
    ],
)
def test_what_changes_a_vector_changes_the_identity(
    identity: Callable[..., VectorIdentity], arguments: dict[str, object], named: str
) -> None:
    here, there = identity(), identity(**arguments)
    assert here.digest() != there.digest()
    with pytest.raises(ModelMismatchError, match=named) as caught:
        here.require(there, "the index")
    assert str(caught.value).startswith("the index holds vectors of the model ")


def test_other_weights_are_refused_with_both_names(
    identity: Callable[..., VectorIdentity], make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    other = make_embedder()
    with torch.no_grad():
        next(other.writer.model.parameters()).add_(0.5)
    other.save_pretrained(str(tmp_path / "other"))
    here, there = identity(), identity(model=tmp_path / "other")
    with pytest.raises(ModelMismatchError) as caught:
        here.require(there, "the index")
    assert here.model in str(caught.value) and there.model in str(caught.value) and here.model != there.model


def test_something_else_is_no_description() -> None:
    with pytest.raises(InputError, match="No description of a vector identity"):
        VectorIdentity.from_description({"model": "grace-nano"})
