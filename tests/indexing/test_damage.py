"""Damaged, missing and newer files: each is named, with the mend, and the mend works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import GraceIndex, IndexCorruptedError, InputError
from grace_retrieval.indexing import BuildOptions, build_index
from grace_retrieval.indexing.verification import mend_index, verify_index
from tests.indexing.conftest import make_documents


@pytest.fixture
def index(build: Callable[..., Path]) -> Path:
    return build(make_documents(120))


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "shards").iterdir())


def test_a_whole_index_is_ok(index: Path) -> None:
    report = verify_index(index)
    assert (report.ok, report.rows, report.problems, report.notes) == (True, 120, (), ())


def test_a_truncated_shard(index: Path) -> None:
    path = shards(index)[1]
    path.write_bytes(path.read_bytes()[:-100])
    report = verify_index(index)
    assert not report.ok
    assert report.rows == 70
    assert len(report.problems) == 1
    assert path.name in report.problems[0]
    assert "--overwrite" in report.problems[0]
    with pytest.raises(IndexCorruptedError, match=f"{path.name} is damaged"):
        GraceIndex.open(index).search_vectors(np.ones(16), k=120)
    with pytest.raises(IndexCorruptedError, match=path.name):
        mend_index(index)


def test_a_flipped_bit_and_its_mend(index: Path) -> None:
    path, whole = shards(index)[2], shards(index)[0].stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    good = bytes(content)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path.name} has another checksum" in verify_index(index).problems[0]
    summary = build_index(make_documents(120), index, options=BuildOptions(shard_rows=50), mode="overwrite")
    assert summary.resumed == 100
    assert verify_index(index).ok
    assert path.read_bytes() == good
    assert shards(index)[0].stat().st_mtime_ns == whole


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "other"])
def test_a_corrupted_faiss_file_and_its_mend(index: Path, damage: str, build: Callable[..., Path]) -> None:
    path = index / "index.faiss"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:30])
    elif damage == "gone":
        path.unlink()
    elif damage == "flipped":
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes((build(make_documents(7), name="other") / "index.faiss").read_bytes())
    report = verify_index(index)
    assert len(report.problems) == 1
    assert "index.faiss" in report.problems[0]
    assert f"grace index verify {index} --mend" in report.problems[0]
    if damage != "flipped":  # which only a checksum shows
        with pytest.raises(IndexCorruptedError, match=r"index\.faiss.*--mend"):
            GraceIndex.open(index)
    mend_index(index)
    assert verify_index(index).ok
    assert len(GraceIndex.open(index).search_vectors(np.ones(16), k=3)[0].hits) == 3


def test_a_missing_shard(index: Path) -> None:
    path = shards(index)[0]
    path.unlink()
    assert f"{path.name} is missing" in verify_index(index).problems[0]
    with pytest.raises(IndexCorruptedError, match=f"{path.name} is missing"):
        GraceIndex.open(index).search_vectors(np.ones(16), k=120)


def test_a_newer_format(index: Path) -> None:
    path = index / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2, "package": "9.9", "shards": "unknown"}))
    for use in (GraceIndex.open, verify_index, lambda folder: build_index(make_documents(1), folder, mode="add")):
        with pytest.raises(InputError, match=r"format version 2 \(written by grace-retrieval 9\.9\).*Upgrade"):
            use(index)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', '{"format": "grace-index"}'])
def test_a_damaged_manifest(index: Path, content: str) -> None:
    (index / "manifest.json").write_text(content)
    with pytest.raises(IndexCorruptedError, match=r"manifest\.json is damaged"):
        GraceIndex.open(index)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no index.*grace index build"):
        GraceIndex.open(tmp_path)
    with pytest.raises(InputError, match="has no index"):
        GraceIndex.open(tmp_path / "nothing")


def test_files_that_do_not_belong_are_noted(index: Path) -> None:
    (index / "shards" / "stray.parquet").write_bytes(b"")
    report = verify_index(index)
    assert report.ok
    assert "stray.parquet does not belong to the index" in report.notes[0]
