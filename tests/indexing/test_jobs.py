"""The job below `grace embed` and `grace index build`: runners, the journal, and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from grace_retrieval import InputError
from grace_retrieval.indexing import BuildOptions, Document, IndexManifest, build_index
from grace_retrieval.indexing.build import build_with
from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.plan import ShardTask
from grace_retrieval.indexing.runners import run_local
from grace_retrieval.indexing.vector_file import EmbedOptions, embed_to_file
from grace_retrieval.indexing.workspace import Workspace
from tests.indexing.conftest import make_documents

OPTIONS = BuildOptions(shard_rows=10)
DOCUMENTS = [Document(id=f"{number}", text=f"text {number}", title=f"Title {number % 3}") for number in range(25)]


class Stopped(Exception):
    """The end of a run that somebody stopped."""


def backwards(tasks: Sequence[ShardTask], workspace: Workspace, encoder: Any) -> Iterator[ShardFile]:
    """Makes shards from the last to the first, as no order is promised."""
    yield from run_local(list(reversed(tasks)), workspace, encoder)


def stopping(tasks: Sequence[ShardTask], workspace: Workspace, encoder: Any) -> Iterator[ShardFile]:
    """Makes two shards, and is stopped between the second and its line in the journal."""
    made = run_local(tasks, workspace, encoder)
    yield next(made)
    next(made)
    raise Stopped


def test_a_file_is_the_same_whatever_runs_its_shards(make_embedder: Callable[..., Any], tmp_path: Path) -> None:
    encoder = EmbedderEncoder(make_embedder(max_new_tokens=4), role="query")
    options = EmbedOptions(batch=10)
    one = embed_to_file(iter(DOCUMENTS), tmp_path / "a.parquet", encoder, options=options)
    embed_to_file(iter(DOCUMENTS), tmp_path / "b.parquet", encoder, options=options, runner=backwards)
    with pytest.raises(Stopped):
        embed_to_file(iter(DOCUMENTS), tmp_path / "c.parquet", encoder, options=options, runner=stopping)
    assert embed_to_file(iter(DOCUMENTS), tmp_path / "c.parquet", encoder, options=options).resumed == 20
    files = [(tmp_path / f"{name}.parquet").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    assert one.fingerprint == encoder.embedder.fingerprint("query").digest().hex()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "c.parquet"]


def test_a_shard_without_its_line_is_not_made_again(tmp_path: Path) -> None:
    documents = make_documents(30)
    with pytest.raises(Stopped):
        build_with(GivenVectors(), documents, tmp_path / "index", options=OPTIONS, runner=stopping)
    assert build_index(documents, tmp_path / "index", options=OPTIONS).resumed == 20


def test_work_of_the_version_before_goes_on_or_is_refused(tmp_path: Path) -> None:
    """It left no description of what its shards are made from; their names tell."""
    documents = make_documents(30)
    with pytest.raises(Stopped):
        build_with(GivenVectors(), documents, tmp_path / "index", options=OPTIONS, runner=stopping)
    (tmp_path / "index" / "build" / "job.json").unlink()
    with pytest.raises(InputError, match="the input differs from it behind text 10"):
        build_index([*documents[:15], *documents[16:]], tmp_path / "index", options=OPTIONS)
    (tmp_path / "index" / "build" / "job.json").unlink()
    assert build_index(documents, tmp_path / "index", options=OPTIONS).resumed == 20


def test_another_build_does_not_discard_a_change_in_hand(build: Callable[..., Path]) -> None:
    folder = build(make_documents(20))
    more = make_documents(30, start=20)
    with pytest.raises(Stopped):
        build_with(GivenVectors(), more, folder, options=OPTIONS, mode="add", runner=stopping)
    with pytest.raises(InputError, match="holds an index of other documents"):
        build_index(make_documents(5), folder, options=OPTIONS)
    with pytest.raises(InputError, match=r"behind text 0.* or remove .*build to discard what differs"):
        build_index(make_documents(5, start=90), folder, options=OPTIONS, mode="add")
    assert IndexManifest.read(folder).rows == 20
    assert build_index(more, folder, options=OPTIONS, mode="add").resumed == 20
    assert IndexManifest.read(folder).rows == 50


def test_names_of_the_version_before_warn(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"runner="):
        built = build_with(GivenVectors(), make_documents(3), tmp_path / "index", options=OPTIONS, engine=run_local)
    assert built.added == 3
    with pytest.warns(DeprecationWarning, match=r"runners\.Runner"):
        assert importlib.import_module("grace_retrieval.indexing.build").Engine is not None
    sys.modules.pop("grace_retrieval.indexing.ray_engine", None)
    with pytest.warns(DeprecationWarning, match="RayRunner"):
        from grace_retrieval.indexing.ray_engine import RayEngine
    assert RayEngine.__name__ == "RayRunner"
