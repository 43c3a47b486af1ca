"""What every store promises, tried on the store in memory and on the one on disk."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval.cache import (
    CachedRationale,
    Fingerprint,
    MemoryCache,
    RationaleCache,
    SQLiteCache,
    row_key,
)
from grace_retrieval.errors import InputError

QUERY = Fingerprint(
    model="org/model",
    weights="a" * 40,
    tokenizer="b" * 32,
    prompt="Explain.\ud800",
    role="query",
    generation={"temperature": 0},
    budget={"max_seq_length": 512},
    dtype="float32",
    engine="transformers",
)
DOCUMENT = replace(QUERY, role="document")
Make = Callable[..., RationaleCache]


def make_row(number: int = 0, *, text: str | None = None, hidden: int = 8) -> CachedRationale:
    return CachedRationale(
        token_ids=tuple(range(number, number + number % 7)),
        text=f"rationale {number}" if text is None else text,
        finish_reason="length" if number % 2 else "stop",
        vector=np.random.default_rng(number).standard_normal(hidden).astype(np.float32),
    )


def make_rows(numbers: range, fingerprint: Fingerprint = QUERY, **kwargs: Any) -> dict[bytes, CachedRationale]:
    digest = fingerprint.digest()
    return {row_key(digest, [number]): make_row(number, **kwargs) for number in numbers}


def same(left: CachedRationale, right: CachedRationale) -> bool:
    return (
        (left.token_ids, left.text, left.finish_reason) == (right.token_ids, right.text, right.finish_reason)
        and left.vector.dtype == right.vector.dtype == np.float32
        and left.vector.tobytes() == right.vector.tobytes()
    )


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[RationaleCache] = []

    def build(**kwargs: Any) -> RationaleCache:
        if request.param == "memory":
            kwargs.pop("recency_s", None)
            made.append(MemoryCache(**kwargs))
        else:
            made.append(SQLiteCache(tmp_path / f"cache-{len(made)}.sqlite", **kwargs))
        return made[-1]

    yield build
    for cache in made:
        cache.close()


TEXTS = [
    "",
    "plain",
    "\x00 zero \x00",
    "emoji \U0001f9d1\u200d\U0001f680 and e\u0301 and \r\n\t\u2028",
    "lone \ud83d here",
    "\ude00\ud83d",
    "\ud83d\ude00",
    "字" * 100_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_comes_back_exactly(make: Make, text: str) -> None:
    cache = make()
    rows = make_rows(range(3), text=text)
    cache.put_many(rows, fingerprint=QUERY.digest())
    found = cache.get_many(list(rows))
    assert found.keys() == rows.keys()
    assert all(same(found[key], rows[key]) for key in rows)


def test_extreme_rows_come_back_exactly(make: Make) -> None:
    cache = make()
    extremes = np.array([0.0, -0.0, 1e-45, np.finfo(np.float32).max, np.float32(np.pi)], dtype=np.float32)
    row = CachedRationale(token_ids=(0, 2**32 - 1), text="x", finish_reason="length", vector=extremes[::-1])
    empty = CachedRationale(token_ids=(), text="", finish_reason="stop", vector=extremes[:1])
    large = make_row(1, hidden=8192)
    rows = {b"a" * 16: row, b"b" * 16: empty, b"\x00" * 16: large}
    cache.put_many(rows, fingerprint=QUERY.digest())
    found = cache.get_many(list(rows))
    assert all(same(found[key], rows[key]) for key in rows)
    assert all(type(number) is int for number in found[b"a" * 16].token_ids)


def test_nothing_a_caller_does_to_a_row_reaches_the_cache(make: Make) -> None:
    cache = make()
    vector = np.ones(4, dtype=np.float32)
    row = CachedRationale(token_ids=(1,), text="x", finish_reason="stop", vector=vector)
    cache.put_many({b"k" * 16: row}, fingerprint=QUERY.digest())
    vector[:] = 7
    found = cache.get_many([b"k" * 16])[b"k" * 16]
    assert found.vector.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        found.vector[0] = 9


def test_the_same_text_under_another_role_is_another_row(make: Make) -> None:
    cache = make()
    query, document = (row_key(fingerprint.digest(), [1, 2, 3]) for fingerprint in (QUERY, DOCUMENT))
    cache.put_many({query: make_row(1)}, fingerprint=QUERY.digest())
    assert cache.get_many([document]) == {}
    cache.put_many({document: make_row(2)}, fingerprint=DOCUMENT.digest())
    assert same(cache.get_many([document, query])[query], make_row(1))
    assert len(cache) == 2


def test_unknown_repeated_and_no_keys(make: Make) -> None:
    cache = make()
    assert cache.get_many([]) == {}
    assert cache.get_many([b"?" * 16]) == {}
    rows = make_rows(range(2))
    cache.put_many(rows, fingerprint=QUERY.digest())
    first = next(iter(rows))
    assert list(cache.get_many([first, b"?" * 16, first])) == [first]
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (1, 2)


def test_more_keys_than_one_statement_takes(make: Make) -> None:
    cache = make()
    rows = make_rows(range(1234))
    cache.put_many(rows, fingerprint=QUERY.digest())
    found = cache.get_many([*rows, *make_rows(range(5000, 5100))])
    assert found.keys() == rows.keys()
    assert all(same(found[key], rows[key]) for key in rows)


def test_storing_again_changes_nothing(make: Make) -> None:
    cache = make()
    rows = make_rows(range(5))
    cache.put_many(rows, fingerprint=QUERY.digest())
    before = cache.stats()
    cache.put_many({key: make_row(99) for key in rows}, fingerprint=QUERY.digest())
    cache.put_many({**rows, **make_rows(range(5, 6))}, fingerprint=QUERY.digest())
    cache.put_many({}, fingerprint=QUERY.digest())
    after = cache.stats()
    assert (before.rows, after.rows) == (5, 6)
    assert all(same(row, rows[key]) for key, row in cache.get_many(list(rows)).items())
    assert cache.verify().ok


@pytest.mark.parametrize(
    ("rows", "fingerprint", "message"),
    [
        ({b"short": make_row()}, QUERY.digest(), "a row key is .*: give 16 bytes"),
        ({"k" * 16: make_row()}, QUERY.digest(), "a row key is .*: give 16 bytes"),
        ({b"k" * 16: make_row()}, b"", "a fingerprint digest is .*: give 16 bytes"),
        ({b"k" * 16: "text"}, QUERY.digest(), "only CachedRationale rows"),
        ({b"k" * 16: replace(make_row(), token_ids=(-1,))}, QUERY.digest(), "token ids: give integers"),
        (
            {b"k" * 16: replace(make_row(), vector=np.array([np.nan], dtype=np.float32))},
            QUERY.digest(),
            "NaN or infinity",
        ),
    ],
)
def test_unusable_rows_are_refused_and_nothing_is_stored(make: Make, rows: Any, fingerprint: Any, message: str) -> None:
    cache = make()
    with pytest.raises(InputError, match=message):
        cache.put_many({**make_rows(range(3)), **rows}, fingerprint=fingerprint)
    assert len(cache) == 0
    with pytest.raises(InputError, match=r"a row key is .*: give 16 bytes"):
        cache.get_many(["k" * 16])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"a fingerprint digest is .*: give 16 bytes"):
        cache.clear(b"x")


def test_statistics_name_what_rows_belong_to(make: Make) -> None:
    cache = make(max_bytes=1_000_000)
    empty = cache.stats()
    assert (empty.rows, empty.bytes, empty.by_fingerprint) == (0, 0, ())
    assert empty.oldest_created is None and empty.newest_created is None
    start = time.time()
    cache.register(QUERY)
    cache.put_many(make_rows(range(3)), fingerprint=QUERY.digest())
    cache.put_many(make_rows(range(4), DOCUMENT), fingerprint=DOCUMENT.digest())
    stats = cache.stats()
    assert (stats.rows, stats.max_bytes) == (7, 1_000_000)
    document, query = stats.by_fingerprint
    assert (document.digest, document.rows, document.description) == (DOCUMENT.digest().hex(), 4, None)
    assert (query.digest, query.rows, query.description) == (QUERY.digest().hex(), 3, QUERY.describe())
    assert document.bytes + query.bytes == stats.bytes > 7 * 32
    assert stats.oldest_created is not None and stats.newest_created is not None
    assert start <= stats.oldest_created <= stats.newest_created <= time.time()
    # Registered late, described with the next rows.
    cache.register(DOCUMENT)
    cache.put_many(make_rows(range(4, 5), DOCUMENT), fingerprint=DOCUMENT.digest())
    assert cache.stats().by_fingerprint[0].description == DOCUMENT.describe()


def test_clearing_one_fingerprint_or_all(make: Make) -> None:
    cache = make()
    assert cache.clear() == 0
    cache.put_many(make_rows(range(3)), fingerprint=QUERY.digest())
    cache.put_many(make_rows(range(4), DOCUMENT), fingerprint=DOCUMENT.digest())
    assert cache.clear(b"?" * 16) == 0
    assert cache.clear(QUERY.digest()) == 3
    assert cache.get_many(list(make_rows(range(3)))) == {}
    assert len(cache.get_many(list(make_rows(range(4), DOCUMENT)))) == 4
    assert [group.rows for group in cache.stats().by_fingerprint] == [4]
    assert cache.verify().ok
    assert cache.clear() == 4
    assert len(cache) == 0 and cache.stats().bytes == 0
    cache.put_many(make_rows(range(2)), fingerprint=QUERY.digest())
    assert len(cache) == 2 and cache.verify().ok


def test_rows_are_streamed_in_order(make: Make) -> None:
    cache = make()
    assert list(cache.rows()) == []
    rows = make_rows(range(450))
    keys = list(rows)
    for start in range(0, 450, 150):
        part = {key: rows[key] for key in keys[start : start + 150]}
        cache.put_many(part, fingerprint=QUERY.digest())
    streamed = list(cache.rows())
    assert [key for key, *_ in streamed] == keys
    assert {fingerprint for _, fingerprint, *_ in streamed} == {QUERY.digest()}
    assert all(same(row, rows[key]) for key, _, row, _ in streamed)
    created = [created for *_, created in streamed]
    assert created == sorted(created)


def test_rows_may_be_changed_while_they_are_streamed(make: Make) -> None:
    cache = make()
    cache.put_many(make_rows(range(300)), fingerprint=QUERY.digest())
    seen = 0
    for key, _, _, _ in cache.rows():
        seen += 1
        if seen == 1:
            cache.put_many(make_rows(range(1000, 1010)), fingerprint=QUERY.digest())
        assert isinstance(key, bytes)
    assert seen >= 300


def test_least_recently_used_rows_go_first(make: Make) -> None:
    size = make_size(make)
    cache = make(max_bytes=20 * size, recency_s=0)
    keys = [b"%016d" % number for number in range(60)]
    for number in range(20):
        cache.put_many({keys[number]: make_row(0)}, fingerprint=QUERY.digest())
    assert len(cache) == 20
    used = keys[:5]
    time.sleep(0.01)
    assert len(cache.get_many(used)) == 5
    cache.put_many({keys[20]: make_row(0)}, fingerprint=QUERY.digest())
    # Over the limit by one: down to nine tenths, oldest use first.
    assert len(cache) == 18
    assert cache.get_many(keys[:21]).keys() == {*used, *keys[8:21]}
    for number in range(21, 60):
        cache.put_many({keys[number]: make_row(0)}, fingerprint=QUERY.digest())
        cache.get_many(used)
        stats = cache.stats()
        assert stats.bytes <= stats.max_bytes
        assert stats.bytes == size * stats.rows
    assert len(cache.get_many(used)) == 5
    assert cache.verify().ok


def make_size(make: Make) -> int:
    probe = make()
    probe.put_many({b"p" * 16: make_row(0)}, fingerprint=QUERY.digest())
    return probe.stats().bytes


def test_one_batch_over_the_limit_keeps_its_end(make: Make) -> None:
    size = make_size(make)
    cache = make(max_bytes=10 * size)
    keys = [b"%016d" % number for number in range(100)]
    cache.put_many({key: make_row(0) for key in keys}, fingerprint=QUERY.digest())
    assert cache.get_many(keys).keys() == set(keys[-9:])
    tiny = make(max_bytes=size - 1)
    tiny.put_many({keys[0]: make_row(0)}, fingerprint=QUERY.digest())
    assert len(tiny) == 0 and tiny.stats().by_fingerprint == ()


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True, None, "10"])
def test_limits_that_are_none_are_refused(make: Make, max_bytes: Any) -> None:
    with pytest.raises(InputError, match="give a positive int"):
        make(max_bytes=max_bytes)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies_carry_the_configuration_only(make: Make, duplicate: Callable[[Any], Any]) -> None:
    cache = make(max_bytes=123_456)
    cache.put_many(make_rows(range(3)), fingerprint=QUERY.digest())
    twin = duplicate(cache)
    assert repr(twin) == repr(cache)
    assert twin.stats().max_bytes == 123_456
    on_disk = isinstance(cache, SQLiteCache)
    assert len(twin) == (3 if on_disk else 0)
    twin.put_many(make_rows(range(3, 4)), fingerprint=QUERY.digest())
    assert len(cache) == (4 if on_disk else 3)
    twin.close()


def test_sixteen_threads(make: Make) -> None:
    cache = make()
    start = threading.Barrier(16)

    def work(worker: int) -> int:
        start.wait()
        hits = 0
        for turn in range(12):
            own = make_rows(range(1000 * worker + turn * 10, 1000 * worker + turn * 10 + 10))
            shared = make_rows(range(100_000 + turn * 5, 100_000 + turn * 5 + 5))
            cache.put_many({**own, **shared}, fingerprint=QUERY.digest())
            found = cache.get_many([*own, *shared])
            hits += len(found)
            assert all(same(found[key], row) for key, row in {**own, **shared}.items())
        return hits

    with ThreadPoolExecutor(16) as executor:
        assert sum(executor.map(work, range(16))) == 16 * 12 * 15
    assert len(cache) == 16 * 12 * 10 + 12 * 5
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (16 * 12 * 15, 0)
    assert cache.verify().ok


def test_use_after_close_opens_again(make: Make) -> None:
    cache = make()
    cache.put_many(make_rows(range(3)), fingerprint=QUERY.digest())
    cache.close()
    cache.close()
    assert len(cache.get_many(list(make_rows(range(3))))) == 3


def test_stores_follow_the_protocol(make: Make) -> None:
    assert isinstance(make(), RationaleCache)
    assert not isinstance({}, RationaleCache)
