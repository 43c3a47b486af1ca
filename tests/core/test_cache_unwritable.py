"""Disks that are full, read-only or locked: one warning, reads go on, nothing stored is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import grace_retrieval.cache
from grace_retrieval.cache import CachedRationale, CacheWarning, SQLiteCache

DIGEST = b"f" * 16
ROW = CachedRationale(token_ids=(1, 2), text="why", finish_reason="stop", vector=np.ones(2000, dtype=np.float32))
KEYS = [b"%016d" % number for number in range(200)]
ROOT = Path(grace_retrieval.cache.__file__).parents[2]


def put_and_catch(cache: SQLiteCache, count: int = 3) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            cache.put_many({KEYS[number]: ROW}, fingerprint=DIGEST)
    assert all(warning.category is CacheWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_place_that_cannot_hold_a_file_gives_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with SQLiteCache(tmp_path / "file" / "cache.sqlite") as cache:
        assert cache.get_many(KEYS) == {}
        (message,) = put_and_catch(cache)
        assert message.startswith("The rationale cache stores nothing any more in this process: ")
        assert message.endswith("Embedding goes on without it.") and str(cache.path) in message
        assert cache.get_many(KEYS) == {} and len(cache) == 0 and cache.verify().ok


def test_a_lock_that_is_never_released_gives_one_warning_and_reads_go_on(tmp_path: Path) -> None:
    with SQLiteCache(tmp_path / "x.sqlite", timeout_s=0.05, recency_s=0) as cache:
        cache.put_many({KEYS[10]: ROW}, fingerprint=DIGEST)
        holder = sqlite3.connect(cache.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        (message,) = put_and_catch(cache)
        assert "for 60 s" in message and "locked" in message
        assert len(cache.get_many(KEYS[:20])) == 1
        cache.close()
        holder.execute("ROLLBACK")
        holder.close()
        assert len(cache) == 1


def test_a_full_database_gives_one_warning_and_reads_go_on(tmp_path: Path) -> None:
    with SQLiteCache(tmp_path / "x.sqlite") as cache:
        cache.put_many({KEYS[10]: ROW}, fingerprint=DIGEST)
        # The one way to reach SQLITE_FULL without a full disk: a limit on this thread's connection.
        with cache._pool.use() as raw:
            raw.execute("PRAGMA max_page_count=1")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                cache.put_many(dict.fromkeys(KEYS, ROW), fingerprint=DIGEST)
        assert len(caught) == 1 and "full" in str(caught[0].message)
        assert len(cache.get_many(KEYS)) == len(cache) == 1
        assert cache.verify().ok


FULL_DISK = """
import resource, sys, warnings
import numpy as np
from grace_retrieval.cache import CachedRationale, SQLiteCache

vector = np.ones(2000, dtype=np.float32)
row = CachedRationale(token_ids=(1, 2), text="why", finish_reason="stop", vector=vector)
limit = int(sys.argv[2])
cache = SQLiteCache(sys.argv[1])
keys = [b"%016d" % number for number in range(200)]
if limit > 50_000:
    cache.put_many({keys[0]: row}, fingerprint=b"f" * 16)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
stored = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for key in keys:
        cache.put_many({key: row}, fingerprint=b"f" * 16)
        if not caught:
            stored.append(key)
assert len(caught) == 1, [str(warning.message) for warning in caught]
assert len(stored) < 200
assert cache.get_many(keys).keys() == set(stored), "reads go on"
assert cache.verify().ok
cache.close()
print(len(stored), caught[0].message)
"""


def run_child(code: str, *arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
@pytest.mark.parametrize("limit", [1_000, 40_000, 200_000, 600_000])
def test_a_full_disk_gives_one_warning_and_loses_no_row(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "x.sqlite"
    output = run_child(FULL_DISK, path, limit)
    stored = int(output.split()[0])
    assert "The rationale cache stores nothing any more in this process" in output
    # A full disk leaves no drafts behind, and what was stored is there once the disk has room again.
    assert {entry.name for entry in tmp_path.iterdir()} <= {"x.sqlite", "x.sqlite-wal", "x.sqlite-shm"}
    assert (stored > 0) == (limit > 50_000)
    with SQLiteCache(path) as cache:
        assert len(cache) == stored and cache.verify().ok
        cache.put_many(dict.fromkeys(KEYS, ROW), fingerprint=DIGEST)
        assert len(cache) == 200 and cache.verify().ok


READ_ONLY = """
import os, sys, warnings
import numpy as np
from grace_retrieval.cache import CachedRationale, SQLiteCache, open_cache

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
path, expected = sys.argv[1], int(sys.argv[2])
vector = np.ones(2000, dtype=np.float32)
row = CachedRationale(token_ids=(1, 2), text="why", finish_reason="stop", vector=vector)
keys = [b"%016d" % number for number in range(200)]
try:
    open(path, "ab").close()
except OSError:
    pass
else:
    sys.exit("the file can be written, so this shows nothing")
with open_cache(path) as cache:
    assert len(cache.get_many(keys)) == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for key in keys[100:103]:
            cache.put_many({key: row}, fingerprint=b"f" * 16)
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    assert len(cache.get_many(keys)) == len(cache) == cache.stats().rows == expected
    assert len(list(cache.rows())) == expected and cache.verify().ok
print(caught[0].message)
"""


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's own, because root has to become someone else here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
@pytest.mark.parametrize("state", ["missing", "closed", "open elsewhere", "file alone"])
def test_read_only_places_are_read_and_give_one_warning(shared_folder: Path, state: str) -> None:
    path = shared_folder / "x.sqlite"
    writer = SQLiteCache(path)
    if state != "missing":
        writer.put_many(dict.fromkeys(KEYS[:50], ROW), fingerprint=DIGEST)
    if state != "open elsewhere":
        writer.close()
    if path.exists():
        path.chmod(0o444)
    shared_folder.chmod(0o777 if state == "file alone" else 0o555)
    message = run_child(READ_ONLY, path, 0 if state == "missing" else 50)
    assert str(path) in message
    shared_folder.chmod(0o755)
    writer.close()
