"""Which FAISS index is chosen, and that the choice can be built and is as large as it was said to be."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from grace_retrieval import InputError
from grace_retrieval.indexing.choose import RECALL, choose_index, index_bytes
from grace_retrieval.indexing.recommend import recommend_index


@pytest.mark.parametrize(
    ("vectors", "factory", "metric"),
    [(0, "Flat", "inner_product"), (100_000, "Flat", "inner_product"), (100_001, None, "l2"), (1_000_000, None, "l2")],
)
def test_by_size(vectors: int, factory: str | None, metric: str) -> None:
    choice = choose_index(vectors, 1024)
    if factory is None:  # beyond exact search it is the recommendation of `grace bench ann --recommend`
        recommended = recommend_index(vectors, 1024, recall=RECALL)
        factory = recommended.factory
        assert ",".join(f"{name}={value}" for name, value in choice.search.items()) == recommended.search.replace(
            "k_factor_rf", "k_factor"
        )
    assert (choice.factory, choice.metric) == (factory, metric)
    assert f"{vectors:,} vectors" in choice.explanation


def test_by_memory() -> None:
    small = choose_index(50_000, 1024, memory_bytes=100_000_000)  # Flat would take 205 MB
    assert small.factory == recommend_index(50_000, 1024, memory_bytes=100_000_000, recall=RECALL).factory != "Flat"
    assert small.bytes <= 100_000_000
    smaller = choose_index(50_000, 1024, memory_bytes=40_000_000)
    assert "Refine" not in smaller.factory
    assert smaller.bytes <= 40_000_000
    assert "38.1 MiB" in smaller.explanation or "38 MiB" in smaller.explanation
    with pytest.raises(InputError, match="fits into"):
        choose_index(50_000, 1024, memory_bytes=1_000_000)


def test_a_factory_string_overrides() -> None:
    choice = choose_index(10, 64, factory="HNSW32,SQ8")
    assert (choice.factory, choice.metric, dict(choice.search)) == ("HNSW32,SQ8", "l2", {"efSearch": 256})


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "SQ4", "SQfp16", "HNSW32,Flat", "HNSW32,SQ8", "IVF64,SQ8", "IVF64,PQ16x4fs,Refine(SQ8)"]
)
def test_sizes_are_those_of_faiss(factory: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)
    index = faiss.index_factory(64, factory, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    assert index_bytes(factory, 5000, 64) == pytest.approx(len(faiss.serialize_index(index)), rel=0.12)


@pytest.mark.parametrize("dimension", [7, 64, 100, 768, 1536])
def test_every_choice_can_be_made_by_faiss(dimension: int) -> None:
    for memory in (None, 200_000 * (dimension // 2 + 9)):
        choice = choose_index(200_000, dimension, memory_bytes=memory)
        assert faiss.index_factory(dimension, choice.factory, faiss.METRIC_L2).d == dimension


def test_arguments() -> None:
    with pytest.raises(InputError, match="positive"):
        choose_index(-1, 4)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("PQ4x8", r"Number of training points \(9\) should be at least as large as number of clusters \(256\)"),
        ("PQ3", "d % M == 0|multiple|divi"),
        ("Nonsense", "could not parse index string Nonsense"),
    ],
)
def test_the_reason_of_faiss_survives_and_its_signature_does_not(factory: str, reason: str) -> None:
    from grace_retrieval.indexing.commit import FaissOptions, check_faiss

    with pytest.raises(InputError, match=f"FAISS cannot make an index '{factory}'.*({reason})") as caught:
        check_faiss(FaissOptions(factory=factory), rows=9, dimension=16)
    for part in ("::", ".cpp", "Error in", "virtual"):
        assert part not in str(caught.value)
    check_faiss(FaissOptions(factory="PQ4x8"), rows=300, dimension=16)
