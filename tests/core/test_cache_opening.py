"""What users may write for `cache=`, and what the file is like that comes of it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval.cache import (
    CachedRationale,
    MemoryCache,
    SQLiteCache,
    cache_path,
    clear_cache,
    default_cache_path,
    open_cache,
)
from grace_retrieval.errors import InputError

DIGEST = b"f" * 16
ROW = CachedRationale(token_ids=(1, 2), text="why", finish_reason="stop", vector=np.ones(2000, dtype=np.float32))
KEYS = [b"%016d" % number for number in range(200)]


@pytest.fixture(autouse=True)
def default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACE_CACHE_DIR", str(tmp_path / "default"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "default"


def test_specifications(tmp_path: Path, default_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "dotted.sqlite").mkdir()
    (tmp_path / "odd").write_bytes(b"")
    expected: dict[str | Path, Path] = {
        "default": default_folder / "rationales.sqlite",
        "folder": tmp_path / "folder" / "rationales.sqlite",
        "v1.2": tmp_path / "v1.2" / "rationales.sqlite",
        "./auto": tmp_path / "auto" / "rationales.sqlite",
        Path("auto"): tmp_path / "auto" / "rationales.sqlite",
        "~/x.db": tmp_path / "home" / "x.db",
        "a/b.SQLite": tmp_path / "a" / "b.SQLite",
        tmp_path / "x.sqlite3": tmp_path / "x.sqlite3",
        "dotted.sqlite": tmp_path / "dotted.sqlite" / "rationales.sqlite",
        "odd": tmp_path / "odd",
    }
    assert {spec: cache_path(spec) for spec in expected} == expected


def test_opening_makes_no_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = open_cache("default")
    assert isinstance(cache, SQLiteCache)
    assert cache.get_many(KEYS) == {} and len(cache) == 0 and cache.clear() == 0 and cache.verify().ok
    assert cache.stats().path == str(default_cache_path()) and cache.stats().file_bytes == 0
    assert list(tmp_path.iterdir()) == []
    cache.put_many({KEYS[0]: ROW}, fingerprint=DIGEST)
    assert default_cache_path().is_file()
    # Texts may be private.
    assert os.name != "posix" or default_cache_path().parent.stat().st_mode & 0o777 == 0o700
    cache.close()
    again = open_cache("default", max_bytes=5_000_000)
    assert again is not None and len(again) == 1 and again.stats().max_bytes == 5_000_000
    again.close()
    assert clear_cache("default") == 1


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRACE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    unset = default_cache_path()
    assert unset.name == "rationales.sqlite" and "grace-retrieval" in unset.parts
    for blank in ("", "  "):
        monkeypatch.setenv("GRACE_CACHE_DIR", blank)
        assert default_cache_path() == unset
    for folder in ("relative", "./none"):
        monkeypatch.setenv("GRACE_CACHE_DIR", folder)
        assert default_cache_path() == tmp_path / folder / "rationales.sqlite"


@pytest.mark.parametrize("folder", ["none", "Off", "memory", "taken"])
def test_a_default_folder_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / "taken").write_text("x")
    monkeypatch.setenv("GRACE_CACHE_DIR", folder)
    with pytest.raises(InputError, match=f"GRACE_CACHE_DIR='{folder}'.*give a folder"):
        open_cache("default")
    assert open_cache("memory") is not None


def test_none_memory_and_objects() -> None:
    assert open_cache(None) is None
    memory = open_cache("memory", max_bytes=1000)
    assert isinstance(memory, MemoryCache) and memory.stats().max_bytes == 1000
    assert open_cache(memory) is memory
    with pytest.raises(InputError, match="max_bytes only applies"):
        open_cache(memory, max_bytes=5)
    with pytest.raises(InputError, match="max_bytes only applies"):
        open_cache(None, max_bytes=5)


@pytest.mark.parametrize("spec", ["", "  ", "auto", "none", "Off", "true", 0, True, 1.5, b"x", {}, [], MemoryCache])
def test_bad_specifications_name_the_good_ones(spec: Any) -> None:
    with pytest.raises(InputError, match=r"cache=.*: give 'default', 'memory', None, a folder"):
        open_cache(spec)


@pytest.mark.parametrize("spec", ["memory", None])
def test_only_files_are_cleared_by_path(spec: Any) -> None:
    with pytest.raises(InputError, match=r"cache=.*: give"):
        clear_cache(spec)


def test_bad_arguments_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give a file in it"):
        SQLiteCache(tmp_path)
    with pytest.raises(InputError, match="path is empty"):
        SQLiteCache("")
    with pytest.raises(InputError, match="give 0 or more"):
        SQLiteCache(tmp_path / "x.sqlite", timeout_s=-1)


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=ro#%41 'é" / "c?%.sqlite"
    with SQLiteCache(path) as cache:
        cache.put_many({KEYS[0]: ROW}, fingerprint=DIGEST)
        assert len(cache) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_file_stops_growing_at_the_limit_and_shrinks_when_cleared(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with SQLiteCache(path, max_bytes=1_000_000) as cache:
        for turn in range(20):
            keys = [b"%08d%08d" % (turn, number) for number in range(50)]
            cache.put_many(dict.fromkeys(keys, ROW), fingerprint=DIGEST)
        stats = cache.stats()
        assert 800_000 < stats.bytes <= 1_000_000
        assert stats.file_bytes < 1_700_000
        cache.clear()
        assert cache.stats().file_bytes < 200_000


def test_pages_and_journal_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with SQLiteCache(path) as cache:
        cache.put_many({KEYS[0]: ROW}, fingerprint=DIGEST)
    raw = sqlite3.connect(path)
    values = {
        name: raw.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "journal_mode", "application_id", "user_version", "auto_vacuum")
    }
    raw.close()
    assert values == {
        "page_size": 16384,
        "journal_mode": "wal",
        "application_id": int.from_bytes(b"GRCE", "big"),
        "user_version": 1,
        "auto_vacuum": 2,
    }


def test_recency_is_noted_without_a_put_and_read_only_hits_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with SQLiteCache(path, recency_s=3600) as cache:
        cache.put_many(dict.fromkeys(KEYS, ROW), fingerprint=DIGEST)
    before = path.read_bytes()
    with SQLiteCache(path, recency_s=3600) as cache:
        assert len(cache.get_many(KEYS)) == 200
    assert path.read_bytes() == before
    with SQLiteCache(path, recency_s=0) as cache:
        assert len(cache.get_many(KEYS[:3])) == 3
    raw = sqlite3.connect(path)
    newest = [key for (key,) in raw.execute("SELECT key FROM entries ORDER BY used DESC LIMIT 3")]
    raw.close()
    assert set(newest) == set(KEYS[:3])


NO_HOME = """
import os, pwd, sys, warnings
for name in [n for n in os.environ if n in ("HOME", "GRACE_CACHE_DIR") or n.startswith("XDG_")]:
    del os.environ[name]
def missing(*_):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = missing
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no passwd file")
def test_without_a_home_there_is_one_warning_and_no_cache() -> None:
    code = (
        NO_HOME
        + """
from grace_retrieval import open_cache
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(open_cache("default"), [str(warning.message) for warning in seen])
sys.argv = ["grace", "cache", "path"]
from grace_retrieval.cli import main
main()
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.startswith("None [") and "set GRACE_CACHE_DIR" in done.stdout
    assert done.returncode == 1
    assert done.stderr.startswith("Error: there is no folder for caches")
