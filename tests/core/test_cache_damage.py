"""Files that are damaged or not ours: refused with the mend named, and left as they are."""

from __future__ import annotations

import hashlib
import random
import re
import shlex
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from grace_retrieval.cache import CachedRationale, SQLiteCache, clear_cache, open_cache
from grace_retrieval.cli import app
from grace_retrieval.errors import CacheCorruptedError, CacheError

DIGEST = b"f" * 16


def make_row(number: int) -> CachedRationale:
    return CachedRationale(
        token_ids=(number,) * 40,
        text=f"rationale {number} " * 20,
        finish_reason="stop",
        vector=np.random.default_rng(number).standard_normal(200).astype(np.float32),
    )


ROWS = {b"%016d" % number: make_row(number) for number in range(60)}
KEYS = list(ROWS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good cache file, closed."""
    with SQLiteCache(tmp_path / "cache.sqlite") as cache:
        cache.put_many(ROWS, fingerprint=DIGEST)
    return tmp_path / "cache.sqlite"


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() for entry in folder.iterdir()}


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(100_000))


def text_file(path: Path) -> None:
    path.write_text("my thesis, not a cache\n" * 100)


def no_bytes(path: Path) -> None:
    path.write_bytes(b"")


def header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pages_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def zeroed_schema(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:16384] = bytes(16384 - 100)
    path.write_bytes(content)


def foreign_database(path: Path) -> None:
    path.unlink()
    raw = sqlite3.connect(path)
    raw.executescript("CREATE TABLE diary (entry TEXT); INSERT INTO diary VALUES ('dear')")
    raw.close()


def foreign_wal_database(path: Path) -> None:
    path.unlink()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.executescript("CREATE TABLE entries (id INTEGER); INSERT INTO entries VALUES (1)")
    raw.close()


def newer_schema(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version=2")
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()


Spoil = Callable[[Path], None]
DAMAGED: list[Spoil] = [random_bytes, text_file, no_bytes, header_only, half, pages_cut, zeroed_schema]
NOT_OURS: list[Spoil] = [foreign_database, foreign_wal_database, newer_schema]
USES: dict[str, Callable[[SQLiteCache], Any]] = {
    "check": lambda cache: cache.check(),
    "get_many": lambda cache: cache.get_many(KEYS),
    "put_many": lambda cache: cache.put_many({b"n" * 16: make_row(1)}, fingerprint=DIGEST),
    "len": len,
    "stats": lambda cache: cache.stats(),
    "rows": lambda cache: list(cache.rows()),
    "clear one": lambda cache: cache.clear(DIGEST),
}


@pytest.mark.parametrize("spoil", DAMAGED + NOT_OURS)
def test_unusable_files_are_refused_and_left_alone(path: Path, spoil: Spoil) -> None:
    spoil(path)
    before = contents(path.parent)
    expected = CacheCorruptedError if spoil in DAMAGED else CacheError
    for name, use in USES.items():
        with SQLiteCache(path) as cache, pytest.raises(expected) as caught:
            use(cache)
        message = str(caught.value)
        assert str(path) in message and "Nothing was changed. Mend: " in message, name
        assert type(caught.value) is expected, name
    with pytest.raises(expected):
        open_cache(path)
    after = contents(path.parent)
    # Looking at a database in WAL mode may leave empty side files; what was there is untouched.
    assert {name: after[name] for name in before} == before
    assert all((path.parent / name).stat().st_size in (0, 32768) for name in after.keys() - before.keys())


@pytest.mark.parametrize("spoil", DAMAGED)
def test_verify_reports_damage(path: Path, spoil: Spoil) -> None:
    spoil(path)
    with SQLiteCache(path) as cache:
        report = cache.verify()
    assert not report.ok and "Mend: " in report.problems[0]


@pytest.mark.parametrize("spoil", [header_only, half, pages_cut, zeroed_schema])
def test_clear_is_the_mend_for_a_damaged_cache(path: Path, spoil: Spoil) -> None:
    spoil(path)
    with pytest.raises(CacheCorruptedError) as caught:
        open_cache(path)
    (advised,) = re.findall("`grace (cache clear .*?)`", str(caught.value))
    assert CliRunner().invoke(app, [*shlex.split(advised), "--yes"]).exit_code == 0
    assert not path.exists()
    with SQLiteCache(path) as cache:
        cache.put_many(ROWS, fingerprint=DIGEST)
        assert len(cache.get_many(KEYS)) == 60 and cache.verify().ok


@pytest.mark.parametrize("spoil", [random_bytes, text_file, no_bytes, *NOT_OURS])
def test_clear_deletes_nothing_that_may_not_be_a_cache(path: Path, spoil: Spoil) -> None:
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(CacheError, match="Nothing was changed"):
        clear_cache(path)
    assert path.read_bytes() == before


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["text", "vector", "token_ids"])
def test_one_flipped_byte_in_a_row_is_never_returned(path: Path, part: str) -> None:
    row = ROWS[KEYS[30]]
    sought = {
        "text": b"rationale 30 ",
        "vector": row.vector.tobytes(),
        "token_ids": np.array(row.token_ids, dtype="<u4").tobytes(),
    }[part]
    flip(path, path.read_bytes().index(sought) + 3)
    before = path.read_bytes()
    with SQLiteCache(path) as cache:
        with pytest.raises(CacheCorruptedError, match=f"row {KEYS[30].hex()} is damaged .*Mend: "):
            cache.get_many(KEYS)
        with pytest.raises(CacheCorruptedError, match="is damaged"):
            list(cache.rows())
        # The other rows are as good as before.
        others = [key for key in KEYS if key != KEYS[30]]
        assert len(cache.get_many(others)) == 59
        report = cache.verify()
        assert report.rows == 60 and len(report.problems) == 1 and KEYS[30].hex() in report.problems[0]
    assert path.read_bytes() == before
    with SQLiteCache(path) as cache:
        assert cache.clear(DIGEST) == 60
        assert cache.verify().ok


def test_a_file_that_lost_part_of_its_last_page_gives_no_wrong_row(path: Path) -> None:
    """A writer killed while it folds its log in leaves such a file too, so opening cannot refuse it."""
    path.write_bytes(path.read_bytes()[:-5000])
    before = path.read_bytes()
    with SQLiteCache(path) as cache:
        with pytest.raises(CacheCorruptedError, match="Mend: "):
            cache.get_many(KEYS)
        assert not cache.verify().ok
    assert path.read_bytes() == before


def test_rows_cannot_change_places(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("UPDATE entries SET id = CASE id WHEN 5 THEN -6 WHEN 6 THEN -5 END WHERE id IN (5, 6)")
    raw.execute("UPDATE entries SET id = -id WHERE id < 0")
    raw.commit()
    raw.close()
    with SQLiteCache(path) as cache:
        with pytest.raises(CacheCorruptedError, match="is damaged"):
            cache.get_many(KEYS[4:5])
        assert len(cache.verify().problems) == 2


def test_verify_compares_the_counters_and_finds_lone_payloads(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("UPDATE fingerprints SET bytes = bytes + 1")
    raw.execute("DELETE FROM entries WHERE id = 7")
    raw.commit()
    raw.close()
    with SQLiteCache(path) as cache:
        assert cache.verify().problems == (
            "1 payloads belong to no row",
            "the counters of rows and bytes differ from the rows",
        )


def inspect(cache: SQLiteCache) -> dict[bytes, CachedRationale]:
    cache.stats()
    cache.verify()
    return {}


def test_no_damage_gives_a_wrong_row_or_a_strange_error(path: Path, tmp_path: Path) -> None:
    """Overwrites random places of the file: each read gives right rows, misses, or one of our errors."""
    good = path.read_bytes()
    places = random.Random(3)
    spoiled = tmp_path / "spoiled" / "cache.sqlite"
    spoiled.parent.mkdir()
    refused = 0
    uses: list[Callable[[SQLiteCache], dict[bytes, CachedRationale]]] = [
        lambda cache: cache.get_many(KEYS),
        lambda cache: {key: row for key, _, row, _ in cache.rows()},
        inspect,
    ]
    for turn in range(150):
        content = bytearray(good)
        # Every other time near a page's start, where SQLite keeps what its trees are made of.
        page = places.randrange(len(good) // 16384) * 16384
        at = page + places.randrange(120) if turn % 2 else places.randrange(len(good))
        length = places.choice([1, 1, 4, 64])
        content[at : at + length] = places.randbytes(length)
        spoiled.write_bytes(content[: len(good)])
        for use in uses:
            with SQLiteCache(spoiled, recency_s=0) as cache:
                try:
                    found = use(cache)
                except CacheError:
                    refused += 1
                    continue
            for key, row in found.items():
                assert row.text == ROWS[key].text and row.vector.tobytes() == ROWS[key].vector.tobytes()
        for entry in spoiled.parent.iterdir():
            entry.unlink()
    assert refused > 30


def test_a_log_without_its_file_is_refused(path: Path) -> None:
    cache = SQLiteCache(path)
    cache.put_many({b"n" * 16: make_row(1)}, fingerprint=DIGEST)
    log = path.with_name("cache.sqlite-wal")
    saved = log.read_bytes()
    cache.close()
    path.unlink()
    log.write_bytes(saved)
    with pytest.raises(CacheError, match=r"cache\.sqlite-wal is there but .* is not; .*Mend: move the file"):
        cache.put_many({b"n" * 16: make_row(1)}, fingerprint=DIGEST)
    assert log.read_bytes() == saved and not path.exists()


def test_a_file_deleted_or_exchanged_under_a_running_process(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "saved")
    cache = SQLiteCache(path)
    cache.put_many({b"n" * 16: make_row(1)}, fingerprint=DIGEST)
    assert len(cache) == 61
    for entry in tmp_path.glob("cache.sqlite*"):
        entry.unlink()
    assert cache.get_many(KEYS) == {} and len(cache) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many({b"m" * 16: make_row(2)}, fingerprint=DIGEST)
    assert len(cache) == 1 and cache.verify().ok
    for entry in tmp_path.glob("cache.sqlite*"):
        entry.unlink()
    (tmp_path / "saved").rename(path)
    assert len(cache.get_many(KEYS)) == 60
    cache.close()
