"""Builds that are killed, out of disk, kept out or without a right to write: nothing is lost, and nothing differs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from grace_retrieval import InputError
from grace_retrieval.cli import app
from grace_retrieval.indexing import BuildOptions, Document, IndexManifest, build_index, delete_documents
from grace_retrieval.indexing.verification import verify_index
from tests.indexing.conftest import make_documents, stored_rows

resource = pytest.importorskip("resource")

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": f"x{n}", "text": f"{n} " + "word " * int(rng.integers(1, 40))}) for n in range(120)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def command(corpus: Path, tiny_policy: Path) -> Callable[[Path], list[str]]:
    options = ["--model", str(tiny_policy), "--max-new-tokens", "8", "--shard-rows", "6", "--device", "cpu", "--json"]
    return lambda out: ["index", "build", str(corpus), "--out", str(out), *options]


@contextmanager
def started(arguments: list[str], cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, ended with the block."""
    env = {
        **os.environ,
        "GRACE_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    line = [sys.executable, "-m", "grace_retrieval", *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def finished_shards(out: Path) -> int:
    return len(list((out / "build").glob("*.parquet"))) if (out / "build").is_dir() else 0


def same(one: Path, other: Path) -> None:
    """Two indexes hold the same rows in the same order, to the last bit, in the same files."""
    first, second = stored_rows(one), stored_rows(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    left, right = IndexManifest.read(one), IndexManifest.read(other)
    assert left.shards == right.shards
    assert left.faiss == right.faiss


@pytest.mark.slow
def test_killed_at_random_moments(command: Callable[[Path], list[str]], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with started(command(whole), tmp_path / "cache-1") as process:
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
    chance, kills, resumed = random.Random(0), 0, 0
    while kills < 3:
        before = finished_shards(out)
        with started(command(out), tmp_path / "cache-2") as process:
            # At once, or some time after a shard that this process made.
            made, deadline = before + chance.randint(0, 4), time.monotonic() + 60
            while finished_shards(out) < made and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills == 3
    there = finished_shards(out)
    assert 0 < there <= 20
    with started(command(out), tmp_path / "cache-2") as process:
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
    report = json.loads(stdout)
    resumed = report["resumed"]
    assert resumed == 6 * there
    assert report["generated"] + report["from_cache"] == 120 - resumed
    same(whole, out)
    assert verify_index(out).ok
    assert not (out / "build").exists()
    with started(command(out), tmp_path / "cache-2") as process:  # once more, when all is done
        stdout, stderr = process.communicate()
    assert (json.loads(stdout)["resumed"], json.loads(stdout)["generated"]) == (120, 0), stderr


def test_ctrl_c_says_what_is_kept(command: Callable[[Path], list[str]], tmp_path: Path) -> None:
    out = tmp_path / "index"
    with started(command(out), tmp_path / "cache") as process:
        while finished_shards(out) < 1 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert f"Finished shards are kept in {out / 'build'}" in stderr


_CHILD = """
import sys, json
from pathlib import Path
from grace_retrieval.indexing import BuildOptions, build_index, delete_documents
sys.path.insert(0, sys.argv[1])
from tests.indexing.conftest import make_documents
folder, what = sys.argv[2:4]
if what == "update":
    documents = [*make_documents(400, start=100, seed=3)]
    build_index(documents, folder, options=BuildOptions(shard_rows=20), mode="update")
else:
    delete_documents(folder, [f"d{n}" for n in range(0, 1000, 3)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["update", "delete"])
def test_changes_are_whole_or_not_made(what: str, build: Callable[..., Path], tmp_path: Path) -> None:
    documents = make_documents(1000)
    out, whole = build(documents, "killed", shard_rows=20), build(documents, "whole", shard_rows=20)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _CHILD, str(ROOT), str(folder), what], env=env)

    assert start(whole).wait() == 0
    chance = random.Random(1)
    for _ in range(6):
        process = start(out)
        while not (out / "build").is_dir() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.25)
        process.kill()
        process.wait()
        # A reader sees the index of before or of after, and every file it names.
        manifest = IndexManifest.read(out)
        assert manifest.rows in (1000, IndexManifest.read(whole).rows)
        assert verify_index(out).ok
    assert start(out).wait() == 0
    same(whole, out)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "shards", "index-2.faiss"}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_in_the_middle_of_a_shard(build: Callable[..., Path], tmp_path: Path) -> None:
    documents = make_documents(300, dimension=64)
    # The last shards are larger than the disk allows.
    documents[250:] = [
        type(document)(id=document.id, text=os.urandom(2000).hex(), vector=document.vector)
        for document in documents[250:]
    ]
    out, whole = tmp_path / "full", build(documents, "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling() -> Iterator[Document]:
        """The disk is full when all has been read."""
        yield from documents
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))

    try:
        with pytest.raises(InputError, match=r"Cannot write the index .*Finished shards are kept"):
            build_index(filling(), out, options=BuildOptions(shard_rows=50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((out / "build").rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
    assert finished_shards(out) == 5
    summary = build_index(documents, out, options=BuildOptions(shard_rows=50))
    assert summary.resumed == 250
    same(whole, out)


def test_disk_full_at_the_end_leaves_the_old_index(build: Callable[..., Path]) -> None:
    folder = build(make_documents(100, dimension=64))
    before, more = IndexManifest.read(folder), make_documents(100, dimension=64, start=100)
    with largest_file(26_000), pytest.raises(InputError, match="Cannot write the index"):
        build_index(
            make_documents(100, dimension=64, start=100), folder, options=BuildOptions(shard_rows=20), mode="add"
        )
    assert IndexManifest.read(folder) == before
    assert verify_index(folder).ok
    assert build_index(more, folder, options=BuildOptions(shard_rows=20), mode="add").resumed == 100


def test_two_builds_into_one_folder(build: Callable[..., Path], tmp_path: Path) -> None:
    folder = build(make_documents(10))
    code = (
        "import sys\nfrom pathlib import Path\nfrom grace_retrieval.indexing.workspace import IndexFolder\n"
        f"with IndexFolder(Path({str(folder)!r})).opened():\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    try:
        with pytest.raises(InputError, match=rf"Another process is writing the index .* \(process {holder.pid}\)"):
            build_index(make_documents(10, start=10), folder, mode="add")
        with pytest.raises(InputError, match="Another process"):
            delete_documents(folder, ["d1"])
        assert verify_index(folder).ok  # reading needs no lock
    finally:
        holder.kill()
        holder.communicate()
    # The lock file of the dead process is still there, and keeps nobody out.
    assert (folder / "build" / "lock").exists()
    assert build_index(make_documents(10, start=10), folder, mode="add").manifest.rows == 20


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(InputError, match="Cannot write the index"):
        build_index(make_documents(3), file / "index")
    with pytest.raises(InputError, match="Cannot write the index"):
        build_index(make_documents(3), file)
    # Not even root writes there.
    result = CliRunner().invoke(app, ["index", "build", str(file), "--format", "text", "--out", "/proc/index"])
    assert result.exit_code == 1
    assert "Cannot write the index /proc/index" in result.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write where nobody else may")
def test_a_read_only_folder(build: Callable[..., Path]) -> None:
    folder = build(make_documents(10))
    folder.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"Cannot write the index .*Permission denied"):
            build_index(make_documents(10, start=10), folder, mode="add")
        assert verify_index(folder).ok
    finally:
        folder.chmod(0o755)


def test_a_torn_line_of_the_journal(tmp_path: Path, build: Callable[..., Path]) -> None:
    from grace_retrieval.indexing.workspace import Journal

    shards = IndexManifest.read(build(make_documents(100))).shards
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == {}
    journal.append(shards[0])
    with open(journal.path, "ab") as stream:
        stream.write(b'{"name": "0000')
    assert list(journal.read()) == [shards[0].name]
    journal.append(shards[1])
    assert list(journal.read().values()) == list(shards)
