"""Adding to an index, updating it and deleting from it: the result is the index of what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import GraceIndex, InputError, ModelMismatchError
from grace_retrieval.indexing import BuildOptions, Document, FaissOptions, build_index, delete_documents
from grace_retrieval.indexing.verification import verify_index
from tests.indexing.conftest import make_documents, stored_rows

OPTIONS = BuildOptions(shard_rows=20)


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shards").iterdir())


def test_add_keeps_what_is_there(build: Callable[..., Path]) -> None:
    documents = make_documents(90)
    folder = build(documents[:50], shard_rows=20)
    before = shard_names(folder)
    summary = build_index(documents, folder, options=OPTIONS, mode="add")
    assert (summary.added, summary.duplicates.unchanged) == (40, 50)
    assert shard_names(folder)[:3] == before
    assert stored_rows(folder)["id"] == [document.id for document in documents]
    assert verify_index(folder).ok
    assert summary.manifest.generation == 2
    again = build_index(documents, folder, options=OPTIONS, mode="add")
    assert again.manifest == summary.manifest
    query = documents[70].vector
    assert GraceIndex.open(folder).search_vectors(query, k=1)[0].ids == ["d70"]


@pytest.mark.parametrize(
    "factory", ["IVF8,SQ8", "IVF8,PQ8x4fs,Refine(SQ8)", "HNSW16,SQ8", "OPQ8,IVF8,PQ8x4fs,Refine(Flat)"]
)
@pytest.mark.filterwarnings("ignore:.*training points:UserWarning")
def test_added_vectors_go_into_the_trained_index_and_a_deletion_trains_anew(
    factory: str, build: Callable[..., Path]
) -> None:
    import faiss

    def trained(folder: Path) -> tuple[list[int], int]:
        """Something that training decides, the code of a vector that is in no index; and the number of vectors."""
        owner = faiss.read_index(str(folder / GraceIndex.open(folder).manifest.faiss.name))
        index = faiss.downcast_index(owner)
        base = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
        encoder = faiss.downcast_index(base.storage) if isinstance(base, faiss.IndexHNSW) else base
        return encoder.sa_encode(np.full((1, 16), 0.25, dtype=np.float32))[0].tolist(), owner.ntotal

    documents = make_documents(1200)
    options = BuildOptions(shard_rows=100, faiss=FaissOptions(factory=factory))
    folder = build(documents[:1000], shard_rows=100, faiss=FaissOptions(factory=factory))
    before = trained(folder)
    build_index(documents[1000:], folder, options=options, mode="add")
    after = trained(folder)
    assert after[0] == before[0] and (before[1], after[1]) == (1000, 1200)
    with GraceIndex.open(folder) as index:
        assert [hit.id for hit in index.search_vectors(documents[1100].vector, k=1)[0].hits] == ["d1100"]
        assert [hit.id for hit in index.search_vectors(documents[3].vector, k=1)[0].hits] == ["d3"]
    delete_documents(folder, ["d3", "d1100"])
    assert trained(folder)[1] == 1198 and verify_index(folder).ok
    with GraceIndex.open(folder) as index:
        assert index.search_vectors(documents[1150].vector, k=1)[0].ids == ["d1150"]


@pytest.mark.filterwarnings("ignore:.*training points:UserWarning")
def test_a_damaged_index_is_not_added_to_but_made_anew(build: Callable[..., Path]) -> None:
    documents, faiss_options = make_documents(600), FaissOptions(factory="IVF4,SQ8")
    folder = build(documents[:500], shard_rows=100, faiss=faiss_options)
    path = folder / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-40] ^= 0xFF
    path.write_bytes(bytes(content))
    build_index(documents[500:], folder, options=BuildOptions(shard_rows=100, faiss=faiss_options), mode="add")
    assert verify_index(folder).ok


def test_update_replaces_by_id(build: Callable[..., Path]) -> None:
    documents = make_documents(60)
    folder = build(documents, shard_rows=20)
    changed = replace(documents[25], text="another text")
    with pytest.raises(InputError, match=r"has another document with the id 'd25'.*mode='update'"):
        build_index([changed], folder, options=OPTIONS, mode="add")
    summary = build_index([changed, *make_documents(2, start=60)], folder, options=OPTIONS, mode="update")
    assert (summary.added, summary.duplicates.replaced) == (3, [25])
    rows = stored_rows(folder)
    assert rows["id"] == [f"d{n}" for n in range(60) if n != 25] + ["d25", "d60", "d61"]
    assert rows["text"][59] == "another text"
    assert verify_index(folder).ok


def test_metadata_alone_is_a_change(build: Callable[..., Path]) -> None:
    documents = make_documents(10)
    folder = build(documents)
    summary = build_index([replace(documents[3], metadata={"a": 1})], folder, options=OPTIONS, mode="update")
    assert summary.duplicates.replaced == [3]


def test_given_vectors_are_part_of_a_document(build: Callable[..., Path]) -> None:
    documents = make_documents(10)
    folder = build(documents)
    assert build_index(documents, folder, options=OPTIONS, mode="update").duplicates.unchanged == 10
    other = make_documents(1, seed=7)[0].vector
    summary = build_index([replace(documents[3], vector=other)], folder, options=OPTIONS, mode="update")
    assert summary.duplicates.replaced == [3]
    with pytest.raises(InputError, match=r"'d3' has no vector"):
        build_index([replace(documents[3], vector=None)], folder, options=OPTIONS, mode="update")


def test_deleted_documents_are_gone_from_the_disk(build: Callable[..., Path]) -> None:
    documents = make_documents(60)
    documents[30] = replace(documents[30], text="a secret 8461")
    folder = build(documents, shard_rows=20)
    untouched = shard_names(folder)[2]
    opened = GraceIndex.open(folder)
    manifest, count = delete_documents(folder, ["d30", "d0"])
    assert (count, manifest.rows) == (2, 58)
    assert stored_rows(folder)["id"] == [f"d{n}" for n in range(60) if n not in (0, 30)]
    assert not any(b"8461" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert untouched in shard_names(folder)
    found = GraceIndex.open(folder).search_vectors(documents[30].vector, k=60)[0]
    assert len(found.hits) == 58
    assert "d30" not in found.ids
    # Whoever had it open before is told, or sees the index as it was; never a mixture.
    assert opened.manifest.rows == 60


def test_delete_says_what_is_not_there(build: Callable[..., Path]) -> None:
    folder = build(make_documents(5))
    with pytest.raises(InputError, match=r"1 of 2 ids are not in .*'x'.*Nothing was deleted"):
        delete_documents(folder, ["d1", "x"])
    assert delete_documents(folder, ["d1", "x"], missing="skip")[1] == 1
    assert delete_documents(folder, ["x"], missing="skip")[1] == 0
    assert delete_documents(folder, [f"d{n}" for n in (0, 2, 3, 4)])[0].rows == 0
    index = GraceIndex.open(folder)
    assert len(index) == 0
    assert index.search_vectors(np.ones(16))[0].hits == ()
    assert build_index(make_documents(3), folder, mode="add").manifest.rows == 3


def test_duplicates(build: Callable[..., Path], tmp_path: Path) -> None:
    first, second, third = make_documents(3)
    clash = replace(second, id=first.id, source="in.jsonl, line 9")
    with pytest.raises(InputError, match=r"in.jsonl, line 9: the id 'd0' was there before"):
        build([first, clash])
    skipped = build_index([first, clash, first], tmp_path / "a", options=BuildOptions(on_duplicate_id="skip"))
    assert (skipped.added, skipped.duplicates.clashing_ids, skipped.duplicates.repeated) == (1, 1, 1)
    copy = replace(third, id="copy", metadata={"other": 1})
    kept = build_index([third, copy], tmp_path / "b")
    assert (kept.added, kept.duplicates.equal_texts) == (2, 1)
    dropped = build_index([third, copy], tmp_path / "c", options=BuildOptions(on_duplicate_text="skip"))
    assert (dropped.added, dropped.duplicates.equal_texts) == (1, 1)


def test_modes_that_do_not_fit_the_folder(build: Callable[..., Path], tmp_path: Path) -> None:
    documents = make_documents(10)
    folder = build(documents)
    with pytest.raises(InputError, match="holds no index to add"):
        build_index(documents, tmp_path / "new", mode="add")
    with pytest.raises(InputError, match=r"index of other documents.*mode='overwrite'"):
        build_index(make_documents(4), folder)
    assert stored_rows(folder)["id"] == [document.id for document in documents]
    assert build_index(make_documents(4, seed=1), folder, mode="overwrite").manifest.rows == 4
    assert verify_index(folder).notes == ()
    with pytest.raises(InputError, match="no documents"):
        build_index([], tmp_path / "empty")


def test_another_model_is_refused_and_named(make_embedder: Callable[..., object], tmp_path: Path) -> None:
    documents = [Document(id=str(n), text=f"text {n}") for n in range(5)]
    embedder, other = make_embedder(), make_embedder(max_new_tokens=4)
    folder = tmp_path / "index"
    build_index(documents, folder, embedder=embedder)  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError, match=r"max_new_tokens: 4 here, 8 there"):
        GraceIndex.open(folder, embedder=other)  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError, match="tiny-policy"):
        build_index([Document(id="x", text="x")], folder, embedder=other, mode="add")  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError, match="not known"):
        build_index(make_documents(1), folder, mode="add")


def test_rationales_and_vectors_are_those_of_the_embedder(make_embedder: Callable[..., object], tmp_path: Path) -> None:
    embedder = make_embedder()
    documents = [
        Document(id=str(n), text=f"a text about {n} " * (n + 1), title=f"T{n}" if n % 2 else None) for n in range(30)
    ]
    build_index(documents, tmp_path / "i", embedder=embedder, options=BuildOptions(shard_rows=12))  # type: ignore[arg-type]
    index = GraceIndex.open(tmp_path / "i")  # loads the model from the manifest
    result = index.search("a text about 7", k=30)
    texts = [hit.embedded_text for hit in result.hits]
    rationales = embedder.rationales(texts, "document")  # type: ignore[attr-defined]
    assert result.rationales == rationales
    query = embedder.encode_query("a text about 7")  # type: ignore[attr-defined]
    again = embedder.encode_document(texts, rationales=rationales)  # type: ignore[attr-defined]
    np.testing.assert_allclose(result.scores, again @ query, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(stored_rows(tmp_path / "i")["vector"], axis=1), 1, atol=1e-6)


def test_without_rationales(make_embedder: Callable[..., object], tmp_path: Path) -> None:
    embedder = make_embedder()
    documents = [Document(id=str(n), text=f"about {n}") for n in range(6)]
    build_index(documents, tmp_path / "i", embedder=embedder, options=BuildOptions(rationale=False))  # type: ignore[arg-type]
    index = GraceIndex.open(tmp_path / "i", embedder=embedder)  # type: ignore[arg-type]
    found = index.search("about 3", k=6)
    expected = embedder.encode_document(found.documents, rationale=False) @ embedder.encode_query(  # type: ignore[attr-defined]
        "about 3", rationale=False
    )
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert stored_rows(tmp_path / "i")["rationale"] == [None] * 6
