"""An index from Python: the page prints what it shows; what is no document or embedder is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, GraceIndex, InputError, VectorIdentity
from grace_retrieval.indexing import Corpus, Document, FaissOptions, build_index
from grace_retrieval.indexing.commit import check_faiss
from tests.indexing.conftest import make_documents

pytest.importorskip("faiss", reason="pip install 'grace-retrieval[cpu]'")

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.usefixtures("as_printed")
def test_the_page_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for code, shown in blocks:
        exec(compile(code, "python.md", "exec"), names)
        assert capsys.readouterr().out.strip() == shown.strip()


def test_an_index_of_given_vectors_grows_and_shrinks(tmp_path: Path) -> None:
    documents = make_documents(20)
    index = GraceIndex.build(documents[:15], tmp_path / "index", embedder=None)
    assert "15 documents, 16 dimensions by an unknown model" in repr(index)
    assert index.add(documents).added == 5 and len(index) == 20
    vector = np.asarray(documents[17].vector)
    assert index.search_vectors(vector, k=1)[0].ids == ["d17"]
    assert index.delete("d17") == 1
    assert index.search_vectors(vector, k=1)[0].ids != ["d17"]
    found = index.get(["d3", "d0", "d3"])
    assert [hit.id for hit in found] == ["d3", "d0", "d3"] and found[1].text == documents[0].text
    assert np.isnan(found[0].score)
    with pytest.raises(InputError, match=r"has no document 'd17', 'e1'\."):
        index.get(["d17", "d1", "e1"])
    with pytest.raises(InputError, match="ids are not in"):
        index.delete(["d17"])
    assert index.delete(["d17"], missing="skip") == 0


def test_another_process_sees_a_change_when_it_refreshes(tmp_path: Path) -> None:
    documents = make_documents(6)
    index = GraceIndex.build(documents[:3], tmp_path / "index", embedder=None)
    other = GraceIndex.open(tmp_path / "index")
    index.add(documents[3:])
    assert len(other) == 3
    other.refresh()
    assert len(other) == 6 and other.get("d5").title == documents[5].title


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("one text", "The documents are str: give a list"),
        ({"text": "a"}, "The documents are dict: give a list"),
        (5, "The documents are int: give a list"),
        (["a", 5], "document 1 is int: give a text"),
        ([{"txt": "a"}], "document 0 has NoneType as 'text', and keys txt: give"),
        ([{"text": "a", "id": 1.5}], "document 0 has float as 'id'"),
        ([{"text": "a", "title": 3}], "document 0 has int as 'title'"),
        (["a", " "], "document 1 is blank"),
        ([{"text": "a", "day": {1, 2}}], "document 0: its metadata are no JSON values"),
        ([], "no documents"),
    ],
)
def test_what_is_no_document(documents: Any, message: str, tmp_path: Path, tiny_embedder: GraceEmbedder) -> None:
    with pytest.raises(InputError, match=message):
        GraceIndex.build(documents, tmp_path / "index", embedder=tiny_embedder)
    with pytest.raises(InputError, match=message):
        build_index(documents, tmp_path / "index", embedder=tiny_embedder)


@pytest.fixture
def tiny_embedder(make_embedder: Callable[..., GraceEmbedder]) -> GraceEmbedder:
    return make_embedder()


def test_what_is_no_embedder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="embedder is int: give a GraceEmbedder, or the name or folder"):
        GraceIndex.build(["a"], tmp_path / "index", embedder=5)  # type: ignore[arg-type]


def test_documents_of_langchain_and_rows_are_the_same_documents(tmp_path: Path, tiny_embedder: GraceEmbedder) -> None:
    core = pytest.importorskip("langchain_core.documents")
    texts = ["Tides follow the moon.", "Bread rises."]
    sources: list[list[Any]] = [
        [core.Document(id=str(i), page_content=text, metadata={"n": i}) for i, text in enumerate(texts)],
        [{"id": i, "text": text, "n": i} for i, text in enumerate(texts)],
        [Document(id=str(i), text=text, metadata={"n": i}) for i, text in enumerate(texts)],
    ]
    names = []
    for place, source in enumerate(sources):
        index = GraceIndex.build(source, tmp_path / str(place), embedder=tiny_embedder)
        names.append([shard.sha256 for shard in index.manifest.shards])
    assert names[0] == names[1] == names[2]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> GraceIndex:
    return GraceIndex.build(make_documents(4), tmp_path_factory.mktemp("opened") / "index", embedder=None)


def _built(tmp: str, **document: Any) -> Any:
    return build_index([Document(**{"id": "a", "text": "a", "vector": [1.0, 0.0], **document})], f"{tmp}/new")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, t: i.search(None), "Several texts are given as a list, not as NoneType"),
        (lambda i, t: i.search(5), "not as int"),
        (lambda i, t: i.search({"a": 1}), "not as dict"),
        (lambda i, t: i.search_vectors("abc"), "These are no vectors .*Texts are searched for with search"),
        (lambda i, t: i.search_vectors([[1.0], [1.0, 2.0]]), "These are no vectors"),
        (lambda i, t: i.get(5), "not as int"),
        (lambda i, t: GraceIndex.open(5), "folder is int"),
        (lambda i, t: Corpus([f"{t}/c.jsonl"], columns={"text": "a"}), "columns is dict: give Columns"),
        (lambda i, t: build_index(["a"], f"{t}/new", options={"shard_rows": 5}), "options is dict: give BuildOptions"),
        (lambda i, t: build_index(["a"], None), "folder is NoneType"),
        (lambda i, t: _built(t, id=5), "document 0 has int as 'id': give a string"),
        (lambda i, t: _built(t, text=None), "document 0 has NoneType as 'text'"),
        (lambda i, t: _built(t, metadata=[1]), "document 0 has list as 'metadata': give a mapping"),
        (lambda i, t: _built(t, vector="abc"), "its vector is no list of numbers"),
        (lambda i, t: _built(t, vector=[[1.0]]), r"its vector has shape \(1, 1\)"),
        (
            lambda i, t: build_index(make_documents(1) + make_documents(1, dimension=3, start=1), f"{t}/new"),
            "3 dimensions",
        ),
        (lambda i, t: VectorIdentity.from_description([]), "it is list"),
        (lambda i, t: check_faiss(FaissOptions(factory=5)), "factory=5: give a FAISS factory string"),
    ],
)
def test_valid_but_odd_arguments_are_said_in_our_words(
    opened: GraceIndex, call: Callable[[GraceIndex, str], Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=message):
        call(opened, str(tmp_path))


def test_one_file_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    assert [[d.text for d in Corpus(given).documents()] for given in (path, str(path))] == [["a"], ["a"]]
