"""Servers: a process as users start it, and one on a thread of the tests, whose model can be held."""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grace_retrieval import GraceEmbedder
from grace_retrieval.cache import CachedRationale
from grace_retrieval.indexing import Document, GraceIndex, build_index
from grace_retrieval.serve import ServeOptions
from grace_retrieval.serve.running import make_server, open_socket
from grace_retrieval.serve.service import EmbeddingService
from tests.explain.test_browser import browser  # noqa: F401 - a fixture of the tests here too

MARKUP = "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
TEXTS = [
    "The moon's gravity pulls on the oceans.",
    "Bread rises because yeast makes gas.",
    "Glass is made of sand.",
    f"Markup {MARKUP} stays text.",
]
DOCUMENTS = [
    Document(
        id=f"d{number}", text=text, title=f"Title {number}", metadata={"kind": ("sea", "food")[number % 2], "n": number}
    )
    for number, text in enumerate(TEXTS)
]


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """Of an error, in any dialect."""
        error = self.json["error"]
        return error if isinstance(error, str) else error["message"]


def ask(url: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
    """Ask a server with the standard library alone. A body of bytes is sent as it is."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return Answer(found.status, dict(found.headers), found.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, dict(error.headers), error.read())


@dataclass
class Process:
    """`grace serve` in a process of its own."""

    popen: subprocess.Popen[str]
    url: str
    arguments: tuple[str, ...]
    lines: list[str] = field(default_factory=list)

    def read_on(self) -> None:
        """Keep reading its log, so that it never waits for us."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line.rstrip("\n"))


@contextmanager
def serve(*arguments: str, **environment: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "grace_retrieval", "serve", "--port", "0", *arguments]
    popen = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    )
    assert popen.stderr is not None
    try:
        seen = []
        for line in popen.stderr:
            seen.append(line)
            if line.startswith("Serving "):
                break
        else:
            raise AssertionError(f"grace serve ended with {popen.wait()}: {''.join(seen)}")
        process = Process(popen, line.split()[-1], arguments)
        threading.Thread(target=process.read_on, daemon=True).start()
        yield process
    finally:
        popen.kill()
        popen.wait()
        popen.stderr.close()


@dataclass
class Local:
    """A server on a thread of this process."""

    url: str
    service: EmbeddingService
    connections: set[Any]

    @contextmanager
    def held(self) -> Iterator[None]:
        """The model does nothing inside the block: what comes waits."""
        engine: Any = self.service.embedder.pipeline.engine
        with engine.lock:
            yield


@contextmanager
def local_server(embedder: GraceEmbedder, index: GraceIndex | None = None, **options: Any) -> Iterator[Local]:
    service = EmbeddingService(embedder, ServeOptions(**options), index)
    bound = open_socket("127.0.0.1", 0)
    server = make_server(service, stop_seconds=30)
    bound.listen(2048)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        yield Local(f"http://127.0.0.1:{bound.getsockname()[1]}", service, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture(scope="session")
def serve_embedder(tiny_policy: Path) -> GraceEmbedder:
    """What the servers serve, in this process."""
    return GraceEmbedder(tiny_policy, max_new_tokens=8, cache="memory", device="cpu", on_truncation="ignore")


def write_markup(embedder: GraceEmbedder, text: str) -> None:
    """Put a rationale into the cache that a bad model could write about a document."""
    pipeline, prompt = embedder.pipeline, embedder.prompts["document"]
    (row,) = pipeline.rows([text], role="document", prompt=prompt, given=[MARKUP])
    (key,) = pipeline.keys(pipeline.render([text], prompt=prompt), role="document", prompt=prompt)
    fingerprint = embedder.fingerprint("document")
    stored = CachedRationale(token_ids=row.token_ids, text=row.text, finish_reason="stop", vector=row.vector)
    assert embedder.cache is not None and row.text == MARKUP
    embedder.cache.register(fingerprint)
    embedder.cache.put_many({key: stored}, fingerprint=fingerprint.digest())


@pytest.fixture(scope="session")
def index_folder(serve_embedder: GraceEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "index"
    write_markup(serve_embedder, DOCUMENTS[3].embedded_text)
    build_index(DOCUMENTS, folder, embedder=serve_embedder)
    return folder


@pytest.fixture(scope="module")
def process(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`grace serve --index`: a start takes seconds, so it is one for a module, whose last test may end it."""
    cache = tmp_path_factory.mktemp("cache")
    with serve("--index", str(index_folder), "--cache", str(cache), "--device", "cpu") as started:
        yield started


@pytest.fixture(scope="session")
def local(serve_embedder: GraceEmbedder, index_folder: Path) -> Iterator[Local]:
    """A server on a thread, with small limits."""
    index = GraceIndex.open(index_folder, embedder=serve_embedder)
    with local_server(
        serve_embedder,
        index,
        max_queue=600,
        max_body=3 << 20,
        max_queue_bytes=8 << 20,
        max_texts=100,
        max_tokens=20_000,
    ) as started:
        yield started
