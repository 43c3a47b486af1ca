"""One cache file under many processes: writers at once, writers killed, workers forked and spawned."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import grace_retrieval.cache
from grace_retrieval.cache import CachedRationale, SQLiteCache, row_key

pytestmark = pytest.mark.alone

DIGEST = b"f" * 16
ROOT = Path(grace_retrieval.cache.__file__).parents[2]

# Warnings are errors in the children, so a store that quietly stops writing ends its process.
PRELUDE = """
import os, sys, threading, time
import numpy as np
from grace_retrieval.cache import CachedRationale, MemoryCache, SQLiteCache, row_key

DIGEST = b"f" * 16

def make_rows(*place, count=20):
    numbers = [(*place, number) for number in range(count)]
    return {row_key(DIGEST, ids): CachedRationale(token_ids=ids, text=str(ids), finish_reason="stop",
            vector=np.full(300, sum(ids), dtype=np.float32)) for ids in numbers}

"""

WRITE_FOR_EVER = """
cache = SQLiteCache(sys.argv[1])
acknowledged = open(sys.argv[3], "ab", buffering=0)
batch = 0
while True:
    cache.put_many(make_rows(int(sys.argv[2]), batch), fingerprint=DIGEST)
    acknowledged.write(b"%d\\n" % batch)
    batch += 1
"""

WRITE_A_SHARE = """
cache = SQLiteCache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(15):
    cache.put_many({**make_rows(int(sys.argv[2]), batch), **make_rows(99, batch)}, fingerprint=DIGEST)
    assert len(cache.get_many(list(make_rows(99, batch)))) == 20
"""

FORK_UNDER_THREADS = """
cache = SQLiteCache(sys.argv[1]) if sys.argv[1] != "memory" else MemoryCache()
on_disk = isinstance(cache, SQLiteCache)
stop = threading.Event()
written = [0] * 4

def work(worker):
    while not stop.is_set():
        cache.put_many(make_rows(worker, written[worker]), fingerprint=DIGEST)
        assert len(cache.get_many(list(make_rows(worker, written[worker])))) == 20
        written[worker] += 1

cache.put_many(make_rows(1000), fingerprint=DIGEST)
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
for thread in threads:
    thread.start()
streamed = cache.rows()
next(streamed)
children = []
for number in range(12):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        assert len(cache.get_many(list(make_rows(1000)))) == 20
        cache.put_many(make_rows(2000, number), fingerprint=DIGEST)
        assert len(cache.get_many(list(make_rows(2000, number)))) == 20
        if number % 2:
            os._exit(0)
        cache.close()
        # The full way out, past every finaliser.
        sys.exit(0)
    children.append(child)
    cache.put_many(make_rows(3000, number), fingerprint=DIGEST)
    next(streamed)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
report = cache.verify()
assert report.ok, report.problems
expected = (1 + sum(written) + (24 if on_disk else 12)) * 20
assert report.rows == len(cache) == expected, (report.rows, len(cache), expected)
print(written)
"""


def make_rows(*place: int, count: int = 20) -> dict[bytes, CachedRationale]:
    numbers = [(*place, number) for number in range(count)]
    return {
        row_key(DIGEST, ids): CachedRationale(
            token_ids=ids,
            text=str(ids),
            finish_reason="stop",
            vector=np.full(300, sum(ids), dtype=np.float32),
        )
        for ids in numbers
    }


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        # Python 3.12 warns of every fork under threads, which is what one of the tests is about.
        command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PRELUDE + code]
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def finish(process: subprocess.Popen[str], text: str = "") -> str:
    out, err = process.communicate(text, timeout=60)
    assert process.returncode == 0, err
    return out


def test_twenty_kills_lose_no_acknowledged_row(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "new" / "cache.sqlite"
    moments = random.Random(7)
    expected: dict[bytes, CachedRationale] = {}
    for turn in range(5):
        writers = range(4 * turn, 4 * turn + 4)
        logs = [tmp_path / f"{writer}.log" for writer in writers]
        processes = [start(WRITE_FOR_EVER, path, writer, log) for writer, log in zip(writers, logs, strict=True)]
        deadline = time.monotonic() + 30
        # The last one may still be starting, so that kills fall into opening and making the file as well.
        while not all(log.exists() and log.stat().st_size for log in logs[:3]):
            assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
            time.sleep(0.005)
        for process in moments.sample(processes, 4):
            time.sleep(moments.random() * 0.05)
            process.kill()
        for process in processes:
            _, err = process.communicate(timeout=30)
            assert process.returncode == -signal.SIGKILL, err
        for writer, log in zip(writers, logs, strict=True):
            batches = log.read_bytes().count(b"\n") if log.exists() else 0
            for batch in range(batches):
                expected.update(make_rows(writer, batch))
        with SQLiteCache(path) as cache:
            report = cache.verify()
            assert report.ok, report.problems
            found = cache.get_many(list(expected))
            assert found.keys() == expected.keys()
            # Batches are whole or not there, also the ones that nobody acknowledged.
            assert len(cache) % 20 == 0
            assert all(row.token_ids == expected[key].token_ids for key, row in found.items())
    assert len(expected) > 15 * 20


def test_eight_processes_write_at_once(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "cache.sqlite"
    processes = [start(WRITE_A_SHARE, path, number) for number in range(8)]
    # All make the file at the same moment.
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert not path.exists()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    with SQLiteCache(path) as cache:
        report = cache.verify()
        assert report.ok, report.problems
        assert len(cache) == report.rows == (8 * 15 + 15) * 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache.sqlite"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("store", ["cache.sqlite", "memory"])
def test_forks_under_running_threads(tmp_path: Path, start: Callable[..., subprocess.Popen[str]], store: str) -> None:
    finish(start(FORK_UNDER_THREADS, tmp_path / store if store != "memory" else store))


def test_spawned_workers_share_the_cache(tmp_path: Path) -> None:
    cache = SQLiteCache(tmp_path / "cache.sqlite", max_bytes=10_000_000)
    cache.put_many(make_rows(0), fingerprint=DIGEST)
    keys = list(make_rows(0))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as workers:
        # The bound methods travel as configuration; no connection does.
        found = list(workers.map(cache.get_many, [keys[:10], keys[10:]]))
        future = workers.submit(cache.put_many, make_rows(1), fingerprint=DIGEST)
        future.result(timeout=60)
    assert found[0].keys() | found[1].keys() == set(keys)
    assert len(cache.get_many(list(make_rows(1)))) == 20
    cache.close()
