"""Under load: batches across requests, places, order, clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from grace_retrieval import GraceEmbedder
from tests.serve.conftest import Local, ask, local_server


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that the server does on its own."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.001)


def until_now(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0002)


@contextmanager
def batches(local: Local) -> Iterator[list[int]]:
    """Numbers of texts in the calls of the model."""
    sizes: list[int] = []
    embedder: Any = local.service.embedder
    write = embedder.pipeline.write

    def counting(rendered: Any, **options: Any) -> Any:
        sizes.append(len(rendered))
        return write(rendered, **options)

    embedder.pipeline.write = counting
    try:
        yield sizes
    finally:
        del embedder.pipeline.write


def client(local: Local) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=local.url, limits=limits, timeout=60, trust_env=False)


async def test_requests_that_arrive_together_are_one_batch(local: Local, serve_embedder: GraceEmbedder) -> None:
    texts = [f"together {number}" for number in range(50)]
    with batches(local) as sizes:
        async with client(local) as http:
            with local.held():
                first = asyncio.create_task(http.post("/embed", json={"inputs": "the first, alone"}))
                await until(lambda: len(sizes) == 1)
                rest = [asyncio.create_task(http.post("/embed", json={"inputs": text})) for text in texts]
                await until(lambda: local.service.admission.requests == 51)
                # Read and waiting, all of them: a request counts from before its body is read.
                await until(lambda: len(local.service._batcher._waiting) == 50)
            found = [(await task).json()[0] for task in rest]
            assert (await first).status_code == 200
        assert sizes == [1, 50]
    np.testing.assert_allclose(found, serve_embedder.encode_document(texts), atol=2e-6)


def test_500_at_once_are_served_in_order(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="grace_retrieval.serve")
    admission, address = local.service.admission, tuple(local.url.removeprefix("http://").split(":"))
    bodies = [json.dumps({"inputs": f"many {number}"}) for number in range(500)]
    with ExitStack() as sockets, batches(local) as sizes:
        with local.held():
            waiting = []
            for number, body in enumerate(bodies):
                one = sockets.enter_context(socket.create_connection(address, timeout=60))
                lines = (
                    "POST /embed HTTP/1.1",
                    "Host: localhost",
                    "Content-Type: application/json",
                    "Connection: close",
                )
                head = "\r\n".join([*lines, f"X-Request-Id: {number}", f"Content-Length: {len(body)}", "", ""])
                one.sendall((head + body).encode())
                waiting.append(one)
                # One after the other, so that the order is known; all of them are there before the first is answered.
                until_now(lambda: admission.requests == len(waiting))
            assert admission.bytes == sum(map(len, bodies))
        answers = [b"".join(iter(lambda one=one: one.recv(65536), b"")) for one in waiting]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert sum(sizes) == 500 and max(sizes) <= local.service.options.max_batch and len(sizes) <= 6
    messages = [record.getMessage() for record in caplog.records]
    ids = [int(message.split("id=")[1].split()[0]) for message in messages if "/embed" in message]
    late = [place - id_ for place, id_ in enumerate(ids)]
    assert len(ids) == 500 and max(map(abs, late)) < 16, "answers overtook each other by more than what one turn holds"
    assert admission.requests == admission.bytes == 0


async def test_a_full_queue_answers_at_once_and_a_client_that_goes_away_frees_its_place(
    serve_embedder: GraceEmbedder,
) -> None:
    with local_server(serve_embedder, max_queue=4) as local, batches(local) as sizes:
        admission = local.service.admission
        async with client(local) as http:
            with local.held():
                tasks = [asyncio.create_task(http.post("/embed", json={"inputs": "full 0"}))]
                await until(lambda: len(sizes) == 1)
                for number in range(1, 4):
                    tasks.append(asyncio.create_task(http.post("/embed", json={"inputs": f"full {number}"})))
                    await until(lambda: len(local.service._batcher._waiting) == len(tasks) - 1)
                for path, field in (("/embed", "inputs"), ("/v1/embeddings", "input"), ("/search", "query")):
                    refused = await http.post(path, json={field: "full"})  # answered while the model is held
                    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
                    error = refused.json()
                    assert "4 requests wait" in (error["error"] if field == "inputs" else error["error"]["message"])
                assert (await http.get("/ready")).status_code == (await http.get("/health")).status_code == 503
                assert (await http.get("/live")).status_code == 200
                tasks[2].cancel()
                await until(lambda: admission.requests == 3)
                tasks.append(asyncio.create_task(http.post("/embed", json={"inputs": "full 4"})))
                await until(lambda: admission.requests == 4)
                await until(lambda: sum(not one.future.done() for one in local.service._batcher._waiting) == 3)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [getattr(answer, "status_code", None) for answer in answers] == [200, 200, None, 200, 200]
            assert sizes == [1, 3], "the text of the client that went away was embedded all the same"
            assert (await http.get("/ready")).status_code == 200
            metrics = (await http.get("/metrics")).text
        assert 'grace_requests_total{route="/embed",status="429"} 1.0' in metrics
        assert 'grace_requests_total{route="/embed",status="200"} 4.0' in metrics


async def test_bodies_that_wait_have_a_limit_together(local: Local) -> None:
    large = json.dumps({"inputs": ["tide " * 8000] * 70, "truncate": True}).encode()  # 2.8 MB of 8
    headers = {"Content-Type": "application/json"}
    admission = local.service.admission
    parts = 3

    async def slowly() -> Any:
        yield large[:-1]
        await release.wait()
        yield large[-1:]

    release = asyncio.Event()
    async with client(local) as http:
        sent = {**headers, "Content-Length": str(len(large))}
        tasks = [asyncio.create_task(http.post("/embed", content=slowly(), headers=sent)) for _ in range(parts - 1)]
        await until(lambda: admission.bytes == (parts - 1) * len(large))
        refused = await http.post("/embed", content=large, headers=headers)
        assert refused.status_code == 429 and "bytes" in refused.json()["error"]
        release.set()
        for task in tasks:
            await task
    assert admission.requests == admission.bytes == 0


def test_an_answer_that_is_not_taken_keeps_its_place_and_not_for_ever(serve_embedder: GraceEmbedder) -> None:
    """13 MB are more than what the system holds for sockets, and this client reads nothing."""
    body = json.dumps({"inputs": ["the same text"] * 20_000})
    limits = {"max_texts": 20_000, "max_batch": 20_000, "answer_seconds": 1.5, "body_seconds": 1.0}
    with local_server(serve_embedder, **limits) as local, ExitStack() as sockets:
        admission = local.service.admission
        lazy = sockets.enter_context(socket.socket())
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", int(local.url.rpartition(":")[2])))
        lines = ("POST /embed HTTP/1.1", "Host: localhost", "Content-Type: application/json")
        lazy.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode())
        until_now(lambda: admission.bytes > 10 * len(body))
        assert admission.requests == 1
        until_now(lambda: admission.requests == 0)
        assert admission.bytes == 0
        until_now(lambda: not local.connections)  # nor is the answer kept for it


async def test_a_query_overtakes_a_corpus(local: Local) -> None:
    """A large request is cut into calls, between which others have their turn."""
    with local_server(local.service.embedder, max_batch=8) as small, batches(small) as sizes:
        async with client(small) as http:
            with small.held():
                corpus = asyncio.create_task(http.post("/embed", json={"inputs": [f"corpus {n}" for n in range(40)]}))
                await until(lambda: len(sizes) == 1)
                query = asyncio.create_task(http.post("/embed", json={"inputs": "me", "prompt_name": "query"}))
                await until(lambda: len(small.service._batcher._waiting) == 5)
            assert (await query).status_code == (await corpus).status_code == 200
        assert sizes[:2] == [8, 1] and sum(sizes) == 41


def test_metrics_count_texts_tokens_and_the_cache(local: Local) -> None:
    def read() -> dict[str, float]:
        lines = ask(f"{local.url}/metrics").body.decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    texts = ["a text for metrics", "another text for metrics"]
    before = read()
    ask(f"{local.url}/embed", {"inputs": texts, "prompt_name": "query"})
    ask(f"{local.url}/embed", {"inputs": texts, "prompt_name": "query"})
    after = read()
    pipeline = local.service.embedder.pipeline
    tokens = sum(text.text_length for text in pipeline.render(texts))
    written = sum(len(one.token_ids) for one in local.service.embedder.rationales(texts, "query"))
    expected = {
        'grace_texts_total{role="query"}': 4,
        'grace_tokens_total{of="text"}': 2 * tokens,
        'grace_tokens_total{of="rationale"}': written,
        "grace_cache_hits_total": 2,
        "grace_cache_misses_total": 2,
        "grace_batch_texts_count": 2,
        "grace_batch_texts_sum": 4,
        'grace_requests_total{route="/embed",status="200"}': 2,
    }
    assert {name: after[name] - before.get(name, 0) for name in expected} == expected
    assert after["grace_queue_requests"] == after["grace_queue_bytes"] == 0
