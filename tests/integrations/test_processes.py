"""Faces in several processes: one cache, nothing lost when a process is killed, nothing stuck after a fork."""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval import SQLiteCache, shared_embedder

pytestmark = pytest.mark.alone

MakeFace = Callable[..., Any]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
# The core's embedder is a model: it travels with its weights, see tests/core/test_embedder_copies.py.
FACES = ["langchain", "llama_index", "chroma"]
TEXTS = [f"text number {n} about tides" for n in range(12)]


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=needs_fork)])
def test_workers_share_one_cache(method: str, make_face: MakeFace, tmp_path: Path) -> None:
    # A spawned worker imports every framework it is handed, which takes long.
    faces = [make_face(name) for name in (FACES if method == "fork" else FACES[:1])]
    if method == "fork":
        faces[0].query("loads the model, so that the children inherit it")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = multiprocessing.get_context(method).Pool(2 if method == "fork" else 1)
    with pool:
        found = [
            pool.apply(operator.methodcaller(face.document_call, TEXTS), (face.native,)) for face in faces for _ in "ab"
        ]
    cache = SQLiteCache(tmp_path / "face.sqlite")
    assert len(cache) == len(TEXTS) + (method == "fork")
    assert cache.verify().ok
    for vectors in found:
        np.testing.assert_array_equal(np.array(vectors), np.array(found[0]))
    before = faces[0].calls
    np.testing.assert_array_equal(faces[0].documents(TEXTS), np.array(found[0]))
    assert faces[0].calls == before, "what the workers wrote is found here"
    cache.close()


@needs_fork
@pytest.mark.parametrize("name", ["core", *FACES[:2]])
def test_work_that_was_killed_goes_on_where_it_was(name: str, make_face: MakeFace, tmp_path: Path) -> None:
    face = make_face(name)
    face.query("loads the model")
    texts = [f"text number {n} " + "and more " * (n % 9) for n in range(600)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            face.documents(texts)
        finally:
            os._exit(0)
    cache = SQLiteCache(tmp_path / "face.sqlite")
    while len(cache) < 100:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it must not have finished, or this test shows nothing"
    kept = len(cache) - 1
    assert 99 <= kept < 600 and cache.verify().ok
    before = face.calls
    vectors = face.documents(texts)
    assert face.calls - before == 600 - kept
    np.testing.assert_allclose(vectors[::50], make_face(name, cache=None).documents(texts[::50]), atol=1e-5)
    cache.close()


FORKED = """
import asyncio, os, sys, threading
import torch
from grace_retrieval import shared_embedder

torch.set_num_threads(2)  # OpenMP's threads do not survive a fork
embedder = shared_embedder({model!r}, max_new_tokens=8, device="cpu", cache=None)
long = ["a text that is long enough for two threads " * 12] * 2 + ["another one " * 60]
embedder.embed_documents(long)
busy = threading.Thread(target=lambda: [embedder.embed_documents([f"busy {{n}}"]) for n in range(60)])
busy.start()  # holds locks now and then
for _ in range(2):
    child = os.fork()
    if child == 0:
        again = shared_embedder({model!r}, max_new_tokens=8, device="cpu", cache=None)
        assert again is embedder
        again.embed_documents(long)
        asyncio.run(again.aembed_query("a query"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
busy.join()
print("every child has embedded")
"""


@needs_fork
def test_a_forked_child_embeds_with_the_model_of_its_parent(tiny_policy: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED.format(model=str(tiny_policy))],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.stdout == "every child has embedded\n", result.stderr


@needs_fork
def test_a_child_forked_while_a_model_loads_loads_its_own(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    import grace_retrieval.embedder

    started, go_on = threading.Event(), threading.Event()
    original = grace_retrieval.embedder.GraceEmbedder.__init__

    def slow(self: Any, *args: Any, **kwargs: Any) -> None:
        started.set()
        assert go_on.wait(60)
        original(self, *args, **kwargs)

    monkeypatch.setattr(grace_retrieval.embedder.GraceEmbedder, "__init__", slow)
    options = {"max_new_tokens": 8, "device": "cpu", "cache": None}
    loader = threading.Thread(target=shared_embedder, args=(str(tiny_policy),), kwargs=options)
    loader.start()
    assert started.wait(60)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        go_on.set()
        os._exit(len(shared_embedder(str(tiny_policy), **options).embed_query("x")) != 32)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    loader.join()
